"""Checks of stopping rules pass on a sound ensemble and fail on one broken, or attacked, in just the wrong way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsemble.core.interfaces import DynamicOutput, StoppingRule
from sparsemble.core.results import AttackResult, CheckResult
from sparsemble.core.types import Images, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation.checks import dynamic
from tests.unit.sound_ensemble import TEAM, X, altered, changed, decide, ensemble_result, expect, only, single

IMAGES = torch.rand(200, 1, 6, 6, generator=seeded(3))


def surrogate(attack: AttackResult) -> dict[str, Any]:
    return dict(attack.settings.get("surrogate", {}))


class TestAttacked:
    def test_the_full_suite_passes(self) -> None:
        expect(dynamic.stopping_attacked(ensemble_result()), 33, "passed", "not attacked: nothing")

    @pytest.mark.parametrize(
        ("keep", "words"),
        [
            (lambda attack: surrogate(attack).get("length") != 2, "prefix 2"),
            (lambda attack: surrogate(attack).get("name") != "expectation", "the expected answer"),
            (lambda attack: surrogate(attack).get("name") not in (None, "full_ensemble"), "the whole"),
            (lambda attack: attack.settings.get("attack", {}).get("name") != "square", "a black-box attack"),
        ],
    )
    def test_a_view_left_out_fails(self, keep: Callable[[AttackResult], bool], words: str) -> None:
        expect(dynamic.stopping_attacked(only(ensemble_result(), keep)), 33, "failed", f"not attacked: {words}")

    @pytest.mark.parametrize("quiet", [single, lambda r: changed(r, "model.rule", "never")])
    def test_what_always_runs_all_is_skipped(self, quiet: Callable[[Any], Any]) -> None:
        result = quiet(ensemble_result())
        for check, number in (
            (dynamic.stopping_attacked, 33),
            (dynamic.hijack_counted, 34),
            (dynamic.cost_under_attack, 35),
            (dynamic.speed_beside_cost, 36),
        ):
            expect(check(result), number, "skipped")

    def test_hijack_must_run(self) -> None:
        expect(dynamic.hijack_counted(ensemble_result()), 34, "passed")
        without = only(ensemble_result(), lambda attack: surrogate(attack).get("name") != "joint_decision")
        expect(dynamic.hijack_counted(without), 34, "failed", "no attack aimed")

    def test_hijack_must_count(self) -> None:
        result = changed(ensemble_result(), "worst_case.correct", ensemble_result().clean_correct)
        expect(dynamic.hijack_counted(result), 34, "failed", "count as correct")


class TestCost:
    def test_told_under_attack_passes(self) -> None:
        expect(dynamic.cost_under_attack(ensemble_result()), 35, "passed", "slowdown 2.70")

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            (lambda r: changed(r, "members_run.slowdown", None), "members run slowdown is not given"),
            (lambda r: changed(r, "members_run.slowdown", 1.0), "must not make the ensemble faster"),
            (lambda r: changed(r, "members_run.slowdown", 3.5), "nor run more than all"),
            (lambda r: only(r, lambda attack: attack.settings.get("keep_label") is not True), "keeps the label"),
            (lambda r: only(r, lambda attack: attack.settings.get("keep_label") is not False), "is free"),
        ],
    )
    def test_missing_or_impossible_costs_fail(self, broken: Callable[[Any], Any], words: str) -> None:
        expect(dynamic.cost_under_attack(broken(ensemble_result())), 35, "failed", words)

    def test_speed_on_clean_images_alone_fails(self) -> None:
        expect(dynamic.speed_beside_cost(ensemble_result()), 36, "passed", "up to 2.70 members")
        alone = changed(ensemble_result(), "members_run.slowdown", None)
        expect(dynamic.speed_beside_cost(alone), 36, "failed", "alone")
        untimed = changed(alone, "cost.latency", {})
        expect(dynamic.speed_beside_cost(untimed), 36, "failed", "multiply-adds on clean images, alone")


def with_rule(rule: StoppingRule) -> Callable[[Images], DynamicOutput]:
    return lambda x: predict_dynamic(TEAM, x, rule)


class TestThresholds:
    def measured(self, rule: StoppingRule, tuned_on: str | None, sharp: bool = False) -> CheckResult:
        """Judge on images that no rule nearby, or some rule nearby, answers otherwise."""
        labels = with_rule(rule)(IMAGES).logits.argmax(1)
        others = [with_rule(rule)(IMAGES).logits.argmax(1) != labels for rule in dynamic.nudged(rule).values()]
        near = torch.stack([torch.zeros_like(labels, dtype=torch.bool), *others]).any(0)
        chosen = near if sharp else ~near
        return dynamic.no_knifes_edge(with_rule, rule, IMAGES[chosen], labels[chosen], tuned_on)

    def test_held_out_and_steady_passes(self) -> None:
        expect(self.measured(DIE(), "held-out"), 37, "passed", "tuned on held-out images")

    def test_tuned_on_the_test_set_fails(self) -> None:
        expect(self.measured(DIE(), "test"), 37, "failed", "tuned on test images")

    def test_a_knifes_edge_fails(self) -> None:
        expect(self.measured(DIE(), "held-out", sharp=True), 37, "failed")
        expect(self.measured(DIE(), None, sharp=True), 37, "failed")

    def test_unknown_images_are_skipped(self) -> None:
        expect(self.measured(DIE(), None), 37, "skipped", "not known which images")

    def test_a_rule_without_numbers_passes(self) -> None:
        expect(self.measured(Never(), "held-out"), 37, "passed", "no numbers")

    def test_each_number_is_moved_both_ways(self) -> None:
        rules = dynamic.nudged(DIE(a=8.0, b=8.0, tau_u=0.0, tau_c=0.5))
        assert rules["tau_c x 0.9"] == DIE(a=8.0, b=8.0, tau_u=0.0, tau_c=0.45)
        assert rules["a x 1.1"] == DIE(a=8.8, b=8.0, tau_u=0.0, tau_c=0.5)
        assert len(rules) == 6


class TestBatch:
    def test_sound_ensemble_passes(self) -> None:
        expect(dynamic.independent_of_batch(decide, X), 38, "passed", "0 of 24 images")

    @pytest.mark.parametrize(
        "change", [lambda z: z - z.mean(0), lambda z: z.flip(0), lambda z: z * torch.arange(-5, len(z) - 5)[:, None]]
    )
    def test_logits_that_depend_on_the_batch_fail(self, change: Callable[[Tensor], Tensor]) -> None:
        expect(dynamic.independent_of_batch(altered(change), X), 38, "failed")

    def test_stopping_for_the_whole_batch_fails(self) -> None:
        def slowest(x: Images) -> DynamicOutput:
            output = decide(x)
            return DynamicOutput(output.logits, output.answered_with, output.members_run.amax().expand(len(x)))

        assert decide(X).members_run.unique().numel() > 1
        expect(dynamic.independent_of_batch(slowest, X), 38, "failed")

    def test_stopping_at_the_average_confidence_fails(self) -> None:
        def together(x: Images) -> DynamicOutput:
            first = TEAM.members[0](x)
            rule = first.softmax(1).amax(1).mean() > 0.8
            count = torch.full((len(x),), 1 if rule else 3)
            return DynamicOutput(first if rule else TEAM(x), count, count)

        expect(dynamic.independent_of_batch(together, X), 38, "failed")
