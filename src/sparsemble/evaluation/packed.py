"""A model in few bytes: only the weights that are not 0, and a bit for each position."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sparsemble.core.artifacts import write_bytes
from sparsemble.core.errors import InputError

VALUES, BITS = "|values", "|bits"


def save_packed(model: nn.Module, path: Path) -> None:
    """Write every parameter and buffer, dense or as non-zero values with a bitmap, whichever takes fewer bytes.

    A tensor T that is packed becomes `T|values`, the entries other than 0 in C order, and `T|bits`, one bit an entry,
    most significant first. `path.stat().st_size` is the honest size of the model.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensors |= _smaller(name, tensor.detach().cpu())
    write_bytes(path, save(tensors))


def load_packed(path: Path, model: nn.Module) -> None:
    """Fill a model of the same architecture with what `save_packed` wrote: equal values, -0 read as 0.

    Raises:
        InputError: the file cannot be read, or its tensors are not those of the model; the model is then unchanged.
    """
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a packed model: {error}") from error
    state = model.state_dict()
    expected = {name: {name} if name in tensors else {name + VALUES, name + BITS} for name in state}
    odd = sorted(tensors.keys() ^ set().union(*expected.values()))
    if odd:
        fault = "has no place for" if odd[0] in tensors else "needs, but the file lacks,"
        name = odd[0].removesuffix(BITS).removesuffix(VALUES)
        raise InputError(f"{path} belongs to another architecture: the model {fault} tensor {name}")
    model.load_state_dict({name: _restore(name, tensors, own, path) for name, own in state.items()})


def _smaller(name: str, tensor: Tensor) -> dict[str, Tensor]:
    kept = tensor != 0
    dense = {name: tensor.clone(memory_format=torch.contiguous_format)}
    packed = {name + VALUES: tensor[kept], name + BITS: torch.from_numpy(np.packbits(kept.numpy()))}
    return min(dense, packed, key=lambda tensors: len(save(tensors)))


def _restore(name: str, tensors: Mapping[str, Tensor], own: Tensor, path: Path) -> Tensor:
    if name in tensors:
        found = tensors[name]
    else:
        values, bits = tensors[name + VALUES], tensors[name + BITS]
        if bits.dtype != torch.uint8 or bits.shape != (-(-own.numel() // 8),):
            raise InputError(f"{path}: the bitmap of {name} does not fit its {own.numel()} entries in the model")
        kept = torch.from_numpy(np.unpackbits(bits.numpy(), count=own.numel()).astype(bool)).reshape(own.shape)
        if values.shape != (int(kept.sum()),):
            raise InputError(f"{path} is damaged: {name} has {values.numel()} values for {int(kept.sum())} positions")
        found = torch.zeros(own.shape, dtype=values.dtype)
        found[kept] = values
    if found.shape != own.shape or found.dtype != own.dtype:
        stored, wanted = f"{tuple(found.shape)} {found.dtype}", f"{tuple(own.shape)} {own.dtype}"
        raise InputError(f"{path}: tensor {name} is {stored}, the model needs {wanted}")
    return found
