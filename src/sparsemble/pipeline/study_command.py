"""`sparsemble study FILE`: run the cells of a study, and put what came out side by side."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparsemble.core.artifacts import Artifact, only_run_in
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.results import (
    EvaluationResult,
    MembersRun,
    RunSummary,
    StudyCell,
    StudyLine,
    StudyNumbers,
    StudyResult,
)
from sparsemble.evaluation.cost import count_macs, count_weights
from sparsemble.evaluation.environment import machine, source_revision
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_attacks import accuracy, run_attacks
from sparsemble.evaluation.run_models import load_row
from sparsemble.evaluation.statistics import wilson
from sparsemble.models.model_io import load_spec
from sparsemble.pipeline.engines.driver import run_tasks
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.run import check_workers, is_finished
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.attack import STORE, AttackStage
from sparsemble.pipeline.stages.evaluate import ancestry
from sparsemble.pipeline.study import Cell, Study, cells
from sparsemble.report import write_study

CPU = torch.device("cpu")
T_975 = (math.inf, 12.707, 4.303, 3.183, 2.777, 2.571, 2.447, 2.365, 2.307, 2.263)
"""97.5 % points of Student's t with 0 to 9 degrees of freedom, rounded up; the last one holds, too wide, beyond."""
NUMBERS = (
    *("clean_accuracy", "worst_case", "sparsity", "nonzeros"),
    *("macs_nonzero", "training_passes", "training_seconds"),
)
"""Fields of `StudyNumbers` that are plain numbers."""


def run_study(
    study: Study, folder: Path, command: str, *, device: str = "auto", workers: int = 0, quiet: bool = False
) -> StudyResult:
    """Run what is missing of a study, and write `study.json`, `study.md`, `study.csv` and `study.png` to its folder.

    A stage that several cells share runs once; one that fails fails the cells that need it, and no others.

    Args:
        study: what to run.
        folder: where stages are kept; one folder may hold several studies.
        command: what reproduces it.
        device: auto, cpu, cuda or cuda:N.
        workers: worker processes; 0: one a core, at most 4.
        quiet: show no progress.

    Returns:
        The content of `study.json`.
    """
    device = choose_device(device)
    count = check_workers(workers, device)
    expanded = cells(study)
    for cell in expanded:
        try:
            cell.recipe.precision.check(device)
        except InputError as error:
            raise InputError(f"in the cell {cell.label}: {error}") from None
    failures: dict[str, str] = {}
    began = time.perf_counter()
    with only_run_in(folder):
        missing = _missing(expanded, folder)
        if missing:
            with Progress(Console(stderr=True, quiet=quiet), missing) as progress:
                failures = run_tasks(missing, folder, device, count, progress, keep_going=True)
    folders = {task.folder for cell in expanded for task in cell.tasks}
    finished = [Artifact(folder / name).meta for name in sorted(folders) if (folder / name).is_dir()]
    results = tuple(result for cell in expanded for result in _cells(cell, study, folder, failures))
    result = StudyResult(
        title=study.title,
        kind=study.kinds,
        recipe=study.recipe,
        settings=tuple(study.set),
        axes={axis: tuple(values) for axis, values in study.axes.items()},
        seeds=tuple(study.seeds),
        command=command,
        machine=machine(torch.device(device)),
        source=source_revision() or None,
        stage_sources=tuple(sorted({meta["source"] for meta in finished})),
        wall_seconds=time.perf_counter() - began,
        stage_seconds=sum(meta["seconds"] for meta in finished),
        stages_run=len(missing) - len(failures),
        cells=results,
        table=study_lines(results, tuple(study.axes)),
    )
    write_study(result, folder)
    return result


def _missing(expanded: Sequence[Cell], folder: Path) -> list[Task]:
    """Return the tasks still to run, each once; finished artifacts are held to their hashes."""
    tasks: dict[str, Task] = {}
    for cell in expanded:
        for task in cell.tasks:
            # Stages of whole runs are called the same in every cell; one that is shared is named by its first.
            title = f"{task.title} ({cell.label})" if cell.report else task.title
            tasks.setdefault(task.hash, replace(task, title=title))
    return [task for task in tasks.values() if not is_finished(task, folder)]


def _cells(cell: Cell, study: Study, folder: Path, failures: dict[str, str]) -> list[StudyCell]:
    """Return the result of a cell, one entry for each row of it that is shown."""
    facts: dict[str, Any] = {"values": cell.values, "seed": cell.seed, "settings": study.changes(cell.values)}
    failed = [failures[task.hash] for task in cell.tasks if task.hash in failures]
    if failed:
        return [StudyCell(**facts, row=row, failed=failed[0]) for row in (cell.made or study.rows)]
    if cell.report:
        summary = RunSummary.load(folder / cell.report.folder / "summary.json")
        dense = next(row.cost.macs_dense for row in summary.rows if row.name == "dense")
        return [
            StudyCell(**facts, row=row.name, artifact=cell.report.folder, **_of_result(row, dense))
            for row in summary.rows
            if row.name in study.rows
        ]
    return [
        StudyCell(**facts, row=row, artifact=task.folder, **_of_model(row, task, cell, folder))
        for row, task in cell.made.items()
    ]


