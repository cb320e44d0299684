"""Losses of ensembles, each with its gradient, against slow literal versions of their formulas."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.ensemble.losses.adp import ADP, log_volume
from sparsemble.ensemble.losses.cldl import CLDL
from sparsemble.ensemble.losses.dverge import DVERGE
from sparsemble.ensemble.losses.eed import EED
from sparsemble.ensemble.losses.gal import GAL
from sparsemble.ensemble.losses.igat import IGAT, distributed
from sparsemble.ensemble.losses.joint import Joint
from sparsemble.ensemble.losses.soe import SoE
from sparsemble.pruning import prunable_layers
from sparsemble.training.loss import TrainingLoss, training_losses
from sparsemble.training.losses.mart import MART
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.trades import TRADES
from tests.unit.test_ensemble_losses import batch, make_ensemble

THREAT = ThreatModel(eps=0.1)
ATTACK = PGD(steps=2, step_size=0.5)

WEIGHTS = {
    "adp": ["alpha", "beta"],
    "cldl": ["alpha", "beta", "adversarial"],
    "dverge": ["beta"],
    "eed": ["omega", "gamma", "lambda1", "lambda2"],
    "gal": ["lambda_", "adversarial"],
    "igat": ["beta"],
    "joint": ["alone", "prefixes"],
    "soe": ["honesty"],
}
TEAM_LOSSES = sorted(WEIGHTS)

Literal = Callable[[Ensemble, Images, Labels], Tensor]


def own(ensemble: Ensemble, x: Images, y: Labels, together: bool) -> list[Images]:
    """Return what the losses craft, from the same draws."""
    rng = seeded(5)
    if together:
        return [ATTACK(ensemble, x, y, THREAT, rng=rng)] * len(ensemble.members)
    return [ATTACK(member, x, y, THREAT, rng=rng) for member in ensemble.members]


def ce(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of one image."""
    return logits.exp().sum().log() - logits[label]


def literal_adp(ensemble: Ensemble, x: Images, y: Labels) -> Tensor:
    images, total = own(ensemble, x, y, True), torch.zeros(())
    for b, label in enumerate(y):
        outputs = [member(own[b : b + 1])[0] for member, own in zip(ensemble.members, images, strict=True)]
        p = [output.softmax(0) for output in outputs]
        mean = torch.stack(p).mean(0)
        entropy = -sum(value * value.log() for value in mean)
        columns = [torch.cat([one[:label], one[label + 1 :]]).double() for one in p]
        matrix = torch.stack([one / one.pow(2).sum().sqrt() for one in columns], dim=1)
        volume = torch.linalg.det(matrix.T @ matrix + 1e-6 * torch.eye(len(p))).log()
        total = total + sum(ce(output, label) for output in outputs) - 2.0 * entropy - 0.5 * volume
    return total / len(y)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def literal_gal(ensemble: Ensemble, x: Images, y: Labels) -> Tensor:
    images, total, count = own(ensemble, x, y, False), torch.zeros(()), len(ensemble.members)
    for b, label in enumerate(y):
        leaf = x[b : b + 1].clone().requires_grad_()
        losses = [ce(member(leaf)[0], label) for member in ensemble.members]
        gradients = [torch.autograd.grad(loss, leaf, create_graph=True)[0] for loss in losses]
        pairs = itertools.combinations(gradients, 2)
        aligned = torch.stack([cosine(one, other).exp() for one, other in pairs]).sum().log()
        hard = [ce(member(own[b : b + 1])[0], label) for member, own in zip(ensemble.members, images, strict=True)]
        total = total + sum(losses) / count + 0.5 * aligned + sum(hard) / count
    return total / len(y)


