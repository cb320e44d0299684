"""`--minutes`: what a run will take, what is chosen for it, and that it is chosen once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparsemble.core.artifacts import write_json
from sparsemble.core.errors import InputError
from sparsemble.pipeline import plan as planning
from sparsemble.pipeline.choice import (
    LARGEST_FACTOR,
    LEAST_IMAGES,
    available_seconds,
    choose,
    possible_widths,
    with_settings,
)
from sparsemble.pipeline.estimate import Throughput, Workload, graph_seconds, with_costs
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.makespan import longest_chains, makespan
from sparsemble.pipeline.options import option_settings
from sparsemble.pipeline.plan import PLAN, make_plan, stored_plan
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import Task, dataset
from sparsemble.pipeline.stages.throughput import THROUGHPUT, counted_throughput, per_image_and_call
from sparsemble.pipeline.time_table import STEPS, time_table

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
FAST = Throughput(train=1e-3, narrow=5e-4, mask=1.2e-3, finetune=1e-3, ensemble=4e-3, attack=1e-4, call=0.0)


def smoke(*settings: str) -> Recipe:
    return load_recipe(str(SMOKE), settings)[1]


def slower(factor: float) -> Throughput:
    return Throughput(**{name: factor * value for name, value in vars(FAST).items()})


def chosen(recipe: Recipe, throughput: Throughput = FAST, workers: int = 2) -> Recipe:
    choice, _ = choose(recipe, dataset(recipe.data), {None: throughput}, workers)
    return with_settings(recipe, choice.settings)


class TestMakespan:
    def test_a_chain_takes_the_sum_and_equal_tasks_are_shared(self) -> None:
        seconds = {"a": 3.0, "b": 2.0, "c": 1.0}
        assert makespan({"a": [], "b": ["a"], "c": ["b"]}, 2, seconds, alone=set()) == 6
        assert makespan({"a": [], "b": [], "c": []}, 2, seconds, alone=set()) == 3
        assert makespan({"a": [], "b": [], "c": []}, 1, seconds, alone=set()) == 6

    def test_nothing_runs_beside_a_task_that_asks_to_run_alone(self) -> None:
        assert makespan({"a": [], "b": [], "c": []}, 3, {"a": 3.0, "b": 2.0, "c": 1.0}, alone={"b"}) == 5

    def test_what_runs_goes_on_and_what_needs_it_waits(self) -> None:
        seconds = {"a": 1.0, "b": 4.0, "c": 2.0}
        assert makespan({"a": [], "b": [], "c": ["a"]}, 2, seconds, alone=set(), running=["a", "b"]) == 4
        assert makespan({}, 2, {}, alone=set()) == 0

    def test_the_longest_chain_counts(self) -> None:
        needs = {"last": ["long"], "short": [], "long": []}
        assert longest_chains(needs, {"short": 5, "last": 9, "long": 1}) == {"short": 5, "last": 9, "long": 10}


class TestEstimate:
    def test_costs_grow_with_epochs_images_and_members(self) -> None:
        def seconds(*settings: str) -> dict[str, float]:
            recipe = smoke(*settings)
            workload = Workload.of(recipe, dataset(recipe.data), FAST)
            return {task.title: workload.seconds(task) for task in build_graph(recipe, "", "").tasks}

        before = seconds()
        longer = seconds("train.epochs=20", "prune.finetune_epochs=20", "ensemble.epochs=20", "evaluate.images=120")
        for title in ("train the dense parent", "prune nis-1", "train the ensemble", "train the small dense network"):
            assert 2 * before[title] < longer[title] <= 10 * before[title]
        assert before["attack dense: pgd2"] < longer["attack dense: pgd2"] < 2 * before["attack dense: pgd2"]
        three = seconds("members=3")
        assert three["calibrate the stopping rule"] > before["calibrate the stopping rule"]
        assert three["train the dense parent"] == before["train the dense parent"]

    def test_costs_do_not_change_what_is_computed(self) -> None:
        recipe = smoke()
        tasks = build_graph(recipe, "", "").tasks
        costly = with_costs(tasks, Workload.of(recipe, dataset(recipe.data), FAST).seconds)
        assert [task.hash for task in costly] == [task.hash for task in tasks]
        position = {id(task): i for i, task in enumerate(costly)}
        assert all(id(needed) in position for task in costly for needed in task.inputs.values())
        assert graph_seconds(costly, 2) == pytest.approx(
            graph_seconds(tasks, 2, Workload.of(recipe, dataset(recipe.data), FAST))
        )

    def test_passes_are_counted_where_time_is_not_measured(self) -> None:
        counted = counted_throughput(smoke("train.loss=n_fgsm", "prune.loss=n_fgsm"))
        # N-FGSM: a step towards the image and one towards the weights, each forward and backward.
        assert counted.train == pytest.approx((2 + 1.5 * 2) * (counted.attack + counted.call / 32))
        assert counted.finetune == counted.train < counted.mask
        assert counted.ensemble > 2 * counted.train

    def test_a_call_costs_something_beside_its_images(self) -> None:
        assert per_image_and_call(100, 1.2, 0.28) == pytest.approx({"attack": 0.01, "call": 0.2})
        assert per_image_and_call(100, 1.0, 1.1) == {"attack": 0.01, "call": 0.0}
        recipe = smoke()
        data, tasks = dataset(recipe.data), build_graph(recipe, "", "").tasks
        (attack,) = (task for task in tasks if task.title == "attack dense: pgd2")
        free, costly = (Workload.of(recipe, data, replace(FAST, call=call)).seconds(attack) for call in (0.0, 1e-3))
        assert costly - free == pytest.approx(1e-3 * (2 * 3 + 1.5 * 2))  # three points, each twice, and two gradients


class TestChoice:
    def test_more_minutes_are_more_epochs_in_proportion_up_to_a_limit(self) -> None:
        base = smoke("train.epochs=40", "prune.finetune_epochs=20", "ensemble.epochs=10", "prune.method.epochs=4")
        epochs = []
        for minutes in (2, 3, 4, 60):
            recipe = chosen(replace(base, minutes=minutes))
            assert recipe.minutes is None
            assert recipe.prune.finetune_epochs == pytest.approx(recipe.train.epochs / 2, abs=1)
            assert recipe.ensemble.epochs == pytest.approx(recipe.train.epochs / 4, abs=1)
            epochs.append(recipe.train.epochs)
        assert epochs == sorted(epochs)
        assert epochs[0] < epochs[-1] == LARGEST_FACTOR * 40

    @pytest.mark.parametrize("minutes", [3, 17])
    def test_what_is_chosen_fits_and_a_twentieth_more_would_not(self, minutes: int) -> None:
        recipe = smoke("train.epochs=400", "prune.finetune_epochs=200", "ensemble.epochs=100", f"minutes={minutes}")
        data = dataset(recipe.data)

        def seconds(factor: float) -> float:
            choice, _ = choose(recipe, data, {None: FAST}, 2)
            epochs = with_settings(recipe, choice.settings)
            more = with_settings(
                recipe,
                [
                    *choice.settings,
                    f"train.epochs={round(factor * epochs.train.epochs)}",
                    f"ensemble.epochs={round(factor * epochs.ensemble.epochs)}",
                    f"prune.finetune_epochs={round(factor * epochs.prune.finetune_epochs)}",
                ],
            )
            return graph_seconds(build_graph(more, "", "").tasks, 2, Workload.of(more, data, FAST))

        assert seconds(1) <= available_seconds(recipe, 0) < seconds(1.1)

    def test_too_few_minutes_are_refused_with_the_least_that_would_do(self) -> None:
        recipe = smoke("minutes=1")
        with pytest.raises(InputError, match=r"^minutes = 1 is too few for one epoch .* at least (\d+) would do$") as e:
            chosen(recipe, slower(30))
        least = int(str(e.value).split("at least ")[1].split()[0])
        assert chosen(replace(recipe, minutes=least), slower(30)).train.epochs >= 1
        with pytest.raises(InputError, match="too few"):
            chosen(replace(recipe, minutes=least - 1), slower(30))

    def test_fewer_images_are_attacked_before_training_suffers(self) -> None:
        many = smoke("minutes=8", "evaluate.images=500")
        assert chosen(many, replace(FAST, attack=2e-5)).evaluate.images == 500
        more_than_there_are = smoke("minutes=8", "evaluate.images=700")
        assert chosen(more_than_there_are, replace(FAST, attack=2e-5)).evaluate.images == 500
        few = chosen(many, replace(FAST, attack=1e-3)).evaluate.images
        assert LEAST_IMAGES <= few < 500

    def test_the_widest_network_that_gets_its_epochs_is_taken(self) -> None:
        recipe = smoke("model.width=2", "widths=[2, 3, 4]", "minutes=3")
        data = dataset(recipe.data)
        speeds: dict[int | None, Throughput] = {2: FAST, 3: slower(1.5), 4: slower(50)}
        choice, throughput = choose(recipe, data, speeds, 2)
        assert "model.width=3" in choice.settings
        assert throughput is speeds[3]
        slow: dict[int | None, Throughput] = {2: slower(6), 3: slower(7)}
        long = replace(recipe, minutes=6, train=replace(recipe.train, epochs=90))
        assert "model.width=2" in choose(long, data, slow, 2)[0].settings

    def test_few_images_are_not_enough_for_a_wide_network(self) -> None:
        recipe = smoke("widths=[2, 4, 6, 64]")
        assert possible_widths(recipe, dataset(recipe.data)) == (2, 4, 6)  # 1,000 images
        assert possible_widths(smoke("widths=[32, 64]"), dataset(recipe.data)) == (32,)
        assert possible_widths(smoke(), dataset(recipe.data)) == ()

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("minutes=0", "minutes = 0 must be above 0"),
            ("widths=[8, 4]", "widths = [8, 4] must be ascending"),
            ("widths=[]", "widths = [] must be ascending"),
        ],
    )
    def test_bad_settings_are_refused(self, setting: str, message: str) -> None:
        with pytest.raises(InputError) as refused:
            smoke(setting)
        assert str(refused.value).startswith(message)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Throughput without measuring; notes what was asked to be measured."""
    titles: list[str] = []

    def run_tasks(tasks: list[Task], folder: Path, *_: Any) -> None:
        for task in tasks:
            titles.append(task.title)
            (folder / task.folder).mkdir()
            write_json(folder / task.folder / THROUGHPUT, {"": vars(FAST)})

    monkeypatch.setattr(planning, "run_tasks", run_tasks)
    return titles


