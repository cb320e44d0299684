"""Checks of attacks on ensembles pass on the full suite and fail where one of its parts did not run."""

from collections.abc import Callable
from typing import Any

import pytest

from sparsemble.core.interfaces import combiners
from sparsemble.core.results import AttackResult
from sparsemble.evaluation.checks import ensemble
from tests.unit.sound_ensemble import changed, ensemble_result, expect, only, single

OTHERS = [name for name in combiners.names() if name != "mean_probability"]
Keep = Callable[[AttackResult], bool]


def surrogate(attack: AttackResult) -> str:
    return str(attack.settings.get("surrogate", {}).get("name", ""))


class TestCombiners:
    def test_every_combiner_passes(self) -> None:
        expect(
            ensemble.combiners_attacked(ensemble_result(), "mean_probability", OTHERS), 28, "passed", "not through none"
        )

    @pytest.mark.parametrize("lost", OTHERS)
    def test_a_combiner_left_out_fails(self, lost: str) -> None:
        result = only(
            ensemble_result(),
            lambda attack: attack.settings.get("surrogate", {}).get("combiner", {}).get("name") != lost,
        )
        expect(ensemble.combiners_attacked(result, "mean_probability", OTHERS), 28, "failed", f"not through {lost}")

    def test_the_deployed_combiner_left_out_fails(self) -> None:
        kept = ("combined", "member", "prefix", "expectation")
        result = only(ensemble_result(), lambda a: surrogate(a) in kept or a.label.startswith("sequential"))
        expect(
            ensemble.combiners_attacked(result, "mean_probability", OTHERS),
            28,
            "failed",
            "not through mean_probability",
        )

    def test_a_single_model_is_skipped(self) -> None:
        expect(ensemble.combiners_attacked(single(ensemble_result()), "mean_probability", OTHERS), 28, "skipped")


class TestMembers:
    def test_the_full_suite_passes(self) -> None:
        expect(ensemble.members_attacked(ensemble_result()), 29, "passed", "not attacked: nothing")

    @pytest.mark.parametrize(
        ("keep", "words"),
        [
            (lambda attack: attack.settings.get("surrogate", {}).get("index") != 3, "member 3"),
            (lambda attack: attack.settings.get("surrogate", {}).get("length") != 1, "member 1"),
            (lambda attack: attack.settings["name"] != "sequential", "sequential"),
            (lambda attack: surrogate(attack) != "reweighted", "reweighted"),
            (lambda attack: attack.settings["name"] not in ("autoattack", "fmn"), "a margin of the whole ensemble"),
        ],
    )
    def test_what_is_left_out_is_named(self, keep: Keep, words: str) -> None:
        expect(ensemble.members_attacked(only(ensemble_result(), keep)), 29, "failed", f"not attacked: {words}")

    def test_a_single_model_is_skipped(self) -> None:
        expect(ensemble.members_attacked(single(ensemble_result())), 29, "skipped")


class TestReport:
    def test_a_sound_table_passes(self) -> None:
        expect(ensemble.members_reported(ensemble_result()), 30, "passed", "best alone 0.400")

    def test_a_gain_that_vanishes_is_flagged(self) -> None:
        assert "FLAG" not in ensemble.members_reported(changed(ensemble_result(), "worst_case.accuracy", 0.5)).detail
        found = ensemble.members_reported(changed(ensemble_result(), "worst_case.accuracy", 0.4))
        expect(found, 30, "passed", "FLAG: the ensemble (0.400")

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            ("members.robust", [0.3, 0.5, 0.35], "0.500 alone, 0.400 in the table"),
            ("members.transfer", [[0.3, 0.2, 0.6], [0.6, 0.4, 0.6], [0.6, 0.6, 0.35]], "break member 2 more"),
        ],
    )
    def test_contradictory_tables_fail(self, path: str, value: Any, words: str) -> None:
        expect(ensemble.members_reported(changed(ensemble_result(), path, value)), 30, "failed", words)

    def test_members_that_were_not_attacked_are_skipped(self) -> None:
        expect(ensemble.members_reported(changed(ensemble_result(), "members", None)), 30, "skipped", "3 members")

    def test_a_single_model_is_skipped(self) -> None:
        expect(ensemble.members_reported(single(ensemble_result())), 30, "skipped")


TEAM_ROW = {"accuracy": 0.5, "nonzeros": 1000, "macs": 5e6}


class TestComparisons:
    @pytest.mark.parametrize(
        ("nonzeros", "macs", "status", "words"),
        [
            (1010, 5.1e6, "passed", "sparse model 0.450"),
            (900, 5e6, "failed", "900 nonzeros"),
            (2000, 5e6, "skipped", "2000 nonzeros"),
            (1000, 1e6, "failed", "1e+06 macs"),
        ],
    )
    def test_costs_must_be_equal(self, nonzeros: float, macs: float, status: str, words: str) -> None:
        member = {"accuracy": 0.45, "nonzeros": nonzeros, "macs": 1e6}
        dense = {"accuracy": 0.48, "nonzeros": 9000, "macs": macs}
        expect(ensemble.single_models_beside(TEAM_ROW, member, dense), 31, status, words)

    def test_without_a_model_of_equal_cost_it_is_skipped(self) -> None:
        expect(ensemble.single_models_beside(TEAM_ROW, TEAM_ROW, None), 31, "skipped", "a dense model of equal cost")

    def test_ablations(self) -> None:
        rows = {"combiner only", "no regularisers", "no stopping rule", "dense members", "ensemble"}
        expect(ensemble.ablations_reported(rows), 32, "passed")
        expect(ensemble.ablations_reported(rows - {"no stopping rule"}), 32, "failed", "missing: no stopping rule")
        expect(ensemble.ablations_reported({"ensemble"}), 32, "skipped")
