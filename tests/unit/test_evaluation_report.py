"""How an evaluation is read: its schema, page, Markdown and table."""

import copy
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sparsemble.core.errors import InputError
from sparsemble.report import evaluation_table, validate_evaluation, write_evaluation
from sparsemble.report.evaluation_schema import EVALUATION
from sparsemble.report.evaluation_tables import lines
from sparsemble.report.schema import IfThere, OrNull, fields_of, keep, one_of
from tests.unit.example_result import example_images, example_result, share

DOCS = Path(__file__).parents[2] / "docs" / "evaluation_json.md"
NAMED = set(re.findall(r"`(\w+)`", DOCS.read_text("utf-8")))


@pytest.fixture
def result() -> dict[str, Any]:
    return example_result()


def terminal(result: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(evaluation_table(result))
    return out.getvalue()


def sentences(result: dict[str, Any]) -> str:
    return re.sub(r"\s+", " ", terminal(result))


def page(result: dict[str, Any], folder: Path, **examples: np.ndarray) -> str:
    write_evaluation(result, examples, folder)
    return (folder / "index.html").read_text("utf-8")


@pytest.mark.parametrize("field", sorted(fields_of(EVALUATION)))
def test_every_field_is_documented(field: str) -> None:
    assert field in NAMED, f"docs/evaluation_json.md does not name `{field}`"


def test_the_examples_are_valid(result: dict[str, Any]) -> None:
    validate_evaluation(result)
    validate_evaluation(example_result(members=1))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema",), 2, r"evaluation.schema = 2 must be one of 1"),
        (("kind",), "summary", r"evaluation.kind = 'summary' must be one of evaluation"),
        (("clean_accuracy",), 1.2, r"clean_accuracy = 1.2 must be a number in \[0, 1\]"),
        (("target", "selected_on"), "train", r"must be one of held-out, test, null"),
        (("target", "nonzeros"), 7, r"size.nonzeros = 2240000 must be target.nonzeros, 7"),
        (("attacks", "fmn", "mode"), "slow", r"attacks.fmn.mode = 'slow' must be one of fast, exact, null"),
        (("attacks", "fmn", "outcomes", 3), True, r"outcomes\[3\] = True must be one of 0, 1"),
        (("attacks", "fmn", "robust_accuracy"), 0.0, r"must be the share of its outcomes"),
        (("attacks", "fmn", "interval"), [0.9, 1.0], r"must lie in its interval"),
        (("attacks", "fmn", "distances"), [0.0], r"distances has 1 entries but data.images says 200"),
        (("attacks",), {}, r"attacks is empty"),
        (("worst_case", "accuracy"), 0.99, r"worst_case.accuracy = 0.99 must be the share"),
        (("data", "indices"), [1] * 200, r"names an image twice"),
        (("data", "split"), "train", r"must be one of test"),
        (("checks", 3, "status"), "good", r"must be one of fail, waived, pass"),
        (("checks", 3, "number"), 3, r"must be the checks 1 to 50, each once; missing: 4"),
        (("threat", "eps_text"), "0.031", r"must be what eps_text = '0.031' says"),
        (("threat", "eps_text"), "eight", r"must be a number, as in 8/255"),
        (("security_curve", "eps", 1), 0.9, r"must hold growing radii"),
        (("security_curve", "accuracy"), [0.5], r"has 1 entries but security_curve.eps says 8"),
        (("members", "transfer", 0), [0.5], r"transfer\[0\] has 1 entries but target.members says 3"),
        (("passes", "forward"), 1, r"passes.forward = 1 must be the sum over the attacks"),
        (("latency",), {}, r"latency.batch_1 is missing"),
        (("eps",), "0.031", r"evaluation.eps = '0.031' must be threat.eps_text"),
        (("unreliable",), 0, r"unreliable = 0 must be true or false"),
        (("seconds",), float("nan"), r"seconds = nan must be"),
    ],
)
def test_names_the_first_field_that_is_wrong(
    result: dict[str, Any], path: tuple[Any, ...], value: Any, words: str
) -> None:
    place: Any = result
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InputError, match=words):
        validate_evaluation(result)