class TestPlan:
    def plan(self, recipe: Recipe, folder: Path, workers: int = 2) -> planning.Plan:
        return make_plan(recipe, folder, "cpu", workers, Console(quiet=True))

    def test_is_made_once(self, measured: list[str], tmp_path: Path) -> None:
        recipe = smoke("minutes=3")
        first = self.plan(recipe, tmp_path)
        assert measured == ["measure throughput 1", "measure throughput 2"]
        assert [path.name for path in tmp_path.iterdir()] == [PLAN]
        assert self.plan(recipe, tmp_path) == first
        assert self.plan(recipe, tmp_path, workers=7) == first  # also after a move to another machine
        assert len(measured) == 2
        applied = first.applied(recipe)
        assert applied.minutes is None
        assert with_settings(recipe, json.loads((tmp_path / PLAN).read_text("utf-8"))["settings"]) == applied

    def test_of_another_recipe_is_not_used(self, measured: list[str], tmp_path: Path) -> None:
        self.plan(smoke("minutes=3"), tmp_path)
        assert stored_plan(smoke("minutes=3"), tmp_path)
        for other in (smoke("minutes=4"), smoke("minutes=3", "threat.eps=0.2")):
            assert stored_plan(other, tmp_path) is None

    def test_that_was_not_finished_is_made_anew(self, measured: list[str], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="too few"):
            self.plan(smoke("minutes=0.3"), tmp_path)
        assert not (tmp_path / PLAN).exists()
        assert self.plan(smoke("minutes=3"), tmp_path).workers == 2


