"""Adversarially robust distillation (Goldblum et al. 2020)."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from sparsemble.attacks.losses.kl import KL
from sparsemble.core.argument_checks import check_above_zero, check_interval
from sparsemble.core.errors import InputError
from sparsemble.core.types import Classifier, Images, Labels
from sparsemble.training.loss import CraftedLoss, LossOutput, at_least_float32, cross_entropy, training_losses


@final
@training_losses.register("distillation")
@dataclass(frozen=True, kw_only=True)
class Distillation(CraftedLoss):
    """Divergence of the prediction on adversarial images from the teacher's on clean ones; the dense parent teaches.

    alpha T^2 KL(teacher(x) || model(x_adv)), both at temperature T, plus (1 - alpha) CE(model(x), y).

    Source: Goldblum et al. 2020 (ARD), with the defaults of their code. Departs: the divergence is summed over classes,
    where their code averages; with alpha = 1 there is no forward pass of clean images.
    """

    alpha: float = 1.0
    """Weight of the divergence, in [0, 1]; the rest is cross-entropy on clean images."""
    temperature: float = 30.0
    """Divisor of the logits before the softmax, > 0."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in [0, 1)."""

    # Not a setting: the teacher is an input of the stage, which a recipe cannot name.
    _teacher: ClassVar[Any] = None

    def __post_init__(self) -> None:
        check_interval("[0, 1)", label_smoothing=self.label_smoothing)
        check_interval("[0, 1]", alpha=self.alpha)
        check_above_zero(temperature=self.temperature)

    def with_teacher(self, teacher: Classifier) -> "Distillation":
        """Return an equal loss with this teacher."""
        copied = copy.copy(self)
        object.__setattr__(copied, "_teacher", teacher)
        return copied

    def check_complete(self) -> None:
        """Refuse to train without a teacher."""
        if self._teacher is None:
            raise InputError("distillation needs a teacher; use it where sparse models of a dense parent are trained")

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the mean loss."""
        self.check_complete()
        with torch.no_grad():
            target = at_least_float32(self._teacher(x)) / self.temperature
        student = at_least_float32(model(x_adv)) / self.temperature
        distance = self.temperature**2 * KL()(student, target, y).mean()
        loss, terms = self.alpha * distance, {"distance": distance.detach()}
        if self.alpha < 1:
            standard = cross_entropy(model(x), y, self.label_smoothing)
            loss, terms["standard"] = loss + (1 - self.alpha) * standard, standard.detach()
        return LossOutput(loss, terms, x_adv)
