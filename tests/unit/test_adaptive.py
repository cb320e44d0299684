"""Attacks on ensembles and stopping rules, on ensembles made by hand whose worst case is found on a grid."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.attacks import (
    PGD,
    Deployed,
    EnsembleAttack,
    Expectation,
    FullEnsemble,
    Hijack,
    Margin,
    Member,
    Prefix,
    Reweighted,
    Sequential,
    Slowdown,
    Surrogate,
    SurrogateAttack,
    ensemble_attacks,
    every_surrogate,
    surrogates,
)
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.ensemble.ranking import MISCLASSIFIED, log_stop_probability, rank, squash
from sparsemble.attacks.pga import Evaluation, Objective, Progress, projected_gradient_ascent, random_starts
from sparsemble.core.dynamic import decide, decide_from_logits
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Combiner, Decision, DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.ensemble.stopping.never import Never

EPS = 0.1
THREAT = ThreatModel(eps=EPS)
X = torch.full((1, 1, 1, 1), 0.5)
Y = torch.zeros(1, dtype=torch.long)


class Line(nn.Module):
    """Sees one pixel: class 0 leads class 1 by `lead + slope * (pixel - 0.5)` nats."""

    def __init__(self, lead: float, slope: float) -> None:
        super().__init__()
        self.lead, self.slope = lead, slope

    def forward(self, x: Tensor) -> Tensor:
        ahead = self.lead + self.slope * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([ahead, torch.zeros_like(ahead)], dim=1)


class Linear(nn.Module):
    """Sees two pixels: one row a class, a constant and the slopes of the pixels from 0.5."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[:, 0] + (x.flatten(1) - 0.5) @ self.rows[:, 1:].T


@dataclass(frozen=True)
class Gate(StoppingRule):
    """Stops at once unless the first member's third logit is above -18.8."""

    def __call__(self, member_logits: Tensor, combiner: Combiner, *, last: bool) -> Decision:
        stop = (member_logits[0, :, 2] <= -18.8) | last
        return Decision(stop=stop, answer_with=torch.full_like(stop, len(member_logits), dtype=torch.long))

    def log_stop_probability(self, member_logits: Tensor, combiner: Combiner) -> Tensor:
        later = member_logits[0, :, 2] + 18.8
        return F.logsigmoid(torch.stack([-later, later]))

    def candidates(self, member_logits: Tensor, combiner: Combiner) -> list[StoppingRule]:
        return [self]


def make_ensemble(*lines: tuple[float, float]) -> Ensemble:
    return Ensemble([Line(lead, slope) for lead, slope in lines], MeanProbability()).eval()


def grid(ensemble: Ensemble, rule: StoppingRule) -> DynamicOutput:
    """Return the deployed answer at every pixel value allowed."""
    return predict_dynamic(ensemble, torch.linspace(0.5 - EPS, 0.5 + EPS, 2001).view(-1, 1, 1, 1), rule)


def answer(attack: EnsembleAttack, ensemble: Ensemble, rule: StoppingRule, x: Images = X) -> DynamicOutput:
    y = Y.expand(len(x)).clone()
    return predict_dynamic(ensemble, attack(ensemble, rule, x, y, THREAT, rng=seeded(0)), rule)


def never(loss: Tensor, score: Tensor | None = None) -> Evaluation:
    """Evaluate points none of which is a success."""
    return Evaluation(loss, torch.zeros_like(loss, dtype=torch.bool), loss if score is None else score)


def steepest(surrogate: Surrogate, *, use_deployed_logits: bool = True) -> SurrogateAttack:
    """PGD from the clean image, fine enough to stop anywhere in the ball."""
    pgd = PGD(steps=40, step_size=0.05, random_start=False, stop_at_success=False)
    return SurrogateAttack(attack=pgd, surrogate=surrogate, use_deployed_logits=use_deployed_logits)


