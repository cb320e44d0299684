"""Evaluations side by side: what may stand in one table, paired tests, and how the comparison is read."""

import io
import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparsemble.core.errors import InputError
from sparsemble.core.results import ComparisonResult, EvaluationResult
from sparsemble.evaluation.compare import compare
from sparsemble.report import comparison_table, write_comparison
from tests.example_results import example_evaluation, with_attacks, with_correct
from tests.unit.sound_ensemble import changed
from tests.unit.test_statistics import brute_force_p_value

Rows = list[EvaluationResult]


@pytest.fixture
def rows() -> Rows:
    dense = changed(example_evaluation("dense", robust=0.35, members=1, seed=1), "cost.latency", {})
    other = replace(example_evaluation("other", seed=2), name="other ensemble")
    return [example_evaluation("ensemble", robust=0.6), dense, other]


def with_worst_cases(first: list[int], second: list[int]) -> Rows:
    """Make two results whose worst cases are these."""
    images = len(first)
    results = [example_evaluation(name, images=images, members=1) for name in ("a", "b")]
    return [with_correct(result, correct) for result, correct in zip(results, (first, second), strict=True)]


def printed(comparison: ComparisonResult) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table(comparison))
    return out.getvalue()


def test_pairs_are_counted_image_by_image() -> None:
    first, second = [1] * 6 + [0] * 10 + [1] * 4, [0] * 6 + [1] * 1 + [0] * 9 + [1] * 4
    (pair,) = compare(with_worst_cases(first, second)).pairs
    assert (pair.only_a, pair.only_b) == (6, 1)
    assert pair.difference == pytest.approx(5 / 20)
    assert pair.p_value == pytest.approx(brute_force_p_value(6, 1))
    assert pair.interval[0] <= pair.difference <= pair.interval[1]


def test_a_difference_is_more_than_chance_when_its_interval_leaves_out_zero() -> None:
    (same,) = compare(with_worst_cases([1, 0] * 50, [1, 0] * 50)).pairs
    assert (same.difference, same.p_value, same.contains_zero) == (0, 1, True)
    (far,) = compare(with_worst_cases([1] * 100, [0] * 60 + [1] * 40)).pairs
    assert not far.contains_zero
    assert far.interval[0] > 0.4
    assert far.p_value == pytest.approx(2.0**-59, rel=1e-9)


def test_swapping_two_results_turns_the_signs(rows: Rows) -> None:
    (forth,), (back,) = compare(rows[:2]).pairs, compare(rows[1::-1]).pairs
    assert back.difference == -forth.difference
    assert back.interval == pytest.approx([-end for end in reversed(forth.interval)])
    assert (back.only_a, back.only_b) == (forth.only_b, forth.only_a)
    assert back.p_value == pytest.approx(forth.p_value, rel=1e-9)


def test_every_pair_is_tested_and_every_row_kept(rows: Rows) -> None:
    comparison = compare(rows)
    names = ("ensemble", "dense", "other ensemble")
    assert [(pair.a, pair.b) for pair in comparison.pairs] == list(itertools.combinations(names, 2))
    assert list(comparison.rows) == rows
    assert [check.number for check in comparison.rows[0].checks_with("failed")] == [14, 20]
    assert comparison.rows[1].cost.latency == {}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data.sha256": "cd" * 32}, r"cifar10 \(test, sha256 abababab\).*sha256 cdcdcdcd\)"),
        ({"data.indices": tuple(range(200))}, r"200 images \(subset seed 4\).*67 are the same"),
        ({"threat.norm": "l2"}, r"the first is measured in linf, the second in l2"),
        (
            {"threat.eps": 0.031, "threat.eps_text": "0.031"},
            r"eps is 8/255 = 0.0313725 in the first and 0.031 = 0.031 in the second; these are never mixed",
        ),
        ({"threat.knowledge": "black-box"}, r"knowledge is white-box in the first and black-box"),
    ],
)
def test_refuses_what_does_not_belong_in_one_table(rows: Rows, changes: dict[str, Any], text: str) -> None:
    compare(rows)
    for path, value in changes.items():
        rows[2] = changed(rows[2], path, value)
    with pytest.raises(InputError, match=r'"ensemble" and "other ensemble" cannot be compared: .*' + text):
        compare(rows)


def test_refuses_different_numbers_of_images(rows: Rows) -> None:
    rows[1] = example_evaluation("dense", images=100, members=1)
    with pytest.raises(InputError, match=r"the first used 200 images .*, the second 100 images .*100 are the same"):
        compare(rows)


def test_one_radius_written_in_two_ways_is_one(rows: Rows) -> None:
    rows[1] = changed(changed(rows[1], "threat.eps", 0.031372549), "threat.eps_text", "0.031372549")
    assert len(compare(rows).rows) == 3


def test_refuses_fewer_than_two(rows: Rows) -> None:
    with pytest.raises(InputError, match="two or more results, got 1"):
        compare(rows[:1])


def test_results_of_one_name_are_numbered(rows: Rows) -> None:
    result = rows[0]
    comparison = compare([replace(result, name=name) for name in ("x", "x (2)", "x")])
    assert [row.name for row in comparison.rows] == ["x", "x (2)", "x (3)"]


