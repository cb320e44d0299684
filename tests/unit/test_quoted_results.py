"""Results of others beside ours: what is read from their files, what is refused, and how it is shown."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparsemble.core.errors import InputError
from sparsemble.core.results import ComparisonResult, EvaluationResult, QuotedResult
from sparsemble.evaluation.compare import compare
from sparsemble.evaluation.quoted_results import read_result
from sparsemble.pipeline.evaluate_command import compare_files
from sparsemble.report import comparison_table, write_comparison
from tests.example_results import example_corruptions, example_evaluation
from tests.unit.sound_ensemble import changed

ENTRY = {
    "name": "A paper with a title",
    "authors": "A. Author",
    "additional_data": True,
    "dataset": "cifar10",
    "venue": "a workshop",
    "architecture": "WideResNet-28-10",
    "eps": "8/255",
    "clean_acc": "88.25",
    "reported": "61.0",
    "autoattack_acc": "60.25",
    "unreliable": False,
}
LOG = """setting parameters for standard version
using standard version including apgd-ce, apgd-t, fab-t, square.
initial accuracy: 82.00%
apgd-ce - 1/2 - 60 out of 100 successfully perturbed
apgd-ce - 2/2 - 24 out of 64 successfully perturbed
robust accuracy after APGD-CE: 40.00% (total time 10.3 s)
apgd-t - 1/1 - 4 out of 80 successfully perturbed
robust accuracy after APGD-T: 38.00% (total time 21.9 s)
fab-t - 1/1 - 0 out of 76 successfully perturbed
robust accuracy after FAB-T: 38.00% (total time 40.1 s)
square - 1/1 - 0 out of 76 successfully perturbed
robust accuracy after SQUARE: 38.00% (total time 61.0 s)
max Linf perturbation: 0.03137, nan in tensor: 0, max: 1.00000, min: 0.00000
robust accuracy: 38.00%
"""


def entry(folder: Path, name: str = "Author2021Paper", threat: str = "Linf", **changes: Any) -> Path:
    """Write a file as RobustBench keeps it, in a folder named after the threat; None leaves a field out."""
    path = folder / threat / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {key: value for key, value in {**ENTRY, **changes}.items() if value is not None}
    path.write_text(json.dumps(table), "utf-8")
    return path


def log(folder: Path, text: str = LOG) -> Path:
    path = folder / "run.log"
    path.write_text(text, "utf-8")
    return path


def quoted(path: Path) -> QuotedResult:
    result = read_result(path)
    assert isinstance(result, QuotedResult)
    return result


def printed(comparison: ComparisonResult) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table(comparison))
    return " ".join(out.getvalue().split())


class TestRobustBench:
    def test_fields_are_read_by_their_names(self, tmp_path: Path) -> None:
        path = entry(tmp_path)
        assert quoted(path) == QuotedResult(
            name="Author2021Paper",
            source=str(path),
            kind="RobustBench",
            data="cifar10",
            norm="linf",
            eps_text="8/255",
            architecture="WideResNet-28-10",
            clean_accuracy=0.8825,
            robust_accuracy=0.6025,
            attacks={"autoattack_acc": 0.6025},
        )

    def test_a_lower_external_evaluation_counts(self, tmp_path: Path) -> None:
        result = quoted(entry(tmp_path, external="57.5%", unreliable=True))
        assert result.robust_accuracy == 0.575
        assert result.unreliable
        assert list(result.attacks) == ["autoattack_acc", "external"]

    @pytest.mark.parametrize(("threat", "changes", "norm"), [("L2", {}, "l2"), ("any", {"norm": "Linf"}, "linf")])
    def test_the_norm_is_that_of_the_file_or_its_folder(
        self, threat: str, changes: dict[str, Any], norm: str, tmp_path: Path
    ) -> None:
        assert quoted(entry(tmp_path, threat=threat, **changes)).norm == norm

    def test_entries_of_the_corruptions_board_need_no_norm(self, tmp_path: Path) -> None:
        path = entry(tmp_path, threat="corruptions", eps=None, autoattack_acc=None, corruptions_acc="90.94")
        result = quoted(path)
        assert (result.corrupted_accuracy, result.robust_accuracy, result.norm) == (0.9094, None, None)
        ours = example_evaluation("ours")
        with pytest.raises(
            InputError, match="accuracy under corruptions, and the other has none; evaluate with --corr"
        ):
            compare([ours], [result])
        assert "90.9" in printed(compare([replace(ours, corruptions=example_corruptions())], [result]))

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"threat": "any"}, r'does not give its norm; keep it in a folder Linf or L2.*"threat": "Linf"'),
            ({"eps": "small"}, r"eps = 'small' must be a number, as in 8/255"),
            ({"autoattack_acc": "much"}, r"autoattack_acc = 'much' must be an accuracy in percent"),
            ({"clean_acc": 188}, r"clean_acc = 188 must be an accuracy in percent"),
            ({"autoattack_acc": None}, r"neither a robust accuracy nor one under corruptions"),
        ],
    )
    def test_what_is_damaged_is_refused(self, changes: dict[str, Any], text: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=text):
            read_result(entry(tmp_path, **changes))

    def test_our_own_file_in_that_form_is_read_back(self, tmp_path: Path) -> None:
        ours = replace(example_evaluation(), corruptions=example_corruptions())
        path = tmp_path / "robustbench.json"
        path.write_text(json.dumps(ours.to_robustbench()), "utf-8")
        result = quoted(path)
        assert result.clean_accuracy == pytest.approx(ours.clean_accuracy, abs=1e-4)
        assert result.corrupted_accuracy == pytest.approx(example_corruptions().mean, abs=1e-4)


class TestLog:
    def test_lines_are_read(self, tmp_path: Path) -> None:
        result = quoted(log(tmp_path, LOG.replace("\n", "\r\n")))
        assert result.attacks == {"APGD-CE": 0.4, "APGD-T": 0.38, "FAB-T": 0.38, "SQUARE": 0.38}
        assert (result.norm, result.eps_text, result.clean_accuracy, result.robust_accuracy) == (
            "linf",
            "0.03137",
            0.82,
            0.38,
        )
        assert result.images == 200  # 164 of them are 82.00 %

    def test_images_that_cannot_be_told_are_left_open(self, tmp_path: Path) -> None:
        assert quoted(log(tmp_path, LOG.replace("82.00%", "81.90%"))).images is None
        assert quoted(log(tmp_path, "robust accuracy: 45.31%")).images is None

    def test_a_log_that_was_resumed_is_one_evaluation(self, tmp_path: Path) -> None:
        first, _, second = LOG.partition("apgd-t - 1/1")
        resumed = f"{first}Restored state\ninitial clean accuracy: 82.00%\napgd-t - 1/1{second}"
        result = quoted(log(tmp_path, resumed))
        assert (result.clean_accuracy, result.robust_accuracy, result.images) == (0.82, 0.38, None)
        assert list(result.attacks) == ["APGD-CE", "APGD-T", "FAB-T", "SQUARE"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (LOG + LOG, "is the log of 2 evaluations"),
            (LOG.replace("robust accuracy: 38.00%", ""), "was not finished"),
            ("robust accuracy by APGD-CE \t 40.00% \t (time attack: 1.0 s)", "has accuracies of single attacks only"),
        ],
    )
    def test_logs_without_one_worst_case_are_refused(self, text: str, reason: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=reason):
            read_result(log(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threat": "L2", "eps": "0.5"}, "it is measured in l2, the other in linf"),
        ({"eps": "0.031"}, r"its eps is 0.031, the other's 8/255 = 0.0313725; these are never mixed"),
        ({"dataset": "cifar100"}, "it is measured on cifar100, the other on cifar10"),
    ],
)
def test_other_threats_and_data_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    ours = example_evaluation("ours")
    with pytest.raises(InputError, match=f'"Author2021Paper" .* and "ours" cannot be compared: {text}'):
        compare([ours], [quoted(entry(tmp_path, **changes))])


def test_the_same_data_set_may_be_written_in_other_ways(tmp_path: Path) -> None:
    (other,) = compare([example_evaluation("ours")], [quoted(entry(tmp_path, dataset="CIFAR-10"))]).quoted
    assert other.data == "CIFAR-10"


@pytest.mark.parametrize("perturbation", ["0.03100", "0.03138"])
def test_a_log_at_another_eps_is_refused(perturbation: str, tmp_path: Path) -> None:
    ours = example_evaluation("ours")
    assert compare([ours], [quoted(log(tmp_path))]).quoted
    with pytest.raises(InputError, match=f"its eps is {perturbation}"):
        compare([ours], [quoted(log(tmp_path, LOG.replace("0.03137", perturbation)))])


def test_rows_without_outcomes_have_no_test_and_say_so(tmp_path: Path) -> None:
    first, second = example_evaluation("first"), example_evaluation("second", seed=1)
    both = [quoted(entry(tmp_path, unreliable=True)), quoted(log(tmp_path, LOG.replace("apgd-ce", "apgd-dlr")))]
    comparison = compare([first, second], both)
    assert [(pair.a, pair.b) for pair in comparison.pairs] == [("first", "second")]
    notes = " ".join(comparison.notes)
    assert "Quoted, not measured here: Author2021Paper, run." in notes
    assert "there is no paired test with them" in notes
    assert "The rows are a subset of 200 images; Author2021Paper is about all" in notes
    assert "Whether run has the same data set cannot be read from its file" in notes
    assert "RobustBench marks the number of Author2021Paper as unreliable" in notes
    text = printed(comparison)
    for words in ("Numbers of others, not measured here", "60.2", "38.0", "no paired test"):
        assert words in text


def test_parts_that_are_not_the_standard_ones_are_named(tmp_path: Path) -> None:
    text = LOG.replace("after APGD-T", "after APGD-DLR")
    notes = " ".join(compare([example_evaluation("ours")], [quoted(log(tmp_path, text))]).notes)
    assert "run ran APGD-CE, APGD-DLR, FAB-T, SQUARE: not AutoAttack's standard version" in notes


def test_one_result_of_ours_is_enough_and_none_is_not(tmp_path: Path) -> None:
    ours = example_evaluation("ours")
    ours.save(tmp_path / "evaluation.json")
    comparison = compare_files([tmp_path, entry(tmp_path), entry(tmp_path / "more")], tmp_path / "page")
    assert comparison.pairs == ()
    assert [other.name for other in comparison.quoted] == ["Author2021Paper", "Author2021Paper (2)"]
    assert ComparisonResult.load(tmp_path / "page/comparison.json") == comparison
    page, markdown = ((tmp_path / "page" / name).read_text("utf-8") for name in ("index.html", "comparison.md"))
    for text in (page, markdown):
        assert "Numbers of others" in text
        assert "Author2021Paper (2)" in text
        assert "Pairs" not in text
    with pytest.raises(InputError, match="name at least one of these"):
        compare_files([entry(tmp_path), entry(tmp_path / "more")], None)


def test_an_unknown_data_set_of_ours_is_noted(tmp_path: Path) -> None:
    ours = changed(example_evaluation("ours"), "data.name", "arrays")
    notes = " ".join(compare([ours], [quoted(entry(tmp_path))]).notes)
    assert "Whether Author2021Paper has the same data set cannot be read" in notes


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for text in ("{}", "[1]", "some text", json.dumps({"accuracy": 1})):
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match="is neither a result of `sparsemble evaluate`, nor"):
            read_result(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_result(tmp_path / "absent.json")
    result = example_evaluation()
    result.save(path)
    assert read_result(path) == result
    assert isinstance(read_result(path), EvaluationResult)


def test_a_page_draws_rows_and_numbers_of_others(tmp_path: Path) -> None:
    rows = [example_evaluation("first"), example_evaluation("second", seed=1)]
    write_comparison(compare(rows, [quoted(log(tmp_path))]), tmp_path / "page")
    text = (tmp_path / "page/comparison.md").read_text("utf-8")
    assert text.index("## Results") < text.index("## Pairs") < text.index("## Numbers of others")
    assert "AutoAttack log: " in text