class TestStoppingEarlyOpensADoor:
    """The second member is steeper, and the other way; the rule trusts the first where it is sure."""

    ensemble = make_ensemble((2.0, -60.0), (3.0, 200.0))
    rule = DIE(b=32.0, tau_c=0.7)

    def test_an_attack_on_the_whole_ensemble_misses_what_a_prefix_finds(self) -> None:
        worst = grid(self.ensemble, self.rule)
        assert (worst.logits.argmax(1) == 1).any()
        assert answer(steepest(FullEnsemble()), self.ensemble, self.rule).logits.argmax() == 0
        assert answer(steepest(Prefix(length=1)), self.ensemble, self.rule).logits.argmax() == 1

    def test_and_breaks_the_whole_ensemble_all_the_same(self) -> None:
        x_adv = steepest(FullEnsemble(), use_deployed_logits=False)(
            self.ensemble, self.rule, X, Y, THREAT, rng=seeded(0)
        )
        assert self.ensemble(x_adv).argmax() == 1  # the whole ensemble is broken
        assert predict_dynamic(self.ensemble, x_adv, self.rule).logits.argmax() == 0  # the deployed one is not

    def test_members_in_turn_find_it_too(self) -> None:
        assert answer(Sequential(steps=20), self.ensemble, self.rule).logits.argmax() == 1

    def test_members_in_turn_come_to_the_last_one(self) -> None:
        ensemble = make_ensemble((0.5, 0.0), (1.0, -16.0))
        assert int((grid(ensemble, Never()).logits.argmax(1) == 1).sum()) < 100  # few random starts would do
        assert answer(Sequential(steps=20), ensemble, Never()).logits.argmax() == 1