def literal_cldl(ensemble: Ensemble, x: Images, y: Labels) -> Tensor:
    images, total, count = own(ensemble, x, y, False), torch.zeros(()), len(ensemble.members)
    for b, label in enumerate(y):
        leaf = x[b : b + 1].clone().requires_grad_()
        p = [member(leaf)[0].softmax(0) for member in ensemble.members]
        hard = F.one_hot(label, 3).float()
        soft = [0.9 * hard + 0.1 * one for one in p]
        losses = [(s.detach() * (s.detach() / h).log()).sum() for s, h in zip(soft, p, strict=True)]
        gradients = [torch.autograd.grad(loss, leaf, create_graph=True)[0] for loss in losses]
        distance, aligned = torch.zeros(()), torch.zeros(())
        pairs = list(itertools.combinations(range(count), 2))
        for i, j in pairs:
            middle = (soft[i] + soft[j]) / 2
            jsd = sum((s * (s / middle).log()).sum() for s in (soft[i], soft[j])) / 2
            distance = distance + jsd.exp() / len(pairs)
            aligned = aligned + cosine(gradients[i], gradients[j]) / len(pairs)
        worst = [ce(member(own[b : b + 1])[0], label) for member, own in zip(ensemble.members, images, strict=True)]
        total = total + sum(losses) / count - 2.0 * distance.log() + 0.5 * aligned + sum(worst) / count
    return total / len(y)


def literal_soe(ensemble: Ensemble, x: Images, y: Labels) -> Tensor:
    images, total = own(ensemble, x, y, False), torch.zeros(())
    for against in images:
        for b, label in enumerate(y):
            outputs = [member(against[b : b + 1])[0] for member in ensemble.members]
            total = total - sum((-ce(output, label)).exp() for output in outputs).log()
            for output in outputs:
                confidence, true = output.softmax(0).max(), output.softmax(0)[label].detach()
                total = total - true * confidence.log() - (1 - true) * (1 - confidence).log()
    return total / (len(y) * len(images))


def literal_joint(ensemble: Ensemble, x: Images, y: Labels) -> Tensor:
    x_adv, total = own(ensemble, x, y, True)[0], torch.zeros(())
    for b, label in enumerate(y):
        p = torch.stack([member(x_adv[b : b + 1])[0].softmax(0) for member in ensemble.members])
        means = [-p[:m].mean(0)[label].log() for m in range(1, len(p) + 1)]
        total = total + means[-1] + 0.5 * (-p[:, label].log()).mean() + 0.25 * sum(means[:-1]) / (len(p) - 1)
    return total / len(y)


CASES: list[tuple[TrainingLoss, Literal]] = [
    (ADP(attack=ATTACK), literal_adp),
    (GAL(attack=ATTACK), literal_gal),
    (CLDL(attack=ATTACK), literal_cldl),
    (SoE(attack=ATTACK), literal_soe),
    (Joint(base=PGDAT(attack=ATTACK), alone=0.5, prefixes=0.25), literal_joint),
]
OBJECTIVES = [
    *(training_loss for training_loss, _ in CASES),
    IGAT(attack=ATTACK),
    IGAT(attack=ATTACK, base=ADP(attack=ATTACK)),
    EED(base=GAL(attack=ATTACK), attack=ATTACK),
    DVERGE(steps=2, attack=ATTACK),
    Joint(base=TRADES(attack=ATTACK), attack_prefixes=True, prefixes=1.0),
]


def named(value: Any) -> str | None:
    return value.name if isinstance(value, TrainingLoss) else None


