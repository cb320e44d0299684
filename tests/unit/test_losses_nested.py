"""Objectives made of others hand on what those need: a teacher, how far training is, a gentler attack."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, nn

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.ensemble.losses.eed import EED
from sparsemble.ensemble.losses.igat import IGAT
from sparsemble.ensemble.losses.joint import Joint
from sparsemble.training.loss import AdversarialLoss, LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.awp import AWP
from sparsemble.training.losses.cutmix import CutMix
from sparsemble.training.losses.distillation import Distillation
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.losses.warm_start import WarmStart
from tests.helpers import small_network

AROUND = [
    *((loss.name, "base") for loss in (EED, IGAT, Joint)),
    *((loss.name, "inner") for loss in (AWP, CutMix, WarmStart)),
]


@dataclass(frozen=True, kw_only=True)
class Late(AdversarialLoss):
    """Another objective during the first quarter."""

    def at(self, progress: float) -> TrainingLoss:
        return NFGSM() if progress < 0.25 else self

    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        raise AssertionError("not called")

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        raise AssertionError("not called")


@pytest.mark.parametrize(("name", "setting"), AROUND, ids=[name for name, _ in AROUND])
class TestNested:
    def test_every_objective_that_has_a_place_for_another_is_here(self, name: str, setting: str) -> None:
        having = {
            (one, field)
            for one, component in training_losses.components.items()
            for field, kind in component.__annotations__.items()
            if kind in (TrainingLoss, TrainingLoss | None)
        }
        assert (name, setting) in having
        assert having == set(AROUND)

    def test_hands_on_how_far_training_is(self, name: str, setting: str) -> None:
        late = Late()
        whole: Any = training_losses.components[name](**{setting: late})
        assert getattr(whole.at(0.1), setting) == NFGSM()
        assert whole.at(0.3) == whole

    def test_hands_on_a_gentler_attack(self, name: str, setting: str) -> None:
        with_weaker_attack: Any = training_losses.components[name](**{setting: NFGSM()}).with_weaker_attack(0.5)  # type: ignore[call-arg]
        assert getattr(with_weaker_attack, setting) == NFGSM(noise=4.0)
        assert training_losses.components[name](**{setting: PGDAT()}).with_weaker_attack(0.5) is None  # type: ignore[call-arg]

    def test_hands_on_a_teacher(self, name: str, setting: str) -> None:
        teacher = nn.Identity()
        taught: Any = training_losses.components[name](**{setting: Distillation()}).with_teacher(teacher)  # type: ignore[call-arg]
        assert getattr(taught, setting)._teacher is teacher
        plain: TrainingLoss = training_losses.components[name](**{setting: PGDAT()})  # type: ignore[call-arg]
        assert plain.with_teacher(teacher) is plain


def test_two_deep() -> None:
    whole: Any = training_losses.build({"name": "eed", "base": {"name": "joint", "base": {"name": "n_fgsm"}}})
    assert whole.with_weaker_attack(0.5).base.base == NFGSM(noise=4.0)


def test_a_warm_start_is_standard_training_and_then_the_loss_inside() -> None:
    loss = WarmStart(share=0.2, inner=NFGSM(noise=1.5))
    assert loss.at(0.19) == Standard()
    assert loss.at(0.2) == loss
    x, y = torch.rand(4, 1, 4, 4, generator=seeded(1)), torch.tensor([0, 1, 2, 0])
    values = [one(small_network(), x, y, ThreatModel(eps=0.1), rng=seeded(2)).loss for one in (loss, loss.inner)]
    assert values[0] == values[1]