class TestHijack:
    """On the clean image the rule asks the second member, whose gradient leads away from the wrong early stop."""

    ensemble = make_ensemble((2.0, -60.0), (1.0, 200.0))
    rule = DIE(b=32.0, tau_c=0.8)

    def test_finds_a_wrong_early_stop_that_whole_and_expectation_miss(self) -> None:
        worst = grid(self.ensemble, self.rule)
        wrong = worst.logits.argmax(1) == 1
        assert wrong.any()
        assert (worst.members_run[wrong] == 1).all()
        clean = predict_dynamic(self.ensemble, X, self.rule)
        assert clean.members_run == 2
        for surrogate in (FullEnsemble(), Expectation(), Deployed(), Prefix(length=2)):
            assert answer(steepest(surrogate), self.ensemble, self.rule).logits.argmax() == 0
        found = answer(Hijack(), self.ensemble, self.rule)
        assert found.logits.argmax() == 1
        assert found.members_run == 1

    def test_pulls_at_the_rule_where_the_label_alone_does_not_stop_it(self) -> None:
        """A third class keeps the first member unsure; only the second pixel, which no margin sees, removes it."""
        first = Linear([[1.0, -30.0, 0.0], [0.0, 0.0, 0.0], [-30.0, 0.0, -60.0]])
        ensemble = Ensemble([first, Linear([[9.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3])], MeanProbability()).eval()
        rule = DIE(b=64.0, tau_c=0.55)
        x = torch.tensor([0.5, 0.0]).view(1, 1, 1, 2)
        margin_only = x + torch.tensor([0.1, 0.0])
        assert first(margin_only)[0, 0] < -1.9
        assert predict_dynamic(ensemble, margin_only, rule).logits.argmax() == 0
        found = answer(Hijack(), ensemble, rule, x)
        assert found.logits.argmax() == 1
        assert found.members_run == 1

    def test_prefers_the_early_stop_among_wrong_answers(self) -> None:
        """Wrong after both members on one side (reached first), wrong after one further out."""
        ensemble, rule = make_ensemble((0.5, -60.0), (0.2, -60.0)), DIE(b=128.0, tau_c=0.9)
        worst = grid(ensemble, rule)
        wrong = worst.logits.argmax(1) == 1
        assert set(worst.members_run[wrong].tolist()) == {1, 2}
        found = answer(Hijack(step_size=0.05), ensemble, rule)
        assert (found.logits.argmax(1) == 1).all()
        assert found.members_run == 1

    def test_keeps_a_wrong_answer_where_no_early_stop_is_to_be_had(self) -> None:
        found = answer(Hijack(), make_ensemble((0.5, -60.0), (0.5, -60.0)), Never())
        assert found.logits.argmax() == 1
        assert found.members_run == 2

    def test_stops_paying_once_done(self) -> None:
        with count_passes(*self.ensemble.members) as passes:
            answer(Hijack(steps=400), self.ensemble, self.rule)
        assert passes.forward < 2 * 30

    def test_a_steep_rule_does_not_drown_the_margin(self) -> None:
        """Before the wrong label leads, the mass alone would drive the image to a sure right answer."""
        ensemble, rule = make_ensemble((1.0, -30.0), (1.0, -30.0), (1.0, -30.0)), DIE(a=32.0, b=500.0, tau_c=0.6)
        assert (grid(ensemble, rule).logits.argmax(1) == 1).any()
        found = answer(Hijack(), ensemble, rule)
        assert found.logits.argmax() == 1
        assert found.members_run == 1


class TestSlowdown:
    def test_runs_every_member_where_that_can_be(self) -> None:
        ensemble, rule = make_ensemble((6.0, -80.0), (6.0, -80.0), (6.0, -80.0)), DIE(b=32.0, tau_c=0.8)
        assert predict_dynamic(ensemble, X, rule).members_run == 1
        assert grid(ensemble, rule).members_run.max() == 3
        for keep_label in (False, True):
            found = answer(Slowdown(keep_label=keep_label), ensemble, rule)
            assert found.members_run == 3
        assert found.logits.argmax() == 0

    def test_keeps_the_label_even_where_that_means_no_slowdown(self) -> None:
        """The members after the first are always wrong, and sure: whoever asks them loses the label."""
        ensemble, rule = make_ensemble((6.0, -80.0), (-3.0, 0.0), (-3.0, 0.0)), DIE(b=64.0, tau_c=0.6)
        worst = grid(ensemble, rule)
        right = worst.logits.argmax(1) == 0
        assert worst.members_run[right].max() == 1
        assert worst.members_run[~right].max() == 3
        free, careful = (answer(Slowdown(keep_label=keep), ensemble, rule) for keep in (False, True))
        assert free.members_run == 3
        assert free.logits.argmax() == 1
        assert careful.members_run == 1
        assert careful.logits.argmax() == 0

    def test_goes_on_slowing_beside_the_border_it_must_not_cross(self) -> None:
        """Both pixels slow the ensemble; the first one alone turns the label, long before the ensemble is slow."""
        ensemble = Ensemble([Linear([[3.0, -80.0, 0.0], [0.0] * 3, [-20.0, 10.0, 10.0]])] * 2, MeanProbability()).eval()
        found = answer(
            Slowdown(keep_label=True, doubt=0.0, restarts=1), ensemble, Gate(), torch.full((1, 1, 1, 2), 0.5)
        )
        assert found.members_run == 2
        assert found.logits.argmax() == 0

    def test_sees_a_gradient_where_the_probability_of_stopping_is_1(self) -> None:
        """A rule so steep that even in double precision the sure image's stop probability is exactly 1."""
        ensemble, rule = make_ensemble((6.0, -80.0), (6.0, -80.0)), DIE(b=500.0, tau_c=0.6)
        assert rule.log_stop_probability(ensemble.member_logits(X).double(), ensemble.combiner).exp()[0] == 1
        assert answer(Slowdown(doubt=0.0, restarts=1), ensemble, rule).members_run == 2

    def test_needs_its_doubt_where_the_confidence_is_1(self) -> None:
        """Members so sure that in double precision their confidence does not depend on the image."""
        ensemble, rule = make_ensemble((45.0, -445.0), (45.0, -445.0)), DIE(b=32.0, tau_c=0.9)
        assert grid(ensemble, rule).members_run.max() == 2
        assert answer(Slowdown(doubt=0.0, restarts=1), ensemble, rule).members_run == 1
        assert answer(Slowdown(restarts=1), ensemble, rule).members_run == 2

    def test_an_image_that_is_always_wrong_is_slowed_all_the_same(self) -> None:
        ensemble, rule = make_ensemble((-6.0, 50.0), (-6.0, 50.0)), DIE(b=32.0, tau_c=0.9)
        worst = grid(ensemble, rule)
        assert (worst.logits.argmax(1) == 1).all()
        assert worst.members_run.max() == 2
        assert predict_dynamic(ensemble, X, rule).members_run == 1
        assert answer(Slowdown(keep_label=True), ensemble, rule).members_run == 2

    def test_costs_one_look_where_all_members_run_already(self) -> None:
        ensemble = make_ensemble((6.0, -80.0), (6.0, -80.0))
        with count_passes(*ensemble.members) as passes:
            Slowdown()(ensemble, Never(), X, Y, THREAT, rng=seeded(0))
        assert passes.forward == 2


class TestReweighted:
    """One member of three is wrong already and draws the ensemble's gradient; the two that count lie the other way."""

    ensemble = make_ensemble((-0.1, -31.0), (2.0, 35.0), (2.0, 35.0))

    def test_breaks_an_ensemble_whose_own_gradient_leads_astray(self) -> None:
        worst = grid(self.ensemble, Never())
        assert (worst.logits.argmax(1) == 1).any()
        assert answer(steepest(FullEnsemble()), self.ensemble, Never()).logits.argmax() == 0
        assert answer(steepest(Reweighted()), self.ensemble, Never()).logits.argmax() == 1

    def test_weights_are_shares_that_favour_right_members_near_their_border(self) -> None:
        leads = torch.tensor([0.5, 4.0, -0.5, -4.0])
        logits = torch.stack([leads, torch.zeros(4)], dim=1)[:, None]
        weights = Reweighted(temperature=2.0, misled_weight=0.25).weights(logits, Y)[:, 0]
        expected = torch.tensor([1.0, 1.0, 0.25, 0.25]) * (-leads.abs() / 2).exp()
        torch.testing.assert_close(weights, expected / expected.sum())

    def test_answers_as_the_whole_ensemble_and_leads_by_its_weights(self) -> None:
        x = X.clone().requires_grad_()
        logits = Reweighted()(self.ensemble, Never())(x)
        torch.testing.assert_close(logits, self.ensemble(X))
        (gradient,) = torch.autograd.grad(logits[0, 0] - logits[0, 1], x)
        weights = Reweighted().weights(self.ensemble.member_logits(X), Y)[:, 0]
        torch.testing.assert_close(gradient.flatten()[0], weights @ torch.tensor([-31.0, 35.0, 35.0]))


class TestDecide:
    rule = DIE(b=10.0, tau_c=0.6)

    def test_stored_logits_give_the_deployed_decision(self) -> None:
        ensemble = make_ensemble((2.0, -60.0), (3.0, 100.0), (1.0, 5.0), (0.5, 40.0))
        x = torch.linspace(0.4, 0.6, 301).view(-1, 1, 1, 1)
        for rule in (self.rule, Never(), DIE(), DIE(b=128.0, tau_c=2.0)):
            expected = predict_dynamic(ensemble, x, rule)
            found = decide_from_logits(ensemble.member_logits(x).detach(), ensemble.combiner, rule)
            torch.testing.assert_close(found.logits, expected.logits)
            assert torch.equal(found.members_run, expected.members_run)
            assert torch.equal(found.answered_with, expected.answered_with)
        logits = torch.randn(4, 300, 3, generator=seeded(0)) * 2
        assert len(decide_from_logits(logits, MeanProbability(), self.rule).members_run.unique()) == 4

    def test_asks_only_members_that_run_and_differentiates_only_those_that_answer(self) -> None:
        ensemble = make_ensemble((2.0, -60.0), (3.0, 100.0), (1.0, 5.0))
        x = torch.linspace(0.4, 0.6, 101).view(-1, 1, 1, 1).requires_grad_()
        expected = predict_dynamic(ensemble, x.detach(), self.rule)
        with count_passes(*ensemble.members) as passes:
            found = decide(ensemble, x, self.rule)
        assert passes.forward == int(expected.members_run.sum()) < 303
        torch.testing.assert_close(found.logits, expected.logits)
        (gradient,) = torch.autograd.grad((found.logits[:, 0] - found.logits[:, 1]).sum(), x)
        alone = found.answered_with == 1
        assert 0 < int(alone.sum()) < 101
        torch.testing.assert_close(gradient.flatten()[alone], torch.full((int(alone.sum()),), -60.0))

    def test_rank_orders_predictions(self) -> None:
        logits = torch.tensor([[9.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 9.0]])
        found = rank(logits, torch.zeros(4, dtype=torch.long))
        assert (found.diff() > 0).all()
        assert (found[:2] < 0).all()
        assert (found[2:] >= MISCLASSIFIED).all()

    def test_log_stop_probability_resolves_below_single_precision(self) -> None:
        logits = torch.tensor([20.0, 0.0]).expand(3, 1, 2).clone().requires_grad_()
        rule = DIE(b=60.0, tau_c=0.55)
        found = log_stop_probability(logits, rule, MeanProbability())
        assert 1 - found.exp()[0].detach() == 0
        assert -40 < float(found[1:].logsumexp(0).detach()) < -20
        (gradient,) = torch.autograd.grad(found[1:].logsumexp(0).sum(), logits)
        assert gradient.abs().max() > 0


class TestProjectedGradientAscent:
    """On -(pixel - goal) ** 2, whose top is known."""

    x = torch.full((3, 1, 1, 1), 0.5)
    goals = torch.tensor([0.53, 0.45, 0.9])

    def ascend(
        self, objective: Objective, *, steps: int, step_size: float, restarts: int = 1, random: bool = False
    ) -> Images:
        starts = random_starts(self.x, THREAT, restarts, seeded(0), first=None if random else self.x)
        best = BestPoints.of_clean(self.x)
        return projected_gradient_ascent(
            objective, best, self.x, THREAT, steps=steps, step_size=step_size, starts=starts
        ).images

    def test_reaches_the_top_or_the_edge_nearest_to_it(self) -> None:
        def objective(images: Images, progress: Progress) -> Evaluation:
            return never(-(images.flatten() - self.goals[progress.rows]).square())

        top = self.ascend(objective, steps=60, step_size=0.04)
        torch.testing.assert_close(top.flatten(), torch.tensor([0.53, 0.45, 0.6]), atol=0.004, rtol=0)

    def test_keeps_by_score_and_not_by_loss(self) -> None:
        def objective(images: Images, progress: Progress) -> Evaluation:
            return never(images.flatten(), -(images.flatten() - 0.54).abs())

        top = self.ascend(objective, steps=10, step_size=0.1)
        torch.testing.assert_close(top.flatten(), torch.full((3,), 0.54))

    def test_keeps_a_success_before_a_higher_score(self) -> None:
        def objective(images: Images, progress: Progress) -> Evaluation:
            value = images.flatten()
            return Evaluation(value, (value > 0.515) & (value < 0.525), value)

        best = BestPoints.of_clean(self.x)
        starts = random_starts(self.x, THREAT, 1, seeded(0), first=self.x)
        projected_gradient_ascent(
            objective, best, self.x, THREAT, steps=10, step_size=0.1, starts=starts, stop_at_success=False
        )
        assert best.success.all()
        torch.testing.assert_close(best.images.flatten(), torch.full((3,), 0.52))

    def test_evaluates_the_last_point(self) -> None:
        def objective(images: Images, progress: Progress) -> Evaluation:
            return never(images.flatten())

        top = self.ascend(objective, steps=1, step_size=0.5)
        torch.testing.assert_close(top.flatten(), torch.full((3,), 0.55))

    def test_successful_images_are_not_evaluated_again(self) -> None:
        seen: list[list[int]] = []

        def objective(images: Images, progress: Progress) -> Evaluation:
            seen.append(progress.rows.tolist())
            score = images.flatten() + torch.tensor([0.0, 0.02, 0.0])[progress.rows]
            return Evaluation(images.flatten(), score >= 0.535, score)

        self.ascend(objective, steps=3, step_size=0.1, restarts=2)
        assert seen[:4] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 2]]
        assert all(1 not in rows for rows in seen[3:])

    def test_later_starts_are_random_and_counted(self) -> None:
        starts: dict[int, float] = {}

        def objective(images: Images, progress: Progress) -> Evaluation:
            if progress.step == 0:
                starts[progress.restart] = float(images[0].detach())
            return never(images.flatten())

        self.ascend(objective, steps=2, step_size=0.1, restarts=3)
        assert starts[0] == 0.5
        assert len(set(starts.values())) == 3

    def test_nan_is_an_error(self) -> None:
        def objective(images: Images, progress: Progress) -> Evaluation:
            return never(images.flatten(), images.flatten() * math.nan)

        with pytest.raises(RunError, match="met NaN"):
            self.ascend(objective, steps=2, step_size=0.1, random=True)

    def test_squash_keeps_the_order(self) -> None:
        values = torch.tensor([-1e6, -2.0, -0.1, 0.0, 0.1, 2.0, 1e6])
        assert (squash(values).diff() > 0).all()
        assert squash(values).abs().max() < 1


