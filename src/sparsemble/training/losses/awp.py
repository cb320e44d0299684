"""Adversarial weight perturbation (Wu et al. 2020)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.core.argument_checks import check_above_zero, check_interval
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
    """Another loss, computed at adversarially perturbed weights.

    Every weight tensor W of two or more dimensions is replaced by W + gamma ||W|| G / ||G||, where G is the gradient of
    the loss on the same images; weights that are 0 (pruned) stay 0. The stored weights do not change: the forward pass
    uses the perturbed ones, and its gradient is applied to the stored ones. Where no such tensor is trained (while
    masks are learned), this is the inner loss.

    Source: Wu et al. 2020, section 4 and algorithm 1, with one ascent step. Departs: losses that are not an
    `AdversarialLoss` (those of ensembles) craft again at the perturbed weights, from the same draws.
    """

    inner: TrainingLoss = PGDAT()
    """The loss that is computed at the perturbed weights."""
    gamma: float = 0.005
    """Norm of the perturbation of each tensor, relative to its own, > 0."""
    warmup: float = 0.0
    """Share of the training before which weights are not perturbed, in [0, 1)."""

    def __post_init__(self) -> None:
        check_above_zero(gamma=self.gamma)
        check_interval("[0, 1)", warmup=self.warmup)

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
        perturbed = [weight + self._step(weight.detach(), g) for weight, g in zip(weights, gradients, strict=True)]
        with _replaced_weights(model, weights, perturbed):
            return loss()

    def _step(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the perturbation of a tensor, of norm gamma ||W||."""
        tiny = torch.finfo(gradient.dtype).tiny
        kept = gradient * (weight != 0)
        kept = kept / kept.abs().amax().clamp_min(tiny)  # so that squares do not underflow
        length: Tensor = self.gamma * weight.norm() / kept.norm().clamp_min(tiny)
        return length * kept

    def at(self, progress: float) -> TrainingLoss:
        """Return the inner loss during the warm-up."""
        inner = self.inner.at(progress)
        return inner if progress < self.warmup else replace(self, inner=inner)


def _outside_parametrizations(model: nn.Module, weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the weights that are not the original of a parametrization."""
    lists = [module for module in model.modules() if isinstance(module, parametrize.ParametrizationList)]
    inside = {id(parameter) for module in lists for parameter in module.parameters()}
    return [weight for weight in weights if id(weight) not in inside]


@contextlib.contextmanager
def _replaced_weights(model: nn.Module, weights: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Use other tensors in place of some weights of a model while the context is open."""
    replacement = {id(weight): tensor for weight, tensor in zip(weights, tensors, strict=True)}
    owners = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in replacement
    ]
    try:
        for module, name, parameter in owners:
            # Directly, because a module refuses a tensor that is no leaf; the order of the parameters stays the same.
            module._parameters[name] = replacement[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in owners:
            module._parameters[name] = parameter
