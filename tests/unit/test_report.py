"""The report: its schema, the page, the table, the plots."""

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
from sparsemble.report import write_report
from sparsemble.report.formatting import count, duration, size
from sparsemble.report.summary import NAMES, validate
from sparsemble.report.tables import summary_table

OUTCOME = {"clean": 0.98, "worst_case": 0.85, "members_run": 1.1, "attacked_members_run": 1.6}


def row(name: str, worst: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "clean": 0.99,
        "attacks": {"pgd20": worst + 0.01, "pgd50x2": worst},
        "worst_case": worst,
        "worst_case_interval": [worst - 0.03, worst + 0.03],
        "images": 500,
        "sparsity": 0.8,
        "nonzeros": 14_500,
        "macs_dense": 469_000,
        "macs_nonzero": 122_000,
        "members_run": {"clean": 1.0, "attacked": 1.0},
        "bytes": 133_000,
        "latency_ms": {"batch_1": 0.4, "batch_64": 3.5},
        "engine_ms": {"batch_1": 0.02, "batch_64": 0.6},
        "training_passes": 712_000,
        "seconds": 21.0,
        **changes,
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    rows = [row(name, 0.70 + i / 100) for i, name in enumerate(NAMES)]
    rows[-1]["members_run"] = {"clean": 1.07, "attacked": 1.71}
    return {
        "schema": 2,
        "name": "digits & <friends>",
        "threat": {"norm": "linf", "eps": 0.15},
        "seed": 3,
        "command": "sparsemble run digits --seed 3",
        "rows": rows,
        "checks": [
            {"number": 7, "name": "logits reach the attacks", "status": "pass", "detail": "outputs in [-3, 4]"},
            {"number": 14, "name": "falls with eps", "status": "fail", "detail": "rises in harp"},
            {"number": 19, "name": "hard label", "status": "waived", "detail": "not run"},
        ],
        "selection": {
            "ensemble": ["nis-1", "erm-2"],
            "robust_diversity": 0.61,
            "threshold": 0.7,
            "rule": "the most diverse ensemble",
        },
        "stopping": {
            "rule": "die",
            "settings": {"a": 4.0},
            "order": ["erm-2", "nis-1"],
            "held_out": {"images": 148, "allowed": 1, "tried": 90, "outcome": OUTCOME, "static": OUTCOME},
            "sensitivity": [{"setting": "a", "factor": 0.9, "outcome": OUTCOME}],
        },
        "machine": {"processor": "a processor", "threads": 2},
        "recipe": {"seed": 3, "threat": {"norm": "linf", "eps": 0.15}},
        "versions": {"torch": "2.13.0"},
        "source": "",
    }


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("rows", 0, "clean"), 1.2, r"summary.rows\[dense\].clean = 1.2 must be a number in \[0, 1\]"),
        (("rows", 1, "bytes"), "many", r"bytes = 'many' must be a whole number"),
        (("rows", 2, "attacks"), {}, r"attacks is empty"),
        (("rows", 3, "worst_case"), 0.9, r"must not exceed the accuracy"),
        (("rows", 4, "worst_case_interval"), [0.1, 0.2], r"must hold worst_case"),
        (("checks", 0, "status"), "good", r"status = 'good' must be one of fail, waived, pass"),
        (("schema",), 1, r"summary.schema = 1 must be the version 2"),
        (("threat",), "linf", r"summary.threat = 'linf' must be a table"),
        (("rows", 5, "name"), "mystery", r"must be one of dense"),
        (("rows", 5, "name"), "dense", r"each once"),
        (("seed",), True, r"seed = True must be a whole number"),
        (("rows", 0, "seconds"), float("nan"), r"seconds = nan must be"),
    ],
)
def test_names_the_first_field_that_is_wrong(
    summary: dict[str, Any], path: tuple[Any, ...], value: Any, words: str
) -> None:
    validate(summary)
    place: Any = summary
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InputError, match=words):
        validate(summary)


def test_every_field_is_needed(summary: dict[str, Any]) -> None:
    for field in summary:
        without = copy.deepcopy(summary)
        del without[field]
        with pytest.raises(InputError, match=f"summary.{field} is missing"):
            validate(without)


def test_page_is_one_file_that_holds_everything(summary: dict[str, Any], tmp_path: Path) -> None:
    write_report(summary, {}, {}, tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!#|data:|report\.md|summary\.json)""", page), "the page loads something"
    assert "@import" not in page
    assert "<script src" not in page
    assert "digits &amp; &lt;friends&gt;" in page
    assert "<friends>" not in page
    for name in NAMES.values():
        assert name.split(" (")[0] in page
    for check in summary["checks"]:
        assert check["name"] in page
        assert check["detail"].replace("'", "&#39;") in page
    assert page.index("falls with eps") < page.index("Results"), "a failed check stands at the top"


def test_plots_are_drawings_and_the_same_twice(summary: dict[str, Any], tmp_path: Path) -> None:
    write_report(summary, {}, {}, tmp_path / "a")
    write_report(summary, {}, {}, tmp_path / "b")
    drawings = sorted((tmp_path / "a" / "figures").glob("*.svg"))
    assert {path.stem for path in drawings} >= {"size", "cost"}
    for path in drawings:
        assert ET.parse(path).getroot().tag.endswith("svg")
    for path in sorted(p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


def test_markdown_tables_are_well_formed(summary: dict[str, Any], tmp_path: Path) -> None:
    summary["checks"][0]["detail"] = "a | pipe\nand a line"
    write_report(summary, {}, {}, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "**fail**: falls with eps" in text


def test_terminal_table_fits_and_names_failed_checks(summary: dict[str, Any]) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(summary_table(summary))
    text = out.getvalue()
    assert "\u2026" not in text, "something was cut off"
    assert "failed: falls with eps" in text
    assert "1.07/1.71" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_examples_are_drawn_in_grey_and_colour(summary: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        clean = rng.random((3, channels, 8, 8), dtype=np.float32)
        examples = {
            "clean": clean,
            "adversarial": clean * 0.9,
            "label": np.array([0, 1, 2]),
            "clean_prediction": np.array([0, 1, 2]),
            "adversarial_prediction": np.array([0, 1, 9]),
        }
        write_report(summary, {}, examples, tmp_path / str(channels))
        assert (tmp_path / str(channels) / "figures" / "examples.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (812, "812"), (999.6, "1.00 k"), (14_600, "14.6 k"), (3_210_000, "3.21 M")]
)
def test_counts_have_three_digits(value: float, text: str) -> None:
    assert count(value) == text


def test_sizes_and_times() -> None:
    assert (size(812), size(14_600)) == ("812 B", "14.6 kB")
    assert (duration(42), duration(252), duration(11_160)) == ("42 s", "4.2 min", "3.1 h")
