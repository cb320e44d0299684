"""An attack in the user's own file goes through training in worker processes and through `evaluate --attacks`."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import SMOKE, sparsemble
from tests.unit.test_docs import ROOT, blocks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the attack of docs/adding.md, and a network trained with it in a run beside."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "single_step.py").write_text(blocks(ROOT / "docs/adding.md", "python")[0], "utf-8")
    (folder / "mine.toml").write_text(Path(SMOKE).read_text("utf-8"), "utf-8")
    result = train(folder)
    assert result.returncode == 0, result.stderr
    return folder


def train(folder: Path):
    loss = 'train.loss={name="pgd_at", attack={name="single_step.py:SingleStep", step_size=1.25}}'
    return sparsemble("train", folder / "mine.toml", "--out", folder / "run", "--workers", 2, "--set", loss)


def test_it_is_trained_with_and_found_again(trained: Path) -> None:
    (artifact,) = (trained / "run").glob("train-*")
    attack = json.loads((artifact / "meta.json").read_text("utf-8"))["spec"]["train"]["loss"]["attack"]
    assert attack["name"] == f"{trained / 'single_step.py'}:SingleStep"
    assert len(attack["source_sha256"]) == 64
    again = train(trained)
    assert again.returncode == 0, again.stderr
    assert list((trained / "run").glob("train-*")) == [artifact]


def test_it_is_named_in_attacks(trained: Path) -> None:
    (artifact,) = (trained / "run").glob("train-*")
    words = ["--attacks", "pgd,single_step.py:SingleStep", "--images", 20, "--no-adaptive", "--json"]
    result = sparsemble("evaluate", artifact, *words, "--out", trained / "evaluation", cwd=trained)
    assert result.returncode == 0, result.stderr
    assert "single_step" in result.stdout


def test_a_missing_method_ends_in_one_sentence(trained: Path) -> None:
    (artifact,) = (trained / "run").glob("train-*")
    text = blocks(ROOT / "docs/adding.md", "python")[0].replace("def perturb", "def disturb")
    (trained / "half.py").write_text(text, "utf-8")
    result = sparsemble("evaluate", artifact, "--attacks", "half.py:SingleStep", cwd=trained)
    assert result.returncode == 2
    assert "half.py:SingleStep lacks the method perturb, which every attack must define" in result.stderr
