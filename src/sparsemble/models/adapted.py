"""A network of the user's read as a classifier: images in [0, 1] to float32 logits of the data's classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
from torch import Tensor, fx, nn

from sparsemble.core.errors import RunError
from sparsemble.core.types import Images, Logits

Reading = Literal["logits", "probabilities", "binary", "binary_probability", "labels"]
"""What the numbers of an output are."""
KEYS = ("logits", "out", "output", "pred")
"""Names under which networks return their logits, likeliest first."""
TINY = 1e-30
"""Probability that stands for 0, whose logarithm is infinite."""


@final
@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What lies between the images and a network, and between its output and the logits."""

    dtype: torch.dtype = torch.float32
    """Of the images that the network takes."""
    output: torch.dtype = torch.float32
    """Of what the network returns."""
    copies: bool = False
    """Whether the network gets a copy, because it changes its input."""
    pairs: bool = False
    """Whether a single image is doubled, because the network takes no batch of one."""
    reading: Reading = "logits"
    classes: int | None = None
    """Number of classes, where the network returns labels."""
    class_map: tuple[int, ...] = ()
    """Output of each class of the data; empty: in their order."""

    @property
    def changes_nothing(self) -> bool:
        """Whether the network can be used as it is, if it returns a tensor (B, K)."""
        return self == Adaptation()

    @property
    def is_coarse(self) -> bool:
        """Whether the network computes in 16 bits, so that small steps of an image vanish in rounding."""
        return bool({self.dtype, self.output} & {torch.float16, torch.bfloat16})


@final
class AdaptedClassifier(nn.Module):
    """A network between the conversions of an `Adaptation`; gradients pass through it."""

    def __init__(self, network: nn.Module, adaptation: Adaptation) -> None:
        super().__init__()
        self.network = network
        self.adaptation = adaptation

    def extra_repr(self) -> str:
        """Return the adaptation, which decides the outputs as the network does."""
        return repr(self.adaptation)

    def forward(self, x: Images) -> Logits:
        """Return float32 logits."""
        how = self.adaptation
        given = x.to(how.dtype)
        if how.copies and given is x:
            given = x.clone()
        doubled = how.pairs and len(x) == 1
        output = find_output(self.network(torch.cat([given, given]) if doubled else given))
        assert isinstance(output, Tensor)
        logits = as_logits(output[:1] if doubled else output, how.reading, how.classes)
        return logits[:, list(how.class_map)] if how.class_map else logits


@final
class NumpyFunction(nn.Module):
    """A function from float32 arrays (B, C, H, W) to scores (B, K) or labels (B); no gradient passes through it."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def extra_repr(self) -> str:
        """Return the name of the function."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)

    def forward(self, x: Images) -> Tensor:
        """Call the function outside torch."""
        return torch.as_tensor(self.function(x.detach().cpu().numpy())).to(x.device)


def find_output(output: Any) -> Tensor | None:
    """Return the tensor of logits in what a network returned; None if it is not clear which.

    Args:
        output: a tensor (or, while a network is traced, what stands for one), a mapping or an object with an entry that
            `KEYS` names, or a sequence whose first entry is one of these (those after it are auxiliary heads, features
            or a loss).
    """
    kinds = (Tensor, fx.Proxy)
    if isinstance(output, kinds):
        return cast(Tensor, output)
    for key in KEYS:
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(found, kinds):
            return cast(Tensor, found)
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, kinds)]
        return cast(Tensor, tensors[0]) if len(tensors) == 1 else None
    if isinstance(output, Sequence) and not isinstance(output, str) and len(output):
        return find_output(output[0])
    return None


def as_logits(output: Tensor, reading: Reading, classes: int | None = None) -> Logits:
    """Return float32 logits.

    Args:
        output: (B, K), (B, K, 1, 1), or (B) and (B, 1) of a binary network or of labels.
        reading: what its numbers are; one number z of a binary network becomes the logits (0, z).
        classes: number of classes, where the output is labels.

    Returns:
        (B, K) in float32.
    """
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    if reading == "labels":
        assert classes is not None
        labels = flat[:, 0].long()
        if not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise RunError(f"the model returned label {int(labels.max())}; the data has classes 0..{classes - 1}")
        return torch.nn.functional.one_hot(labels, classes).float()
    flat = flat.float()
    if reading == "binary":
        return torch.cat([torch.zeros_like(flat), flat], dim=1)
    if reading == "binary_probability":
        return torch.cat([1 - flat, flat], dim=1).clamp_min(TINY).log()
    return flat.clamp_min(TINY).log() if reading == "probabilities" else flat
