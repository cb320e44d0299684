"""A study runs shared stages once, keeps finished cells, goes on after a failed one, and writes one table."""

import csv
import json
import re
import shutil
import time
from pathlib import Path

import pytest

from sparsemble.pipeline.study import cells, load_study
from tests.end_to_end.conftest import COMMAND_LINE, SMOKE, sparsemble
from tests.processes import start_python, wait_for

STUDY = f"""
title = "Two by two"
recipe = "{SMOKE}"
set = ["evaluate.images=40", "evaluate.attacks=[{{name='pgd', steps=2}}]"]
seeds = [3, 4]

[axes.method]
one_shot = ["prune.method={{name='one_shot'}}"]
twinrep = ["prune.method={{name='twinrep', epochs=2, prune_at=1}}"]

[axes.sparsity]
"0.5" = ["sparsity=0.5"]
"0.8" = ["sparsity=0.8"]
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY, "utf-8")
    result = sparsemble("study", folder / "study.toml", "--out", folder / "out", "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "| twinrep | 0.8 |" in result.stdout
    return folder


def test_every_cell_is_there_with_its_numbers(done: Path) -> None:
    result = json.loads((done / "out" / "study.json").read_text("utf-8"))
    found = {(cell["values"].get("method"), cell["values"].get("sparsity"), cell["seed"]) for cell in result["cells"]}
    assert found == {
        *(
            (method, sparsity, seed)
            for method in ("one_shot", "twinrep")
            for sparsity in ("0.5", "0.8")
            for seed in (3, 4)
        ),
        *((None, None, seed) for seed in (3, 4)),
    }
    for cell in result["cells"]:
        numbers = cell["numbers"]
        assert len(cell["correct"]) == 40
        assert numbers["worst_case"] == sum(cell["correct"]) / 40 <= numbers["clean_accuracy"]
        if cell["values"]:
            assert numbers["sparsity"] >= float(cell["values"]["sparsity"]) - 0.001
    lines = list(csv.DictReader((done / "out" / "study.csv").read_text("utf-8").splitlines()))
    assert len(lines) == 5
    assert all(float(line["low"]) <= float(line["worst_case"]) <= float(line["high"]) for line in lines)
    assert (done / "out" / "figures" / "study.svg").stat().st_size > 5000


def test_shared_stages_ran_once_and_finished_ones_are_not_run_again(done: Path) -> None:
    assert len(list((done / "out").glob("train-*"))) == 2
    assert len(list((done / "out").glob("prune-*"))) == 8
    again = sparsemble("study", done / "study.toml", "--out", done / "out")
    assert again.returncode == 0
    assert json.loads((done / "out" / "study.json").read_text("utf-8"))["stages_run"] == 0


def test_a_failed_cell_is_told_and_the_others_go_on(done: Path, tmp_path: Path) -> None:
    """A rate at which the weights blow up, found only while it runs."""
    schedule = "schedule={learning_rate=1e30, lr_schedule='cosine'}"
    text = STUDY.replace("seeds = [3, 4]", "seeds = [3]").replace(
        "twinrep = [\"prune.method={name='twinrep', epochs=2, prune_at=1}\"]",
        f"twinrep = [\"prune.method={{name='twinrep', epochs=2, prune_at=1, {schedule}}}\"]",
    )
    assert "1e30" in text
    (tmp_path / "study.toml").write_text(text, "utf-8")
    result = sparsemble("study", tmp_path / "study.toml", "--out", done / "out", "--workers", 2)
    assert result.returncode == 1, result.stderr
    assert "| one_shot | 0.5 |" in result.stdout
    assert re.search(r"^\| twinrep \| 0.5 \|[ |]*failed", result.stdout, re.MULTILINE)
    assert 'the stage "prune twinrep, 0.5, seed 3" failed' in result.stdout
    found = json.loads((done / "out" / "study.json").read_text("utf-8"))["cells"]
    assert sum("failed" in cell for cell in found) == 2


@pytest.mark.slow
def test_killed_it_goes_on(done: Path, tmp_path: Path) -> None:
    words = ("study", done / "study.toml", "--out", tmp_path / "out", "--workers", 1)
    work = start_python(COMMAND_LINE, *words, out=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("prune-*[0-9a-f]")) and time.monotonic() < deadline:
        time.sleep(0.05)
    work.terminate()  # a shell may have told its jobs to ignore SIGINT
    assert wait_for(work, 60) == 1
    result = sparsemble("study", done / "study.toml", "--out", tmp_path / "out", "--workers", 2)
    assert result.returncode == 0, result.stderr
    first, second = (
        json.loads((place / "out" / "study.json").read_text("utf-8"))["cells"] for place in (done, tmp_path)
    )
    by_artifact = {cell["artifact"]: cell for cell in second}
    for cell in first:
        if "failed" not in cell:
            assert by_artifact[cell["artifact"]]["correct"] == cell["correct"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"sparsity=0.8"', '"sparsity=8"', "in the cell method = one_shot, sparsity = 0.8: sparsity = 8"),
        ("seeds = [3, 4]", "seeds = []", "seeds = []"),
        ("seeds = [3, 4]", "sedes = [3]", 'sedes is not a known setting; did you mean "seeds"'),
        ("[axes.method]", "[axis.method]", 'axis is not a known setting; did you mean "axes"'),
        ("seeds = [3, 4]", 'kind = "all"', "kind = 'all' must be one of 'pruned', 'run'"),
        ("seeds = [3, 4]", 'rows = ["harp"]', 'rows names "harp"'),
        ('one_shot = ["', 'one_shot = [1, "', "axes.method.one_shot[0] = 1 must be a string in quotes"),
    ],
)
def test_bad_input_gives_a_sentence_before_any_work(old: str, new: str, words: str, tmp_path: Path, in_process) -> None:
    assert old in STUDY
    (tmp_path / "study.toml").write_text(STUDY.replace(old, new), "utf-8")
    status, errors = in_process("study", tmp_path / "study.toml", "--out", tmp_path / "out")
    assert status == 2, errors
    assert words in errors
    assert not list(tmp_path.glob("out/*-*"))


def test_whole_runs_are_cells_too(tmp_path: Path) -> None:
    text = STUDY[: STUDY.index("[axes.method]")].replace(
        "seeds = [3, 4]", 'kind = "run"\nrows = ["ensemble_static", "harp"]\nseeds = [3]'
    )
    text += "[axes.combiner]\nmean = []\nmaximum = [\"ensemble.combiner='maximum'\"]\n"
    (tmp_path / "study.toml").write_text(text, "utf-8")
    expanded = cells(load_study(str(tmp_path / "study.toml")))
    assert [cell.label for cell in expanded] == ["combiner = mean, seed 3", "combiner = maximum, seed 3"]
    shared = {task.hash for task in expanded[0].tasks} & {task.hash for task in expanded[1].tasks}
    assert len(shared) >= 6  # the parent, its four sub-models and the single HARP model


def test_rows_of_whole_runs_are_those_of_their_reports(finished: Path, tmp_path: Path) -> None:
    """A run's folder already holds all that its cell needs, but the report, which names the study.

    The dense parent and its attacks serve the single pruned model beside it, too.
    """
    text = f'recipe = "{SMOKE}"\nrows = ["ensemble_dynamic", "harp"]\nseeds = [3]\n[axes.method]\n'
    text += "one_shot = [\"prune.method={name='one_shot'}\"]\need = [\"kind='run'\"]\n"
    (tmp_path / "study.toml").write_text(text, "utf-8")
    shutil.copytree(finished, tmp_path / "out")
    result = sparsemble("study", tmp_path / "study.toml", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    study = json.loads((tmp_path / "out" / "study.json").read_text("utf-8"))
    assert study["kind"] == "mixed"
    listed = list(study["cells"][1]["numbers"]["attacks"])
    assert study["stages_run"] == 1 + 1 + len(listed)  # the report; the pruned model and the attacks on it
    reported = json.loads((finished / "report" / "summary.json").read_text("utf-8"))["rows"]
    for cell in study["cells"][2:]:
        (row,) = (row for row in reported if row["name"] == cell["row"])
        numbers, correct = cell["numbers"], cell["correct"]
        assert numbers["worst_case"] == row["worst_case"]["accuracy"] == sum(correct) / len(correct)
        assert numbers["training_passes"] == row["cost"]["training_passes"]
        assert numbers["members_run"] == row["members_run"]
        assert numbers["speedup"] == pytest.approx(reported[0]["cost"]["macs_dense"] / row["cost"]["macs_nonzero"])
    assert [cell["row"] for cell in study["cells"]] == ["dense", "pruned", "harp", "ensemble_dynamic"]
    header = next(line for line in result.stdout.splitlines() if line.startswith("| method"))
    assert all(f"| {label}, % |" in header for label in listed)
    assert "| speed-up |" in header
