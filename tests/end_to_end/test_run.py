"""The whole method from the command line, on the smoke recipe."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsemble.core.artifacts import read_json_lines
from sparsemble.pruning.mask import Mask
from sparsemble.training.checkpoint import Checkpoint
from tests.end_to_end.conftest import COMMAND_LINE, SMOKE, command, sparsemble, without_timings
from tests.processes import run_together, start_python, wait_for

ROWS = ["dense", "small_dense", "harp", "best_member", "ensemble_static", "ensemble_dynamic"]


def summary(folder: Path) -> dict:
    return json.loads((folder / "report" / "summary.json").read_text("utf-8"))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for commands that take the lock of its folder."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_leaves_a_report_with_every_row(finished: Path) -> None:
    found = summary(finished)
    assert [row["name"] for row in found["rows"]] == ROWS
    for row in found["rows"]:
        assert row["worst_case"]["accuracy"] <= min(attack["robust_accuracy"] for attack in row["attacks"])
        assert row["cost"]["training_passes"] > 0
        assert all(row["cost"]["latency"][engine]["batch_1"]["median_ms"] > 0 for engine in ("torch", "engine"))
        assert [check["number"] for check in row["checks"]] == list(range(1, 51))
    attacks = {row["name"]: {attack["label"] for attack in row["attacks"]} for row in found["rows"]}
    assert attacks["dense"] == {"pgd2", "pgd4x2"}
    static = {f"pgd4x2-{view}" for view in ("whole", "reweighted", "maximum", "mean_logit", "member1", "member2")}
    assert attacks["dense"] | static | {"sequential20x2"} <= attacks["ensemble_static"]
    stopping = {f"{attack}-deployed" for attack in ("apgd15+30t3", "square20")} | {"apgd15+30t3-joint"}
    stopping |= {"pgd4x2-expectation", "slowdown50", "slowdown50-keep_label"}
    assert attacks["ensemble_static"] | stopping <= attacks["ensemble_dynamic"]
    page = (finished / "report" / "index.html").read_text("utf-8")
    assert "<html" in page
    assert (finished / "report" / "report.md").is_file()


def test_the_ensemble_has_the_sparsity_asked_for(finished: Path) -> None:
    rows = {row["name"]: row for row in summary(finished)["rows"]}
    for name in ("harp", "ensemble_static", "ensemble_dynamic"):
        assert 0.5 - 1e-3 <= rows[name]["model"]["sparsity"] < 0.53  # dead channels were taken out, too
    assert 0.75 - 1e-3 <= rows["best_member"]["model"]["sparsity"] < 0.78
    for folder in finished.glob("prune-*"):
        record = json.loads((folder / "pruned.json").read_text("utf-8"))
        sparsity = 1 - record["nonzeros"] / record["weights"]
        assert min(abs(sparsity - target) for target in (0.5, 0.75)) < 1e-3  # before that, exactly
        assert Mask.load(folder / "mask.safetensors").nonzeros == record["nonzeros"] - record["dead_weights"]


def test_training_cost_grows_along_the_method(finished: Path) -> None:
    passes = {row["name"]: row["cost"]["training_passes"] for row in summary(finished)["rows"]}
    assert (
        passes["dense"]
        < passes["harp"]
        < passes["best_member"]
        < passes["ensemble_static"]
        < passes["ensemble_dynamic"]
    )


def test_repeated_run_does_no_work(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file() and path.name != ".lock"}
    result = sparsemble("run", SMOKE, "--out", copied)
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file() and path.name != ".lock"}
    assert result.returncode == 0
    assert before == after


def test_select_prints_the_members_and_why(copied: Path) -> None:
    result = sparsemble("select", SMOKE, "--out", copied, "--quiet", "--workers", 1)
    assert (result.returncode, result.stdout) == (0, "")
    result = sparsemble("select", SMOKE, "--out", copied)
    selection = json.loads(next(copied.glob("select-*/select.json")).read_text("utf-8"))
    assert f"selected          {', '.join(selection['ensemble'])}" in result.stdout
    assert selection["reason"] in result.stdout


def test_saved_recipe_is_the_same_run(copied: Path) -> None:
    result = sparsemble("calibrate", copied / "recipe.toml", "--out", copied)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).name.startswith("calibrate-")


def artifacts(folder: Path) -> int:
    """Return how many stages are finished."""
    return sum(not path.name.endswith(".partial") for path in folder.glob("*-*"))


@pytest.mark.slow  # a quick suite ends a run by Ctrl-C, kills attacks and resumes trainings
def test_killed_while_it_makes_models_it_goes_on_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    words = ("ensemble", SMOKE, "--out", tmp_path / "run", "--workers", 2)
    process = start_python(COMMAND_LINE, *words, out=tmp_path)
    while not list((tmp_path / "run").glob("prune-*.partial")):
        time.sleep(0.02)
        assert process.is_alive()
    time.sleep(0.2)  # somewhere within
    process.kill()
    wait_for(process)
    assert not list((tmp_path / "run").glob("ensemble-*"))
    assert sparsemble(*words).returncode == 0
    made = sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*.safetensors"))
    assert len(made) > 6
    for path in made:
        ours, theirs = (load_file(folder / path) for folder in (tmp_path / "run", finished))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys()), path


@pytest.mark.slow
def test_killed_nine_times_it_goes_on_to_the_same_summary(finished: Path, tmp_path: Path) -> None:
    kills, folder, rng = 9, tmp_path / "run", random.Random(0)
    (tmp_path / "other").mkdir()
    # The same command line as the unbroken run: it is quoted in the summary.
    words = ("run", SMOKE, "--out", folder, "--workers", 2)
    for kill in range(1, kills + 1):
        process = start_python(COMMAND_LINE, *words, out=tmp_path)
        while artifacts(folder) < artifacts(finished) * kill // (kills + 1):
            time.sleep(0.02)
            assert process.is_alive()
        time.sleep(rng.uniform(0, 0.3))  # somewhere within the next stages
        process.kill()
        wait_for(process)
        assert not (folder / "report").is_dir()
    assert sparsemble(*words).returncode == 0
    assert without_timings(summary(folder)) == without_timings(summary(finished))


def test_ctrl_c_ends_soon_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("run", SMOKE, "--out", folder, "--set", "train.epochs=2000"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run in the background of a shell inherit a Ctrl-C that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(folder.glob("train-*.partial/checkpoint.safetensors")):
        time.sleep(0.1)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    (partial,) = folder.glob("train-*.partial")
    state = Checkpoint(partial).read()
    assert state is not None
    assert len(state[1]["history"]) < 2000
    assert process.returncode == 1
    assert "run the same command to go on" in errors
    assert "Traceback" not in errors


def test_second_run_in_a_folder_stops(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = sparsemble("run", SMOKE, "--out", tmp_path)
    assert result.returncode == 2
    assert "another run is working" in result.stderr


def test_artifact_edited_by_hand_is_refused(copied: Path) -> None:
    (edited,) = copied.glob("select-*/select.json")
    edited.write_text(edited.read_text("utf-8") + " ", "utf-8")
    result = sparsemble("run", SMOKE, "--out", copied)
    assert result.returncode == 2
    assert str(edited) in result.stderr
    assert "was changed" in result.stderr


def test_failing_stage_keeps_what_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = sparsemble("train", SMOKE, "--out", folder, "--set", "train.schedule.learning_rate=1e30")
    assert result.returncode == 1
    assert "lower learning_rate = 1e+30" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_full_disk_is_a_sentence_and_the_run_goes_on(finished: Path, tmp_path: Path) -> None:
    small = Path("/dev/full")
    if not small.exists():
        pytest.skip("no /dev/full on this system")
    folder = tmp_path / "run"
    (trained,) = finished.glob("train-*")
    partial = folder / f"{trained.name}.partial"
    shutil.copytree(trained, partial)
    (partial / "meta.json").unlink()
    (partial / "checkpoint.safetensors.new").symlink_to(small)  # every write to it meets a full disk
    result = sparsemble("train", SMOKE, "--out", folder)
    assert result.returncode == 1
    assert "is full" in result.stderr
    assert "Traceback" not in result.stderr
    (partial / "checkpoint.safetensors.new").unlink()
    assert sparsemble("train", SMOKE, "--out", folder).returncode == 0


def test_tensorboard_draws_every_epoch_and_changes_no_result(finished: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = sparsemble("train", SMOKE, "--out", tmp_path / "run", "--tensorboard", "--quiet")
    assert result.returncode == 0, result.stderr
    (ours,), (theirs,) = (tmp_path / "run").glob("train-*"), finished.glob("train-*")
    assert ours.name == theirs.name
    history, before = (read_json_lines(folder / "history.jsonl") for folder in (ours, theirs))
    assert without_timings(history) == without_timings(before)
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train-the-dense-parent"))
    found.Reload()
    for name in ("loss", "learning_rate", "held_out_clean", "held_out_robust"):
        drawn = [(event.step, event.value) for event in found.Scalars(name)]
        assert drawn == [(one["epoch"], pytest.approx(one[name])) for one in history]


@pytest.mark.slow
def test_two_processes_share_a_training(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "-m", "sparsemble", "train", str(SMOKE), "--out", str(folder)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("train the dense parent") == 1  # the first process does the talking
    (ours,), (theirs,) = folder.glob("train-*/history.jsonl"), finished.glob("train-*/history.jsonl")
    losses = [[record["loss"] for record in read_json_lines(path)] for path in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)
    more = ("--set", "train.schedule.batch_size=50")
    for refused in run_together(COMMAND_LINE, "train", SMOKE, "--out", folder, *more, processes=3):
        assert "train.schedule.batch_size = 50 cannot be divided among 3 processes" in refused.stderr