def gradients(loss: Tensor, ensemble: Ensemble) -> dict[str, Tensor]:
    names, weights = zip(*ensemble.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def same_loss_and_gradient(found: Tensor, expected: Tensor, ensemble: Ensemble) -> None:
    """Assert that two losses agree, and their gradients on every weight."""
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    ours, theirs = gradients(found, ensemble), gradients(expected, ensemble)
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-3, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize(("training_loss", "literal"), CASES, ids=named)
def test_loss_and_gradient_are_those_of_the_literal_formula(
    training_loss: TrainingLoss, literal: Literal, members: int
) -> None:
    ensemble, (x, y) = make_ensemble(members).eval(), batch(4)
    found = training_loss(ensemble, x, y, THREAT, rng=seeded(5)).loss
    same_loss_and_gradient(found, literal(ensemble, x, y), ensemble)


@pytest.mark.parametrize("training_loss", OBJECTIVES, ids=named)
class TestEveryLossOfAnEnsemble:
    def test_changes_nothing_but_batchnorm_statistics(self, training_loss: TrainingLoss) -> None:
        ensemble, (x, y) = make_ensemble(3).train(), batch()
        before = copy.deepcopy(ensemble.state_dict())
        training_loss(ensemble, x, y, THREAT, rng=seeded(5))
        assert all(parameter.grad is None for parameter in ensemble.parameters())
        assert all(module.training for module in ensemble.modules())
        moved = {n.rpartition(".")[2] for n, t in ensemble.state_dict().items() if not torch.equal(t, before[n])}
        assert moved <= {"running_mean", "running_var", "num_batches_tracked"}

    def test_its_gradient_is_finite_and_reaches_every_member(self, training_loss: TrainingLoss) -> None:
        ensemble, (x, y) = make_ensemble(3).train(), batch()
        output = training_loss(ensemble, x, y, THREAT, rng=seeded(5))
        assert output.terms
        assert all(not term.requires_grad and term.ndim == 0 for term in output.terms.values())
        output.loss.backward()
        for member in ensemble.members:
            found = [layer.weight.grad for layer in prunable_layers(member).values()]
            assert all(gradient is not None and gradient.isfinite().all() for gradient in found)
            assert any(float(gradient.abs().max()) > 0 for gradient in found)

    def test_takes_an_ensemble_of_one(self, training_loss: TrainingLoss) -> None:
        ensemble, (x, y) = make_ensemble(1).train(), batch()
        assert training_loss(ensemble, x, y, THREAT, rng=seeded(5)).loss.isfinite()

    def test_survives_members_that_are_sure(self, training_loss: TrainingLoss) -> None:
        ensemble, (x, y) = make_ensemble(2).eval(), batch()
        with torch.no_grad():
            for member in ensemble.members:
                for layer in prunable_layers(member).values():
                    if isinstance(layer, nn.Linear):
                        layer.weight.mul_(1e4)
        output = training_loss(ensemble, x, y, THREAT, rng=seeded(5))
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in ensemble.parameters())


def test_there_are_no_losses_of_ensembles_without_a_test_here() -> None:
    tested = {one.name for one in OBJECTIVES}
    ours = {
        name
        for name, component in training_losses.components.items()
        if component.__module__.startswith("sparsemble.ensemble")
    }
    assert ours == tested


class TestADP:
    def test_volume_is_largest_where_members_disagree_about_what_is_wrong(self) -> None:
        apart = torch.tensor([[[9.0, 5.0, -20.0]], [[9.0, -20.0, 5.0]]])
        alike = torch.tensor([[[9.0, 5.0, -20.0]], [[9.0, 5.0, -20.0]]])
        y = torch.tensor([0])
        assert float(log_volume(apart, y)) == pytest.approx(0, abs=1e-4)
        assert float(log_volume(alike, y)) == pytest.approx(math.log(2e-6 + 1e-12), rel=0.05)

    def test_a_volume_does_not_see_the_true_class(self) -> None:
        logits = torch.randn(2, 5, 4, generator=seeded(0))
        y = torch.arange(5) % 4
        moved = logits.scatter(2, y.expand(2, -1)[..., None], 7.0)
        torch.testing.assert_close(log_volume(moved, y), log_volume(logits, y))


class TestIGAT:
    def test_right_images_go_to_all_and_wrong_ones_to_the_better_members(self) -> None:
        """Three members, of ranks 0, 1, 2 on every image: drawn with probabilities 1/7, 2/7, 4/7."""
        logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])[:, None].expand(3, 21_000, 2).clone()
        y, errs = torch.zeros(21_000, dtype=torch.long), torch.arange(21_000) % 2 == 0
        sent = distributed(logits, errs, y, seeded(0))
        assert sent[:, ~errs].all()
        assert (sent[:, errs].sum(0) == 1).all()
        shares = sent[:, errs].float().mean(1)
        torch.testing.assert_close(shares, torch.tensor([1 / 7, 4 / 7, 2 / 7]), atol=0.015, rtol=0)


