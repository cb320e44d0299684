"""Attacks search on a faster copy of a model, where it computes the same; the model itself decides what they found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sparsemble.attacks.bpda import BPDA
from sparsemble.attacks.ddn import DDN
from sparsemble.attacks.deepfool import DeepFool
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.joint_decision import JointDecision
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.minimum_norm import MinimumNorm, minimum_on_copy
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.pass_counter import StandIn, count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Logits, seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.agreement import Agreement
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.run_attacks import Outcomes, run_attacks
from sparsemble.evaluation.search_copy import SIDE_BY_SIDE, SearchCopy, may_search_on_copy
from sparsemble.models import architectures, build_model
from tests.helpers import margin, predicted, random_split, tiny_ensemble

SHAPE = (2, 8, 8)
THREAT = ThreatModel(eps=0.05)


def network(layout: str = "tiny", *, width: int = 2, seed: int = 0, mean: float = 0.4) -> nn.Module:
    """Return a network in eval mode, whose BatchNorm has statistics of its own."""
    body = architectures.build({"name": layout, "width": width})
    model = build_model(body, SHAPE, 3, (mean,) * 2, (0.3,) * 2, rng=seeded(seed))
    rng = seeded(seed + 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for near_one in (module.weight.data, module.running_var):
                near_one.uniform_(0.5, 1.5, generator=rng)
            for near_zero in (module.bias.data, module.running_mean):
                near_zero.normal_(std=0.3, generator=rng)
    return model.eval()


def ensemble_of(*members: nn.Module) -> Ensemble:
    return Ensemble(members, MeanProbability()).eval()


def some_images(count: int = 6) -> Images:
    return torch.rand(count, *SHAPE, generator=seeded(3))


def with_gradient(model: nn.Module, x: Images) -> tuple[Logits, Images]:
    point = x.clone().requires_grad_()
    logits = model(point)
    return logits.detach(), torch.autograd.grad(logits[:, 0].sum(), point)[0]


def assert_copied(model: nn.Module, x: Images) -> nn.Module:
    """Return the copy, another network with the same logits and gradients."""
    copy = SearchCopy().of(model, x)
    assert copy is not model
    for found, wanted in zip(with_gradient(copy, x), with_gradient(model, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    return copy


def evaluated(model: nn.Module, *attacks: AnyAttack, **more: Any) -> Outcomes:
    split = random_split(30, SHAPE)
    split.labels[::2] = predicted(model, split.tensors()[0])[::2]
    return run_attacks(EvaluationJob(model=model, split=split, threat=THREAT, attacks=attacks, **more))


@pytest.mark.parametrize("layout", ["tiny", "resnet", "preact_resnet"])
def test_the_copy_has_the_logits_and_gradients_of_the_model(layout: str) -> None:
    assert_copied(network(layout), some_images())


@pytest.mark.parametrize("mean", [0.4, 0.6], ids=["one normalisation", "two normalisations"])
def test_members_of_one_layout_run_side_by_side(mean: float) -> None:
    ensemble, x = ensemble_of(network(), network(seed=5, mean=mean), network(seed=7)), some_images()
    copy = assert_copied(ensemble, x)
    assert isinstance(copy, Ensemble)
    assert copy.together is not None
    for images in (x, some_images(SIDE_BY_SIDE + 1)):
        torch.testing.assert_close(copy.member_logits(images), ensemble.member_logits(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copy.members[1](x), ensemble.members[1](x), rtol=1e-4, atol=1e-4)


def test_members_of_other_layouts_run_one_by_one() -> None:
    copy = assert_copied(ensemble_of(network(), network(width=3)), some_images())
    assert isinstance(copy, Ensemble)
    assert copy.together is None


class Unknown(nn.Module):
    """An operation that the runtime does not know."""

    def forward(self, x: Images) -> Images:
        return torch.tanh(x)


def shifted() -> nn.Module:
    model = network()
    model.register_forward_hook(lambda _module, _inputs, logits: logits + 0.01)
    return model


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(Unknown(), network()).eval(), shifted], ids=["unknown operation", "hook"]
)
def test_what_cannot_be_copied_is_searched_itself(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert SearchCopy().of(model, some_images()) is model
    mixed = SearchCopy().of(ensemble_of(model, network()), some_images())
    assert isinstance(mixed, Ensemble)
    assert mixed.members[0] is model
    assert isinstance(mixed.members[1], StandIn)


def test_a_pass_of_the_copy_counts_as_one_of_each_model_that_it_stands_in_for() -> None:
    models, x = [nn.Identity(), nn.Identity()], some_images(4).requires_grad_()
    with count_passes(models[0], images=4) as first, count_passes(models[1]) as second:
        StandIn(nn.Flatten(), models)(x).sum().backward()
    assert (first.forward, first.backward, second.forward, second.backward) == (4, 4, 4, 4)
    assert first.by_image.tolist() == [[1.0, 1.0]] * 4


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=5),
        Slowdown(steps=5),
        SurrogateAttack(attack=PGD(steps=5), surrogate=JointDecision(), use_deployed_logits=False),
    ],
    ids=lambda attack: attack.label,
)
def test_outcomes_and_passes_are_those_of_a_search_on_the_model(
    attack: AnyAttack, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble, rule = tiny_ensemble(3, MeanProbability(), classes=3, shape=SHAPE), Agreement()
    copied = evaluated(ensemble, attack, rule=rule).attacks[attack.label]
    monkeypatch.setattr(SearchCopy, "of", lambda _self, model, _x: model)
    usual = evaluated(ensemble, attack, rule=rule).attacks[attack.label]
    assert torch.equal(copied.correct, usual.correct)
    assert 0 < int(usual.correct.sum()) < 30
    torch.testing.assert_close(copied.passes, usual.passes)


class Wrong(nn.Module):
    """Misclassifies everything: the next class is predicted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Images) -> Logits:
        logits: Logits = self.model(x)
        return logits.roll(1, 1)


