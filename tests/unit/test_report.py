"""The report of a run: the page, the table, the plots."""

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sparsemble.core.results import ROW_NAMES, HeldOutAccuracy, RunDetails, RunSummary, TrainingRecord
from sparsemble.evaluation.compare import paired_test
from sparsemble.report import run_table, write_run_report
from sparsemble.report.figures import rollback_epochs
from sparsemble.report.formatting import count, duration, size
from sparsemble.report.page import markdown
from sparsemble.report.run_page import epoch_table, rollbacks, training_table
from tests.example_results import example_details, example_epochs, example_images, example_run, with_correct

NO_DETAILS = RunDetails()


@pytest.fixture
def summary() -> RunSummary:
    return example_run()


def with_detail(summary: RunSummary, detail: str) -> RunSummary:
    """Return the summary with another detail of its first check."""
    *others, row = summary.rows
    checks = (replace(row.checks[0], detail=detail), *row.checks[1:])
    return replace(summary, rows=(*others, replace(row, checks=checks)))


def terminal(summary: RunSummary) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(run_table(summary))
    return out.getvalue()


def test_page_is_one_file_that_holds_everything(summary: RunSummary, tmp_path: Path) -> None:
    write_run_report(summary, NO_DETAILS, None, tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!#|data:|report\.md|summary\.json)""", page), "the page loads something"
    assert "@import" not in page
    assert "<script src" not in page
    assert "digits &amp; &lt;friends&gt;" in page
    assert "<friends>" not in page
    for name in ROW_NAMES.values():
        assert name.split(" (")[0] in page
    for check in summary.row("ensemble_dynamic").checks:
        assert check.name in page
        assert check.detail in page
    assert page.index("name of check 14") < page.index("Results"), "a failed check stands at the top"


def test_checks_that_did_not_fail_stand_behind_a_click(summary: RunSummary, tmp_path: Path) -> None:
    write_run_report(summary, NO_DETAILS, None, tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    top, _, checks = page.partition("<h2>Checks</h2>")
    assert "Checks: 2 failed, 5 skipped, 43 passed" in top
    shown, _, folded = checks.partition("<details><summary>5 skipped, 43 passed</summary>")
    assert "name of check 20" in shown
    assert "name of check 21" not in top + shown
    assert folded.index("name of check 5<") < folded.index("name of check 1<"), "skipped ones come before passed ones"


def test_files_come_back_as_they_were_written(summary: RunSummary, tmp_path: Path) -> None:
    write_run_report(summary, example_details(), example_images(), tmp_path)
    assert RunSummary.load(tmp_path / "summary.json") == summary
    assert RunDetails.load(tmp_path / "details.json") == example_details()


def test_plots_are_drawings_and_the_same_twice(summary: RunSummary, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run_report(summary, example_details(), example_images(), tmp_path / name)
    drawings = sorted((tmp_path / "a" / "figures").glob("*.svg"))
    names = {"tradeoff", "security_curve", "members_run", "examples", "layers", "overlap", "training"}
    assert {path.stem for path in drawings} == names
    for path in drawings:
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_a_plot_without_numbers_is_named_as_left_out(summary: RunSummary, tmp_path: Path) -> None:
    write_run_report(summary, NO_DETAILS, None, tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "Left out, because no numbers were stored for them" in page
    assert "Sparsity of each layer; Overlap of the masks; Training" in page
    assert not (tmp_path / "figures" / "layers.svg").exists()


def test_markdown_tables_are_well_formed(summary: RunSummary, tmp_path: Path) -> None:
    write_run_report(with_detail(summary, "a | pipe\nand a line"), example_details(), None, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "- failed 14: name of check 14: detail 14" in text


def test_terminal_table_fits_and_names_failed_checks(summary: RunSummary) -> None:
    text = terminal(summary)
    assert "\u2026" not in text, "something was cut off"
    assert "failed: 14 name of check 14" in text
    assert "1.21 / 1.71" in text.replace("\u00a0", " ")
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_are_drawn_in_grey_and_colour(channels: int, summary: RunSummary, tmp_path: Path) -> None:
    write_run_report(summary, NO_DETAILS, example_images(channels), tmp_path)
    assert (tmp_path / "figures" / "examples.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (812, "812"), (999.6, "1.00 k"), (14_600, "14.6 k"), (3_210_000, "3.21 M")]
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert count(value) == text


def test_sizes_and_times() -> None:
    assert (size(812), size(14_600)) == ("812 B", "14.6 kB")
    assert (duration(42), duration(252), duration(11_160)) == ("42 s", "4.2 min", "3.1 h")


class TestVerdict:
    """The headline on the page and in the terminal says how the ensemble stands to its parent and to chance."""

    def told(self, summary: RunSummary, folder: Path, ensemble: list[int], parent: list[int]) -> str:
        """Return the headline of a run whose ensemble and parent have these outcomes; both places have the same."""
        rows = {"ensemble_dynamic": ensemble, "dense": parent}
        changed = tuple(with_correct(r, rows[r.name]) if r.name in rows else r for r in summary.rows)
        summary = replace(summary, rows=changed, against_parent=paired_test(changed[-1], changed[0]))
        write_run_report(summary, NO_DETAILS, None, folder)
        line = (folder / "report.md").read_text("utf-8").splitlines()[2].strip("*")
        assert line in " ".join(terminal(summary).split())
        return line

    def test_worse(self, summary: RunSummary, tmp_path: Path) -> None:
        line = self.told(summary, tmp_path, [1] * 20 + [0] * 20, [1] * 30 + [0] * 10)
        assert "25.0 points worse than its dense parent (95 % interval \u2212" in line

    def test_better(self, summary: RunSummary, tmp_path: Path) -> None:
        line = self.told(summary, tmp_path, [1] * 30 + [0] * 10, [1] * 20 + [0] * 20)
        assert "25.0 points better than its dense parent (95 % interval +" in line

    def test_no_difference(self, summary: RunSummary, tmp_path: Path) -> None:
        line = self.told(summary, tmp_path, [1] * 30 + [0] * 10, [1] * 29 + [0] * 11)
        assert "no difference from its dense parent shown (+2.5 points, 95 % interval \u2212" in line
        assert "chance" not in line

    def test_no_better_than_chance(self, summary: RunSummary, tmp_path: Path) -> None:
        line = self.told(summary, tmp_path, [1] * 10 + [0] * 30, [1] * 10 + [0] * 30)
        assert "keeps 25.0 % accuracy" in line
        assert "no better than chance, no difference" in line
        page = (tmp_path / "index.html").read_text("utf-8")
        assert "No better than chance:</b> the ensemble classifies 25.0 % of the test images correctly" in page

    def test_sub_models_at_chance_are_named(self, summary: RunSummary, tmp_path: Path) -> None:
        write_run_report(summary, example_details(), None, tmp_path)
        text = (tmp_path / "report.md").read_text("utf-8")
        assert "- at chance: left out: ase-2" in text
        assert "No better than chance on held-out images: ase-2." in text

    def test_runs_of_earlier_versions_claim_nothing(self, summary: RunSummary) -> None:
        text = terminal(replace(summary, against_parent=None, chance=None))
        assert "its dense parent" not in text


class TestTrainings:
    WORSE, BETTER = HeldOutAccuracy(clean=0.9, robust=0.4), HeldOutAccuracy(clean=0.9, robust=0.5)

    def dense(self) -> TrainingRecord:
        first, second, third = (replace(epoch, held_out=self.WORSE) for epoch in example_epochs(3))
        second = replace(second, held_out=self.BETTER, rolled_back=("it fell in epoch 3",))
        return TrainingRecord(name="dense", epochs=(first, second, third))

    def details(self) -> RunDetails:
        ensemble = TrainingRecord(name="ensemble", epochs=example_epochs(1, held_out=self.WORSE))
        return RunDetails(trainings=(self.dense(), TrainingRecord(name="harp", epochs=()), ensemble))

    def test_rollbacks_are_named_and_there_is_nothing_to_name_without(self) -> None:
        trainings = self.details().trainings
        assert rollbacks(trainings) == "Dotted lines: training went back. Dense parent: it fell in epoch 3."
        ended = TrainingRecord(name="ensemble", epochs=example_epochs(1, stopped="it fell again"))
        assert rollbacks([ended]) == "Dotted lines: training went back. Ensemble: it fell again."
        assert rollbacks([TrainingRecord(name="dense", epochs=example_epochs(1))]) == ""

    def test_a_line_stands_between_the_last_good_epoch_and_the_next(self) -> None:
        assert rollback_epochs(self.dense()) == [1.5]
        assert rollback_epochs(TrainingRecord(name="dense", epochs=example_epochs(2, stopped="it fell"))) == [2.5]
        assert rollback_epochs(TrainingRecord(name="dense", epochs=example_epochs(1))) == []

    def test_the_table_names_the_most_robust_epoch(self) -> None:
        assert "| dense parent | 3 | 2.500 | 0.833 | 2 | 90.0 | 50.0 | 1 |" in markdown(training_table([self.dense()]))

    def test_an_epoch_that_was_not_measured_leaves_cells_empty(self) -> None:
        table = epoch_table(TrainingRecord(name="dense", epochs=example_epochs(1)))
        assert "| 1 | 2.500 |  |  | 0.1 |" in markdown(table)

    def test_every_epoch_is_on_the_page_and_in_the_file(self, summary: RunSummary, tmp_path: Path) -> None:
        details = self.details()
        write_run_report(summary, details, None, tmp_path)
        assert RunDetails.load(tmp_path / "details.json") == details
        page = (tmp_path / "index.html").read_text("utf-8")
        for epoch in self.dense().epochs:
            assert epoch.held_out
            texts = [str(epoch.epoch), f"{epoch.loss:.3f}", "90.0", f"{100 * epoch.held_out.robust:.1f}", "0.1"]
            assert re.search(r"\s*".join(f'<td class="right">{text}</td>' for text in texts), page)
        assert page.count("it fell in epoch 3") == 1
        drawing = (tmp_path / "figures" / "training.svg").read_text("utf-8")
        assert len(re.findall(r"<path[^>]*stroke-dasharray", drawing)) == 4, "one dotted line in each panel"
        assert all(f">{title}" in drawing for title in ("held-out robust", "held-out clean", "loss", "learning rate"))

    def test_a_run_without_trainings_does_not_mention_them(self, summary: RunSummary, tmp_path: Path) -> None:
        write_run_report(summary, NO_DETAILS, None, tmp_path)
        assert "Every epoch" not in (tmp_path / "index.html").read_text("utf-8")
        assert "## Trainings" not in (tmp_path / "report.md").read_text("utf-8")
