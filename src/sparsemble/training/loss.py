"""The interface of training losses: one signature for single models, sparse models and ensembles."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.module_state import batchnorm_batch_statistics, eval_mode, frozen_weights
from sparsemble.core.registry import Component, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits


@dataclass(frozen=True)
class LossOutput:
    """A loss with its terms, for the history."""

    loss: Tensor
    """Differentiable scalar."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Terms of the loss: detached scalars, by name."""
    adversarial: Images | None = None
    """The adversarial images crafted against the whole model, where the loss crafts any."""


class TrainingLoss(Component):
    """A training loss; its forward passes update BatchNorm statistics, and it changes nothing else of the model."""

    needs_ensemble: ClassVar[bool] = False
    """Whether it is defined for ensembles only."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch.

        Args:
            model: in training mode.
            x: (B, C, H, W) in [0, 1].
            y: (B) true classes.
            threat: where adversarial images may lie.
            rng: draws random starts, on the device of `x`.
        """

    def prepare(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Callable[[], LossOutput]:
        """Return a function that computes the loss of a batch at the current weights, each time with the same draws.

        An `AdversarialLoss` crafts its images here, once; other losses are computed from the start at every call.

        Args:
            model: in training mode.
            x: (B, C, H, W) in [0, 1].
            y: (B) true classes.
            threat: where adversarial images may lie.
            rng: draws random starts, on the device of `x`.
        """
        state = rng.get_state()

        def loss() -> LossOutput:
            rng.set_state(state)
            return self(model, x, y, threat, rng=rng)

        return loss

    def with_weaker_attack(self, factor: float) -> "TrainingLoss | None":
        """Return this loss with an attack less prone to catastrophic overfitting, or None if it has no such setting."""
        changed = {name: inner.with_weaker_attack(factor) for name, inner in self._inner()}
        weaker = {name: inner for name, inner in changed.items() if inner is not None}
        return replace(self, **weaker) if weaker else None  # type: ignore[type-var]

    def at(self, progress: float) -> "TrainingLoss":
        """Return the loss that holds at this share of training, in [0, 1]; it differs during a warm-up."""
        return self._changed({name: inner.at(progress) for name, inner in self._inner()})

    def with_teacher(self, teacher: Classifier) -> "TrainingLoss":
        """Return this loss with a trained model, in eval mode, as its teacher; most losses ignore it."""
        return self._changed({name: inner.with_teacher(teacher) for name, inner in self._inner()})

    def check_complete(self) -> None:
        """Refuse a loss that lacks what it learns from, such as a teacher; called before images are crafted.

        Raises:
            InputError: what is missing.
        """
        for _, inner in self._inner():
            inner.check_complete()

    def _inner(self) -> "list[tuple[str, TrainingLoss]]":
        """Return the losses among the settings of this one, by the name of the setting."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, TrainingLoss)]

    def _changed(self, inner: "dict[str, TrainingLoss]") -> "TrainingLoss":
        """Return this loss with other inner losses; itself if they are the same objects."""
        same = all(getattr(self, name) is value for name, value in inner.items())
        return self if same else replace(self, **inner)  # type: ignore[type-var]


class AdversarialLoss(TrainingLoss):
    """A loss in two steps, so that others can act between them: craft adversarial images, then compute the loss."""

    @abstractmethod
    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Return the adversarial images of a batch; the model is not changed.

        Args:
            model: in training mode.
            x: (B, C, H, W) in [0, 1].
            y: (B) true classes.
            threat: where adversarial images may lie.
            rng: draws random starts, on the device of `x`.
        """

    @abstractmethod
    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the loss of a batch.

        Args:
            model: in training mode.
            x: (B, C, H, W) in [0, 1].
            x_adv: (B, C, H, W), its adversarial images.
            y: (B) true classes.
        """

    @final
    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Craft adversarial images and return the loss."""
        self.check_complete()
        return self.loss(model, x, self.adversarial_images(model, x, y, threat, rng=rng), y)

    @final
    def prepare(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Callable[[], LossOutput]:
        """Craft adversarial images and return a function that computes the loss on them at the current weights."""
        self.check_complete()
        x_adv = self.adversarial_images(model, x, y, threat, rng=rng)
        return lambda: self.loss(model, x, x_adv, y)


@dataclass(frozen=True, kw_only=True)
class CraftedLoss(AdversarialLoss):
    """A loss of the images that an attack on the network crafts."""

    attack: Attack = PGD(steps=10, keep_best=False)
    """Crafts the adversarial images."""
    batch_norm: Literal["eval", "train"] = "eval"
    """Whether BatchNorm normalises by its running statistics (eval) or the batch's (train) while crafting."""

    @final
    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Craft images with the attack."""
        return craft(model, self.attack, x, y, threat, rng=rng, batch_norm=self.batch_norm)


def nested_losses(training_loss: TrainingLoss) -> Iterator[TrainingLoss]:
    """Yield a loss and the losses in its settings, recursively."""
    yield training_loss
    for _, inner in training_loss._inner():
        yield from nested_losses(inner)


def craft(
    model: nn.Module,
    attack: Attack,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    *,
    rng: Generator,
    target: Classifier | None = None,
    batch_norm: Literal["eval", "train"] = "eval",
) -> Images:
    """Craft adversarial images without gradients of the weights; mode, statistics and weights are not changed.

    Args:
        model: the module whose mode is set while crafting.
        attack: the attack.
        x: (B, C, H, W) in [0, 1].
        y: (B) true classes.
        threat: where adversarial images may lie.
        rng: draws random starts, on the device of `x`.
        target: the function that is attacked, if it is not the model itself.
        batch_norm: whether BatchNorm normalises by its running statistics (eval) or by those of the batch (train).

    Returns:
        (B, C, H, W) in [0, 1], inside the threat model.
    """
    mode = {"eval": eval_mode, "train": batchnorm_batch_statistics}[batch_norm]
    with mode(model), frozen_weights(model):
        return attack(target or model, x, y, threat, rng=rng)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in at least 32 bits, which logarithms need."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Logits, y: Labels, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy.

    Args:
        logits: (B, K).
        y: (B) true classes.
        label_smoothing: share of each label that is spread evenly over all classes, in [0, 1).
    """
    return F.cross_entropy(at_least_float32(logits), y, label_smoothing=label_smoothing)


training_losses: Registry[TrainingLoss] = Registry("loss", TrainingLoss)
"""Training losses, one file each."""
