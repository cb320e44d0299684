"""One table model: the same cells in the terminal, in Markdown and on a page; and the tables that no page has."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sparsemble.core.results import BenchResult, ExportResult, FormatAgreement, HeldOutAccuracy, StudyLine, StudyResult
from sparsemble.report import bench_table, draw_bench, export_table, write_study
from sparsemble.report.study_page import as_csv, study_page
from sparsemble.report.table import Column, Table

RESULTS = Path(__file__).parents[2] / "results"
NUMBERS = {"one & two": 0.123, "[red]three[/]": 0.9}


def table() -> Table[str]:
    return Table(
        [
            Column("name", str, left=True, note=lambda row: "a note" if "one" in row else ""),
            Column("clean", lambda row: f"{100 * NUMBERS[row]:.1f} %", "of images", "accuracy, %", "c"),
            Column("hidden", lambda row: "h", group="accuracy, %", short=None),
            Column("interval", lambda row: "i", interval=lambda row: (0.05, NUMBERS[row], 0.95)),
        ],
        list(NUMBERS),
        "A caption.",
        colour=lambda row: "--row-dense",
        strong=lambda row: row.startswith("one"),
    )


def printed(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal_shows_text_as_it_is_and_leaves_columns_out() -> None:
    text = printed(table().terminal("a [b]title[/]"))
    assert "a [b]title[/]" in text
    assert "[red]three[/]" in text
    assert "12.3\u00a0%" in text
    assert " c " in text
    assert "hidden" not in text


def test_markdown_has_every_column_with_its_unit_and_notes() -> None:
    lines = table().markdown().splitlines()
    assert lines[0] == "| name | clean, % | hidden, % | interval |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| **one & two (a note)** | 12.3 % | h | i |"
    assert lines[-1] == "A caption."


def test_html_escapes_groups_and_draws_intervals() -> None:
    html = table().html()
    assert "one &amp; two<small>a note</small>" in html
    assert '<th class="first" colspan="2">Accuracy, %</th>' in html
    assert '<th scope="col" class="right first" title="of images">clean</th>' in html
    assert "<span>0</span><span>100</span>" in html
    assert html.count("<circle") == 2
    assert 'cx="12.3"' in html
    assert '<p class="note">A caption.</p>' in html
    assert html.count('<tr class="strong') == 1


def test_a_table_without_rows_can_be_shown() -> None:
    empty = replace(table(), rows=[])
    assert "name" in printed(empty.terminal())
    assert empty.markdown().count("\n|") == 1
    assert "<tbody>" in empty.html()


@pytest.fixture
def study() -> StudyResult:
    return StudyResult.load(RESULTS / "pruning-gtsrb" / "study.json")


def test_a_study_says_what_made_it_and_has_as_many_cells_as_titles(study: StudyResult, tmp_path: Path) -> None:
    write_study(study, tmp_path)
    assert StudyResult.load(tmp_path / "study.json") == study
    text = (tmp_path / "study.md").read_text("utf-8")
    assert study.command in text
    assert "13.0 min" in text
    assert study.stage_sources[0][:12] in text
    (rows,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows.splitlines()}) == 1
    assert "| dense parent |  |" in rows
    assert "members" not in rows
    assert (tmp_path / "figures" / "study.svg").stat().st_size > 5000
    page = (tmp_path / "index.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page), "the page loads something"


def test_a_study_of_runs_shows_members_and_names_failures(study: StudyResult) -> None:
    failed = StudyLine(values={"method": "a|b", "sparsity": "0.9"}, row="harp", seeds=0, failed=("seed 3: it fell",))
    text = study_page(replace(study, kind="run", table=(*study.table, failed))).markdown()
    assert "| 1 |" in text.partition("members |")[2]
    assert r"| a\|b | 0.9 | harp |  |  |  | failed |" in text
    assert "a|b, 0.9, harp, seed 3: it fell" in text


def test_csv_holds_the_numbers_unrounded(study: StudyResult) -> None:
    rows = list(csv.DictReader(as_csv(study).splitlines()))
    assert len(rows) == len(study.table)
    for row, line in zip(rows, study.table, strict=True):
        assert line.numbers
        assert float(row["worst_case"]) == line.numbers.worst_case
        assert (float(row["low"]), float(row["high"])) == line.interval
        assert float(row["pgd20"]) == line.numbers.attacks["pgd20"]


def test_bench_has_a_row_for_each_engine_and_a_plot(tmp_path: Path) -> None:
    result = BenchResult.load(RESULTS / "speed" / "weight-0.90.json")
    assert bench_table(result).terminal().row_count == len(result.rows)
    for ending in ("png", "svg"):
        draw_bench(result, tmp_path / "plots" / f"bench.{ending}")
        assert (tmp_path / "plots" / f"bench.{ending}").stat().st_size > 1000


def test_export_names_formats_and_what_is_missing() -> None:
    agreement = FormatAgreement(images=100, logits=1e-6, labels=0, decisions=0, near=2)
    result = ExportResult(
        values="float16",
        bytes=33_000,
        share_of_dense_float32=0.1138,
        nonzeros=14_500,
        sparsity=0.8,
        held_out_images=148,
        unrounded=HeldOutAccuracy(clean=0.99, robust=0.85),
        rounded=HeldOutAccuracy(clean=0.99, robust=0.85),
        formats={"packed": agreement, "hub": replace(agreement, static_ensemble=1e-5, batch_of_one=1e-5)},
        not_written={"onnx": "needs onnx"},
    )
    text = printed(export_table(result).terminal())
    assert "33,000" in text
    assert "11.38 %" in text.replace("\u00a0", " ")
    assert "packed against the rounded" in text
    assert "hub, all members in one graph" in text
    assert "needs onnx" in text