def test_every_field_is_needed(result: dict[str, Any]) -> None:
    for field in result:
        without = copy.deepcopy(result)
        del without[field]
        with pytest.raises(InputError, match=f"evaluation.{field} is missing"):
            validate_evaluation(without)


def test_refuses_a_worst_case_that_is_not_the_one_over_all_attacks(result: dict[str, Any]) -> None:
    worst = result["worst_case"]["outcomes"]
    broken, held = worst.index(0), worst.index(1)
    worst[broken], worst[held] = 1, 0  # the accuracy stays what it was
    with pytest.raises(InputError, match=r"worst_case.outcomes\[\d+\] = [01] must be"):
        validate_evaluation(result)


def test_half_of_a_minimum_norm_attack_is_refused(result: dict[str, Any]) -> None:
    del result["attacks"]["fmn"]["median_distance"]
    with pytest.raises(InputError, match="both median_distance and minimum_distances"):
        validate_evaluation(result)


def test_optional_values_keep_their_schema_where_they_are() -> None:
    schema = {"a": IfThere(one_of(1)), "b": OrNull({"c": one_of(1)})}
    keep({"b": None}, schema, "x")
    keep({"a": 1, "b": {"c": 1}}, schema, "x")
    for wrong in ({"a": None, "b": None}, {"b": {}}, {"a": 1}, {"a": True, "b": None}):
        with pytest.raises(InputError, match=r"x\."):
            keep(wrong, schema, "x")


def test_page_is_one_file_that_holds_everything(result: dict[str, Any], tmp_path: Path) -> None:
    text = page(result, tmp_path, **example_images())
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text), "the page loads something"
    assert "@import" not in text
    assert "<script" not in text
    assert "digits &amp; &lt;friends&gt;" in text
    assert "<friends>" not in text
    for check in result["checks"]:
        assert f"<td>{check['name']}</td><td>{check['detail']}</td>" in text
    for label in result["attacks"]:
        assert label in text


def test_number_interval_mode_and_open_checks_stand_at_the_top(result: dict[str, Any], tmp_path: Path) -> None:
    top = page(result, tmp_path).partition("<h2>Attacks</h2>")[0]
    low, high = result["worst_case"]["interval"]
    assert f"<strong>{100 * result['worst_case']['accuracy']:.1f}\u00a0%</strong>" in top
    assert f"interval {100 * low:.1f} to {100 * high:.1f}" in top
    assert "AutoAttack in fast mode among them" in top
    assert "200 test images of cifar10, drawn with seed 4" in top
    assert "8/255" in top
    for check in result["checks"]:
        shown = re.search(rf"what check {check['number']} asks\b", top)
        assert bool(shown) == (check["status"] != "pass"), check
    assert top.index("2 checks of this evaluation failed") < top.index("<h1>")


def test_what_forbids_to_rely_on_a_number_is_said(result: dict[str, Any], tmp_path: Path) -> None:
    result["target"]["selected_on"] = "test"
    result["unreliable"] = True
    for text in (page(result, tmp_path), (tmp_path / "evaluation.md").read_text("utf-8"), sentences(result)):
        assert "selected on test images" in text
        assert "marked unreliable" in text


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        (("fast",), "AutoAttack in fast mode among them"),
        (("exact",), "AutoAttack in exact mode among them"),
        (("exact", "fast"), "AutoAttack in exact and fast mode among them"),
        ((), "AutoAttack not among them"),
    ],
)
def test_headline_names_the_mode_of_autoattack(result: dict[str, Any], modes: tuple[str, ...], words: str) -> None:
    for attack in result["attacks"].values():
        attack["mode"] = None
    for attack, mode in zip(result["attacks"].values(), modes, strict=False):
        attack["mode"] = mode
    assert words in sentences(result)


