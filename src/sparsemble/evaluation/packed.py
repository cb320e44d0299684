"""A model in few bytes: only the weights that are not 0, and a bit for each position."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from sparsemble.core.errors import InputError

VALUES, BITS = "|values", "|bits"


def save_packed(model: nn.Module, path: Path) -> None:
    """Write every tensor of the model, those with many zeros as non-zero values and a bitmap of their positions."""
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        array = tensor.detach().cpu().numpy()
        kept = array != 0
        if array.dtype == np.float32 and 4 * kept.sum() + array.size / 8 < 4 * array.size:
            tensors[name + VALUES] = array[kept]
            tensors[name + BITS] = np.packbits(kept.reshape(-1))
        else:
            tensors[name] = np.ascontiguousarray(array)
    save_file(tensors, path)


def load_packed(path: Path, model: nn.Module) -> None:
    """Fill a model of the same architecture with what `save_packed` wrote, exactly.

    Raises:
        InputError: the file holds other tensors than the model.
    """
    tensors = load_file(path)
    state = model.state_dict()
    names = {name.removesuffix(VALUES).removesuffix(BITS) for name in tensors}
    if names != state.keys():
        odd = sorted(names ^ state.keys())[0]
        raise InputError(f"{path} and the model differ in tensor {odd}; the file belongs to another architecture")
    for name, tensor in state.items():
        if name in tensors:
            array = tensors[name]
        else:
            array = np.zeros(tensor.numel(), dtype=np.float32)
            kept = np.unpackbits(tensors[name + BITS], count=tensor.numel()).astype(bool)
            if kept.sum() != len(tensors[name + VALUES]):
                raise InputError(
                    f"{path} is damaged: {name} has {len(tensors[name + VALUES])} values for {kept.sum()} places"
                )
            array[kept] = tensors[name + VALUES]
            array = array.reshape(tuple(tensor.shape))
        if array.shape != tuple(tensor.shape):
            raise InputError(f"{path}: {name} has shape {array.shape}, the model {tuple(tensor.shape)}")
        state[name] = torch.from_numpy(array)
    model.load_state_dict(state)
