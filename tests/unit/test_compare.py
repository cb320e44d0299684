"""Evaluations side by side: what may stand in one table, paired tests, and how the comparison is read."""

import io
import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparsemble.core.errors import InputError
from sparsemble.evaluation.compare import compare, mcnemar
from sparsemble.report import comparison_table, validate_evaluation, write_comparison
from tests.unit.example_result import example_result, share

NAMED = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs" / "evaluation_json.md").read_text("utf-8")))
Named = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def named() -> Named:
    ensemble, dense = example_result("ensemble", robust=0.6), example_result("dense", robust=0.35, members=1, seed=1)
    dense["latency"] = None
    return [("ensemble", ensemble), ("dense", dense), ("other ensemble", example_result("other", seed=2))]


def with_worst_cases(first: list[int], second: list[int]) -> Named:
    """Make two results whose worst cases are these; what compare reads of them is valid."""
    results = [example_result(name, images=len(first), members=1) for name in ("a", "b")]
    for result, outcomes in zip(results, (first, second), strict=True):
        result["worst_case"] = share(outcomes)
    return [(result["name"], result) for result in results]


def printed(found: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table(found))
    return out.getvalue()


def brute_force_p_value(only_a: int, only_b: int) -> float:
    """Count, of all ways in which the images that differ could fall, those at least as uneven."""
    n = only_a + only_b
    uneven = [abs(2 * sum(way) - n) >= abs(only_a - only_b) for way in itertools.product((0, 1), repeat=n)]
    return sum(uneven) / len(uneven)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (5, 1), (0, 8), (7, 4), (2, 11)])
def test_exact_mcnemar_is_the_share_of_all_ways(only_a: int, only_b: int) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(brute_force_p_value(only_a, only_b), abs=1e-12)


def test_exact_mcnemar_of_many_images() -> None:
    assert mcnemar(5000, 5000) == 1
    assert mcnemar(0, 60) == 2.0**-59
    assert mcnemar(4000, 6000) == mcnemar(6000, 4000) < 1e-80
    # Normal limit with a continuity correction: |480 - 520| - 1 over sqrt(1000) is 1.233, two-sided 0.2175.
    assert mcnemar(480, 520) == pytest.approx(0.2175, abs=0.001)


def test_pairs_are_counted_image_by_image() -> None:
    first, second = [1] * 6 + [0] * 10 + [1] * 4, [0] * 6 + [1] * 1 + [0] * 9 + [1] * 4
    (pair,) = compare(with_worst_cases(first, second))["pairs"]
    assert (pair["only_a"], pair["only_b"]) == (6, 1)
    assert pair["difference"] == pytest.approx(5 / 20)
    assert pair["p_value"] == pytest.approx(brute_force_p_value(6, 1))
    assert pair["interval"][0] <= pair["difference"] <= pair["interval"][1]


def test_a_difference_is_more_than_chance_when_its_interval_leaves_out_zero() -> None:
    (same,) = compare(with_worst_cases([1, 0] * 50, [1, 0] * 50))["pairs"]
    assert (same["difference"], same["p_value"], same["holds_zero"]) == (0, 1, True)
    (far,) = compare(with_worst_cases([1] * 100, [0] * 60 + [1] * 40))["pairs"]
    assert not far["holds_zero"]
    assert far["interval"][0] > 0.4
    assert far["p_value"] == 2.0**-59


def test_swapping_two_results_turns_the_signs(named: Named) -> None:
    (forth,), (back,) = compare(named[:2])["pairs"], compare(named[1::-1])["pairs"]
    assert back["difference"] == -forth["difference"]
    assert back["interval"] == pytest.approx([-end for end in reversed(forth["interval"])])
    assert (back["p_value"], back["only_a"], back["only_b"]) == (forth["p_value"], forth["only_b"], forth["only_a"])


