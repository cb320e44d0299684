"""Adversarial weight perturbation (Wu et al. 2020)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.core.errors import InputError
from sparsemble.core.module_state import frozen_batchnorm
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.training import distributed
from sparsemble.training.loss import LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.pgd_at import PGDAT


@final
@training_losses.register("awp")
@dataclass(frozen=True, kw_only=True)
class AWP(TrainingLoss):
    """Another objective, its loss and gradient taken where nearby weights make it worst.

    Every weight tensor W of two or more dimensions is seen as W + gamma ||W|| G / ||G||, where G is the gradient of
    the loss on the same images; weights that are 0 (pruned) stay 0. The weights themselves never move: the network
    computes with others for a pass, whose gradient is the weights' own. Where no such tensor is trained (while masks
    are learned), this is the other objective.

    Source: Wu et al. 2020, section 4 and algorithm 1, with one ascent step. Departs: losses that do not craft
    first (those of ensembles) craft anew at the perturbed weights, from the same draws.
    """

    inner: TrainingLoss = PGDAT()
    """What is made worst."""
    gamma: float = 0.005
    """Norm of the perturbation of each tensor, relative to its own, > 0."""
    warmup: float = 0.0
    """Share of the training before which weights are not perturbed, in [0, 1)."""

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"gamma = {self.gamma:g} must be above 0")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup = {self.warmup:g} must lie in [0, 1) (it is a share of the training)")

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss at the perturbed weights."""
        loss = self.inner.prepare(model, x, y, threat, rng=rng)
        weights = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
        weights = _outside_parametrizations(model, weights)
        if not weights:
            return loss()
        with frozen_batchnorm(model):
            gradients = torch.autograd.grad(loss().loss, weights, allow_unused=True, materialize_grads=True)
        distributed.average_(gradients)
        worse = [weight + self._step(weight.detach(), g) for weight, g in zip(weights, gradients, strict=True)]
        with seen_as(model, weights, worse):
            return loss()

    def _step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the perturbation of a tensor, gamma ||W|| long."""
        tiny = torch.finfo(gradient.dtype).tiny
        kept = gradient * (weight != 0)
        kept = kept / kept.abs().amax().clamp_min(tiny)  # its squares may be below what a float holds
        length: Tensor = self.gamma * weight.norm() / kept.norm().clamp_min(tiny)
        return length * kept

    def at(self, progress: float) -> TrainingLoss:
        """Return the other objective during the warm-up."""
        inner = self.inner.at(progress)
        return inner if progress < self.warmup else replace(self, inner=inner)


def _outside_parametrizations(model: nn.Module, weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return those that the network computes with directly."""
    lists = [module for module in model.modules() if isinstance(module, parametrize.ParametrizationList)]
    inside = {id(parameter) for module in lists for parameter in module.parameters()}
    return [weight for weight in weights if id(weight) not in inside]


@contextlib.contextmanager
def seen_as(model: nn.Module, weights: Sequence[nn.Parameter], others: Sequence[Tensor]) -> Iterator[None]:
    """Let a model compute with other tensors in place of some weights; these do not move."""
    replacement = {id(weight): other for weight, other in zip(weights, others, strict=True)}
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in replacement
    ]
    try:
        for module, name, parameter in places:
            # Past the check that wants a leaf here; the order of the parameters stays as it is.
            module._parameters[name] = replacement[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
