"""Masks: which weights of a model stay; the only definition of sparsity."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.models.plain_network import check_plain, prunable_layers, separate_
from sparsemble.training.callbacks import Callback


def keep_top(scores: Tensor, count: int) -> Tensor:
    """Return a boolean tensor of the shape of `scores`, true at the `count` highest; ties go to earlier weights."""
    if not 0 <= count <= scores.numel():
        raise InputError(f"cannot keep {count} of {scores.numel()} weights")
    if scores.isnan().any():
        raise InputError("scores are NaN; the model they come from has NaN weights or gradients")
    flat = scores.detach().reshape(-1)
    if count == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    keep, ties = flat > threshold, flat == threshold
    keep |= ties & (ties.cumsum(0) <= count - keep.sum())
    return keep.reshape(scores.shape)


@final
class Mask(Mapping[str, Tensor]):
    """For each prunable layer, by name, a boolean tensor of its weight's shape: true where the weight stays."""

    def __init__(self, keep: Mapping[str, Tensor]) -> None:
        """Take the tensor of each layer; one of numbers that are 0 or 1 is converted.

        Raises:
            InputError: other numbers, or no tensor.
        """
        self._keep = {name: _as_booleans(name, tensor) for name, tensor in keep.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(keep.numel() for keep in self.values())

    @property
    def nonzeros(self) -> int:
        """Number of weights that stay."""
        return sum(int(keep.sum()) for keep in self.values())

    @property
    def sparsity(self) -> float:
        """Fraction of prunable weights that are removed, in [0, 1]."""
        return 1 - self.nonzeros / self.total if self.total else 0.0

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Set the removed weights of a model to 0; layers that share a weight get copies of their own.

        Raises:
            InputError: the model has other layers, or computes a weight from other tensors.
        """
        separate_(model)
        layers = prunable_layers(model)
        for name in layers.keys() ^ self.keys():
            raise InputError(f"the mask and the model differ in layer {name}; it belongs to another architecture")
        for name, layer in layers.items():
            if layer.weight.shape != self[name].shape:
                raise InputError(
                    f"layer {name} has weights {tuple(layer.weight.shape)}, its mask {tuple(self[name].shape)}; "
                    "the mask belongs to another architecture"
                )
            check_plain(name, layer)
            layer.weight.mul_(self[name].to(layer.weight.device))

    def save(self, path: Path) -> None:
        """Write the mask as safetensors, with its counts as metadata."""
        counts = {"weights": str(self.total), "nonzeros": str(self.nonzeros)}
        save_file({name: keep.cpu().contiguous() for name, keep in self.items()}, path, metadata=counts)

    @classmethod
    def load(cls, path: Path) -> "Mask":
        """Read a mask that `save` wrote, and verify its counts."""
        try:
            with safe_open(path, "pt") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read as a mask: {error}") from None
        if any(keep.dtype != torch.bool for keep in tensors.values()):
            raise InputError(f"{path} is no mask: a mask holds only true and false")
        mask = cls(tensors)
        if metadata != {"weights": str(mask.total), "nonzeros": str(mask.nonzeros)}:
            raise InputError(
                f"{path} claims to keep {metadata.get('nonzeros', 'nothing')} of {metadata.get('weights', '?')} "
                f"weights, but keeps {mask.nonzeros} of {mask.total}; the file was changed"
            )
        return mask

    @classmethod
    def of(cls, model: nn.Module) -> "Mask":
        """Return the mask of the weights that are not 0."""
        return cls({name: layer.weight.detach() != 0 for name, layer in prunable_layers(model).items()})


def _as_booleans(name: str, keep: Tensor) -> Tensor:
    """Return the mask of a layer as booleans."""
    if isinstance(keep, Tensor) and keep.dtype == torch.bool:
        return keep
    if not isinstance(keep, Tensor) or not bool(((keep == 0) | (keep == 1)).all()):
        kind = f"other numbers ({keep.dtype})" if isinstance(keep, Tensor) else type(keep).__name__
        raise InputError(f"the mask of layer {name} must be a tensor of true and false, or of 1 and 0, got {kind}")
    return keep == 1


@final
class KeepZero(Callback):
    """Sets pruned weights to 0 after every step, so that none of them returns.

    With an elementwise optimiser the kept weights move exactly as if the others did not exist.
    """

    def __init__(self, mask_of: Mapping[str, Mask]) -> None:
        """Apply a mask to each named sub-module; the name "" means the model itself."""
        self.mask_of = mask_of
        self._pairs: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Set the pruned weights to 0 again."""
        if not self._pairs:
            for name, mask in self.mask_of.items():
                layers = prunable_layers(model.get_submodule(name))
                for key in mask:
                    check_plain(key, layers[key])
                self._pairs += [(layers[key].weight, keep.to(layers[key].weight)) for key, keep in mask.items()]
        for weight, keep in self._pairs:
            weight.mul_(keep)


def jaccard(a: Mask, b: Mask) -> float:
    """Return the overlap of two masks: weights kept by both over weights kept by either, in [0, 1]."""
    for name in sorted(a.keys() ^ b.keys()):
        raise InputError(f"the masks differ in layer {name}; they belong to different architectures")
    both = sum(int((a[name] & b[name]).sum()) for name in a)
    either = sum(int((a[name] | b[name]).sum()) for name in a)
    return both / either if either else 1.0
