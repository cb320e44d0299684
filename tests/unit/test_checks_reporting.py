"""Checks of the result file pass on a sound one and fail on one that hides or contradicts something."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest

from sparsemble.core.results import EvaluationResult
from sparsemble.evaluation import checks
from sparsemble.evaluation.checks import reporting
from tests.unit.sound_ensemble import changed, ensemble_result, expect

Broken = Callable[[EvaluationResult], EvaluationResult]


class TestThreat:
    def test_recorded_passes(self) -> None:
        expect(reporting.threat_recorded(ensemble_result()), 1, "passed", "linf 8/255, white-box, targeted: False")

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            ("threat.knowledge", "", "threat.knowledge is empty"),
            ("threat.norm", "", "threat.norm is empty"),
        ],
    )
    def test_what_is_missing_fails(self, path: str, value: Any, words: str) -> None:
        expect(reporting.threat_recorded(changed(ensemble_result(), path, value)), 1, "failed", words)


class TestImages:
    def test_a_seeded_subset_or_all_images_pass(self) -> None:
        expect(reporting.images_recorded(ensemble_result(), 1000), 4, "passed", "drawn with seed 4")
        everything = changed(ensemble_result(), "data.subset_seed", None)
        expect(reporting.images_recorded(everything, 40), 4, "passed", "all of them")

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            (lambda r: changed(r, "data.subset_seed", None), "no seed of the subset"),
            (lambda r: changed(r, "worst_case.interval", (0.0, 1.0)), "is not the 95 % interval"),
            (lambda r: changed(r, "data.split", "train"), "of the train split"),
        ],
    )
    def test_a_hidden_subset_fails(self, broken: Broken, words: str) -> None:
        expect(reporting.images_recorded(broken(ensemble_result()), 1000), 4, "failed", words)

    def test_rows_on_other_images_fail(self) -> None:
        result = ensemble_result()
        expect(reporting.same_images([result, copy.deepcopy(result)]), 4, "passed")
        expect(reporting.same_images([result, changed(result, "data.indices", tuple(range(1, 41)))]), 4, "failed")
        expect(reporting.same_images([result, changed(result, "data.sha256", "00" * 32)]), 4, "failed")


class TestSelection:
    @pytest.mark.parametrize(("chosen", "status"), [("held-out", "passed"), ("test", "failed"), (None, "skipped")])
    def test_on_held_out_images_only(self, chosen: str | None, status: str) -> None:
        expect(reporting.fairly_selected(changed(ensemble_result(), "model.selected_on", chosen)), 5, status)


class TestEps:
    def test_one_radius_passes(self) -> None:
        expect(reporting.one_eps([ensemble_result(), ensemble_result()]), 6, "passed", "0.0313725 in all rows")

    def test_0_031_beside_8_255_fails(self) -> None:
        result = ensemble_result()
        other = changed(changed(result, "threat.eps", 0.031), "threat.eps_text", "0.031")
        expect(reporting.one_eps([other]), 6, "passed")
        expect(reporting.one_eps([result, other]), 6, "failed", "rows at eps 0.031, 0.0313725")

    def test_quoted_rows_and_norms_count(self) -> None:
        quoted = [{"source": "a paper", "accuracy": 0.5, "eps": 0.031}]
        expect(reporting.one_eps([changed(ensemble_result(), "quoted", quoted)]), 6, "failed", "rows at eps")
        expect(
            reporting.one_eps([ensemble_result(), changed(ensemble_result(), "threat.norm", "l2")]),
            6,
            "failed",
            "l2 and linf",
        )


class TestResult:
    def test_complete_passes(self) -> None:
        expect(reporting.result_is_complete(ensemble_result()), 44, "passed")

    @pytest.mark.parametrize("field", ["command", "versions", "machine", "device", "model.path", "data.name"])
    def test_every_field_is_needed(self, field: str) -> None:
        empty = type(functools.reduce(getattr, field.split("."), ensemble_result()))()
        broken = changed(ensemble_result(), field, empty)
        expect(reporting.result_is_complete(broken), 44, "failed", f"{field} is empty")

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            ("model.sha256", "unknown", "model.sha256 is no SHA-256"),
            ("attacks.fmn100.settings", {}, "fmn100 has no settings"),
        ],
    )
    def test_hashes_and_settings_are_needed(self, path: str, value: Any, words: str) -> None:
        expect(reporting.result_is_complete(changed(ensemble_result(), path, value)), 44, "failed", words)


class TestClaims:
    def test_three_seeds(self) -> None:
        expect(reporting.seeds_behind([0.50, 0.51, 0.52], claims=True), 45, "passed", "0.5100 +- 0.0100")
        expect(reporting.seeds_behind([0.50, 0.51], claims=True), 45, "failed", "claimed on 2 of 3 seeds")
        expect(reporting.seeds_behind([0.50], claims=False), 45, "skipped", "1 of 3 seeds")

    @pytest.mark.parametrize(
        ("amount", "status", "text"),
        [
            ("none", "passed", "none"),
            ("1M generated images", "passed", "1M generated images"),
            ("generated images", "failed", "gives no amount"),
            ("", "failed", "gives no amount"),
            (None, "skipped", "not known"),
        ],
    )
    def test_extra_data_is_declared(self, amount: str | None, status: str, text: str) -> None:
        expect(reporting.extra_data_declared(changed(ensemble_result(), "model.extra_data", amount)), 46, status, text)

    @pytest.mark.parametrize(
        ("eps", "accuracy", "status"),
        [
            ([0.0, 0.1, 0.5], [0.9, 0.4, 0.0], "passed"),
            ([0.0, 0.1, 0.5], [0.9, 0.4, 0.1], "failed"),
            ([0.1, 0.2, 0.5], [0.9, 0.4, 0.0], "failed"),
        ],
        ids=["to zero", "stops early", "not from 0"],
    )
    def test_the_curve_reaches_zero(self, eps: list[float], accuracy: list[float], status: str) -> None:
        result = changed(ensemble_result(), "security_curve.eps", tuple(eps))
        result = changed(result, "security_curve.accuracy", tuple(accuracy))
        expect(reporting.curve_reaches_zero(result), 47, status)

    def test_no_curve_is_skipped(self) -> None:
        expect(reporting.curve_reaches_zero(changed(ensemble_result(), "security_curve", None)), 47, "skipped")

    @pytest.mark.parametrize(
        ("broken", "status"),
        [
            (lambda r: r, "skipped"),
            (lambda r: changed(r, "quoted", [{"accuracy": 0.5, "source": "Croce & Hein 2020, table 2"}]), "passed"),
            (lambda r: changed(r, "quoted", [{"accuracy": 0.5}]), "failed"),
            (lambda r: changed(r, "quoted", [{"accuracy": 0.5, "source": "x", "outcomes": [1]}]), "failed"),
        ],
        ids=["nothing quoted", "with source", "no source", "as if measured"],
    )
    def test_quoted_numbers_name_their_source(self, broken: Broken, status: str) -> None:
        expect(reporting.quotes_have_sources(broken(ensemble_result())), 48, status)


class TestHeadline:
    made = (checks.verdict(14, False, "rises"), checks.skipped(45, "one seed"), checks.verdict(2, True, "inside"))

    def test_failed_checks_are_named_and_skipped_ones_counted(self) -> None:
        shown = f"Checks: 1 failed, 1 skipped, 1 passed. failed: 14 {checks.NAMES[14]}: rises"
        expect(reporting.open_checks_shown(self.made, shown), 50, "passed", "1 failed checks are named, 1 skipped")
        expect(reporting.open_checks_shown(self.made, shown.replace(" ", "\n")), 50, "passed")
        expect(
            reporting.open_checks_shown(self.made, "1 failed, 1 skipped"), 50, "failed", "not shown: failed check 14"
        )
        expect(reporting.open_checks_shown(self.made, f"2 skipped, {checks.NAMES[14]}"), 50, "failed", "that number")
        expect(reporting.open_checks_shown(self.made, ""), 50, "skipped", "not shown")