class TestJoint:
    def test_on_its_own_is_adversarial_training_of_the_ensemble_as_one_network(self) -> None:
        ensemble, (x, y) = make_ensemble(3).eval(), batch()
        for base in (NFGSM(), TRADES(attack=ATTACK), MART(attack=ATTACK)):
            found = Joint(base=base)(ensemble, x, y, THREAT, rng=seeded(5)).loss
            torch.testing.assert_close(found, base(ensemble, x, y, THREAT, rng=seeded(5)).loss)

    def test_every_part_has_the_loss_of_the_base_and_members_run_once_an_image(self) -> None:
        ensemble, (x, y) = make_ensemble(3).eval(), batch()
        base, runs = TRADES(attack=ATTACK), []
        x_adv = base.adversarial_images(ensemble, x, y, THREAT, rng=seeded(5))
        expected = base.loss(ensemble, x, x_adv, y).loss
        expected = expected + 0.5 * sum(base.loss(m, x, x_adv, y).loss for m in ensemble.members) / 3
        pair = Ensemble(ensemble.members[:2], ensemble.combiner)
        shorter = [base.loss(ensemble.members[0], x, x_adv, y).loss, base.loss(pair, x, x_adv, y).loss]
        expected = expected + 0.25 * sum(shorter) / 2
        ensemble.members[0].register_forward_hook(lambda *_: runs.append(1))
        found = Joint(base=base, alone=0.5, prefixes=0.25).loss(ensemble, x, x_adv, y)
        torch.testing.assert_close(found.loss, expected)
        assert len(runs) == 2

    def test_may_craft_on_a_prefix_drawn_for_the_batch(self) -> None:
        ensemble, (x, y) = make_ensemble(3).eval(), batch()
        training_loss = Joint(base=PGDAT(attack=ATTACK), attack_prefixes=True)
        drawn = set()
        for seed in range(12):
            found = training_loss.adversarial_images(ensemble, x, y, THREAT, rng=seeded(seed))
            rng = seeded(seed)
            length = int(torch.randint(1, 4, (), generator=rng))
            prefix = Ensemble(ensemble.members[:length], ensemble.combiner)
            assert torch.equal(found, ATTACK(prefix, x, y, THREAT, rng=rng))
            drawn.add(length)
        assert drawn == {1, 2, 3}

    def test_hands_the_gentler_attack_on(self) -> None:
        with_weaker_attack = Joint(base=NFGSM(), alone=0.5).with_weaker_attack(0.5)
        assert with_weaker_attack == Joint(base=NFGSM().with_weaker_attack(0.5), alone=0.5)
        assert Joint(base=PGDAT()).with_weaker_attack(0.5) is None
        assert Joint().at(0.5) == Joint()


class TestOneNetwork:
    @pytest.mark.parametrize("name", TEAM_LOSSES)
    def test_losses_of_ensembles_say_that_it_is_none(self, name: str) -> None:
        x, y = batch()
        loss = training_losses.build(name)
        assert loss.needs_ensemble
        with pytest.raises(
            InputError, match=f"{name} is the loss of an ensemble, and this Normalised is a single network"
        ):
            loss(make_ensemble().members[0], x, y, THREAT, rng=seeded(0))


class TestTeachers:
    @pytest.mark.parametrize("name", ["eed", "igat"])
    def test_a_base_that_learns_from_one_gets_it(self, name: str) -> None:
        base = {"name": "distillation", "attack": {"name": "pgd", "steps": 1}}
        loss = training_losses.build({"name": name, "base": base, "attack": {"name": "pgd", "steps": 1}})
        x, y = batch()
        with pytest.raises(InputError, match="needs a teacher"):
            loss(make_ensemble(), x, y, THREAT, rng=seeded(0))
        found = loss.with_teacher(make_ensemble().members[0].eval())(make_ensemble(), x, y, THREAT, rng=seeded(0))
        assert found.terms["distance"] > 0
        assert IGAT().with_teacher(make_ensemble()) == IGAT()


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("adp", {"alpha": -1.0}, "alpha = -1 must be 0 or more"),
        ("gal", {"adversarial": -0.5}, "adversarial = -0.5 must be 0 or more"),
        ("cldl", {"smoothing": 1.0}, r"smoothing = 1 must lie in \(0, 1\)"),
        ("soe", {"sigma": 0.0}, "sigma = 0 must be above 0"),
        ("igat", {"beta": -2.0}, "beta = -2 must be 0 or more"),
        ("joint", {"prefixes": -0.1}, "prefixes = -0.1 must be 0 or more"),
        *(
            (name, {setting: value}, f"{setting} = {value:g} must be 0 or more, and finite")
            for name, settings in WEIGHTS.items()
            for setting in settings
            for value in (-1.0, math.nan, math.inf)
        ),
        ("soe", {"sigma": math.nan}, "sigma = nan must be above 0"),
        *(("joint", {"base": name}, f'base = "{name}" is the loss of an ensemble') for name in ("eed", "joint")),
    ],
)
def test_settings_that_cannot_be_give_a_sentence(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        training_losses.build({"name": name, **settings})