def test_every_pair_is_tested_and_every_row_kept(named: Named) -> None:
    found = compare(named)
    assert [(p["a"], p["b"]) for p in found["pairs"]] == list(
        itertools.combinations(("ensemble", "dense", "other ensemble"), 2)
    )
    for row, (_, result) in zip(found["rows"], named, strict=True):
        assert row["worst_case"] == result["worst_case"]["accuracy"]
        assert row["nonzeros"] == result["size"]["nonzeros"]
        assert row["passes"] == result["passes"]
        assert row["failed"] == [14, 20]
        assert row["single_seed"]
    assert found["rows"][1]["latency_ms"] is None


def change(path: tuple[str, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(result: dict[str, Any]) -> None:
        for step in path[:-1]:
            result = result[step]
        result[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (change(("data", "sha256"), "cd" * 32), r"cifar10 \(test, sha256 abababab\).*sha256 cdcdcdcd\)"),
        (change(("data", "indices"), list(range(200))), r"200 images \(subset seed 4\).*67 are the same"),
        (change(("threat", "norm"), "l2"), r"the first is measured in linf, the second in l2"),
        (
            lambda result: result["threat"].update(eps=0.031, eps_text="0.031"),
            r"eps is 8/255 = 0.0313725 in the first and 0.031 = 0.031 in the second; these are never mixed",
        ),
        (change(("threat", "knowledge"), "black-box"), r"knowledge is white-box in the first and black-box"),
    ],
)
def test_refuses_what_does_not_belong_in_one_table(
    named: Named, apply: Callable[[dict[str, Any]], None], words: str
) -> None:
    compare(named)
    apply(named[2][1])
    with pytest.raises(InputError, match=r'"ensemble" and "other ensemble" cannot be compared: .*' + words):
        compare(named)


def test_refuses_different_numbers_of_images(named: Named) -> None:
    named[1] = ("dense", example_result("dense", images=100, members=1))
    with pytest.raises(InputError, match=r"the first used 200 images .*, the second 100 images .*100 are the same"):
        compare(named)


def test_one_radius_written_in_two_ways_is_one(named: Named) -> None:
    named[1][1]["threat"].update(eps=0.031372549, eps_text="0.031372549")
    assert len(compare(named)["rows"]) == 3


def test_refuses_fewer_than_two(named: Named) -> None:
    with pytest.raises(InputError, match="two or more results, got 1"):
        compare(named[:1])


def test_results_of_one_name_are_told_apart(named: Named) -> None:
    result = named[0][1]
    found = compare([("x", result), ("x (2)", result), ("x", result)])
    assert [row["name"] for row in found["rows"]] == ["x", "x (2)", "x (3)"]


def test_marks_where_autoattack_ran_differently(named: Named) -> None:
    assert not any("AutoAttack" in note for note in compare(named)["notes"])
    attack = named[1][1]["attacks"]["autoattack-fast"]
    attack["mode"] = attack["settings"]["mode"] = "exact"
    found = compare(named)
    assert [row["autoattack"] for row in found["rows"]] == [["fast"], ["exact"], ["fast"]]
    assert any("AutoAttack did not run alike (ensemble: fast, dense: exact" in note for note in found["notes"])
    assert found["attacks"]["different_settings"] == ["autoattack-fast"]
    assert not any(pair["same_attacks"] for pair in found["pairs"] if "dense" in (pair["a"], pair["b"]))


def test_marks_where_attacks_differ(named: Named) -> None:
    found = compare(named)
    assert found["attacks"]["shared"] == ["autoattack-fast", "fmn"]
    assert found["attacks"]["partial"]["hijack50"] == ["ensemble", "other ensemble"]
    assert any("Attacks on ensembles (5) ran on the rows that are ensembles" in note for note in found["notes"])
    assert not any("easier worst case" in note for note in found["notes"])
    assert [pair["same_attacks"] for pair in found["pairs"]] == [False, True, False]
    del named[2][1]["attacks"]["hijack50"]
    notes = compare(named)["notes"]
    assert any("hijack50 ran on some rows only" in note and "easier worst case" in note for note in notes)


@pytest.mark.parametrize(
    ("apply", "kind", "words"),
    [
        (change(("search",), "bfloat16"), "notes", "searched in different precisions"),
        (change(("machine",), {"processor": "another", "device": "cpu"}), "notes", "measured on different machines"),
        (change(("seeds",), {"attacks": 7}), "notes", "attacked with different seeds"),
        (change(("target", "selected_on"), "test"), "alarms", "Selected on test images: dense"),
        (change(("unreliable",), True), "alarms", "Marked unreliable: dense"),
    ],
)
def test_says_what_keeps_rows_apart(
    named: Named, apply: Callable[[dict[str, Any]], None], kind: str, words: str
) -> None:
    assert not any(words in sentence for sentence in compare(named)[kind])
    apply(named[1][1])
    assert any(words in sentence for sentence in compare(named)[kind])


def test_failed_checks_are_an_alarm(named: Named) -> None:
    assert any("Checks failed: ensemble 14, 20; dense 14, 20" in alarm for alarm in compare(named)["alarms"])
    for _, result in named:
        for check in result["checks"]:
            check["status"] = "pass"
    assert compare(named)["alarms"] == []


def test_every_field_is_documented(named: Named) -> None:
    found = compare(named)
    tables = [found, *found["rows"], *found["pairs"], found["attacks"], found["rows"][0]["members_run"]]
    assert {name for table in tables for name in table} <= NAMED


def test_terminal_tables_fit_and_mark_single_seeds(named: Named) -> None:
    named[0] = ("a row with a name that no terminal column can hold as it is, however wide", named[0][1])
    text = printed(compare(named))
    assert "\u2026" not in text, "something was cut off"
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "dense \u2020" in text
    assert "\u2020 one seed" in text
    assert "Checks failed:" in text
    assert "8/255" in text


def test_headline_speaks_of_chance() -> None:
    near = with_worst_cases([1] * 50 + [0] * 50, [1] * 49 + [0] * 51)
    assert "its lead of 1.0 points over b may be chance" in re.sub(r"\s+", " ", printed(compare(near)))
    far = with_worst_cases([0] * 60 + [1] * 40, [1] * 100)
    text = re.sub(r"\s+", " ", printed(compare(far)))
    assert "b keeps 100.0 % accuracy in its worst case, the most of 2" in text
    assert "its lead of 60.0 points over a is more than chance" in text
    low, high = re.findall(r"interval \+([\d.]+) to \+([\d.]+)\)", text)[0]
    assert 40 < float(low) < 60 < float(high) < 80


def test_page_holds_every_row_and_pair_and_loads_nothing(named: Named, tmp_path: Path) -> None:
    named[1] = ("<dense> & co", named[1][1])
    found = compare(named)
    write_comparison(found, tmp_path)
    text = (tmp_path / "index.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text), "the page loads something"
    assert "<script" not in text
    assert "<dense>" not in text
    assert text.count("&lt;dense&gt; &amp; co \u2020") == 2
    for sentence in (*found["alarms"], *found["notes"]):
        assert sentence.partition(":")[2].replace("<", "&lt;").replace(">", "&gt;").replace("& co", "&amp; co") in text
    assert ET.parse(tmp_path / "figures" / "size.svg").getroot().tag.endswith("svg")
    markdown = (tmp_path / "comparison.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert [len(table.splitlines()) - 2 for table in tables] == [3, 3, 3, 7]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_more_rows_than_colours_can_be_drawn(tmp_path: Path) -> None:
    named = [(f"row {i}", example_result(members=1, images=40, seed=i)) for i in range(14)]
    for _, result in named:
        validate_evaluation(result)
    write_comparison(compare(named), tmp_path)
    assert (tmp_path / "comparison.json").is_file()


def test_intervals_say_the_same_as_the_test_far_from_the_border() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for lead in (0.0, 0.05, 0.3):
        for _ in range(10):
            a = (rng.random(300) < 0.5 + lead).astype(int)
            b = (rng.random(300) < 0.5).astype(int)
            (pair,) = compare(with_worst_cases(a.tolist(), b.tolist()))["pairs"]
            if not 0.02 < pair["p_value"] < 0.1:
                assert pair["holds_zero"] == (pair["p_value"] > 0.05)
                seen.add(pair["holds_zero"])
    assert seen == {True, False}
