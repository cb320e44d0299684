"""What training minimises: one signature for single models, sparse models and ensembles."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.errors import InputError
from sparsemble.core.module_state import batchnorm_batch_statistics, eval_mode, frozen_weights
from sparsemble.core.registry import Component, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits


@dataclass(frozen=True)
class LossOutput:
    """A loss to go down, and what is worth writing into the history."""

    loss: Tensor
    """Scalar with a gradient."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Parts of the loss, detached scalars, by name."""
    adversarial: Images | None = None
    """The adversarial images crafted against the whole model, where the objective made some."""


class TrainingLoss(Component):
    """A training loss; it may move BatchNorm by its training passes and changes nothing else."""

    needs_ensemble: ClassVar[bool] = False
    """Whether it compares members, and so means nothing for a single network."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch; the model is in training mode."""

    def prepare(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Callable[[], LossOutput]:
        """Return what computes the loss of a batch at the weights of the moment, with the same draws every time.

        Objectives that craft first (`AdversarialLoss`) do so here, once; others start from the beginning at every call.
        """
        state = rng.get_state()

        def loss() -> LossOutput:
            rng.set_state(state)
            return self(model, x, y, threat, rng=rng)

        return loss

    def with_weaker_attack(self, factor: float) -> "TrainingLoss | None":
        """Return this objective with attacks less prone to collapse; only single-step ones have such a knob."""
        changed = {name: inner.with_weaker_attack(factor) for name, inner in self._inner()}
        found = {name: inner for name, inner in changed.items() if inner is not None}
        return replace(self, **found) if found else None  # type: ignore[type-var]

    def at(self, progress: float) -> "TrainingLoss":
        """Return what this objective is after a share of the training, in [0, 1]; it differs where one warms up."""
        return self._changed({name: inner.at(progress) for name, inner in self._inner()})

    def with_teacher(self, teacher: Classifier) -> "TrainingLoss":
        """Return this objective with a trained model to learn from, in eval mode; most have no use for one."""
        return self._changed({name: inner.with_teacher(teacher) for name, inner in self._inner()})

    def _inner(self) -> "list[tuple[str, TrainingLoss]]":
        """Return the losses that this one is made of, by the setting that holds them."""
        return [(name, value) for name, value in vars(self).items() if isinstance(value, TrainingLoss)]

    def _changed(self, inner: "dict[str, TrainingLoss]") -> "TrainingLoss":
        """Return this objective with others in these settings; itself where they are those it has."""
        same = all(getattr(self, name) is value for name, value in inner.items())
        return self if same else replace(self, **inner)  # type: ignore[type-var]


class AdversarialLoss(TrainingLoss):
    """An objective in two halves, so that another may come between them: craft images, then take the loss on them."""

    @abstractmethod
    def images(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Craft the adversarial images of a batch; the model is left as found."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the loss of a batch whose adversarial images are there."""

    @final
    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Craft, and return the loss."""
        return self.loss(model, x, self.images(model, x, y, threat, rng=rng), y)

    @final
    def prepare(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Callable[[], LossOutput]:
        """Craft, and return what computes the loss at the weights of the moment."""
        x_adv = self.images(model, x, y, threat, rng=rng)
        return lambda: self.loss(model, x, x_adv, y)


def parts(training_loss: TrainingLoss) -> Iterator[TrainingLoss]:
    """Yield an objective and all that it is made of."""
    yield training_loss
    for _, inner in training_loss._inner():
        yield from parts(inner)


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
    """Make adversarial images without gradients of weights; mode, statistics and weights are left as found.

    Args:
        model: the module whose mode is switched.
        attack: how to search.
        x: (B, C, H, W) in [0, 1].
        y: (B) true classes.
        threat: where to search.
        rng: draws random starts.
        target: what to climb where it is not the model itself.
        batch_norm: what BatchNorm normalises by: its running statistics (eval), or those of the batch (train).
    """
    mode = {"eval": eval_mode, "train": batchnorm_batch_statistics}[batch_norm]
    with mode(model), frozen_weights(model):
        return attack(target or model, x, y, threat, rng=rng)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in at least 32 bits, as logarithms need them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(logits: Logits, y: Labels, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy, a share of every label spread evenly over all classes."""
    return F.cross_entropy(at_least_float32(logits), y, label_smoothing=label_smoothing)


def check_label_smoothing(label_smoothing: float) -> None:
    """Refuse a share that is none.

    Raises:
        InputError: it lies outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing = {label_smoothing:g} must lie in [0, 1)")


training_losses: Registry[TrainingLoss] = Registry("loss", TrainingLoss)
"""Training losses, one file each."""