def _of_result(row: EvaluationResult, dense: int) -> dict[str, Any]:
    """Return the numbers of a row of a run, whose dense parent has so many multiply-accumulates."""
    numbers = StudyNumbers(
        clean_accuracy=row.clean_accuracy,
        worst_case=row.robust_accuracy,
        attacks={attack.label: attack.robust_accuracy for attack in row.attacks},
        sparsity=row.model.sparsity,
        nonzeros=row.model.nonzeros,
        macs_nonzero=row.cost.macs_nonzero,
        members_run=row.members_run,
        training_passes=row.cost.training_passes or 0,
        training_seconds=row.cost.training_seconds or 0.0,
        speedup=dense / row.cost.macs_nonzero,
    )
    return {"numbers": numbers, "macs_dense": row.cost.macs_dense, "correct": row.worst_case.correct}


def _of_model(name: str, task: Task, cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the numbers of a single model, from the outcomes of its attacks."""
    stages = [attack.stage for attack in cell.attacks.values() if isinstance(attack.stage, AttackStage)]
    artifact = Artifact(folder / task.folder)
    row = load_row(name, {name: artifact}, stages[0].combiner, CPU)
    job = stages[0].job(row, tuple(stage.attack for stage in stages), CPU)
    finished = [folder / attack.folder / STORE for attack in cell.attacks.values()]
    outcomes = run_attacks(job, OutcomeStore(finished=finished))
    weights, made_from = count_weights(row.ensemble), ancestry(artifact)
    macs = count_macs(row.ensemble, load_spec(artifact.path).shape)
    numbers = StudyNumbers(
        clean_accuracy=outcomes.clean_accuracy,
        worst_case=outcomes.robust_accuracy,
        attacks={label: accuracy(outcome.correct) for label, outcome in outcomes.attacks.items()},
        sparsity=weights.sparsity,
        nonzeros=weights.nonzeros,
        macs_nonzero=macs.nonzero,
        members_run=MembersRun(clean=1.0, attacked=1.0),
        training_passes=sum(sum(stage.meta["passes"].values()) for stage in made_from),
        training_seconds=sum(stage.meta["seconds"] for stage in made_from),
        speedup=macs.dense / macs.nonzero,
    )
    return {"numbers": numbers, "macs_dense": macs.dense, "correct": tuple(outcomes.worst_case.int().tolist())}


def study_lines(cells: Sequence[StudyCell], axes: Sequence[str]) -> tuple[StudyLine, ...]:
    """Return one line for each combination of values and row, its seeds together."""
    groups: dict[tuple[str, ...], list[StudyCell]] = {}
    for cell in cells:
        groups.setdefault((*(cell.values.get(axis, "") for axis in axes), cell.row), []).append(cell)
    return tuple(_line(group) for group in groups.values())


def _line(cells: Sequence[StudyCell]) -> StudyLine:
    """Return the seeds of one combination together."""
    seeds = [(cell.numbers, len(cell.correct)) for cell in cells if cell.numbers]
    failed = tuple(f"seed {cell.seed}: {cell.failed}" for cell in cells if cell.failed)
    if not seeds:
        return StudyLine(values=cells[0].values, row=cells[0].row, seeds=0, failed=failed)
    numbers = [each for each, _ in seeds]
    worst = tuple(each.worst_case for each in numbers)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(numbers)

    return StudyLine(
        values=cells[0].values,
        row=cells[0].row,
        seeds=len(numbers),
        failed=failed,
        numbers=StudyNumbers(
            **{name: mean(getattr(each, name) for each in numbers) for name in NUMBERS},
            attacks={label: mean(each.attacks[label] for each in numbers) for label in numbers[0].attacks},
            speedup=mean(each.speedup or 0.0 for each in numbers) if all(each.speedup for each in numbers) else None,
            members_run=MembersRun(
                clean=mean(each.members_run.clean for each in numbers),
                attacked=mean(each.members_run.attacked for each in numbers),
            ),
        ),
        interval=study_interval(worst, seeds[0][1]),
        each=worst,
    )


def study_interval(shares: Sequence[float], images: int) -> tuple[float, float]:
    """Return a 95 % interval of mean accuracy, for other images and, with several seeds, other seeds.

    One seed: Wilson's, over the images. Several seeds saw the same images, so images do not average out: Wilson's of
    the mean at one seed's number of images, widened (in squares) by Student's t over the seeds.
    """
    mean = sum(shares) / len(shares)
    low, high = wilson(round(mean * images), images)
    if len(shares) == 1:
        return low, high
    variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
    t = T_975[min(len(shares), len(T_975)) - 1]
    spread = t * math.sqrt(variance / len(shares))
    return max(mean - math.hypot(mean - low, spread), 0.0), min(mean + math.hypot(high - mean, spread), 1.0)
