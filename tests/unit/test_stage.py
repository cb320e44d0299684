"""Stages: what the hash of a task covers, and that a stage leaves a whole artifact or none."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from sparsemble.api.context import Context
from sparsemble.core.artifacts import META, PARTIAL, Artifact
from sparsemble.core.errors import RunError
from sparsemble.core.threat import ThreatModel
from sparsemble.pipeline.engines.worker import run_task
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import Inputs, Stage, Task, stages

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"


@dataclass(frozen=True, kw_only=True)
class Bake(Stage):
    """A stage that writes a file and may break in between."""

    name: ClassVar[str] = "bake"
    seed: int = 0
    flour: float = 0.5
    breaks: bool = False

    def run(self, context: Context, inputs: Inputs) -> None:
        (context.output / "dough.txt").write_text(f"{self.flour} {len(inputs)}", "utf-8")
        context.report_progress(0.5, "half baked")
        if self.breaks:
            raise RunError("the oven went out")
        (context.output / "crust").mkdir(exist_ok=True)
        (context.output / "crust" / "bread.txt").write_text("done", "utf-8")


@pytest.fixture
def bake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.components, "bake", Bake)


def smoke() -> Recipe:
    return load_recipe(str(SMOKE))[1]


def hashes(recipe: Recipe) -> dict[str, str]:
    return {task.title: task.hash for task in build_graph(recipe, "title", "command").tasks}


class TestTaskHash:
    def test_a_change_reaches_what_comes_after_it_and_nothing_before(self) -> None:
        before, recipe = hashes(smoke()), smoke()
        attacked_harder = hashes(replace(recipe, evaluate=replace(recipe.evaluate, images=61)))
        assert attacked_harder["train the dense parent"] == before["train the dense parent"]
        assert attacked_harder["prune nis-1"] == before["prune nis-1"]
        assert attacked_harder["write the report"] != before["write the report"]
        pruned_longer = hashes(replace(recipe, prune=replace(recipe.prune, finetune_epochs=3)))
        assert pruned_longer["train the dense parent"] == before["train the dense parent"]
        assert all(pruned_longer[title] != before[title] for title in before if title.startswith("prune "))
        for changed in (replace(recipe, seed=4), replace(recipe, threat=ThreatModel(eps=0.11))):
            found = hashes(changed)
            assert all(found[title] != before[title] for title in before)

    def test_of_tasks_that_differ_differs(self) -> None:
        found = hashes(smoke())
        assert len(set(found.values())) == len(found)

    def test_a_raised_version_of_a_component_inside_changes_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before, recipe = hashes(smoke()), smoke()
        monkeypatch.setattr(type(recipe.train.schedule.lr_schedule), "version", 99, raising=False)
        after = hashes(recipe)
        assert after["train the dense parent"] != before["train the dense parent"]
        assert hashes(smoke()) == after

    def test_words_for_people_and_cost_do_not_change_it(self) -> None:
        tasks = [Task("one", Bake(), {}, cost=1), Task("two", Bake(), {}, cost=9, alone=True)]
        assert tasks[0].hash == tasks[1].hash
        assert tasks[0].folder == f"bake-{tasks[0].hash}"

    def test_data_that_changed_on_disk_changes_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = hashes(smoke())
        monkeypatch.setattr("sparsemble.pipeline.stage.fingerprint", lambda source: "other files")
        assert hashes(smoke())["train the dense parent"] != before["train the dense parent"]


class TestRunTask:
    def run(self, folder: Path, stage: Stage, device: str = "cpu", **inputs: Task) -> Task:
        task = Task("bake a bread", stage, inputs, cost=1)
        run_task(json.loads(json.dumps(task.to_json())), folder, torch.device(device), lambda **message: None)
        return task

    @pytest.mark.usefixtures("bake")
    def test_leaves_one_whole_artifact(self, tmp_path: Path) -> None:
        first = self.run(tmp_path, Bake(flour=0.7))
        second = self.run(tmp_path, Bake(), salt=first)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.folder, second.folder])
        artifact = Artifact(tmp_path / second.folder)
        artifact.verify()
        assert artifact.file("dough.txt").read_text("utf-8") == "0.5 1"
        meta = artifact.meta
        assert set(meta["files"]) == {"dough.txt", "crust/bread.txt"}
        assert meta["spec"] == {"name": "bake", "seed": 0, "flour": 0.5, "breaks": False}
        assert meta["inputs"] == {"salt": first.folder}
        assert (meta["stage"], meta["version"], meta["title"], meta["device"]) == ("bake", 1, "bake a bread", "cpu")
        assert meta["seconds"] > 0

    @pytest.mark.usefixtures("bake")
    def test_the_device_is_noted_but_does_not_name_the_artifact(self, tmp_path: Path) -> None:
        on_cpu = self.run(tmp_path / "a", Bake())
        elsewhere = self.run(tmp_path / "b", Bake(), device="meta")
        assert Artifact(tmp_path / "b" / elsewhere.folder).meta["device"] == "meta"
        assert on_cpu.folder == elsewhere.folder

    @pytest.mark.usefixtures("bake")
    def test_a_stage_that_breaks_leaves_no_finished_artifact(self, tmp_path: Path) -> None:
        task = Task("bake a bread", Bake(breaks=True), {}, cost=1)
        with pytest.raises(RunError, match="the oven went out"):
            self.run(tmp_path, task.stage)
        assert [path.name for path in tmp_path.iterdir()] == [task.folder + PARTIAL]
        assert not (tmp_path / (task.folder + PARTIAL) / META).exists()
