"""`--minutes` from the command line: measured once, also when the run is killed in between."""

import json
import time
from pathlib import Path

import pytest

from sparsemble.core.config import read_toml
from tests.end_to_end.conftest import COMMAND_LINE, SMOKE, sparsemble
from tests.processes import start_python, wait_for

pytestmark = pytest.mark.slow


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_restart_measures_and_computes_nothing_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("prune", SMOKE, "--minutes", 30, "--out", folder, "--workers", 2, "--set", "train.epochs=30")
    process = start_python(COMMAND_LINE, *words, out=tmp_path)
    while not list(folder.glob("train-*.partial/checkpoint.safetensors")):
        time.sleep(0.05)
        assert process.is_alive()
    process.kill()
    wait_for(process)
    plan = folder / "plan.json"
    before, settings = plan.stat().st_mtime_ns, json.loads(plan.read_text("utf-8"))["settings"]
    assert sparsemble(*words).returncode == 0
    assert plan.stat().st_mtime_ns == before
    recipe = read_toml(folder / "recipe.toml")
    assert f"train.epochs={recipe['train']['epochs']}" in settings
    assert "minutes" not in recipe
    assert len(list(folder.glob("train-*"))) == 1
    assert not list(folder.glob("throughput-*"))
    finished = times(folder)
    again = sparsemble(*words)
    assert again.returncode == 0, again.stderr
    assert times(folder) == finished
    assert "measure" not in again.stderr


def test_too_few_minutes_are_a_sentence(tmp_path: Path) -> None:
    result = sparsemble("train", SMOKE, "--minutes", 0.3, "--out", tmp_path / "run")
    assert result.returncode == 2
    assert "minutes = 0.3 is too few for one epoch of each stage on this machine; at least" in result.stderr
    assert "Traceback" not in result.stderr
