"""What bad input gets: one sentence that names the value and the remedy, exit status 2, before any work."""

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.conftest import SMOKE, sparsemble

CASES = {
    "train.epoch=5": ["train.epoch", 'did you mean "epochs"'],
    "model=resnet19": ["resnet19", "did you mean"],
    "prune.scores=['niss']": ["niss", "nis"],
    "train.epochs='five'": ["train.epochs", "'five'", "whole number"],
    "train.epochs=0": ["epochs = 0", "1 or more"],
    "threat.eps=8": ["eps = 8", '"8/255"'],
    "sparsity=1.0": ["sparsity = 1", "[0, 1)"],
    "sparsity=80": ["sparsity = 80", "0.8"],
    "sparsity=-0.1": ["sparsity = -0.1", "[0, 1)"],
    "members=5": ["members = 5", "4 sub-models"],
    "members=1": ["members = 1", "2 or more"],
    "prune.folds=0": ["folds = 0", "1 or more"],
    "prune.folds=5000": ["folds = 5000", "training images"],
    "train.schedule.batch_size=5000": ["batch_size = 5000", "1000"],
    "evaluate.images=501": ["evaluate.images = 501", "500"],
    "data={name='cifar10', root='/nowhere', download=false}": ["/nowhere"],
    "data={name='arrays', path='/nowhere/x.npz'}": ["/nowhere/x.npz"],
    "prune.granularity='n_m'": ["2:4 is sparsity 0.5 exactly", "0.75"],
    "prune.granularity={name='block', size=16}": ["16", "too few for blocks"],
    "prune.granularity={name='block', size=1}": ["size = 1", "2 to 64", "granularity weight"],
    "prune.granularity={name='block', size=65}": ["size = 65", "2 to 64"],
    "prune.granularity={name='block', axis='input'}": ["axis = 'input'", "'out', 'in'"],
    "prune.granularity={name='block', outputs=4}": ["outputs is now called size"],
    "sparsity=0.998": ["would empty one of the 8 layers", "lower the sparsity"],
    "prune.finetune_epochs=-1": ["finetune_epochs = -1", "0 or more"],
    "prune.method={name='hydro'}": ["hydro", "hydra"],
    "nonsense": ["key=value"],
}


@pytest.mark.parametrize("setting", CASES)
def test_bad_setting(setting: str, tmp_path: Path, in_process) -> None:
    status, errors = in_process("run", SMOKE, "--out", tmp_path / "run", "--set", setting)
    assert status == 2, errors
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1
    for words in CASES[setting]:
        assert words in errors
    assert not list((tmp_path / "run").glob("*-*"))


def test_held_out_images_of_one_class(tmp_path: Path, in_process) -> None:
    file = tmp_path / "arrays.npz"
    labels = np.arange(400) % 4
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    data = f"data={{name='arrays', path='{file}', held_out=2}}"
    status, errors = in_process("run", SMOKE, "--out", tmp_path / "run", "--set", data)
    assert status == 2, errors
    assert "the held-out images that chooses epochs and ensembles has 1 images of 1 classes" in errors
    assert "raise data.held_out" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list((tmp_path / "run").glob("*-*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "digit"], 'did you mean "digits"'),
        (["run", "missing.toml"], "missing.toml"),
        (["run", "digits", "--device", "cuda:9"], "cuda:9"),
        (["run", "digits", "--device", "gpu"], "auto, cpu, cuda"),
        (["run", "digits", "--workers", "-1"], "workers = -1"),
        (["run", "digits", "--engine", "slurm"], "local"),
        (["run", "digits", "--out", "/dev/null/run"], "/dev/null/run"),
        (["run", "digits", "--seed", "-1"], "seed = -1"),
        (["list", "atack"], "attack"),
        (["show", "pdg"], "pgd"),
    ],
)
def test_bad_words(words: list[str], expected: str, in_process) -> None:
    status, errors = in_process(*words)
    assert status == 2, errors
    assert expected in errors
    assert len(errors.strip().splitlines()) == 1


def test_truncated_recipe_and_data(tmp_path: Path, in_process) -> None:
    recipe = tmp_path / "cut.toml"
    recipe.write_text(SMOKE.read_text("utf-8")[:200], "utf-8")
    assert in_process("run", recipe, "--out", tmp_path / "run")[0] == 2
    whole = tmp_path / "arrays.npz"
    images, labels = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 4
    np.savez(whole, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:2000])
    status, errors = in_process(
        "run", SMOKE, "--out", tmp_path / "run", "--set", f"data={{name='arrays', path='{cut}'}}"
    )
    assert status == 2
    assert str(cut) in errors
    assert len(errors.strip().splitlines()) == 1


def test_usage_errors_have_status_2() -> None:
    assert sparsemble("run").returncode == 2
    assert sparsemble("nothing").returncode == 2