def test_with_deployed_logits_an_attack_continues_until_the_deployed_prediction_is_wrong() -> None:
    """The whole ensemble is wrong long before the deployed one, on the way to a point where both are."""
    ensemble, rule = make_ensemble((3.0, -40.0), (0.2, -60.0)), DIE(b=32.0, tau_c=0.6)
    pgd = PGD(steps=40, step_size=0.05, random_start=False, loss=Margin())
    blind, informed = (
        SurrogateAttack(attack=pgd, surrogate=FullEnsemble(), use_deployed_logits=use) for use in (False, True)
    )
    x_adv = blind(ensemble, rule, X, Y, THREAT, rng=seeded(0))
    assert ensemble(x_adv).argmax() == 1
    assert answer(blind, ensemble, rule).logits.argmax() == 0
    assert answer(informed, ensemble, rule).logits.argmax() == 1


def test_every_member_can_be_attacked_alone() -> None:
    ensemble = make_ensemble((2.0, -60.0), (3.0, 100.0))
    for index in (1, 2):
        torch.testing.assert_close(Member(index=index)(ensemble, Never())(X), ensemble.members[index - 1](X))
        x_adv = steepest(Member(index=index), use_deployed_logits=False)(ensemble, Never(), X, Y, THREAT, rng=seeded(0))
        assert [int(member(x_adv).argmax()) for member in ensemble.members].index(1) == index - 1


