"""Whether the runtime can run a network: asked before any work, as the stages that need it come last."""

import torch
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.evaluation.folded import FoldedNetwork
from sparsemble.export.agreement import TOLERANCE, relative_difference
from sparsemble.export.convert import convert_model
from sparsemble.runtime.errors import RuntimeInputError

IMAGES = 8
"""Images of noise that the network and what it is converted to are compared on."""
INSTEAD = "change it, or run `sparsemble evaluate`, which ends before the ensemble is timed in the runtime and exported"


@torch.no_grad()
def check_deployable(model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Convert a network, trained or not, and compare the answers.

    Args:
        model: in eval mode; left as found.
        shape: channels, height and width of an image.

    Raises:
        InputError: an operation that the runtime does not know, named with its place, or one that becomes another.
    """
    try:
        folded = FoldedNetwork(convert_model(model, shape))
    except (InputError, RuntimeInputError) as error:
        raise InputError(f"{error}; {INSTEAD}") from None
    x = torch.rand(IMAGES, *shape, generator=seeded(0))
    wanted = model(x.to(next(model.parameters()).device)).cpu()
    apart = relative_difference(wanted, folded(x))
    if not apart <= TOLERANCE:
        raise InputError(
            f"the runtime would answer other than {type(model).__name__}: logits differ by {apart:.2g} (allowed "
            f"{TOLERANCE:g}), so an operation of it means something else there; {INSTEAD}"
        )
