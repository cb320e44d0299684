"""EED's ensemble loss (main paper, eqs. 14-19)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.ensemble.losses.dverge import DVERGE
from sparsemble.ensemble.member_losses import EnsembleLoss, as_ensemble
from sparsemble.training.loss import LossOutput, TrainingLoss, craft, training_losses

LARGEST_WRONG = 0.99
"""Wrong-class probability at which L_R is clipped."""
EDGE = 0.05
"""Activation that counts as half active, in units of the root mean square of its layer."""


@final
@training_losses.register("eed")
@dataclass(frozen=True, kw_only=True)
class EED(EnsembleLoss):
    """L_E + omega L_R + gamma L_C: robust and diverse members, no confident mistakes, compact weights and activations.

    L_R = mean of psi (-log(1 - min(p*, 0.99))), with p* the highest wrong-class probability of any member on images
    crafted on the ensemble (by `base`, or else by `attack`) and psi = 1 where the ensemble misclassifies them.
    L_C = lambda1 mean_i ||W_i||_1 / ||M_i||_0 + lambda2 mean over all ReLUs of a smooth share of active units.

    Source: EED main paper, eqs. 16-19, L_C and the sum; eq. 14 is `dverge`, eq. 15 `misclassification`.
    Departs: mean weight and a smooth share of active units in L_C (the printed norms are unbounded or constant); masks
    stay hard.
    """

    base: TrainingLoss = DVERGE()
    """L_E: the loss of the members, with its diversity term."""
    omega: float = 10.0
    """Weight of L_R, >= 0."""
    gamma: float = 4.0
    """Weight of L_C, >= 0."""
    lambda1: float = 0.7
    """Weight of the weights in L_C, >= 0."""
    lambda2: float = 0.25
    """Weight of the activations in L_C, >= 0."""

    def __post_init__(self) -> None:
        check_at_least(0, omega=self.omega, gamma=self.gamma, lambda1=self.lambda1, lambda2=self.lambda2)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch."""
        model = as_ensemble(model, self)
        output = self.base(model, x, y, threat, rng=rng)
        x_adv = output.adversarial
        if x_adv is None and (self.omega or self.gamma):
            x_adv = craft(model, self.attack, x, y, threat, rng=rng)
        if x_adv is None:
            return output
        with contextlib.ExitStack() as stack:
            activations = stack.enter_context(recorded_activations(model)) if self.gamma * self.lambda2 else []
            member_logits = model.member_logits(x_adv)
        mistakes = misclassification(member_logits, model.combiner(member_logits), y)
        compact = self.lambda1 * mean_absolute_weight(model)
        if activations:
            compact = compact + self.lambda2 * torch.stack([active_share(a, EDGE) for a in activations]).mean()
        loss = output.loss + self.omega * mistakes + self.gamma * compact
        terms = {"misclassification": mistakes.detach(), "compactness": compact.detach()}
        return replace(output, loss=loss, terms={**output.terms, **terms}, adversarial=x_adv)


def misclassification(member_logits: Tensor, ensemble_logits: Tensor, y: Labels) -> Tensor:
    """Return L_R: the mean of -log(1 - p*) over images, counting only those that the ensemble misclassifies.

    Args:
        member_logits: (M, B, K); p* is the highest probability of a wrong class in any member, clipped at 0.99.
        ensemble_logits: combined logits (B, K).
        y: true classes (B).

    Source: EED main paper, eq. 15. Departs: wrong classes only, one psi an image, clipped.
    """
    wrong = member_logits.softmax(-1).scatter(2, y.expand(len(member_logits), -1).unsqueeze(-1), 0.0)
    highest = wrong.amax((0, 2)).clamp_max(LARGEST_WRONG)
    errs = (ensemble_logits.argmax(1) != y).to(highest.dtype)
    return (errs * -torch.log1p(-highest)).mean()


def mean_absolute_weight(model: Ensemble) -> Tensor:
    """Return the mean absolute kept weight ||W_i||_1 / ||M_i||_0, averaged over members.

    Source: EED main paper, eqs. 16-18, first term of L_C.
    """
    means = []
    for member in model.members:
        weights = [m.weight for m in member.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        nonzeros = sum(int((w != 0).sum()) for w in weights)
        means.append(torch.stack([w.abs().sum() for w in weights]).sum() / nonzeros)
    return torch.stack(means).mean()


@contextlib.contextmanager
def recorded_activations(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record the output of every ReLU while the context is open."""
    outputs: list[Tensor] = []

    def record(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output.float())

    handles = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def active_share(activation: Tensor, scale: float) -> Tensor:
    """Return the smooth share of an activation that is not 0: mean of a^2 / (a^2 + e^2), e = scale * rms (detached).

    Source: EED main paper, eqs. 16-18, second term of L_C.
    """
    square = activation.square()
    edge = scale**2 * square.detach().mean().clamp_min(1e-12)
    return torch.mean(square / (square + edge))
