"""`--minutes`: how long to train, how many images to attack and how wide a network the time allows."""

import functools
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from rich.console import Console

from sparsemble.core.artifacts import Artifact, read_json, spec_hash, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.pipeline.choice import choose, with_settings
from sparsemble.pipeline.engines.driver import run_tasks
from sparsemble.pipeline.estimate import Throughput
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Task, dataset, fingerprint
from sparsemble.pipeline.stages.throughput import THROUGHPUT, ThroughputStage
from sparsemble.training import distributed

PLAN = "plan.json"
"""The file, in the folder of a run, of what was measured and chosen."""
MEASURING = 30.0
"""Seconds that measuring takes, about."""


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was measured and chosen for a run."""

    request: str
    """Hash of the recipe and its data set."""
    workers: int
    throughput: Throughput
    """Of the chosen network."""
    settings: tuple[str, ...]
    """What was chosen, as after --set."""
    seconds: float
    """Expected, of the whole run."""

    def save(self, folder: Path) -> None:
        """Write `plan.json`."""
        write_json(folder / PLAN, to_dict(self))

    def applied(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the chosen settings."""
        return with_settings(recipe, self.settings)


def request_hash(recipe: Recipe) -> str:
    """Return the hash of a recipe with its minutes, and of its data set."""
    return spec_hash("plan", 1, {**to_dict(recipe, versions=True), "data_hash": fingerprint(recipe.data)}, [])


def stored_plan(recipe: Recipe, folder: Path) -> Plan | None:
    """Return the plan of the same recipe that a run in this folder began with, if one did."""
    path = folder / PLAN
    if not path.is_file():
        return None
    plan = from_dict(Plan, read_json(path), str(path))
    return plan if plan.request == request_hash(recipe) else None


def make_plan(recipe: Recipe, folder: Path, device: str, workers: int, console: Console) -> Plan:
    """Return the plan of a run, which is made once: measure throughput on all workers side by side, then choose.

    Args:
        recipe: with `minutes`.
        folder: of the run; keeps the plan.
        device: where stages compute.
        workers: processes that run side by side.
        console: shows what is measured.

    Raises:
        InputError: the time is too short for one epoch of each stage.
    """
    if plan := stored_plan(recipe, folder):
        return plan
    if distributed.world_size() > 1:
        raise InputError(
            "minutes cannot be planned for the processes of torchrun; leave it out, or run the saved recipe of a run "
            "that was planned without torchrun"
        )
    started = time.perf_counter()
    first = ThroughputStage(seed=recipe.seed, data=recipe.data, recipe=recipe, copy=1, workers=workers)
    tasks = [Task(f"measure throughput {i}", replace(first, copy=i), {}, cost=MEASURING) for i in range(1, workers + 1)]
    with Progress(console, tasks, workers=workers, in_seconds=True) as progress:
        run_tasks(tasks, folder, device, workers, progress)
    measured = [Artifact(folder / task.folder) for task in tasks]
    by_width = [_throughputs(artifact.json(THROUGHPUT)) for artifact in measured]
    common = {
        width: functools.reduce(Throughput.slower, (one[width] for one in by_width))
        for width in by_width[0]
        if all(width in one for one in by_width)
    }
    choice, throughput = choose(recipe, dataset(recipe.data), common, workers, time.perf_counter() - started)
    plan = Plan(
        request=request_hash(recipe),
        workers=workers,
        throughput=throughput,
        settings=choice.settings,
        seconds=choice.seconds,
    )
    plan.save(folder)
    for artifact in measured:
        shutil.rmtree(artifact.path)
    return plan


def _throughputs(table: dict[str, Any]) -> dict[int | None, Throughput]:
    """Return throughputs by width, as a stage has written them."""
    return {int(width) if width else None: from_dict(Throughput, value, width) for width, value in table.items()}
