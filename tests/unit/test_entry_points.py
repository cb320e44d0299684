"""Components of installed packages: registered lazily under the entry-point group, in worker processes too."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sparsemble.pipeline.engines.worker import task_file
from tests.unit.test_docs import ROOT, blocks

SINGLE_STEP = blocks(ROOT / "docs/adding.md", "python")[0]
(PYPROJECT,) = blocks(ROOT / "docs/adding.md", "toml")
LIST = "from sparsemble.attacks.attack import attacks; print(*attacks.names())"
WORKER = """
import dataclasses, pathlib
from sparsemble.pipeline.engines import worker
from sparsemble.pipeline.stage import Stage, stages
from sparsemble.attacks.attack import Attack

@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Stage):
    '''Leaves the name of its attack.'''

    seed: int
    attack: Attack

    def run(self, context, inputs):
        (context.output / "attack.txt").write_text(type(self.attack).__module__)

Probe.__module__ = "x.probe"
stages.register("probe")(Probe)
worker.main()
"""


def install(site: Path, package: str, module: str, code: str, points: dict[str, str]) -> None:
    """Write an installed package as pip does: a module, and the entry points beside its metadata."""
    (site / f"{module}.py").write_text(code, "utf-8")
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "utf-8")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[sparsemble.components]", *lines, ""]), "utf-8")


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", str(ROOT / "src"))])}


def python(site: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment(site), capture_output=True, text=True, timeout=120)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the package of docs/adding.md installed in it."""
    project = tomllib.loads(PYPROJECT)["project"]
    (points,) = project["entry-points"].values()
    assert set(project["entry-points"]) == {"sparsemble.components"}
    install(tmp_path, project["name"], "my_attacks", SINGLE_STEP, points)
    return tmp_path


def test_nothing_is_imported_before_a_registry_answers(site: Path) -> None:
    script = """
import sys, sparsemble.attacks
from sparsemble.pipeline.catalogue import catalogue
print("my_attacks" in sys.modules)
(text,) = [entry.text for entry in catalogue() if (entry.kind, entry.name) == ("attack", "single_step")]
print("my_attacks" in sys.modules)
print(text)
"""
    result = python(site, "-c", script)
    assert result.returncode == 0, result.stderr
    before, after, *text = result.stdout.splitlines()
    assert (before, after) == ("False", "True")
    assert "  step_size: float = 1.0" in text
    assert not result.stderr


def test_a_worker_process_builds_it(site: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / ".tasks").mkdir(parents=True)
    stage = {"name": "probe", "seed": 0, "attack": {"name": "single_step", "step_size": 0.5}}
    task = {"title": "probe", "folder": "probe-1", "stage": stage, "inputs": {}, "device": "cpu"}
    task_file(run, "1").write_text(json.dumps(task), "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env=environment(site),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([str(run), "1"]) + "\n")
    process.stdin.flush()
    ready, ended = (json.loads(process.stdout.readline()) for _ in range(2))
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()
    assert ready == {"ready": True}
    assert set(ended) == {"seconds"}
    assert (run / "probe-1" / "attack.txt").read_text("utf-8") == "my_attacks"


def test_a_package_that_does_not_fit_is_left_out_with_a_warning(site: Path) -> None:
    incomplete = SINGLE_STEP.replace("def perturb", "def disturb")
    packages = {
        "fails": ("1 / 0", "broken", "ZeroDivisionError: division by zero"),
        "empty": ("x = 1", "broken", "AttributeError: module 'empty' has no attribute 'SingleStep'"),
        "other": ("class SingleStep: pass", "broken", "it must be a subclass of an interface such as sparsemble."),
        "half": (incomplete, "broken", "half:SingleStep lacks the method perturb, which every attack must define"),
        "taken": (SINGLE_STEP, "pgd", 'attack "pgd" is taken by sparsemble.attacks.pgd'),
        "twice": (SINGLE_STEP, "single_step", 'attack "single_step" is taken by my_attacks'),
    }
    for package, (code, name, _) in packages.items():
        install(site, package, package, code, {name: f"{package}:SingleStep"})
    result = python(site, "-c", LIST)
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "Warning" in line]
    assert len(warnings) == len(packages)
    for package, (_, name, reason) in packages.items():
        sentence = f'component "{name}" ({package}:SingleStep) of the package {package} is left out: {reason}'
        assert any(sentence in warning for warning in warnings), sentence
    assert {"pgd", "single_step"} <= set(result.stdout.split())
    assert "broken" not in result.stdout.split()


def test_a_component_of_ours_keeps_its_name_whenever_it_is_imported(site: Path) -> None:
    """Ensemble losses are imported later than those of single networks."""
    code = """
from dataclasses import dataclass
from sparsemble.training.loss import TrainingLoss
@dataclass(frozen=True, kw_only=True)
class Theirs(TrainingLoss):
    def __call__(self, model, x, y, threat, *, rng): ...
"""
    install(site, "theirs", "theirs", code, {"eed": "theirs:Theirs"})
    script = (
        "from sparsemble.training.loss import training_losses as t; print(t.components['eed'].__module__);"
        "import sparsemble.ensemble; print(t.components['eed'].__module__)"
    )
    result = python(site, "-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["theirs", "sparsemble.ensemble.losses.eed"]
    assert 'loss "eed" is sparsemble.ensemble.losses.eed; theirs has the same name and is left out' in result.stderr