@pytest.mark.parametrize(
    ("registry", "table", "message"),
    [
        (surrogates, {"name": "reweighted", "temperature": 0}, "temperature = 0 must be above 0"),
        (surrogates, {"name": "reweighted", "misled_weight": 0}, r"misled_weight = 0 must lie in \(0, 1\]"),
        (surrogates, {"name": "combined"}, "combiner is missing"),
        (ensemble_attacks, {"name": "hijack", "targets": 0}, "targets = 0 must be 1 or more"),
        (ensemble_attacks, {"name": "hijack", "steps": 0}, "steps = 0"),
        (ensemble_attacks, {"name": "slowdown", "step_size": 0}, "step_size = 0 must be above 0"),
        (ensemble_attacks, {"name": "slowdown", "doubt": -1.0}, "doubt = -1 must be 0 or more"),
        (ensemble_attacks, {"name": "slowdown", "safety": 0.0}, "safety = 0 must be above 0"),
        (ensemble_attacks, {"name": "sequential", "rounds": 0}, "rounds = 0 must be 1 or more"),
        (ensemble_attacks, {"name": "surrogate_attack", "attack": "pgd"}, "surrogate is missing"),
    ],
)
def test_refuses_settings_that_make_no_sense(registry: object, table: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(table)  # type: ignore[attr-defined]


@pytest.mark.parametrize("surrogate", [Member(index=3), Member(index=0), Prefix(length=3)])
def test_refuses_members_that_are_not_there(surrogate: Surrogate) -> None:
    with pytest.raises(InputError, match="between 1 and the ensemble's 2 members"):
        surrogate(make_ensemble((1.0, 1.0), (1.0, 1.0)), Never())


def test_an_ensemble_of_one_is_attacked_as_one_model() -> None:
    assert every_surrogate(1) == (FullEnsemble(),)
    ensemble, rule = make_ensemble((2.0, -60.0)), DIE()
    for attack in (Hijack(), Sequential(), Slowdown(), Slowdown(keep_label=True), steepest(FullEnsemble())):
        found = answer(attack, ensemble, rule)
        assert found.members_run == 1
        if not attack.aims_at_cost:
            assert found.logits.argmax() == 1