def test_the_table_of_times_names_every_kind_of_stage() -> None:
    recipe = smoke()
    tasks = with_costs(build_graph(recipe, "", "").tasks, Workload.of(recipe, dataset(recipe.data), FAST).seconds)
    table = time_table(recipe, tasks, 2)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0][0] == "train the dense parent"
    assert cells[0][-1] == "whole run"
    assert "2 epochs, tiny, width 4" in cells[1]
    assert {task.stage.name for task in tasks} <= set(STEPS)


class TestOptions:
    def test_stand_for_settings(self) -> None:
        settings = option_settings("photos", data="my pets", size=48, eps="2/255", minutes=12.5)
        recipe = load_recipe("photos", tuple(settings))[1]
        assert recipe.data.root == "my pets"  # type: ignore[attr-defined]
        assert recipe.data.size == 48  # type: ignore[attr-defined]
        assert recipe.threat.eps == 2 / 255
        assert recipe.minutes == 12.5
        assert option_settings("digits") == []

    def test_of_a_folder_are_refused_where_no_folder_is_read(self) -> None:
        with pytest.raises(InputError, match=r'--data pets: the recipe digits reads the data set "digits"'):
            option_settings("digits", data="pets")
        with pytest.raises(InputError, match="--size 64"):
            option_settings("digits", size=64)
        with pytest.raises(InputError, match="--size 8: photographs of fewer than 16 pixels"):
            option_settings("photos", size=8)
