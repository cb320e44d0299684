"""Run a recipe in a folder: check first, compute what is missing, keep the rest."""

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rich.console import Console

from sparsemble.core.artifacts import META, Artifact, only_run_in, read_json, write_bytes
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.core.results import ExportResult
from sparsemble.pipeline.engines.driver import run_tasks
from sparsemble.pipeline.estimate import Workload, with_costs
from sparsemble.pipeline.gates import Gates
from sparsemble.pipeline.graph import RunGraph, build_graph, run_index
from sparsemble.pipeline.plan import make_plan, stored_plan
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import Task, dataset
from sparsemble.pipeline.stages.throughput import counted_throughput
from sparsemble.pipeline.tensorboard import Board
from sparsemble.pipeline.time_table import time_table
from sparsemble.pipeline.validate_recipe import validate_recipe
from sparsemble.report.data_table import data_table
from sparsemble.training import distributed

PUBLISHED = ("report", "export")
"""The commands whose stages run the ensemble in the runtime; each artifact is copied to a folder of its name."""


@final
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run; changes no result."""

    folder: Path
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 0
    """Worker processes; 0: one a core, at most 4, and one on a GPU."""
    engine: str = "local"
    until: str = "export"
    """The command that the run stops after."""
    quiet: bool = False
    tensorboard: bool = False
    """Write training curves for TensorBoard under the folder, too."""
    force: bool = False
    """Go on where a gate would stop: what was made is no better than chance."""


def run(recipe: Recipe, title: str, command: str, options: RunOptions) -> list[Artifact]:
    """Run a recipe and return the artifacts of the last stage asked for.

    It stops after the parent, the pool or the ensemble where these are no better than chance (`gates`).

    Args:
        recipe: what to do.
        title: name of the run, for the report.
        command: what reproduces it, for the report.
        options: where and with what.
    """
    if options.engine != "local":
        raise InputError(f'engine = "{options.engine}" is not known; known: local')
    device = distributed.start(choose_device(options.device))
    recipe.precision.check(device)
    workers = check_workers(options.workers, device)
    folder, is_first = options.folder, distributed.rank() == 0
    console = Console(stderr=True, quiet=options.quiet or not is_first)
    board = Board(folder / "tensorboard") if options.tensorboard and is_first else None
    gates = Gates(folder=folder, force=options.force, report=lambda text: _print(console, text), minutes=recipe.minutes)
    with only_run_in(folder) if is_first else contextlib.nullcontext():
        validate_recipe(recipe, deploys=options.until in PUBLISHED)
        gates.check_images(recipe)
        if recipe.minutes and not stored_plan(recipe, folder):
            console.print(data_table(dataset(recipe.data)).terminal())
        plan = make_plan(recipe, folder, device, workers, console) if recipe.minutes else None
        recipe = plan.applied(recipe) if plan else recipe
        graph = build_graph(recipe, title, command)
        wanted = graph.until[options.until]
        missing = _missing(graph, wanted, folder) if is_first else []
        hashes = distributed.broadcast_value([task.hash for task in missing])
        missing = [task for task in graph.tasks if task.hash in hashes]
        if is_first:
            _write_recipe(recipe, folder)
            run_index(recipe).save(folder)
        gates.check_finished(missing)
        if missing:
            throughput = plan.throughput if plan else counted_throughput(recipe)
            missing = with_costs(missing, Workload.of(recipe, dataset(recipe.data), throughput).seconds)
            if plan:
                console.print(time_table(recipe, missing, workers))
            with Progress(console, missing, board, workers=workers, in_seconds=True) as progress:
                run_tasks(missing, folder, device, workers, progress, before=gates.check_inputs)
        for task in wanted:
            gates.check(task)
        if is_first and options.until in PUBLISHED:
            for task, name in zip(wanted, PUBLISHED, strict=False):
                _publish(folder / task.folder, folder / name)
    distributed.stop()
    return [Artifact(folder / task.folder) for task in wanted]


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _missing(graph: RunGraph, wanted: Sequence[Task], folder: Path) -> list[Task]:
    """Return the tasks still to run for the wanted ones, after comparing every finished file with its hash."""
    needed: set[str] = set()
    seen: set[tuple[str, bool]] = set()

    def visit(task: Task, required: bool) -> None:
        if (task.hash, required) in seen:
            return
        seen.add((task.hash, required))
        finished = is_finished(task, folder)
        if required and not finished:
            needed.add(task.hash)
        for needed_task in task.inputs.values():
            visit(needed_task, required and not finished)

    for task in wanted:
        visit(task, True)
    return [task for task in graph.tasks if task.hash in needed]


def is_finished(task: Task, folder: Path) -> bool:
    """Return whether the artifact of a task is there; one that was edited by hand is refused."""
    artifact = Artifact(folder / task.folder)
    if artifact.path.is_dir():
        artifact.verify()
        return True
    return False


def check_workers(workers: int, device: str) -> int:
    """Return the number of worker processes."""
    if workers < 0:
        raise InputError(f"workers = {workers} must be 1 or more, or 0 to let sparsemble choose")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return workers or (1 if device.startswith("cuda") else min(cores, 4))


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    """Save the resolved recipe, every default written out, unless it is there already."""
    import tomli_w

    text = tomli_w.dumps(to_dict(recipe)).encode()
    path = folder / "recipe.toml"
    if not path.is_file() or path.read_bytes() != text:
        write_bytes(path, text)


def _publish(artifact: Path, target: Path) -> None:
    """Copy an artifact to a folder of a plain name, unless the same one is there."""
    meta = target / META
    if meta.is_file() and meta.read_bytes() == (artifact / META).read_bytes():
        return
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(artifact, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def export(
    folder: Path, values: str, arithmetic: str = "", device: str = "auto", *, quiet: bool = False
) -> ExportResult:
    """Export the ensemble of a finished run again, in another number format or arithmetic perhaps.

    Args:
        folder: of the run.
        values: float16, float32 or int8; empty: that of its recipe, or what the arithmetic needs.
        arithmetic: float32 or int8; empty: that of its recipe.
        device: auto, cpu, cuda or cuda:N.
        quiet: show no progress.
    """
    meta = folder / "report" / META
    if not (folder / "recipe.toml").is_file() or not meta.is_file():
        raise InputError(f"{folder} is not the folder of a finished run; `sparsemble run RECIPE` makes one")
    report = read_json(meta)["spec"]
    _, recipe = load_recipe(str(folder / "recipe.toml"), _export_settings(values, arithmetic))
    # What was finished passed its gates, or was forced.
    options = RunOptions(folder=folder, device=device, until="export", quiet=quiet, force=True)
    run(recipe, report["title"], report["command"], options)
    return ExportResult.load(folder / "export" / "export.json")


def _export_settings(values: str, arithmetic: str) -> tuple[str, ...]:
    """Return settings of a recipe; values that are not named are those that the arithmetic needs."""
    values = values or ("int8" if arithmetic == "int8" else "")
    named = {"export.values": values, "export.arithmetic": arithmetic}
    return tuple(f"{key}={value}" for key, value in named.items() if value)
