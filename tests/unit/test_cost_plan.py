"""`--plan`: passes are those of the formulas, shared stages count once, and no data set need be there."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from sparsemble.core.errors import InputError
from sparsemble.core.results import CostPlan
from sparsemble.data.dataset import data_sources
from sparsemble.data.stand_in import StandIn
from sparsemble.pipeline.cost_plan import plan_run, plan_study
from sparsemble.pipeline.recipe import Recipe, load_recipe, shipped
from sparsemble.pipeline.study import load_study
from sparsemble.report import cost_plan_table

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
KNOWN = {
    "cifar10": (45_000, 10_000, 10, (3, 32, 32)),
    "cifar100": (45_000, 10_000, 100, (3, 32, 32)),
    "svhn": (68_257, 26_032, 10, (3, 32, 32)),
    "mnist": (55_000, 10_000, 10, (1, 28, 28)),
    "fashion_mnist": (55_000, 10_000, 10, (1, 28, 28)),
    "tiny_imagenet": (90_000, 10_000, 200, (3, 64, 64)),
    "imagenet": (1_271_167, 50_000, 1000, (3, 224, 224)),
}


def plan(recipe: Recipe, until: str = "export", workers: int = 1, throughput: float = 100.0) -> CostPlan:
    return plan_run(recipe, "name", "command", until=until, workers=workers, throughput=throughput)


@pytest.mark.parametrize("name", KNOWN)
def test_known_sizes_are_those_of_the_published_data(name: str) -> None:
    source = StandIn.of(data_sources.build(name))
    data = source.load()
    assert (len(data.train), len(data.test), len(data.classes), data.shape) == KNOWN[name]
    assert source.fingerprint() == ""


def test_passes_of_the_dense_parent_of_the_papers_setting_are_those_of_its_formula() -> None:
    """PGD-20 training: 20 passes to craft and one to learn, forward and backward, of 45,000 images in 100 epochs."""
    _, recipe = load_recipe("cifar10-resnet18", ("data.root='nowhere'", "model={name='tiny', width=4}"))
    found = plan(recipe, until="train", throughput=1000.0)
    (train,) = found.stages
    probes = 100 * 2500 * (21 + 2)  # held-out images: PGD-20 looks at 21 points, clean accuracy at one, about
    assert train.forward_passes == pytest.approx(21 * 45_000 * 100 + probes, rel=0.001)
    assert train.backward_passes == pytest.approx(21 * 45_000 * 100 + 100 * 2500 * 20, rel=0.001)
    assert train.seconds == pytest.approx((train.forward_passes + 1.5 * train.backward_passes) / 1000, rel=0.01)
    assert found.seconds == train.seconds
    assert not found.measured


def test_more_workers_are_faster_and_take_more_memory_and_twice_the_throughput_halves_the_time() -> None:
    recipe = load_recipe(str(SMOKE))[1]
    one, two, fast = plan(recipe, "prune"), plan(recipe, "prune", workers=2), plan(recipe, "prune", throughput=200.0)
    assert one.seconds > two.seconds > one.seconds / 2
    assert two.memory == 2 * one.memory
    assert fast.seconds == pytest.approx(one.seconds / 2, rel=0.01)
    assert [(stage.stage, stage.tasks) for stage in one.stages] == [("train", 1), ("prune", 4)]


def test_a_stage_that_cells_share_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    text = f'recipe = "{SMOKE}"\n[axes.sparsity]\n"0.5" = ["sparsity=0.5"]\n"0.8" = ["sparsity=0.8"]\n'
    file.write_text(text, "utf-8")
    found = plan_study(load_study(str(file)), "command", workers=1, throughput=100.0)
    tasks = {stage.stage: stage.tasks for stage in found.stages}
    assert (tasks["train"], tasks["prune"]) == (1, 2)
    assert found.seconds == pytest.approx(sum(stage.seconds for stage in found.stages))


def test_what_is_missing_is_assumed_and_said_so(tmp_path: Path) -> None:
    _, recipe = load_recipe("gtsrb-small", (f"data.path='{tmp_path / 'gone.npz'}'",))
    assert "gone.npz is missing: 50,000 training and 10,000 test images of 3 x 32 x 32" in plan(recipe).notes[0]


def test_a_measurement_is_made_where_no_throughput_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemble.pipeline.cost_plan.MEASURING", 0.05)
    found = plan_run(load_recipe(str(SMOKE))[1], "name", "command", until="train", workers=1)
    assert found.measured
    assert found.throughput > 0


def test_minutes_choose_epochs_first() -> None:
    recipe = load_recipe(str(SMOKE), ("minutes=30",))[1]
    found = plan(recipe, throughput=20_000.0)
    assert any(note.startswith("chosen for 30 minutes: train.epochs=") for note in found.notes)
    assert found.seconds < 30 * 60


def test_minutes_choose_epochs_and_width_without_the_photographs(tmp_path: Path) -> None:
    recipe = load_recipe("photos", (f"data.root='{tmp_path / 'gone'}'", "minutes=600", "widths=[4, 6]"))[1]
    found = plan(recipe, until="train", throughput=50_000.0)
    assert "model.width=" in "".join(found.notes)


@pytest.mark.parametrize("throughput", [0.0, -1.0, float("nan")])
def test_an_impossible_throughput_is_a_sentence(throughput: float) -> None:
    with pytest.raises(InputError, match=r"throughput = .* must be above 0: forward passes of an image a second"):
        plan(load_recipe(str(SMOKE))[1], throughput=throughput)


def test_the_table_names_stages_time_memory_and_disk_and_json_comes_back(tmp_path: Path) -> None:
    found = plan(load_recipe(str(SMOKE))[1])
    with Console(record=True, width=120) as console:
        console.print(cost_plan_table(found))
    text = console.export_text()
    assert all(words in text for words in ("train the ensemble", "whole run: about", "of memory and", "on disk"))
    found.save(tmp_path / "plan.json")
    assert CostPlan.load(tmp_path / "plan.json") == found
    assert json.loads(found.to_json())["stages"][0]["stage"] == "train"


@pytest.mark.parametrize("name", sorted(shipped("studies")))
def test_every_shipped_study_can_be_planned_without_its_data(name: str) -> None:
    found = plan_study(load_study(name), "command", workers=2, throughput=500.0)
    assert found.seconds > 0
    assert found.kind == "study"
