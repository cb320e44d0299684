"""The average, running members one by one, and calibration."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule, stopping_rules
from sparsemble.core.types import Flags, Labels, MemberLogits, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.calibration import CalibrationLogits, calibrate, candidate_orders
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.agreement import Agreement
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.ensemble.stopping.never import Never
from tests.helpers import examples, random_logits, tiny_ensemble, tiny_model

average = MeanProbability()
RULES = [DIE(), DIE(a=20.0, b=60.0, tau_c=0.75), DIE(b=100.0, tau_c=0.2), Never()]
MEAN = MeanProbability()
few = examples(40)


def make_ensemble(members: int = 4) -> Ensemble:
    return tiny_ensemble(members, average)


class TestMeanProbability:
    @given(st.integers(1, 5), st.floats(0.1, 20), st.integers(0, 99))
    @few
    def test_is_the_log_of_the_mean_softmax_for_every_prefix(self, members: int, scale: float, seed: int) -> None:
        logits = random_logits(5, 6, scale=scale, seed=seed)[:members].double()
        found = average(logits)
        torch.testing.assert_close(found.exp(), logits.softmax(-1).mean(0))
        torch.testing.assert_close(found.exp().sum(1), torch.ones(6, dtype=torch.float64))

    def test_stays_finite_at_extreme_logits(self) -> None:
        logits = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]], requires_grad=True)
        found = average(logits)
        torch.testing.assert_close(found[0, :2], torch.full((2,), -math.log(2)))
        assert found.isfinite().all()
        (gradient,) = torch.autograd.grad(found[0, 2], logits)
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
    def test_margin_has_a_gradient_where_the_answer_is_right(self, scale: float) -> None:
        """Log-probabilities masked with 0 would give none (gradient masking)."""
        logits = torch.zeros(3, 4, 5)
        logits[:, :, 1] = scale
        logits[:, :, 2] = 0.5 * scale
        logits.requires_grad_()
        out = average(logits)
        margin = Margin()(out, out.detach(), torch.ones(4, dtype=torch.long))
        assert (margin < 0).all()
        (gradient,) = torch.autograd.grad(margin.sum(), logits)
        assert (gradient.abs().amax((0, 2)) > 1e-3).all()


class TestDynamic:
    @pytest.mark.parametrize("rule", RULES, ids=str)
    def test_running_members_equals_reading_stored_logits(self, rule: StoppingRule) -> None:
        ensemble, x = make_ensemble(), torch.rand(60, 1, 8, 8, generator=seeded(0))
        with torch.no_grad():
            stored = decide_from_logits(ensemble.member_logits(x), average, rule)
        run = predict_dynamic(ensemble, x, rule)
        assert torch.equal(run.answered_with, stored.answered_with)
        assert torch.equal(run.members_run, stored.members_run)
        torch.testing.assert_close(run.logits, stored.logits, rtol=1e-4, atol=1e-4)
        for i, prefix in enumerate(stored.answered_with.tolist()):
            with torch.no_grad():
                alone = average(torch.stack([member(x[i : i + 1]) for member in ensemble.members[:prefix]]))
            torch.testing.assert_close(run.logits[i : i + 1], alone, rtol=1e-4, atol=1e-4)

    def test_the_rules_here_answer_with_different_prefixes(self) -> None:
        x = torch.rand(60, 1, 8, 8, generator=seeded(0))
        found = {tuple(predict_dynamic(make_ensemble(), x, rule).members_run.tolist()) for rule in RULES}
        assert len(found) == len(RULES)

    def test_later_members_see_only_undecided_images(self) -> None:
        ensemble, x = make_ensemble(), torch.rand(60, 1, 8, 8, generator=seeded(0))
        sizes: dict[int, int] = {}

        def count(number: int) -> None:
            ensemble.members[number].register_forward_pre_hook(
                lambda _module, inputs: sizes.__setitem__(number, sizes.get(number, 0) + len(inputs[0]))
            )

        for number in range(4):
            count(number)
        run = predict_dynamic(ensemble, x, DIE()).members_run
        assert sizes == {n: int((run > n).sum()) for n in range(4) if (run > n).any()}
        assert sizes[0] == 60
        assert sizes[1] < 60

    def test_no_member_runs_once_every_image_is_decided(self) -> None:
        ensemble = make_ensemble()
        for member in ensemble.members[1:]:
            member.register_forward_pre_hook(lambda *_: pytest.fail("an undecided member ran"))
        at_once = DIE(b=1000.0, tau_c=0.0)
        run = predict_dynamic(ensemble, torch.rand(9, 1, 8, 8), at_once)
        assert run.members_run.tolist() == run.answered_with.tolist() == [1] * 9

    @pytest.mark.parametrize("rule", RULES, ids=str)
    def test_the_batch_does_not_matter(self, rule: StoppingRule) -> None:
        ensemble, x = make_ensemble(), torch.rand(30, 1, 8, 8, generator=seeded(0))
        whole = predict_dynamic(ensemble, x, rule)
        single = [predict_dynamic(ensemble, x[i : i + 1], rule) for i in range(30)]
        assert torch.equal(torch.cat([one.members_run for one in single]), whole.members_run)
        assert torch.equal(torch.cat([one.answered_with for one in single]), whole.answered_with)
        torch.testing.assert_close(torch.cat([one.logits for one in single]), whole.logits, rtol=1e-4, atol=1e-4)

    def test_an_ensemble_of_one_is_its_member(self) -> None:
        ensemble, x = make_ensemble(1), torch.rand(5, 1, 8, 8)
        run = predict_dynamic(ensemble, x, DIE())
        with torch.no_grad():
            torch.testing.assert_close(run.logits, ensemble.members[0](x).log_softmax(1))
        assert run.members_run.tolist() == [1] * 5

    def test_an_ensemble_of_none_gives_a_sentence(self) -> None:
        with pytest.raises(InputError, match="an ensemble needs at least one member"):
            Ensemble([], average)


def held_out(clean: MemberLogits, attacked: list[MemberLogits], y: Labels) -> CalibrationLogits:
    return CalibrationLogits(
        clean=clean, attacked={f"set{i}": one for i, one in enumerate(attacked)}, y=y, combiner=average
    )


def sure_except(doubts: tuple[int, ...], y: Labels) -> MemberLogits:
    """Return members that are sure and right, but torn and wrong on the first so many images each."""
    logits = 30.0 * torch.nn.functional.one_hot(y, 5).float().repeat(len(doubts), 1, 1)
    for member, count in zip(logits, doubts, strict=True):
        member[:count] = torch.nn.functional.one_hot((y[:count] + 1) % 5, 5).float()
    return logits


class TestCalibrate:
    @pytest.mark.parametrize("name", stopping_rules.names())
    @pytest.mark.parametrize(
        ("seed", "images", "drop", "scale"),
        [
            (184, 34, 0.0, 1.0),
            (2, 40, 0.3, 4.0),
            *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0, 2, 0.0, 0.5), (1, 33, 0.1, 1.0)]),
        ],
    )
    def test_never_loses_more_than_allowed_on_its_images(
        self, name: str, seed: int, images: int, drop: float, scale: float
    ) -> None:
        y = torch.arange(images) % 5
        sets = [random_logits(4, images, scale=scale, seed=seed + i) for i in range(3)]
        for logits in sets:
            logits[3, torch.arange(images), y] += 4 * scale  # only the last member knows much
        start = stopping_rules.build(name)
        found = calibrate(start, held_out(sets[0], sets[1:], y), max_accuracy_drop=drop)
        assert found.allowed == max(1, math.floor(drop * images))
        if name != "at_once":  # which has no choice
            assert round((found.full_ensemble.clean - found.outcome.clean) * images) <= found.allowed
            assert round((found.full_ensemble.worst_case - found.outcome.worst_case) * images) <= found.allowed
        assert (found.images, found.tried) == (images, len(list(start.candidates(sets[0], MEAN))))

    @pytest.mark.parametrize("name", stopping_rules.names())
    def test_reports_what_its_rule_does(self, name: str) -> None:
        y = torch.arange(40) % 5
        clean, worse = random_logits(3, 40), random_logits(3, 40, seed=1)
        clean[:, torch.arange(40), y] += 5
        worse[:, torch.arange(40), y] += 2
        found = calibrate(stopping_rules.build(name), held_out(clean, [worse], y), max_accuracy_drop=0.05)

        def right(logits: MemberLogits, rule: StoppingRule) -> Flags:
            return decide_from_logits(logits, average, rule).logits.argmax(1) == y

        def run(logits: MemberLogits) -> float:
            return decide_from_logits(logits, average, found.rule).members_run.float().mean().item()

        for outcome, rule in ((found.outcome, found.rule), (found.full_ensemble, Never())):
            assert outcome.clean == pytest.approx(right(clean, rule).float().mean().item())
            both = right(clean, rule) & right(worse, rule)
            assert outcome.worst_case == pytest.approx(both.float().mean().item())
        assert found.outcome.members_run == pytest.approx(run(clean))
        assert found.outcome.attacked_members_run == pytest.approx(max(run(clean), run(worse)))
        assert found.full_ensemble.members_run == found.full_ensemble.attacked_members_run == 3

    @pytest.mark.parametrize("percent", [2, 28, 29, 57, 58])
    def test_allows_as_many_images_as_the_share_says(self, percent: int) -> None:
        """29 % of 100 images are 29, though 0.29 * 100 is below that as floats go."""
        logits = random_logits(2, 100)
        sets = held_out(logits, [logits], torch.arange(100) % 5)
        assert calibrate(Never(), sets, max_accuracy_drop=percent / 100).allowed == percent
        assert calibrate(Never(), sets, max_accuracy_drop=(percent + 0.9) / 100).allowed == percent

    def test_falls_back_to_the_static_ensemble_where_stopping_early_costs_too_much(self) -> None:
        """The first member is sure and wrong, as the others are sure and right."""
        y = torch.arange(40) % 5
        logits = torch.zeros(4, 40, 5)
        logits[0, torch.arange(40), (y + 1) % 5] = 30.0
        logits[1:, torch.arange(40), y] = 30.0
        found = calibrate(DIE(), held_out(logits, [logits], y), max_accuracy_drop=0.0)
        assert found.outcome.clean == found.full_ensemble.clean == 1
        assert decide_from_logits(logits, average, found.rule).logits.argmax(1).equal(y)

    @pytest.mark.parametrize("name", ["agreement", "die", "first_passage", "confidence"])
    def test_sees_what_is_lost_under_one_attack_where_another_has_broken_the_image_anyway(self, name: str) -> None:
        y = torch.arange(40) % 5
        clean, broken, late = torch.zeros(3, 4, 40, 5)
        clean[:, torch.arange(40), y] = 30.0
        broken[:, torch.arange(40), (y + 1) % 5] = 30.0
        late[0, torch.arange(40), (y + 1) % 5] = 30.0  # as sure and as wrong as the first member can be
        late[1:, torch.arange(40), y] = 30.0
        found = calibrate(stopping_rules.build(name), held_out(clean, [broken, late], y), max_accuracy_drop=0.0)
        assert found.full_ensemble.worst_case == found.outcome.worst_case == 0
        assert decide_from_logits(late, average, found.rule).logits.argmax(1).equal(y)

    def test_puts_the_member_first_that_needs_no_other(self) -> None:
        y = torch.arange(40) % 5
        logits = torch.zeros(4, 40, 5)
        logits[:, torch.arange(40), (y + torch.arange(40) % 2) % 5] = 1.0  # wrong on every other image
        logits[2] = 0
        logits[2, torch.arange(40), y] = 30.0
        found = calibrate(DIE(), held_out(logits, [logits], y), max_accuracy_drop=0.0, reorder=True)
        assert found.order[0] == 2
        assert sorted(found.order) == [0, 1, 2, 3]
        assert found.outcome.members_run == 1
        assert found.tried == sum(
            len(list(DIE().candidates(logits[list(order)], MEAN))) for order in candidate_orders(4)
        )
        kept = calibrate(DIE(), held_out(logits, [logits], y), max_accuracy_drop=0.0)
        assert kept.order == (0, 1, 2, 3)

    def test_orders_differ_in_who_is_first(self) -> None:
        assert candidate_orders(3) == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
        assert candidate_orders(1) == [(0,)]

    def test_the_cost_under_attack_counts_as_much_as_asked(self) -> None:
        """Sure on clean images, torn on attacked ones, and right everywhere: who looks at attacks votes early."""
        y = torch.arange(200) % 5
        clean, attacked = 0.5 * random_logits(4, 200), 0.5 * random_logits(4, 200, seed=3)
        clean[:, torch.arange(200), y] += 9.0
        attacked[:, torch.arange(200), y] += 2.5
        sets = held_out(clean, [attacked], y)
        found = [calibrate(Agreement(), sets, max_accuracy_drop=0.01, attacked_share=w).outcome for w in (0.0, 1.0)]
        assert found[0].members_run < found[1].members_run
        assert found[1].attacked_members_run < found[0].attacked_members_run

    @pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.7, 0), (0.8, 1), (1.0, 1)])
    def test_the_cost_is_the_mean_of_both_by_their_shares(self, share: float, first: int) -> None:
        """Costs of (1, 1.8) clean and attacked if member 0 runs first, else (1.4, 1.4) and 0.2: equal at 0.75."""
        y = torch.arange(100) % 5
        sets = held_out(sure_except((0, 40), y), [sure_except((80, 0), y)], y)
        found = calibrate(Confidence(), sets, max_accuracy_drop=0.0, attacked_share=share, reorder=True)
        assert found.order[0] == first
        costs = (found.outcome.members_run, found.outcome.attacked_members_run)
        assert costs == pytest.approx([(1.0, 1.8), (1.4, 1.4)][first])

    @pytest.mark.parametrize(("doubts", "order"), [(10, (0, 1, 2)), (20, (0, 1, 2)), (25, (1, 0, 2)), (60, (1, 0, 2))])
    def test_another_order_must_save_a_fifth_of_a_member(self, doubts: int, order: tuple[int, ...]) -> None:
        """The first member needs a second one on so many of 100 images; both others never do, and tie."""
        y = torch.arange(100) % 5
        logits = sure_except((doubts, 0, 0), y)
        rule = Confidence(threshold=0.5)
        found = calibrate(rule, held_out(logits, [logits], y), max_accuracy_drop=0.0, reorder=True)
        assert found.order == order
        assert found.outcome.members_run == pytest.approx(1 if order[0] else 1 + doubts / 100)

    @pytest.mark.parametrize("reorder", [False, True])
    @pytest.mark.parametrize("start", [Confidence(), DIE(b=20.0), Agreement()], ids=lambda rule: rule.name)
    def test_of_settings_that_do_the_same_the_present_ones_stay(self, start: StoppingRule, reorder: bool) -> None:
        y = torch.arange(100) % 5
        logits = sure_except((0, 0, 0), y)
        found = calibrate(start, held_out(logits, [logits], y), max_accuracy_drop=0.0, reorder=reorder)
        assert found.outcome.members_run == 1
        assert (found.rule, found.order) == (start, (0, 1, 2))

    def test_says_what_a_tenth_more_or_less_of_every_constant_does(self) -> None:
        y = torch.arange(60) % 5
        logits = random_logits(3, 60)
        logits[:, torch.arange(60), y] += 2
        found = calibrate(DIE(), held_out(logits, [logits], y), max_accuracy_drop=0.05)
        tried = {(one.setting, one.factor) for one in found.sensitivity}
        assert tried == {(name, factor) for name in ("a", "b", "tau_u", "tau_c") for factor in (0.9, 1.1)}
        for one in found.sensitivity:
            rule = dataclasses.replace(found.rule, **{one.setting: one.factor * getattr(found.rule, one.setting)})
            output = decide_from_logits(logits, average, rule)
            assert one.outcome.members_run == pytest.approx(output.members_run.float().mean().item())
            assert one.outcome.clean == pytest.approx((output.logits.argmax(1) == y).float().mean().item())

    def test_says_what_one_vote_more_or_less_does(self) -> None:
        y = torch.arange(60) % 5
        logits = random_logits(4, 60)
        logits[:, torch.arange(60), y] += 1
        found = calibrate(Agreement(votes=3), held_out(logits, [logits], y), max_accuracy_drop=0.0)
        assert isinstance(found.rule, Agreement)
        votes = {one.factor: one.outcome for one in found.sensitivity if one.setting == "votes"}
        near = [found.rule.votes + step for step in (-1, 1) if found.rule.votes + step >= 2]
        assert set(votes) == {other / found.rule.votes for other in near}
        for other in near:
            output = decide_from_logits(logits, average, dataclasses.replace(found.rule, votes=other))
            outcome = votes[other / found.rule.votes]
            assert outcome.members_run == pytest.approx(output.members_run.float().mean().item())

    def test_equal_members_need_only_one(self) -> None:
        logits = random_logits(1, 50).expand(4, -1, -1)
        found = calibrate(DIE(), held_out(logits, [logits], logits[0].argmax(1)), max_accuracy_drop=0.0)
        assert found.outcome.members_run < 1.3
        assert found.outcome.clean == found.outcome.worst_case == 1

    def test_a_rule_with_nothing_to_set_is_returned(self) -> None:
        logits = random_logits(4, 20)
        found = calibrate(Never(), held_out(logits, [logits], torch.arange(20) % 5), max_accuracy_drop=0.01)
        assert (found.rule, found.tried, found.outcome) == (Never(), 1, found.full_ensemble)
        assert found.sensitivity == ()

    @pytest.mark.parametrize("images", [0, 1, 6])
    def test_images_of_one_class_or_none_give_a_sentence(self, images: int) -> None:
        y = torch.zeros(images, dtype=torch.long)
        with pytest.raises(InputError, match=f"images of at least two classes, got {images} images"):
            held_out(random_logits(2, images), [], y)


@pytest.mark.parametrize("rule", [Never(), DIE()])
def test_members_of_other_classes_give_a_sentence(rule: StoppingRule) -> None:
    make_ensemble = Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(4, k)) for k in (5, 4)], average).eval()
    x = torch.full((2, 1, 2, 2), 0.5)
    make_ensemble.members[0][1].weight.data.zero_()  # so that no rule stops after one
    make_ensemble.members[0][1].bias.data.zero_()
    for answer in (
        lambda: predict_dynamic(make_ensemble, x, rule),
        lambda: Prefix(length=2)(make_ensemble, rule)(x),
        lambda: make_ensemble(x),
    ):
        with pytest.raises(
            InputError, match="member 2 gives 4 classes and member 1 5; members of an ensemble must know"
        ):
            answer()


@pytest.mark.parametrize(("shape", "words"), [((3, 8, 8), "3x8x8"), ((1, 10, 10), "1x10x10")])
def test_members_for_other_images_give_a_sentence(shape: tuple[int, int, int], words: str) -> None:
    other = tiny_model(5, shape)
    known = list(make_ensemble(1).members)
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    for members, place in (([*known, other], 2), ([foreign, *known, copy.deepcopy(other)], 3)):
        with pytest.raises(
            InputError, match=rf"member {place} was made for images of {words} .* for 1x8x8; members of"
        ):
            Ensemble(members, average)
    assert len(Ensemble([foreign, *known], average).members) == 2  # nobody says what the foreign one takes


def test_a_batch_of_no_images_gets_no_answers() -> None:
    make_ensemble = Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)], MeanProbability()).eval()
    output = predict_dynamic(make_ensemble, torch.zeros(0, 1, 2, 2), Never())
    assert output.logits.shape == (0, 3)
    assert output.members_run.shape == (0,)
