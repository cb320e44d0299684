"""Typed results: what they refuse, and that files come back as they were written."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsemble.core.errors import InputError
from sparsemble.core.results import EvaluationResult, ResultFile, RunDetails, RunSummary
from tests.example_results import example_details, example_evaluation, example_run

MISSING = object()


def changed(result: ResultFile, path: tuple[Any, ...], value: Any, folder: Path) -> Path:
    """Write a result with one value changed or missing."""
    table = json.loads(result.to_json())
    inner = table
    for step in path[:-1]:
        inner = inner[step]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file = folder / "result.json"
    file.write_text(json.dumps(table), "utf-8")
    return file


@pytest.mark.parametrize(
    "result", [example_evaluation(), example_evaluation(members=1), example_run(), example_details()]
)
def test_a_file_comes_back_as_it_was_written(result: ResultFile, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    assert type(result).load(tmp_path / "result.json") == result


FMN = 6  # position of the minimum-norm attack


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, r"has schema 2, this version reads 3"),
        (("schema",), MISSING, r"has schema None"),
        (("clean_accuracy",), 1.2, r"clean_accuracy = 1.2 must be the fraction of its correct images"),
        (("clean_accuracy",), "many", r'clean_accuracy = "many" is not a number'),
        (("model", "selected_on"), "train", r"model.selected_on = 'train' must be one of 'held-out', 'test'"),
        (("model", "sparsity"), 1.5, r"model: sparsity = 1.5 must be a number in \[0, 1\]"),
        (("model", "nonzeros"), -7, r"model: nonzeros = -7 must be a finite number, 0 or more"),
        (("model", "members"), 0, r"model: members = 0 must be 1 or more"),
        (("model", "colour"), "red", r"model.colour is not a known setting"),
        (("attacks", FMN, "mode"), "slow", r"attacks\[6\].mode = 'slow' must be one of 'fast', 'exact'"),
        (("attacks", FMN, "correct", 3), True, r"attacks\[6\].correct\[3\] = True must be a whole number"),
        (("attacks", FMN, "correct", 3), 2, r"attacks\[6\]: the outcomes of robust_accuracy must be 0 or 1"),
        (("attacks", FMN, "robust_accuracy"), 0.0, r"must be the fraction of its correct images"),
        (("attacks", FMN, "interval"), [0.9, 1.0], r"must lie in its interval"),
        (("attacks", FMN, "interval"), [0.9], r"must be two numbers, low <= high"),
        (("attacks", FMN, "distances"), [0.0], r"distances has 1 entries but the number of images in correct is 200"),
        (("attacks", FMN, "minimum_distances"), MISSING, r"median_distance is of minimum_distances, which are missing"),
        (("attacks", FMN, "label"), "hijack50", r"attacks must have labels of their own"),
        (("attacks",), [], r"attacks is empty; a worst case needs at least one attack"),
        (("worst_case", "accuracy"), 0.99, r"worst_case: accuracy = 0.99 must be the fraction"),
        (("data", "indices"), [1] * 200, r"data: indices names an image twice"),
        (("data", "indices"), [1], r"data: indices has 1 entries but images is 200"),
        (("data", "images"), 0, r"data: images = 0 must be 1 or more"),
        (("data", "split"), "train", r"data.split = 'train' must be one of 'test', 'held-out'"),
        (("checks", 3, "status"), "good", r"checks\[3\].status = 'good' must be one of 'failed', 'skipped', 'passed'"),
        (("checks", 3, "number"), 3, r"checks must be the checks 1 to 50, each once; missing: 4"),
        (("threat", "eps_text"), "0.031", r"must be the number that eps_text = '0.031' stands for"),
        (("threat", "eps_text"), "eight", r"eps_text = 'eight' must be a number, as in 8/255"),
        (("security_curve", "eps", 1), 0.9, r"must hold growing radii"),
        (("security_curve", "accuracy"), [0.5], r"accuracy has 1 entries but the number of radii in eps is 8"),
        (("members", "transfer", 0), [0.5], r"transfer\[0\] has 1 entries but the number of names is 3"),
        (("passes", "forward"), 1, r"passes.forward = 1 must be 420000, the sum over the attacks"),
        (("cost", "latency", "torch"), {}, r"latency.torch must hold batch_1 and batch_64, got nothing"),
        (("seconds",), float("nan"), r"seconds = nan must be a finite number"),
        (("seed",), True, r"seed = True must be a whole number"),
        (("threat",), "linf", r"threat must be a table"),
    ],
)
def test_an_evaluation_names_the_field_that_is_wrong(
    path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    file = changed(example_evaluation(), path, value, tmp_path)
    with pytest.raises(InputError, match=rf"result\.json.*{message}"):
        EvaluationResult.load(file)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 0, "clean_accuracy"), 1.2, r"rows\[0\]: clean_accuracy = 1.2"),
        (("rows", 1, "cost", "bytes"), "many", r"rows\[1\].cost.bytes = 'many' must be a whole number"),
        (("rows", 2, "attacks"), [], r"rows\[2\]: attacks is empty"),
        (("rows", 4, "worst_case", "interval"), [0.1, 0.2], r"rows\[4\].worst_case: .*must lie in its interval"),
        (("rows", 5, "name"), "mystery", r"rows must be dense, .*each once; got .*mystery"),
        (("rows", 5, "name"), "dense", r"rows must be dense, .*each once"),
        (("selection", "ensemble"), [], r"selection: ensemble is empty"),
        (("seed",), True, r"seed = True must be a whole number"),
    ],
)
def test_a_summary_names_the_field_that_is_wrong(
    path: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"result\.json: {message}"):
        RunSummary.load(changed(example_run(), path, value, tmp_path))


@pytest.mark.parametrize(
    ("path", "message"), [(("layers", "weights"), "number of layers"), (("overlap", "jaccard"), "names")]
)
def test_details_are_as_long_as_their_names(path: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        RunDetails.load(changed(example_details(), path, [], tmp_path))


@pytest.mark.parametrize("result", [example_evaluation(images=20), example_details()])
def test_every_field_without_a_default_is_needed(result: ResultFile, tmp_path: Path) -> None:
    fields: Any = dataclasses.fields(result)  # type: ignore[arg-type]
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    assert required or isinstance(result, RunDetails)
    for name in required:
        with pytest.raises(InputError, match=rf"{name} is missing"):
            type(result).load(changed(result, (name,), MISSING, tmp_path))


def test_refuses_a_worst_case_that_is_not_the_one_over_all_attacks(tmp_path: Path) -> None:
    result = example_evaluation()
    correct = list(result.worst_case.correct)
    wrong, right = correct.index(0), correct.index(1)
    correct[wrong], correct[right] = 1, 0  # the accuracy stays what it was
    with pytest.raises(InputError, match=r"worst_case.correct\[\d+\] = [01] must be"):
        EvaluationResult.load(changed(result, ("worst_case", "correct"), correct, tmp_path))


def test_an_attack_is_found_by_its_label() -> None:
    result = example_evaluation()
    assert result.attack("fmn").label == "fmn"
    with pytest.raises(InputError, match=r'"fgsm" is no attack of this evaluation; it has autoattack-fast, '):
        result.attack("fgsm")
    assert sum(result.strongest.correct) == min(sum(attack.correct) for attack in result.attacks)


class TestRobustBench:
    """The fields that RobustBench keeps of a model, under its names."""

    def test_accuracies_are_text_in_percent_and_what_is_not_known_is_null(self) -> None:
        result = example_evaluation()
        table = result.to_robustbench()
        assert {"clean_acc", "autoattack_acc", "eps", "dataset", "additional_data", "architecture"} <= table.keys()
        assert table["clean_acc"] == f"{100 * result.clean_accuracy:.2f}"
        assert table["eps"] == result.threat.eps_text
        assert table["reported"] is None

    def test_only_the_exact_standard_autoattack_counts(self) -> None:
        result = example_evaluation()
        first, *rest = result.attacks
        plain = replace(result, attacks=(replace(first, mode="fast", settings={"variant": "standard"}), *rest))
        exact = replace(result, attacks=(replace(first, mode="exact", settings={"variant": "standard"}), *rest))
        assert plain.to_robustbench()["autoattack_acc"] is None
        assert exact.to_robustbench()["autoattack_acc"] == f"{100 * first.robust_accuracy:.2f}"

    def test_a_failed_check_marks_the_evaluation_unreliable(self) -> None:
        result = example_evaluation()
        passed = tuple(replace(check, status="passed") for check in result.checks)
        assert not replace(result, checks=passed).to_robustbench()["unreliable"]
        failed = (replace(passed[0], status="failed"), *passed[1:])
        assert replace(result, checks=failed).to_robustbench()["unreliable"]


def test_a_result_prints_itself_as_a_table() -> None:
    result = example_evaluation()
    lines = str(result).splitlines()
    assert len(lines) == len(result.attacks) + 5
    assert f"{100 * result.robust_accuracy:.1f}" in lines[-2]
    assert all(attack.label in line for attack, line in zip(result.attacks, lines[3:], strict=False))
