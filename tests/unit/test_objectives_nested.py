"""Objectives made of others hand on what those need: a teacher, how far training is, a gentler attack."""

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Generator, nn

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.ensemble.objectives.eed import EED
from sparsemble.ensemble.objectives.igat import IGAT
from sparsemble.ensemble.objectives.joint import Joint
from sparsemble.training.objective import Crafting, LossOutput, Objective, objectives
from sparsemble.training.objectives.distillation import Distillation
from sparsemble.training.objectives.madry import Madry
from sparsemble.training.objectives.n_fgsm import NFGSM
from sparsemble.training.objectives.weight_perturbation import WeightPerturbation

AROUND = [(EED.name, "base"), (IGAT.name, "base"), (Joint.name, "base"), (WeightPerturbation.name, "inner")]


@dataclass(frozen=True, kw_only=True)
class Late(Crafting):
    """Another objective during the first quarter."""

    def at(self, progress: float) -> Objective:
        return NFGSM() if progress < 0.25 else self

    def images(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        raise AssertionError("not called")

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        raise AssertionError("not called")


@pytest.mark.parametrize(("name", "setting"), AROUND, ids=[name for name, _ in AROUND])
class TestNested:
    def test_every_objective_that_has_a_place_for_another_is_here(self, name: str, setting: str) -> None:
        having = {
            (one, field)
            for one, plug in objectives.plugs.items()
            for field, kind in plug.__annotations__.items()
            if kind in (Objective, Objective | None)
        }
        assert (name, setting) in having
        assert having == set(AROUND)

    def test_hands_on_how_far_training_is(self, name: str, setting: str) -> None:
        late = Late()
        whole: Any = objectives.plugs[name](**{setting: late})
        assert getattr(whole.at(0.1), setting) == NFGSM()
        assert whole.at(0.3) == whole

    def test_hands_on_a_gentler_attack(self, name: str, setting: str) -> None:
        gentler: Any = objectives.plugs[name](**{setting: NFGSM()}).gentler(0.5)  # type: ignore[call-arg]
        assert getattr(gentler, setting) == NFGSM(noise=4.0)
        assert objectives.plugs[name](**{setting: Madry()}).gentler(0.5) is None  # type: ignore[call-arg]

    def test_hands_on_a_teacher(self, name: str, setting: str) -> None:
        teacher = nn.Identity()
        taught: Any = objectives.plugs[name](**{setting: Distillation()}).with_teacher(teacher)  # type: ignore[call-arg]
        assert getattr(taught, setting)._teacher is teacher
        plain: Objective = objectives.plugs[name](**{setting: Madry()})  # type: ignore[call-arg]
        assert plain.with_teacher(teacher) is plain


def test_two_deep() -> None:
    whole: Any = objectives.build({"name": "eed", "base": {"name": "joint", "base": {"name": "n_fgsm"}}})
    assert whole.gentler(0.5).base.base == NFGSM(noise=4.0)
