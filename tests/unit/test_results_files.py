"""The committed result files: each is read by the format that results/README.md names."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from sparsemble.core.config import from_dict
from sparsemble.core.results import ROW_NAMES, BenchResult, SelectionRecord, Status, StoppingRecord, StudyResult
from sparsemble.pipeline.recipe import Recipe, shipped

RESULTS = Path(__file__).parents[2] / "results"
STUDIES = ("blocks-", "ensemble-", "pruning-", "stopping-")
RUNS = ("digits", "gtsrb")


def files(*prefixes: str) -> list[Path]:
    """Return the JSON files of the folders, or files, whose names begin so."""
    paths = sorted(RESULTS.rglob("*.json"))
    return [path for path in paths if path.relative_to(RESULTS).parts[0].startswith(prefixes)]


def name(path: Path) -> str:
    return str(path.relative_to(RESULTS))


@dataclass(frozen=True, kw_only=True)
class RowNumbers:
    """A row of a run summary without outcomes."""

    name: str
    images: int
    clean_accuracy: float
    attacks: dict[str, float]
    worst_case: float
    interval: tuple[float, ...]
    sparsity: float
    nonzeros: int
    bytes: int
    macs_dense: int
    macs_nonzero: float
    members_run: dict[str, float]
    latency_ms: dict[str, dict[str, float]]
    training_passes: int
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check of a run summary without outcomes."""

    number: int | None = None
    name: str
    status: Status
    detail: str


@dataclass(frozen=True, kw_only=True)
class SummaryWithoutOutcomes:
    """A run summary that was written before outcomes were kept."""

    format: Literal["run summary without outcomes"]
    name: str
    command: str
    seed: int
    threat: dict[str, Any]
    rows: tuple[RowNumbers, ...]
    checks: tuple[Check, ...]
    selection: SelectionRecord
    stopping: dict[str, Any]
    machine: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]
    source: str


@pytest.mark.parametrize("path", files(*RUNS), ids=name)
def test_run_summaries(path: Path) -> None:
    summary = from_dict(SummaryWithoutOutcomes, json.loads(path.read_text("utf-8")))
    assert [row.name for row in summary.rows] == list(ROW_NAMES)
    for row in summary.rows:
        assert row.worst_case <= min(row.attacks.values()) + 1e-9
        assert row.interval[0] <= row.worst_case <= row.interval[1]
    if "images" in summary.stopping:
        from_dict(StoppingRecord, summary.stopping)
    if path.name != "paper-weights-seed0.json":  # of an older version
        from_dict(Recipe, summary.recipe)


@pytest.mark.parametrize("path", files(*STUDIES), ids=name)
def test_studies(path: Path) -> None:
    study = StudyResult.load(path)
    assert study.table
    assert path.with_suffix(".md").is_file()
    rows = path.with_suffix(".csv").read_text("utf-8").splitlines()
    assert len(rows) == 1 + len(study.table)


@pytest.mark.parametrize("path", files("speed"), ids=name)
def test_bench(path: Path) -> None:
    result = BenchResult.load(path)
    assert result.ratio in [row.ratio for row in result.rows if not row.dense]


@pytest.mark.parametrize("path", files("training"), ids=name)
def test_losses_and_training_speed(path: Path) -> None:
    table = json.loads(path.read_text("utf-8"))
    for one in table.get("seeds", {"": table}).values():
        assert {"rows", "settings", "machine"} <= set(one)
        for row in one["rows"].values():
            assert "images_per_second" in row
            for split in {"held_out", "test"} & set(row):
                low, high = row[split]["autoattack_interval"]
                assert low <= row[split]["autoattack"] <= high


@pytest.mark.parametrize("path", files("attacks"), ids=name)
def test_attacks(path: Path) -> None:
    tables = json.loads(path.read_text("utf-8"))
    for table in tables if isinstance(tables, list) else [tables]:
        assert table["threat"].split()[0] in ("linf", "l2", "l1")
        assert all(0 <= row["robust_accuracy"] <= table["clean_accuracy"] for row in table["rows"])


@pytest.mark.parametrize("path", files("cross-validation"), ids=name)
def test_folds(path: Path) -> None:
    for folds in json.loads(path.read_text("utf-8")).values():
        assert set(folds) <= set("01234")
        for clean, worst, *_ in folds.values():
            assert 0 <= worst <= clean <= 100


def test_every_file_is_of_a_format_and_every_folder_is_described() -> None:
    known = files(*RUNS, *STUDIES, "speed", "training", "attacks", "cross-validation")
    assert set(known) == set(RESULTS.rglob("*.json"))
    text = (RESULTS / "README.md").read_text("utf-8")
    assert [path.name for path in RESULTS.iterdir() if path.is_dir() and f"`{path.name}/" not in text] == []


def test_every_file_has_a_source_or_the_commit_that_added_it_is_named() -> None:
    text = (RESULTS / "README.md").read_text("utf-8")
    table = text.partition("| files without `source`")[2].partition("\n\n")[0]
    patterns = re.findall(r"`([\w./*-]+\.json)`", table)
    without = {name(path) for path in RESULTS.rglob("*.json") if not _source(path)}
    assert without == {name(path) for pattern in patterns for path in RESULTS.glob(pattern)} & without
    assert all(any(name(path) in without for path in RESULTS.glob(pattern)) for pattern in patterns)


def _source(path: Path) -> str:
    content = json.loads(path.read_text("utf-8"))
    return str(content.get("source") or "") if isinstance(content, dict) else ""


@pytest.mark.parametrize("path", files(*STUDIES), ids=name)
def test_the_study_of_a_command_is_shipped(path: Path) -> None:
    typed = Path(StudyResult.load(path).command.split()[2])
    text = (RESULTS / "README.md").read_text("utf-8")
    renamed = dict(re.findall(r"^\| `(\w+\.toml)` \| `([\w-]+)`", text, re.MULTILINE))
    shipped_studies = shipped("studies")
    assert renamed.get(typed.name, typed.stem) in shipped_studies