def test_marks_where_autoattack_ran_differently(rows: Rows) -> None:
    assert not any("AutoAttack" in note for note in compare(rows).notes)
    exact = replace(rows[1].attacks[0], mode="exact", settings={**rows[1].attacks[0].settings, "mode": "exact"})
    rows[1] = replace(rows[1], attacks=(exact, *rows[1].attacks[1:]))
    comparison = compare(rows)
    assert [row.attacks[0].mode for row in comparison.rows] == ["fast", "exact", "fast"]
    assert any("AutoAttack did not run alike (ensemble: fast, dense: exact" in note for note in comparison.notes)
    assert comparison.differing_attacks == ("autoattack-fast",)
    assert not any(pair.same_attacks for pair in comparison.pairs if "dense" in (pair.a, pair.b))


def test_marks_where_attacks_differ(rows: Rows) -> None:
    comparison = compare(rows)
    assert comparison.shared_attacks == ("autoattack-fast", "fmn")
    assert comparison.partial_attacks["hijack50"] == ("ensemble", "other ensemble")
    assert any("Attacks on ensembles (5) ran on the rows that are ensembles" in note for note in comparison.notes)
    assert not any("easier worst case" in note for note in comparison.notes)
    assert [pair.same_attacks for pair in comparison.pairs] == [False, True, False]
    rows[2] = with_attacks(rows[2], [attack for attack in rows[2].attacks if attack.label != "hijack50"])
    notes = compare(rows).notes
    assert any("hijack50 ran on some rows only" in note and "easier worst case" in note for note in notes)


@pytest.mark.parametrize(
    ("path", "value", "kind", "text"),
    [
        ("search_dtype", "bfloat16", "notes", "searched in different precisions"),
        ("machine", {"processor": "another", "device": "cpu"}, "notes", "measured on different machines"),
        ("seed", 7, "notes", "attacked with different seeds"),
        ("model.selected_on", "test", "alarms", "Selected on test images: dense"),
    ],
)
def test_names_what_differs_between_rows(rows: Rows, path: str, value: Any, kind: str, text: str) -> None:
    assert not any(text in sentence for sentence in getattr(compare(rows), kind))
    rows[1] = changed(rows[1], path, value)
    assert any(text in sentence for sentence in getattr(compare(rows), kind))


def test_failed_checks_are_an_alarm(rows: Rows) -> None:
    assert any("Checks failed: ensemble 14, 20; dense 14, 20" in alarm for alarm in compare(rows).alarms)
    passed = [replace(row, checks=tuple(replace(check, status="passed") for check in row.checks)) for row in rows]
    assert compare(passed).alarms == ()


def test_is_read_back_as_it_was_written(rows: Rows, tmp_path: Path) -> None:
    comparison = compare(rows)
    comparison.save(tmp_path / "comparison.json")
    assert ComparisonResult.load(tmp_path / "comparison.json") == comparison


def test_terminal_tables_fit_and_mark_single_seeds(rows: Rows) -> None:
    rows[0] = replace(rows[0], name="a row with a name that no terminal column can hold as it is, however wide")
    text = printed(compare(rows))
    assert "\u2026" not in text, "something was cut off"
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "dense \u2020" in text
    assert "\u2020 one seed" in text
    assert "Checks failed:" in text
    assert "8/255" in text


def test_headline_mentions_chance() -> None:
    near = with_worst_cases([1] * 50 + [0] * 50, [1] * 49 + [0] * 51)
    assert "its lead of 1.0 points over b may be chance" in re.sub(r"\s+", " ", printed(compare(near)))
    far = with_worst_cases([0] * 60 + [1] * 40, [1] * 100)
    text = re.sub(r"\s+", " ", printed(compare(far)))
    assert "b keeps 100.0 % accuracy in its worst case, the most of 2" in text
    assert "its lead of 60.0 points over a is more than chance" in text
    low, high = re.findall(r"interval \+([\d.]+) to \+([\d.]+)\)", text)[0]
    assert 40 < float(low) < 60 < float(high) < 80


def test_page_holds_every_row_and_pair_and_loads_nothing(rows: Rows, tmp_path: Path) -> None:
    rows[1] = replace(rows[1], name="<dense> & co")
    comparison = compare(rows)
    write_comparison(comparison, tmp_path)
    text = (tmp_path / "index.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text), "the page loads something"
    assert "<script" not in text
    assert "<dense>" not in text
    assert text.count("&lt;dense&gt; &amp; co \u2020") == 2
    for sentence in (*comparison.alarms, *comparison.notes):
        assert sentence.partition(":")[2].replace("<", "&lt;").replace(">", "&gt;").replace("& co", "&amp; co") in text
    assert ET.parse(tmp_path / "figures" / "tradeoff.svg").getroot().tag.endswith("svg")
    markdown = (tmp_path / "comparison.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert sorted(len(table.splitlines()) - 2 for table in tables) == [3, 3, 3, 7]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_more_rows_than_colours_can_be_drawn(tmp_path: Path) -> None:
    rows = [replace(example_evaluation(members=1, images=40, seed=i), name=f"row {i}") for i in range(14)]
    write_comparison(compare(rows), tmp_path)
    assert (tmp_path / "comparison.json").is_file()


def test_intervals_agree_with_the_test_far_from_the_border() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for lead in (0.0, 0.05, 0.3):
        for _ in range(10):
            a = (rng.random(300) < 0.5 + lead).astype(int)
            b = (rng.random(300) < 0.5).astype(int)
            (pair,) = compare(with_worst_cases(a.tolist(), b.tolist())).pairs
            if not 0.02 < pair.p_value < 0.1:
                assert pair.contains_zero == (pair.p_value > 0.05)
                seen.add(pair.contains_zero)
    assert seen == {True, False}
