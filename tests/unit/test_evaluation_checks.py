"""The fifty checks as a whole: their names, how they are put together, and their page."""

import inspect
import re
from pathlib import Path

import pytest

from sparsemble.core.errors import InputError
from sparsemble.core.results import CheckResult
from sparsemble.evaluation import checks
from sparsemble.evaluation.checks import (
    attacks,
    complete,
    dynamic,
    ensemble,
    forward,
    merged,
    model,
    path,
    reporting,
    skipped,
    sparsity,
    verdict,
)

PAGE = (Path(__file__).parents[2] / "docs" / "checks.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| \d", line)]
FUNCTIONS = {
    name: function
    for module in (attacks, dynamic, ensemble, forward, model, path, reporting, sparsity)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__
    and inspect.signature(function).return_annotation is CheckResult
    and not name.startswith("_")
}


def named(row: list[str]) -> list[str]:
    """Return the functions that a row of the page names."""
    return re.findall(r"`(\w+)\(\)`", row[2])


class TestList:
    def test_there_are_fifty_names_and_no_two_alike(self) -> None:
        assert list(checks.NAMES) == list(range(1, 51))
        assert len(set(checks.NAMES.values())) == 50

    def test_no_name_holds_another(self) -> None:
        # Check 50 looks for names in a text.
        names = checks.NAMES.values()
        assert not [(a, b) for a in names for b in names if a != b and a in b]

    def test_a_verdict_takes_its_name_from_the_list(self) -> None:
        name = checks.NAMES[13]
        assert verdict(13, True, "why") == CheckResult(number=13, name=name, status="passed", detail="why")
        assert verdict(13, False, "why").status == "failed"
        assert skipped(13, "why") == CheckResult(number=13, name=name, status="skipped", detail="why")


class TestComplete:
    def test_fills_what_is_missing_in_order(self) -> None:
        found = complete([verdict(38, False, "differs"), verdict(2, True, "inside")])
        assert [check.number for check in found] == list(range(1, 51))
        assert [check.name for check in found] == list(checks.NAMES.values())
        assert {check.number: check.status for check in found if check.status != "skipped"} == {
            2: "passed",
            38: "failed",
        }
        assert found[0].detail == "not run in this evaluation"

    def test_gives_reasons(self) -> None:
        found = complete([])
        assert (found[44].detail, found[43].detail) == (checks.REASONS[45], "not run in this evaluation")

    def test_refuses_duplicates_and_unknown_numbers(self) -> None:
        twice = [verdict(2, True, "inside"), verdict(2, True, "normalised")]
        with pytest.raises(InputError, match="check 2 is there twice"):
            complete(twice)
        assert len(complete(merged(twice))) == 50
        with pytest.raises(InputError, match="check 51 is not in the list"):
            complete([CheckResult(number=51, name="one more", status="passed", detail="why")])

    @pytest.mark.parametrize(
        ("statuses", "worst"),
        [("pf", "failed"), ("fp", "failed"), ("ps", "skipped"), ("sf", "failed"), ("ppp", "passed"), ("s", "skipped")],
    )
    def test_the_worst_of_duplicates_wins_and_details_are_joined(self, statuses: str, worst: str) -> None:
        make = {"p": lambda: verdict(3, True, "p"), "f": lambda: verdict(3, False, "f"), "s": lambda: skipped(3, "s")}
        (found,) = merged(make[one]() for one in statuses)
        assert (found.number, found.name, found.status) == (3, checks.NAMES[3], worst)
        assert sorted(found.detail.split("; ")) == sorted(set(statuses))

    def test_merging_leaves_others_alone_and_in_order(self) -> None:
        found = merged([verdict(9, True, "b"), verdict(2, True, "a"), verdict(9, False, "c")])
        assert [(check.number, check.status, check.detail) for check in found] == [
            (2, "passed", "a"),
            (9, "failed", "c; b"),
        ]


class TestPage:
    def test_names_all_fifty_as_the_code_does(self) -> None:
        assert {int(row[0]): row[1] for row in ROWS} == checks.NAMES
        assert [int(row[0]) for row in ROWS] == list(checks.NAMES)

    def test_every_row_is_full(self) -> None:
        assert all(len(row) == 5 and all(row) for row in ROWS)

    def test_functions_stand_in_the_rows_of_their_numbers(self) -> None:
        for name, function in FUNCTIONS.items():
            text = inspect.getdoc(function) or ""
            number = re.match(r"Check (\d+):", text)
            assert number, f"{name} does not say which check it makes"
            row = ROWS[int(number[1]) - 1]
            assert f"`{name}()`" in row[2], f"docs/checks.md, check {number[1]}, lacks `{name}`"
            assert "passes" in text or "pass an image" in text or "decision" in text, f"{name} does not say its cost"
        every = [name for row in ROWS for name in named(row)]
        assert sorted(every) == sorted(FUNCTIONS), "docs/checks.md names a function that is not there, or one twice"

    def test_every_number_has_a_function(self) -> None:
        assert all(named(row) for row in ROWS)

    def test_functions_that_never_skip_are_marked(self) -> None:
        for row in ROWS:
            functions = [inspect.getsource(inspect.unwrap(FUNCTIONS[name])) for name in named(row)]
            can = any(re.search(r"\bskipped\(", source) for source in functions)
            assert can == (row[4] != "never"), f"docs/checks.md, check {row[0]}: {row[4]}"