def test_lines_go_from_clean_images_to_the_worst_case(result: dict[str, Any]) -> None:
    found = lines(result)
    assert [found[0].kind, found[-1].kind] == ["clean", "worst case"]
    assert {line.label for line in found[1:-1]} == set(result["attacks"])
    accuracies = [line.accuracy for line in found[1:]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_single_model_has_no_columns_and_plots_of_ensembles(tmp_path: Path) -> None:
    result = example_result("one", members=1)
    result["latency"] = result["security_curve"] = None
    del result["attacks"]["fmn"]["median_distance"], result["attacks"]["fmn"]["minimum_distances"]
    text = page(result, tmp_path)
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {"attacks"}
    assert "Accuracy against eps" in text, "a plot that could have been there is named"
    assert "The members" not in text
    assert ">members</th>" not in text
    assert ">median distance</th>" not in text
    assert "members" not in terminal(result)


def test_plots_are_drawings_and_the_same_twice(result: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_evaluation(result, example_images(), tmp_path / name)
    drawings = sorted((tmp_path / "a" / "figures").glob("*.svg"))
    assert {path.stem for path in drawings} == {"attacks", "curve", "distances", "members", "work", "examples"}
    for path in drawings:
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("images", [40, 150, 500])
def test_accuracies_at_the_ends_can_be_drawn(value: int, images: int, tmp_path: Path) -> None:
    result = example_result(images=images)
    for attack in result["attacks"].values():
        found = share([value] * images)
        attack |= {"robust_accuracy": found["accuracy"], "interval": found["interval"], "outcomes": found["outcomes"]}
    result["worst_case"] = share([value * right for right in result["clean_outcomes"]])
    assert f">{100 * value:.1f}</td>" in page(result, tmp_path)


def test_distances_that_were_never_found_are_counted_not_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    attack = result["attacks"]["fmn"]
    right = [i for i, value in enumerate(result["clean_outcomes"]) if value]
    attack["minimum_distances"] = [0.0] * 200
    for i in right:
        attack["minimum_distances"][i] = None if i in right[:5] else 0.02
    write_evaluation(result, {}, tmp_path / "some")
    assert "5 never broken" in (tmp_path / "some" / "figures" / "distances.svg").read_text("utf-8")
    attack["minimum_distances"], attack["median_distance"] = [None] * 200, None
    write_evaluation(result, {}, tmp_path / "none")
    assert not (tmp_path / "none" / "figures" / "distances.svg").exists()
    assert "none found" in (tmp_path / "none" / "evaluation.md").read_text("utf-8")


def test_markdown_tables_are_well_formed(result: dict[str, Any], tmp_path: Path) -> None:
    result["checks"][0]["detail"] = "a | pipe\nand a line"
    write_evaluation(result, {}, tmp_path)
    text = (tmp_path / "evaluation.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert [len(table.splitlines()) for table in tables] == [2 + len(result["attacks"]) + 2, 2 + 50]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "- **fail**: 14 what check 14 asks: why 14" in text


def test_terminal_table_fits_and_cuts_nothing(result: dict[str, Any]) -> None:
    label = "a-label-that-is-much-longer-than-any-terminal-column-should-have-to-hold"
    result["attacks"] = {label: result["attacks"].pop("fmn"), **result["attacks"]}
    result["attacks"][label]["seconds"] = 400_000.0
    text = terminal(result)
    assert "\u2026" not in text, "something was cut off"
    assert all(len(line) <= 80 for line in text.splitlines())
    column = "".join(line.split("  ")[0].strip() for line in text.splitlines())
    assert label in column, "a long label goes on in the next line"
    assert "failed: 14 what check 14 asks: why 14" in sentences(result)
    assert "5 what check 5 asks" in text


def test_names_are_words_not_markup() -> None:
    assert "a [red]model[/]" in terminal(example_result("a [red]model[/]"))
