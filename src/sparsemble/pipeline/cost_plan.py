"""`--plan`: what a run or a study will take, from counted passes and a short measurement; nothing else runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.results import CostPlan, StageCost
from sparsemble.data.stand_in import StandIn
from sparsemble.evaluation.environment import machine
from sparsemble.evaluation.work import Work
from sparsemble.pipeline.choice import choose, possible_widths, with_settings, with_width
from sparsemble.pipeline.estimate import SECONDS, Throughput, Unit, Workload, graph_seconds, with_costs
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.network_cost import DenseNetwork, Footprint
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.run import PUBLISHED, check_workers
from sparsemble.pipeline.stage import Task, dataset
from sparsemble.pipeline.stages.throughput import StepWork
from sparsemble.pipeline.study import Study, cells
from sparsemble.pipeline.time_table import STEPS
from sparsemble.pipeline.validate_recipe import validate_recipe

MEASURING = 10.0
"""Seconds of all measurements together, about."""
REPORTS = 20e6
"""Bytes of reports, figures and outcomes of a run, about."""
FORWARDS, PASSES = Unit(0.0, 0.0), Unit(1.0, 0.0)
"""Forward passes alone; forward and backward passes, each counted as one."""


@final
@dataclass(frozen=True)
class _Costs:
    """What tasks of one recipe take."""

    seconds: Workload
    forwards: Workload
    passes: Workload
    footprint: Footprint


def plan_run(
    recipe: Recipe,
    title: str,
    command: str,
    *,
    until: str = "export",
    device: str = "auto",
    workers: int = 0,
    throughput: float | None = None,
) -> CostPlan:
    """Return what a run will take; of what is in its folder already, nothing is left out.

    Args:
        recipe: what to do.
        title: name of the run.
        command: what was typed.
        until: the command that the run stops after.
        device: auto, cpu, cuda or cuda:N.
        workers: worker processes; 0: as many as a run takes.
        throughput: forward passes of an image a second, > 0; none: it is measured.

    Raises:
        InputError: a setting that cannot be.
    """
    planner = _Planner(device, workers, throughput)
    recipe = planner.prepared(recipe)
    validate_recipe(recipe, deploys=until in PUBLISHED)
    planner.measure([recipe])
    if recipe.minutes:
        recipe = planner.chosen(recipe)
    graph = build_graph(recipe, title, command)
    return planner.plan("run", title, command, [(recipe, _with_inputs(graph.until[until]))])


def plan_study(
    study: Study, command: str, *, device: str = "auto", workers: int = 0, throughput: float | None = None
) -> CostPlan:
    """Return what a study will take; a stage that several cells share counts once.

    Args:
        study: its cells.
        command: what was typed.
        device: auto, cpu, cuda or cuda:N.
        workers: worker processes; 0: as many as a study takes.
        throughput: forward passes a second of an image through the dense network of the first cell, > 0; networks of
            other cells take as much more or less time as they have multiply-accumulates; none: it is measured.

    Raises:
        InputError: a setting that cannot be.
    """
    planner = _Planner(device, workers, throughput)
    expanded = cells(study, planner.prepared)
    planner.measure([cell.recipe for cell in expanded])
    return planner.plan("study", study.title, command, [(cell.recipe, cell.tasks) for cell in expanded])


def _with_inputs(wanted: Iterable[Task]) -> list[Task]:
    """Return tasks and all that they need."""
    found: dict[str, Task] = {}
    waiting = list(wanted)
    while waiting:
        task = waiting.pop()
        if task.hash not in found:
            found[task.hash] = task
            waiting += task.inputs.values()
    return list(found.values())


@final
class _Planner:
    """Measures the networks of recipes, and adds up what their tasks take."""

    def __init__(self, device: str, workers: int, throughput: float | None) -> None:
        if throughput is not None and not (math.isfinite(throughput) and throughput > 0):
            raise InputError(f"throughput = {throughput:g} must be above 0: forward passes of an image a second")
        name = choose_device(device)
        self.device, self.workers, self.given = torch.device(name), check_workers(workers, name), throughput
        self.notes: dict[str, None] = {}
        self.networks: dict[str, DenseNetwork] = {}
        self.seconds: dict[str, float] = {}
        """Of a forward pass, by network."""
        self.counted: dict[str, Work] = {}
        """Passes of each loss."""

    def prepared(self, recipe: Recipe) -> Recipe:
        """Return a recipe whose data set need not be there."""
        source = StandIn.of(recipe.data)
        if isinstance(source, StandIn) and source.sizes.assumed:
            sizes = source.sizes
            place = getattr(recipe.data, "path", "") or getattr(recipe.data, "root", "")
            note = f"{place} is missing: {sizes.train:,} training and {sizes.test:,} test images of "
            shape = " x ".join(map(str, sizes.shape))
            self.notes[note + f"{shape} in {sizes.classes} classes are assumed"] = None
        return replace(recipe, data=source)

    def measure(self, recipes: Sequence[Recipe]) -> None:
        """Count and time the networks of recipes, each once; all together take about ten seconds."""
        wanted: dict[str, DenseNetwork] = {}
        for recipe in recipes:
            data = dataset(recipe.data)
            widths = possible_widths(recipe, data) if recipe.minutes else ()
            for variant in [with_width(recipe, width) for width in widths] or [recipe]:
                key = _key(variant)
                if key not in wanted:
                    wanted[key] = self.networks.get(key) or DenseNetwork.of(variant, data)
        self.networks |= wanted
        reference = next(iter(wanted.values()))
        for key, network in wanted.items():
            if self.given:
                self.seconds[key] = network.macs / reference.macs / self.given
            else:
                self.seconds[key] = network.second(MEASURING / len(wanted), self.device)

    def throughput(self, recipe: Recipe) -> Throughput:
        """Return the throughput of a recipe's networks."""
        return self._steps(recipe).throughput(SECONDS, self.seconds[_key(recipe)])

    def chosen(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the epochs, images and width that fit into its minutes."""
        data = dataset(recipe.data)
        widths = possible_widths(recipe, data) or (None,)
        throughputs = {width: self.throughput(with_width(recipe, width)) for width in widths}
        # A recipe with a stand-in cannot be written out and read back, as settings are applied.
        source = recipe.data.source if isinstance(recipe.data, StandIn) else recipe.data
        written = replace(recipe, data=source)
        choice, _ = choose(written, data, throughputs, self.workers)
        self.notes[f"chosen for {recipe.minutes:g} minutes: {', '.join(choice.settings)}"] = None
        return replace(with_settings(written, choice.settings), data=recipe.data)

    def plan(self, kind: str, title: str, command: str, parts: Sequence[tuple[Recipe, Sequence[Task]]]) -> CostPlan:
        """Return the plan of tasks, each with the recipe that it belongs to.

        Args:
            kind: run or study.
            title: of it.
            command: what was typed.
            parts: recipes and their tasks; a task counts with the first recipe that has it.
        """
        tasks: dict[str, Task] = {}
        costs: dict[str, _Costs] = {}
        for recipe, needed in parts:
            own = self._costs(recipe)
            for task in needed:
                tasks.setdefault(task.hash, task)
                costs.setdefault(task.hash, own)
        unique = _merged(tasks)
        timed = with_costs(unique, lambda task: costs[task.hash].seconds.seconds(task))
        stages = [
            _stage_cost(name, [task for task in timed if task.stage.name == name], costs)
            for name in dict.fromkeys([*STEPS, *(task.stage.name for task in timed)])
            if any(task.stage.name == name for task in timed)
        ]
        footprints = {task.hash: costs[task.hash].footprint for task in timed}
        running = self.workers * max(footprint.checkpoint for footprint in footprints.values())
        reports = REPORTS * max(1, sum(task.stage.name == "report" for task in timed))
        first = self.seconds[_key(parts[0][0])]
        notes = ["what is finished in the folder is not left out", "one thread for each worker"]
        if self.workers > 1 and not self.given:
            notes.append("measured with nothing beside it: workers side by side may be slower")
        return CostPlan(
            title=title,
            kind="run" if kind == "run" else "study",
            command=command,
            stages=tuple(stages),
            workers=self.workers,
            seconds=graph_seconds(timed, self.workers),
            memory=self.workers * max(stage.memory for stage in stages),
            disk=sum(footprints[task.hash].disk(task) for task in timed) + running + reports,
            throughput=1 / first,
            measured=self.given is None,
            machine=machine(self.device),
            notes=(*self.notes, *notes),
        )

    def _costs(self, recipe: Recipe) -> _Costs:
        data, steps = dataset(recipe.data), self._steps(recipe)
        return _Costs(
            Workload.of(recipe, data, self.throughput(recipe)),
            Workload.of(recipe, data, steps.throughput(FORWARDS, 1.0), FORWARDS),
            Workload.of(recipe, data, steps.throughput(PASSES, 1.0), PASSES),
            Footprint(recipe, self.networks[_key(recipe)]),
        )

    def _steps(self, recipe: Recipe) -> StepWork:
        """Return the passes of a recipe's training steps; each loss is counted once."""
        return StepWork.of(recipe, dataset(recipe.data), self.counted)


def _key(recipe: Recipe) -> str:
    """Return what a recipe's dense network depends on."""
    data = dataset(recipe.data)
    return repr((recipe.model, recipe.parent, data.shape, len(data.classes)))


def _merged(tasks: dict[str, Task]) -> list[Task]:
    """Return tasks whose inputs are tasks of the same list, found by their hash."""
    merged: dict[str, Task] = {}

    def of(task: Task) -> Task:
        if task.hash not in merged:
            inputs = {role: of(tasks[needed.hash]) for role, needed in task.inputs.items()}
            merged[task.hash] = replace(task, inputs=inputs)
        return merged[task.hash]

    return [of(task) for task in tasks.values()]


def _stage_cost(name: str, tasks: Sequence[Task], costs: dict[str, _Costs]) -> StageCost:
    """Return the cost of the tasks of one kind.

    Args:
        name: of the stage.
        tasks: with their seconds as costs.
        costs: by hash.
    """
    forwards = sum(costs[task.hash].forwards.seconds(task) for task in tasks)
    passes = sum(costs[task.hash].passes.seconds(task) for task in tasks)
    return StageCost(
        stage=name,
        what=STEPS.get(name, name),
        tasks=len(tasks),
        forward_passes=forwards,
        backward_passes=max(0.0, passes - forwards),
        seconds=float(sum(task.cost for task in tasks)),
        memory=max(costs[task.hash].footprint.memory(task) for task in tasks),
    )
