"""Checks of the result file pass on a sound one and fail on one that hides or contradicts something."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from sparsemble.evaluation import checks
from sparsemble.evaluation.checks.reporting import ATTACK, FIELDS
from tests.unit.sound_ensemble import changed, ensemble_result, expect, without

Broken = Callable[[dict[str, Any]], dict[str, Any]]


class TestThreat:
    def test_recorded_passes(self) -> None:
        expect(checks.threat_recorded(ensemble_result()), 1, "pass", "linf 8/255, white-box, targeted: False")

    @pytest.mark.parametrize("field", ["norm", "eps", "eps_text", "knowledge", "targeted"])
    def test_every_field_is_needed(self, field: str) -> None:
        expect(checks.threat_recorded(without(ensemble_result(), f"threat.{field}")), 1, "fail", f"threat.{field}")

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            ("threat.eps", 0.031, "is not what eps_text = '8/255' says"),
            ("threat.eps_text", "0.031", "is not what eps_text"),
            ("threat.eps_text", "eight", "is not what eps_text"),
            ("threat.knowledge", "", "threat.knowledge is empty"),
            ("threat.targeted", None, "must be true or false"),
        ],
    )
    def test_contradictions_fail(self, path: str, value: Any, words: str) -> None:
        expect(checks.threat_recorded(changed(ensemble_result(), path, value)), 1, "fail", words)


class TestImages:
    def test_a_seeded_subset_or_all_images_pass(self) -> None:
        expect(checks.images_recorded(ensemble_result(), 1000), 4, "pass", "drawn with seed 4")
        everything = changed(ensemble_result(), "data.subset_seed", None)
        expect(checks.images_recorded(everything, 40), 4, "pass", "all of them")

    @pytest.mark.parametrize(
        ("broken", "words"),
        [
            (lambda r: changed(r, "data.subset_seed", None), "no seed of the subset"),
            (lambda r: without(r, "worst_case.interval"), "lacks worst_case.interval"),
            (lambda r: changed(r, "worst_case.interval", [0.0, 1.0]), "is not the 95 % interval"),
            (lambda r: changed(r, "data.split", "train"), "of the train split"),
            (lambda r: changed(r, "data.images", 41), "outcomes of [40] images"),
            (lambda r: changed(r, "attacks.fmn100.outcomes", [1]), "outcomes of [1, 40] images"),
        ],
    )
    def test_a_hidden_subset_fails(self, broken: Broken, words: str) -> None:
        expect(checks.images_recorded(broken(ensemble_result()), 1000), 4, "fail", words)

    def test_rows_on_other_images_fail(self) -> None:
        result = ensemble_result()
        expect(checks.same_images([result, copy.deepcopy(result)]), 4, "pass")
        expect(checks.same_images([result, changed(result, "data.indices", list(range(1, 41)))]), 4, "fail")
        expect(checks.same_images([result, changed(result, "data.sha256", "00" * 32)]), 4, "fail")


class TestSelection:
    @pytest.mark.parametrize(("chosen", "status"), [("held-out", "pass"), ("test", "fail"), (None, "waived")])
    def test_on_held_out_images_only(self, chosen: str | None, status: str) -> None:
        expect(checks.fairly_selected(changed(ensemble_result(), "target.selected_on", chosen)), 5, status)


class TestEps:
    def test_one_radius_passes(self) -> None:
        expect(checks.one_eps([ensemble_result(), ensemble_result()]), 6, "pass", "0.0313725 in all rows")

    def test_0_031_beside_8_255_fails(self) -> None:
        result = ensemble_result()
        other = changed(changed(result, "threat.eps", 0.031), "threat.eps_text", "0.031")
        expect(checks.one_eps([other]), 6, "pass")
        expect(checks.one_eps([result, other]), 6, "fail", "rows at eps 0.031, 0.0313725")

    def test_0_031_that_calls_itself_8_255_fails(self) -> None:
        expect(checks.one_eps([changed(ensemble_result(), "threat.eps", 0.031)]), 6, "fail", "'8/255' is not 0.031")

    def test_quoted_rows_and_norms_count(self) -> None:
        quoted = [{"source": "a paper", "accuracy": 0.5, "eps": 0.031}]
        expect(checks.one_eps([changed(ensemble_result(), "quoted", quoted)]), 6, "fail", "rows at eps")
        expect(
            checks.one_eps([ensemble_result(), changed(ensemble_result(), "threat.norm", "l2")]),
            6,
            "fail",
            "l2 and linf",
        )


class TestResult:
    def test_complete_passes(self) -> None:
        expect(checks.result_is_complete(ensemble_result()), 44, "pass")

    @pytest.mark.parametrize("field", FIELDS)
    def test_every_field_is_needed(self, field: str) -> None:
        expect(checks.result_is_complete(without(ensemble_result(), field)), 44, "fail", f"lacks {field}")

    @pytest.mark.parametrize("field", ATTACK)
    def test_every_field_of_an_attack_is_needed(self, field: str) -> None:
        broken = without(ensemble_result(), f"attacks.fmn100.{field}")
        expect(checks.result_is_complete(broken), 44, "fail", f"lacks attacks.fmn100.{field}")

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            ("target.sha256", "unknown", "target.sha256 is no SHA-256"),
            ("attacks.fmn100.outcomes", [0, 1], "fmn100 has outcomes of 2 images, not of 40"),
            ("passes.forward", 7, "passes.forward = 7 but the attacks took"),
            ("attacks", {}, "no attack ran"),
        ],
    )
    def test_contradictions_fail(self, path: str, value: Any, words: str) -> None:
        expect(checks.result_is_complete(changed(ensemble_result(), path, value)), 44, "fail", words)


class TestClaims:
    def test_three_seeds(self) -> None:
        expect(checks.seeds_behind([0.50, 0.51, 0.52], claims=True), 45, "pass", "0.5100 +- 0.0100")
        expect(checks.seeds_behind([0.50, 0.51], claims=True), 45, "fail", "claimed on 2 of 3 seeds")
        expect(checks.seeds_behind([0.50], claims=False), 45, "waived", "1 of 3 seeds")

    @pytest.mark.parametrize(
        ("amount", "flag", "status", "words"),
        [
            (None, False, "pass", "none"),
            ("1M generated images", True, "pass", "1M generated images"),
            (1_000_000, True, "pass", "1000000"),
            (None, True, "fail", "additional_data = True"),
            ("1M generated images", False, "fail", "additional_data = False"),
            (True, True, "fail", "says no amount"),
        ],
    )
    def test_extra_data_is_declared(self, amount: Any, flag: bool, status: str, words: str) -> None:
        result = changed(changed(ensemble_result(), "extra_data", amount), "additional_data", flag)
        expect(checks.extra_data_declared(result), 46, status, words)

    def test_undeclared_extra_data_fails(self) -> None:
        expect(checks.extra_data_declared(without(ensemble_result(), "extra_data")), 46, "fail")

    @pytest.mark.parametrize(
        ("eps", "accuracy", "status"),
        [
            ([0.0, 0.1, 0.5], [0.9, 0.4, 0.0], "pass"),
            ([0.0, 0.1, 0.5], [0.9, 0.4, 0.1], "fail"),
            ([0.1, 0.2, 0.5], [0.9, 0.4, 0.0], "fail"),
            ([0.0, 0.5, 0.1], [0.9, 0.4, 0.0], "fail"),
            ([0.0, 0.5], [0.9, 0.4, 0.0], "fail"),
        ],
        ids=["to zero", "stops early", "not from 0", "out of order", "lengths"],
    )
    def test_the_curve_reaches_zero(self, eps: list[float], accuracy: list[float], status: str) -> None:
        result = changed(ensemble_result(), "security_curve", {"eps": eps, "accuracy": accuracy})
        expect(checks.curve_reaches_zero(result), 47, status)

    def test_no_curve_is_waived(self) -> None:
        expect(checks.curve_reaches_zero(changed(ensemble_result(), "security_curve", None)), 47, "waived")

    @pytest.mark.parametrize(
        ("broken", "status"),
        [
            (lambda r: r, "pass"),
            (lambda r: changed(r, "quoted", [{"accuracy": 0.5, "source": "Croce & Hein 2020, table 2"}]), "pass"),
            (lambda r: changed(r, "quoted", [{"accuracy": 0.5}]), "fail"),
            (lambda r: changed(r, "quoted", [{"accuracy": 0.5, "source": "x", "outcomes": [1]}]), "fail"),
            (lambda r: changed(r, "reported", "56.1"), "fail"),
            (lambda r: without(r, "quoted"), "fail"),
        ],
        ids=["nothing quoted", "with source", "no source", "as if measured", "reported", "undeclared"],
    )
    def test_quoted_numbers_name_their_source(self, broken: Broken, status: str) -> None:
        expect(checks.quotes_have_sources(broken(ensemble_result())), 48, status)

    def test_wider_tests_are_optional(self) -> None:
        expect(checks.wider_tests({}), 49, "waived", "optional")
        expect(checks.wider_tests({"l2 0.5": 0.41}), 49, "pass", "l2 0.5 0.410")
        expect(checks.wider_tests({"l2 0.5": 41.0}), 49, "fail")


class TestHeadline:
    found = (checks.verdict(14, False, "rises"), checks.waived(45, "one seed"), checks.verdict(2, True, "inside"))

    @pytest.mark.parametrize("as_dict", [False, True])
    def test_open_checks_stand_beside_the_headline(self, as_dict: bool) -> None:
        rows = [vars(check) for check in self.found] if as_dict else self.found
        shown = f"failed: {checks.NAMES[14]}; waived: {checks.NAMES[45]}"
        expect(checks.open_checks_shown(rows, shown), 50, "pass", "2 checks failed or were waived")
        expect(checks.open_checks_shown(rows, f"failed: {checks.NAMES[14]}"), 50, "fail", "not shown: 45")
        expect(checks.open_checks_shown(rows, ""), 50, "fail", "not shown: 14, 45")