def test_images_that_only_the_copy_gets_wrong_are_attacked_again_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, attack = network(), PGD(steps=10, random_start=False)
    monkeypatch.setattr(SearchCopy, "of", lambda _self, model, _x: model)
    usual = evaluated(model, attack)
    monkeypatch.setattr(SearchCopy, "of", lambda _self, model, _x: StandIn(Wrong(model), [model]).eval())
    misled = evaluated(model, attack)
    assert int(usual.worst_case.sum()) < int(usual.clean.correct.sum())
    assert torch.equal(misled.worst_case, usual.worst_case)
    assert misled.attacks[attack.label].passes.sum() > usual.attacks[attack.label].passes.sum()


def test_attacks_that_need_the_model_itself_search_on_it() -> None:
    assert may_search_on_copy(PGD())
    assert not may_search_on_copy(BPDA())
    through = SurrogateAttack(attack=BPDA(), surrogate=FullEnsemble(), use_deployed_logits=False)
    assert not may_search_on_copy(through)


def test_jobs_on_one_model_share_a_copy_and_another_model_gets_its_own() -> None:
    copies, model, x = SearchCopy(), network(), some_images()
    assert copies.of(model, x) is copies.of(model, x)
    assert copies.of(network(seed=4), x) is not copies.of(model, x)


@pytest.mark.parametrize("attack", [DeepFool(), DDN()], ids=lambda attack: attack.label)
@pytest.mark.parametrize(
    "change",
    [lambda logits: logits + 1e-5 * torch.tensor([1.0, 0.0, 0.0]), lambda logits: logits.roll(1, 1)],
    ids=["rounded otherwise", "wrong everywhere"],
)
def test_a_nearest_point_of_the_copy_is_misclassified_by_the_model(
    attack: MinimumNorm, change: Callable[[Logits], Logits]
) -> None:
    model, x = network(), some_images(30)
    y = predicted(model, x)

    def copy(images: Images) -> Logits:
        return change(model(images))

    nearest, success = minimum_on_copy(attack, copy, model, x, y, "l2", rng=seeded(0))
    usual, as_usual = attack.minimum(model, x, y, "l2", rng=seeded(0))
    assert torch.equal(success, as_usual)
    assert success.sum() > 20
    assert (margin(model, nearest, y)[success] > -1e-5).all()  # rounding differs with the number of images in a batch
    near, far = (ThreatModel(norm="l2").distance(points, x)[success] for points in (nearest, usual))
    torch.testing.assert_close(near, far, rtol=1e-2, atol=1e-4)
