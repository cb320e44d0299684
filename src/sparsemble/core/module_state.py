"""The tensors of a network, and context managers that set train/eval and BatchNorm modes, or freeze weights."""

import contextlib
import copy
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network's state by name; those of quantised layers, which nest them, as integers.

    What a state holds besides tensors (settings of quantised layers) is left out.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        for i, leaf in enumerate(leaves):
            plain = leaf.detach()
            tensors[name if leaf is value else f"{name}.{i}"] = plain.int_repr() if plain.is_quantized else plain
    return tensors


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set eval mode, and restore the mode of every module at the end."""
    modes = [(module, module.training) for module in model.modules()]
    _set_modes([(module, False) for module, training in modes if training])
    try:
        yield
    finally:
        _set_modes(modes)


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Set the mode of modules, past the checks of `nn.Module.__setattr__`: attacks do so at every training step."""
    for module, training in modes:
        module.__dict__["training"] = training


@contextlib.contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """Stop updates of BatchNorm's running statistics; in train mode it still normalises by the batch."""
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextlib.contextmanager
def batchnorm_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Set eval mode, except for BatchNorm that is in train mode: it normalises by the batch, without any update."""
    training = [module for module in model.modules() if isinstance(module, NORMS) and module.training]
    with eval_mode(model), frozen_batchnorm(model):
        for norm in training:
            norm.training = True
        yield


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Set `requires_grad` of every weight to False, so that gradients for images are cheaper."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside `DataParallel`, `DistributedDataParallel` or what `torch.compile` returned."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def copy_network(model: nn.Module) -> nn.Module:
    """Return a copy of a network, also of one whose hooks keep computed tensors (`weight_norm`, `torch...prune`)."""
    computed = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    # Tensors with a history cannot be copied as such; a hook computes them again at the next forward pass.
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
