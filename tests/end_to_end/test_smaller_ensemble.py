"""An ensemble may be chosen smaller than the recipe allows; attacks were laid out before anybody knew."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsemble.api.context import Context
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.artifacts import Artifact
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.attack import AttackStage
from tests.end_to_end.conftest import SMOKE, without_timings


@pytest.mark.parametrize(
    ("row", "view"),
    [
        ("ensemble_static", Member(index=3)),
        pytest.param("ensemble_dynamic", Prefix(length=3), marks=pytest.mark.slow),
    ],
)
def test_attacks_on_members_that_it_lacks_are_left_out(
    finished: Path, tmp_path: Path, row: str, view: Surrogate
) -> None:
    _, recipe = load_recipe(str(SMOKE))
    evaluate = build_graph(recipe, "", "").until["evaluate"][0]
    known = evaluate.inputs[
        f"attack.{row}.pgd4x2-whole" if row == "ensemble_static" else f"attack.{row}.square20-deployed"
    ]
    assert isinstance(known.stage, AttackStage)
    stage = replace(known.stage, attack=SurrogateAttack(attack=recipe.evaluate.adaptive, surrogate=view))
    absent = tmp_path / "absent"
    run(replace(known, stage=stage), finished, absent)
    assert [file.name for file in absent.iterdir()] == ["attack.json"]
    reason = json.loads((absent / "attack.json").read_text("utf-8"))
    assert reason == {"absent": "it needs 3 members, and the ensemble that was selected has 2"}
    # The results are the same as without this one.
    again = tmp_path / "again"
    run(evaluate, finished, again, {f"attack.{row}.{stage.attack.label}": Artifact(absent)})
    assert (again / "examples.safetensors").read_bytes() == (
        finished / evaluate.folder / "examples.safetensors"
    ).read_bytes()
    results = [
        json.loads((folder / "results.json").read_text("utf-8")) for folder in (again, finished / evaluate.folder)
    ]
    assert without_timings(results[0]) == without_timings(results[1])


def run(task: Task, finished: Path, folder: Path, more: dict[str, Artifact] | None = None) -> None:
    """Run a stage in this process on the artifacts of a finished run."""
    folder.mkdir()
    inputs = {role: Artifact(finished / one.folder) for role, one in task.inputs.items()} | (more or {})
    cpu = torch.device("cpu")
    task.stage.run(Context(folder=folder, device=cpu, seed=3, stream=""), inputs)
