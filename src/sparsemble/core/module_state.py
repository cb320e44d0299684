"""Modes of a model, lent and given back: train or eval, whose statistics BatchNorm uses, which weights learn."""

import contextlib
from collections.abc import Iterator

from torch import nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, then every part of it back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics where they are; in train mode it still normalises by the batch's own."""
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
    """Put the model in eval mode, but for BatchNorm in train mode: that normalises by the batch, and moves nothing."""
    learning = [module for module in model.modules() if isinstance(module, NORMS) and module.training]
    with eval_mode(model), frozen_batchnorm(model):
        for norm in learning:
            norm.training = True
        yield


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Let no weight want a gradient, so that passes towards the images keep and compute none."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
