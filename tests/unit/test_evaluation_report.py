"""How an evaluation is shown: page, Markdown and table."""

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from sparsemble.core.results import EvaluationResult, Examples
from sparsemble.report import evaluation_table, write_evaluation
from sparsemble.report.result_tables import attack_rows
from tests.example_results import accuracy_of, example_evaluation, example_images, interval_of, with_attacks


@pytest.fixture
def result() -> EvaluationResult:
    return example_evaluation()


def terminal(result: EvaluationResult) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(evaluation_table(result))
    return out.getvalue()


def one_line(result: EvaluationResult) -> str:
    return re.sub(r"\s+", " ", terminal(result))


def page(result: EvaluationResult, folder: Path, examples: Examples | None = None) -> str:
    write_evaluation(result, examples, folder)
    return (folder / "index.html").read_text("utf-8")


def test_page_is_one_file_that_holds_everything(result: EvaluationResult, tmp_path: Path) -> None:
    text = page(result, tmp_path, example_images())
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text), "the page loads something"
    assert "@import" not in text
    assert "<script" not in text
    assert "digits &amp; &lt;friends&gt;" in text
    assert "<friends>" not in text
    for check in result.checks:
        assert re.search(rf'<td class="left">{check.name}</td>\s*<td class="left">{check.detail}</td>', text)
    for attack in result.attacks:
        assert attack.label in text
    assert EvaluationResult.load(tmp_path / "evaluation.json") == result


def test_number_interval_mode_and_failed_checks_stand_at_the_top(result: EvaluationResult, tmp_path: Path) -> None:
    top = page(result, tmp_path).partition("<h2>Attacks</h2>")[0]
    low, high = result.interval
    assert f"<strong>{100 * result.robust_accuracy:.1f}\u00a0%</strong>" in top
    assert f"interval {100 * low:.1f} to {100 * high:.1f}" in top
    assert "AutoAttack in fast mode among them" in top
    assert "200 test images of cifar10, drawn with seed 4" in top
    assert "8/255" in top
    assert "Checks: 2 failed, 5 skipped, 43 passed" in top
    for check in result.checks:
        shown = re.search(rf"name of check {check.number}\b", top)
        assert bool(shown) == (check.status == "failed"), check
    assert top.index("2 checks of this evaluation failed") < top.index("<h1>")


def test_what_forbids_to_rely_on_a_number_is_named(result: EvaluationResult, tmp_path: Path) -> None:
    result = replace(result, model=replace(result.model, selected_on="test"))
    for text in (page(result, tmp_path), (tmp_path / "evaluation.md").read_text("utf-8"), one_line(result)):
        assert "Selected on test images" in text


@pytest.mark.parametrize(
    ("modes", "text"),
    [
        (("fast",), "AutoAttack in fast mode among them"),
        (("exact",), "AutoAttack in exact mode among them"),
        (("exact", "fast"), "AutoAttack in exact and fast mode among them"),
        ((), "AutoAttack not among them"),
    ],
)
def test_headline_names_the_mode_of_autoattack(
    result: EvaluationResult, modes: tuple[Literal["fast", "exact"], ...], text: str
) -> None:
    some = [*modes, *[None] * len(result.attacks)]
    attacks = [replace(attack, mode=mode) for attack, mode in zip(result.attacks, some, strict=False)]
    assert text in one_line(with_attacks(result, attacks))


def test_rows_go_from_clean_images_to_the_worst_case(result: EvaluationResult) -> None:
    rows = attack_rows(result)
    assert [rows[0].kind, rows[-1].kind] == ["clean", "worst case"]
    assert {row.label for row in rows[1:-1]} == {attack.label for attack in result.attacks}
    accuracies = [row.interval[1] for row in rows[1:]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_single_model_has_no_columns_and_plots_of_ensembles(tmp_path: Path) -> None:
    result = example_evaluation("one", members=1)
    result = replace(result, security_curve=None, cost=replace(result.cost, latency={}))
    attacks = [replace(attack, median_distance=None, minimum_distances=None) for attack in result.attacks]
    result = with_attacks(result, attacks)
    text = page(result, tmp_path)
    assert not list((tmp_path / "figures").glob("*.svg"))
    assert "Accuracy against eps" in text, "a plot that could have been there is named"
    assert "Each member" not in text
    assert ">members</th>" not in text
    assert ">median distance</th>" not in text
    assert "members" not in terminal(result)


def test_plots_are_drawings_and_the_same_twice(result: EvaluationResult, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_evaluation(result, example_images(), tmp_path / name)
    drawings = sorted((tmp_path / "a" / "figures").glob("*.svg"))
    assert {path.stem for path in drawings} == {"security_curve", "distances", "members", "members_run", "examples"}
    for path in drawings:
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("images", [40, 150, 500])
def test_accuracies_at_the_ends_can_be_drawn(value: int, images: int, tmp_path: Path) -> None:
    result = example_evaluation(images=images)
    correct = (value,) * images
    fields = {"robust_accuracy": accuracy_of(correct), "interval": interval_of(correct), "correct": correct}
    result = with_attacks(result, [replace(attack, **fields) for attack in result.attacks])  # type: ignore[arg-type]
    assert f">{100 * value:.1f}</td>" in page(result, tmp_path)


def test_distances_that_were_never_found_are_counted_not_drawn(result: EvaluationResult, tmp_path: Path) -> None:
    *others, attack = result.attacks
    correct = [i for i, value in enumerate(result.clean_correct) if value]
    distances: list[float | None] = [0.0] * 200
    for i in correct:
        distances[i] = None if i in correct[:5] else 0.02
    some = replace(attack, minimum_distances=tuple(distances))
    write_evaluation(with_attacks(result, [*others, some]), None, tmp_path / "some")
    assert "5 never misclassified" in (tmp_path / "some" / "figures" / "distances.svg").read_text("utf-8")
    none = replace(attack, minimum_distances=(None,) * 200, median_distance=None)
    write_evaluation(with_attacks(result, [*others, none]), None, tmp_path / "none")
    assert not (tmp_path / "none" / "figures" / "distances.svg").exists()
    assert "none found" in (tmp_path / "none" / "evaluation.md").read_text("utf-8")


def test_markdown_tables_are_well_formed(result: EvaluationResult, tmp_path: Path) -> None:
    checks = (replace(result.checks[0], detail="a | pipe\nand a line"), *result.checks[1:])
    write_evaluation(replace(result, checks=checks), None, tmp_path)
    text = (tmp_path / "evaluation.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert [len(table.splitlines()) - 2 for table in tables] == [len(result.attacks) + 2, 2, 48]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "- failed 14: name of check 14: detail 14" in text


def test_terminal_table_fits_and_cuts_nothing(result: EvaluationResult) -> None:
    label = "a-label-that-is-much-longer-than-any-terminal-column-should-have-to-hold"
    *others, attack = result.attacks
    text = terminal(with_attacks(result, [*others, replace(attack, label=label, seconds=400_000.0)]))
    assert "\u2026" not in text, "something was cut off"
    assert all(len(line) <= 80 for line in text.splitlines())
    column = "".join(line.split("  ")[0].strip() for line in text.splitlines())
    assert label in column, "a long label goes on in the next line"
    assert "failed: 14 name of check 14: detail 14" in one_line(result)


def test_names_are_text_not_markup() -> None:
    assert "a [red]model[/]" in terminal(example_evaluation("a [red]model[/]"))
