"""The proof that a network that was rewritten computes what the original computes."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.module_state import eval_mode
from sparsemble.core.source_file import first_line
from sparsemble.core.types import Images, seeded

TOLERANCE = 1e-4
"""Of logits, relative to the largest where that is above 1."""
IMAGES = 4
"""Images of noise that two networks are compared on."""


def relative_difference(reference: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest number of the reference where that is above 1."""
    if not reference.numel():
        return 0.0
    return float((reference - other).abs().max()) / max(1.0, float(reference.abs().max()))


def noise_for(model: nn.Module, shape: tuple[int, int, int], count: int = IMAGES) -> Images:
    """Return random images in [0, 1], the same at every call, with the dtype and on the device of a model.

    Args:
        model: its first floating-point tensor decides.
        shape: channels, height and width.
        count: number of images, >= 1.
    """
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    images = torch.rand(count, *shape, generator=seeded(0))
    example = next(tensors, images)
    return images.to(example.device, example.dtype)


@torch.no_grad()
def assert_same_outputs(before: nn.Module, after: nn.Module, shape: tuple[int, int, int], change: str) -> None:
    """Compare two networks in eval mode on random images; every rewriting of a network ends with it.

    Args:
        before: the original; left as found.
        after: what it was rewritten to; left as found.
        shape: channels, height and width of an image.
        change: what was done, as in "without its dead channels", for the message.

    Raises:
        InputError: the logits are not finite, the second network cannot run, or they differ by more than `TOLERANCE`.
    """
    name = type(getattr(before, "body", before)).__name__
    reference = _outputs(before, shape).float().cpu()
    if not reference.isfinite().all():
        raise InputError(f"{name} returns NaN or infinite logits on random images")
    try:
        outputs = _outputs(after, shape).float().cpu()
    except Exception as error:
        raise InputError(
            f"{name} cannot run {change}: {first_line(error)}; its forward pass depends on sizes that change"
        ) from error
    same_shape = outputs.shape == reference.shape
    difference = relative_difference(reference, outputs) if same_shape else torch.inf
    if not difference <= TOLERANCE:
        raise InputError(
            f"{name} computes something else {change}: logits differ by {difference:.2g} (allowed {TOLERANCE:g}), so "
            "one of its operations is not what it looks like (a forward hook, a tensor changed in place, chance)"
        )


def _outputs(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    exact: Any = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with eval_mode(model), exact:
        outputs = model(noise_for(model, shape))
    if not isinstance(outputs, Tensor):
        raise InputError(f"a network must return a tensor of logits, got {type(outputs).__name__}")
    return outputs
