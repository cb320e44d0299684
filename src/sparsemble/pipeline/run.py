"""Run a recipe in a folder: check first, compute what is missing, keep the rest."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rich.console import Console

from sparsemble.core.artifacts import Artifact, only_run_in, read_json, write_bytes
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.results import ExportResult, RunSummary
from sparsemble.pipeline.engines.driver import Driver
from sparsemble.pipeline.engines.local import LocalExecutor
from sparsemble.pipeline.engines.torchrun import TorchrunExecutor
from sparsemble.pipeline.method import RunGraph, build_graph, run_index
from sparsemble.pipeline.progress import BarProgress, PlainProgress, Progress
from sparsemble.pipeline.recipe import Recipe, load_recipe, resolved
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.tensorboard import Board
from sparsemble.pipeline.validate_recipe import validate_recipe
from sparsemble.training import distributed

DEPLOYING = ("report", "export")
"""The commands whose stages run the ensemble in the runtime; each leaves a folder under its name."""


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


def run(
    recipe: Recipe, title: str, command: str, options: RunOptions, console: Console | None = None
) -> list[Artifact]:
    """Run a recipe and return the artifacts of the last stage asked for.

    Args:
        recipe: what to do.
        title: name of the run, for the report.
        command: what reproduces it, for the report.
        options: where and with what.
        console: where progress goes; standard error unless given.

    Raises:
        InputError: anything wrong that can be known before work begins.
        RunError: a stage failed; what is finished is kept.
    """
    console = console or Console(stderr=True)
    device = distributed.start(choose_device(options.device))
    recipe.precision.check(device)
    workers = check_workers(options.workers, device)
    if options.engine != "local":
        raise InputError(f'engine = "{options.engine}" is not known; known: local')
    board = Board(options.folder / "tensorboard") if options.tensorboard and distributed.rank() == 0 else None
    plan = build_graph(recipe, title, command)
    leads = distributed.rank() == 0
    with only_run_in(options.folder) if leads else contextlib.nullcontext():
        validate_recipe(recipe, deploys=options.until in DEPLOYING)
        wanted = plan.until[options.until]
        missing = check_folder(plan, wanted, options.folder) if leads else []
        still = distributed.broadcast_value([task.hash for task in missing])
        missing = [task for task in plan.tasks if task.hash in still]
        if leads:
            _write_recipe(recipe, options.folder)
            run_index(recipe).save(options.folder)
        if missing:
            with make_progress(console, missing, board, quiet=options.quiet or not leads) as progress:
                run_tasks(missing, options.folder, device, workers, progress)
        if leads and options.until in DEPLOYING:
            for task, name in zip(wanted, DEPLOYING, strict=False):
                _publish(options.folder / task.folder, options.folder / name)
    distributed.stop()
    return [Artifact(options.folder / task.folder) for task in wanted]


def check_folder(plan: RunGraph, wanted: Iterable[Task], folder: Path) -> list[Task]:
    """Return the tasks still to run for the wanted ones, after comparing every finished file with its hash.

    Args:
        plan: the graph of the run.
        wanted: tasks whose artifacts are required.
        folder: of the run.

    Raises:
        InputError: an artifact was edited by hand.
    """
    needed: set[str] = set()
    seen: set[tuple[str, bool]] = set()

    def visit(task: Task, required: bool) -> None:
        if (task.hash, required) in seen:
            return
        seen.add((task.hash, required))
        artifact = Artifact(folder / task.folder)
        finished = artifact.path.is_dir()
        if finished:
            artifact.verify()
        elif required:
            needed.add(task.hash)
        for given in task.inputs.values():
            visit(given, required and not finished)

    for task in wanted:
        visit(task, True)
    return [task for task in plan.tasks if task.hash in needed]


def check_workers(workers: int, device: str) -> int:
    """Return the number of worker processes."""
    if workers < 0:
        raise InputError(f"workers = {workers} must be 1 or more, or 0 to let sparsemble choose")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return workers or (1 if device.startswith("cuda") else min(cores, 4))


def make_progress(
    console: Console, tasks: Sequence[Task], board: Board | None = None, *, quiet: bool = False
) -> Progress:
    """Return what shows the progress: bars on a terminal, lines elsewhere.

    Args:
        console: where it shows.
        tasks: what will run.
        board: where epochs are drawn, too.
        quiet: show nothing.
    """
    if quiet:
        return PlainProgress(Console(quiet=True), tasks, board)
    return BarProgress(console, tasks, board) if console.is_terminal else PlainProgress(console, tasks, board)


def run_tasks(
    tasks: Sequence[Task], folder: Path, device: str, workers: int, progress: Progress, *, keep_going: bool = False
) -> dict[str, str]:
    """Run tasks whose inputs are finished or among them, in worker processes or in those that torchrun started.

    Args:
        tasks: in any order.
        folder: of the run.
        device: where stages compute.
        workers: processes.
        progress: shows what happens.
        keep_going: whether a failed task fails only those that need it.

    Returns:
        Error messages of the tasks that failed, by hash.

    Raises:
        RunError: a task failed, unless `keep_going`.
    """
    together = distributed.world_size() > 1
    by_hash = {task.hash: task for task in tasks}
    slots = 1 if together else min(workers, len(tasks))
    executor: Executor = (
        TorchrunExecutor(lambda stage_hash, message: progress.receive(by_hash[stage_hash], message))
        if together
        else LocalExecutor(slots)
    )
    with executor:
        driver = Driver(
            folder=folder, executor=executor, slots=slots, device=device, progress=progress, keep_going=keep_going
        )
        driver.run(tasks)
    return driver.failures


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    """Save the resolved recipe, every default written out, unless it is there already."""
    import tomli_w

    text = tomli_w.dumps(resolved(recipe)).encode()
    path = folder / "recipe.toml"
    if not path.is_file() or path.read_bytes() != text:
        write_bytes(path, text)


def _publish(made: Path, place: Path) -> None:
    """Copy a report or export to where people look for it, unless the same one is there."""
    meta = place / "meta.json"
    if meta.is_file() and meta.read_bytes() == (made / "meta.json").read_bytes():
        return
    beside = place.with_name(f".{place.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(made, beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)


def export(folder: Path, values: str, options: Mapping[str, Any], console: Console | None = None) -> ExportResult:
    """Export the ensemble of a run again, with weights in another format perhaps.

    Args:
        folder: of a run that has its report.
        values: float16, float32 or int8; empty: as its recipe says.
        options: device and so on.
        console: where progress goes; standard error unless given.

    Raises:
        InputError: no such run.
    """
    meta = folder / "report" / "meta.json"
    if not (folder / "recipe.toml").is_file() or not meta.is_file():
        raise InputError(f"{folder} is not the folder of a finished run; `sparsemble run RECIPE` makes one")
    made = read_json(meta)["spec"]
    changes = (f"export.values={values}",) if values else ()
    _, recipe = load_recipe(str(folder / "recipe.toml"), changes)
    run(recipe, made["title"], made["command"], RunOptions(folder=folder, until="export", **options), console)
    return ExportResult.load(folder / "export" / "export.json")


def read_summary(folder: Path) -> RunSummary:
    """Return the summary of a finished run."""
    return RunSummary.load(folder / "report" / "summary.json")
