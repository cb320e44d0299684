"""What every stopping rule and every combiner promises."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsemble.ensemble  # noqa: F401 (fills the registries)
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Combiner, StoppingRule, combiners, stopping_rules
from sparsemble.ensemble.combiners.maximum import Maximum
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from tests.helpers import FULL, examples, random_logits

few = examples(25)


def every_rule() -> list[StoppingRule]:
    """Each rule at its defaults and, where it has some, at a few candidate settings."""
    rules: list[StoppingRule] = []
    for name in sorted(stopping_rules.components):
        candidates = list(stopping_rules.build(name).candidates(random_logits(4, 64), MeanProbability()))
        rules += [candidates[0], *candidates[1 :: max(len(candidates) // 4, 1)]]
    return rules


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: rule.name)
@pytest.mark.parametrize("combiner", [MeanProbability(), Maximum()], ids=lambda combiner: combiner.name)
class TestEveryStoppingRule:
    @given(st.integers(1, 5), st.integers(1, 6), st.floats(0.01, 1e4), st.integers(0, 999))
    @few
    def test_answers_with_a_prefix_that_ran_and_stops_at_the_last(
        self, rule: StoppingRule, combiner: Combiner, members: int, images: int, scale: float, seed: int
    ) -> None:
        logits = random_logits(members, images, scale=scale, seed=seed)
        for m in range(1, members + 1):
            decision = rule(logits[:m], combiner, last=m == members)
            assert decision.stop.shape == decision.answer_with.shape == (images,)
            assert ((decision.answer_with >= 1) & (decision.answer_with <= m)).all()
        assert decision.stop.all()

    @given(st.integers(1, 5), st.floats(0.01, 1e4), st.integers(0, 999))
    @few
    def test_stop_probability_is_a_distribution_over_prefixes(
        self, rule: StoppingRule, combiner: Combiner, members: int, scale: float, seed: int
    ) -> None:
        stop_probability = rule.log_stop_probability(random_logits(members, 7, scale=scale, seed=seed), combiner).exp()
        assert stop_probability.shape == (members, 7)
        torch.testing.assert_close(stop_probability.sum(0), torch.ones(7))

    def test_the_answering_prefix_has_the_largest_stop_probability(
        self, rule: StoppingRule, combiner: Combiner
    ) -> None:
        logits = random_logits(4, 500)
        answer = decide_from_logits(logits, combiner, rule)
        stop_probability = rule.log_stop_probability(logits, combiner)
        chosen = stop_probability.gather(0, answer.answered_with[None] - 1)[0]
        assert torch.equal(chosen, stop_probability.amax(0))

    def test_members_after_a_prefix_do_not_change_its_stop_probability(
        self, rule: StoppingRule, combiner: Combiner
    ) -> None:
        logits = random_logits(4, 200)
        before = rule.log_stop_probability(logits, combiner)
        for m in range(1, 4):
            changed = torch.cat([logits[:m], random_logits(4 - m, 200, seed=m)])
            assert torch.equal(rule.log_stop_probability(changed, combiner)[:m], before[:m])

    def test_sees_each_image_alone(self, rule: StoppingRule, combiner: Combiner) -> None:
        images = 256 if FULL else 64
        logits = random_logits(4, images)
        for m in range(1, 5):
            whole = rule(logits[:m], combiner, last=m == 4)
            for i in range(images):
                single = rule(logits[:m, i : i + 1], combiner, last=m == 4)
                assert bool(single.stop) == bool(whole.stop[i])
                assert int(single.answer_with) == int(whole.answer_with[i])

    def test_a_decision_never_changes_when_more_members_run(self, rule: StoppingRule, combiner: Combiner) -> None:
        logits = random_logits(5, 300)
        for m in range(1, 5):
            early = rule(logits[:m], combiner, last=False)
            later = rule(logits[: m + 1], combiner, last=m == 4)
            assert (later.stop >= early.stop).all()
            assert torch.equal(later.answer_with[early.stop], early.answer_with[early.stop])

    def test_stop_probability_can_be_differentiated(self, rule: StoppingRule, combiner: Combiner) -> None:
        logits = random_logits(3, 20).requires_grad_()
        log_probability = rule.log_stop_probability(logits, combiner)
        if log_probability.requires_grad:
            (gradient,) = torch.autograd.grad(log_probability[0].sum(), logits)
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0 or rule != stopping_rules.build(rule.name)
        else:
            others = rule.log_stop_probability(random_logits(3, 20, seed=1), combiner)
            assert torch.equal(log_probability, others)  # it does not depend on the images

    def test_candidates_hold_the_rule_itself_and_are_of_its_kind(self, rule: StoppingRule, combiner: Combiner) -> None:
        for members in (1, 4):
            candidates = list(rule.candidates(random_logits(members, 64), combiner))
            assert candidates[0] == rule
            assert all(type(candidate) is type(rule) for candidate in candidates)
            assert len({dataclasses.astuple(candidate) for candidate in candidates}) >= len(candidates) - 1


@pytest.mark.parametrize(
    "combiner", [combiners.build(name) for name in sorted(combiners.components)], ids=lambda c: c.name
)
class TestEveryCombiner:
    def test_works_for_every_prefix_and_each_image_alone(self, combiner: Combiner) -> None:
        logits = random_logits(4, 9)
        for m in range(1, 5):
            whole = combiner(logits[:m])
            assert whole.shape == (9, 5)
            single = torch.cat([combiner(logits[:m, i : i + 1]) for i in range(9)])
            torch.testing.assert_close(single, whole)

    def test_one_member_or_equal_members_answer_as_that_member(self, combiner: Combiner) -> None:
        one = random_logits(1, 50)
        for logits in (one, one.expand(3, -1, -1)):
            assert torch.equal(combiner(logits).argmax(1), one[0].argmax(1))

    def test_its_gradient_reaches_every_member_and_is_finite(self, combiner: Combiner) -> None:
        logits = random_logits(3, 4).requires_grad_()
        assert_reaches(combiner(logits)[:, 0].sum(), logits)


def assert_reaches(loss: Tensor, logits: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2)) > 0).all()
