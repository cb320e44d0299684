"""The command line in an environment that holds the base dependencies and nothing else: no torch."""

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from sparsemble import runtime

SOURCE = Path(__file__).parents[2] / "src"


def closure(requirements: list[str], found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """Collect the installed distributions that these requirements need, extras of ours left out."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name not in found:
            found[requirement.name] = metadata.distribution(requirement.name)
            closure(found[requirement.name].requires or [], found)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose only packages are ours and its base dependencies."""
    site = tmp_path_factory.mktemp("site")
    (site / "sparsemble").symlink_to(SOURCE / "sparsemble")
    for distribution in closure(metadata.requires("sparsemble") or [], {}).values():
        for file in distribution.files or []:
            top = file.parts[0]
            if not (top in ("..", "__pycache__") or (site / top).exists()):
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return {"PYTHONPATH": str(site), "PATH": os.environ["PATH"], "HOME": str(site)}


def call(base: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    # -S leaves out the site-packages of the test environment.
    command = [sys.executable, "-S", "-m", *words]
    return subprocess.run(command, env=base, capture_output=True, text=True, timeout=60, cwd=base["HOME"])


def test_there_is_no_torch_here(base: dict[str, str]) -> None:
    result = subprocess.run([sys.executable, "-S", "-c", "import torch"], env=base, capture_output=True, text=True)
    assert "No module named 'torch'" in result.stderr


def test_help_and_version_work(base: dict[str, str]) -> None:
    shown = call(base, "sparsemble.cli", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "calibrate" in shown.stdout
    assert call(base, "sparsemble.cli", "run", "--help").returncode == 0
    assert call(base, "sparsemble.cli", "--version").stdout.startswith("sparsemble ")


@pytest.mark.parametrize("words", [("run", "digits"), ("evaluate", "digits"), ("list",), ("show", "pgd")])
def test_a_command_whose_extra_is_absent_says_which(base: dict[str, str], words: tuple[str, ...]) -> None:
    result = call(base, "sparsemble.cli", *words)
    assert result.returncode == 2
    assert "sparsemble[train]" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_runtime_room_needs_no_torch(base: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-S", "-c", "import sparsemble.runtime"], env=base, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_packed_ensemble_answers_without_torch_as_with_it(
    base: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    paths = [tmp_path / f"{i:02}.png" for i in range(20)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    file = finished / "export" / "ensemble.sparsemble"
    shown = call(base, "sparsemble.cli", "predict", str(file), str(tmp_path), "--json")
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout)
    found = runtime.load(file).predict(images[..., None])
    assert [row["members_run"] for row in rows] == found.members_run.tolist()
    assert [row["label"] for row in rows] == [str(label) for label in found.labels]
    told = call(base, "sparsemble.cli", "show", str(file))
    assert "a packed ensemble of version 1" in told.stdout
    written = call(base, "sparsemble.cli", "export", str(file), "--format", "c", "--out", str(tmp_path / "c"))
    assert "bytes of RAM" in written.stdout, written.stderr
    refused = call(base, "sparsemble.cli", "predict", str(file), str(tmp_path), "--threads", "0")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: threads = 0 must be 1 or more")
