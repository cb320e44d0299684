"""`sparsemble study FILE`: run the cells of a study, and put what came out side by side."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sparsemble.core.artifacts import Artifact, only_run_in, write_json
from sparsemble.core.errors import InputError
from sparsemble.evaluation.environment import machine, source_revision
from sparsemble.pipeline.engines.local import LocalEngine
from sparsemble.pipeline.progress import BarProgress, PlainProgress
from sparsemble.pipeline.run import check_device, check_workers
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.report import ancestry
from sparsemble.pipeline.study import Cell, Study, cells
from sparsemble.pipeline.study_table import rows
from sparsemble.report.study import write_study

SCHEMA_VERSION = 1


def run_study(
    study: Study,
    folder: Path,
    command: str,
    *,
    device: str = "auto",
    workers: int = 0,
    console: Console | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is missing of a study, and write `study.json`, `study.md`, `study.csv` and `study.png` to its folder.

    A stage that several cells share runs once; one that fails fails the cells that need it, and no others.

    Args:
        study: what to run.
        folder: where stages are kept; one folder may hold several studies.
        command: what reproduces it.
        device: auto, cpu, cuda or cuda:N.
        workers: worker processes; 0: one a core, at most 4.
        console: where progress goes; standard error unless given.
        quiet: show no progress.

    Returns:
        The content of `study.json`.

    Raises:
        InputError: anything wrong that can be known before work begins; a recipe is named by its cell.
    """
    console = console or Console(stderr=True)
    device = check_device(device)
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
            shown = Console(quiet=True) if quiet else console
            progress = BarProgress(shown, missing) if shown.is_terminal else PlainProgress(shown, missing)
            engine = LocalEngine(folder, count, device, progress, keep_going=True)
            with contextlib.ExitStack() as stack:
                stack.enter_context(progress)
                engine.run(missing)
            failures = engine.failures
    finished = [artifact.meta for artifact in _finished(expanded, folder)]
    result = {
        "schema": SCHEMA_VERSION,
        "title": study.title,
        "kind": study.kind,
        "recipe": study.recipe,
        "set": list(study.settings),
        "axes": {axis: list(values) for axis, values in study.axes.items()},
        "seeds": list(study.seeds),
        "command": command,
        "machine": machine(torch.device(device)),
        "source": source_revision(),
        "stage_sources": sorted({meta["source"] for meta in finished}),
        "wall_seconds": time.perf_counter() - began,
        "stage_seconds": sum(meta["seconds"] for meta in finished),
        "stages_run": len(missing) - len(failures),
        "cells": [row for cell in expanded for row in _rows(cell, study, folder, failures)],
    }
    result["table"] = rows(result)
    write_json(folder / "study.json", result)
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
    missing = []
    for task in tasks.values():
        artifact = Artifact(folder / task.folder)
        if artifact.path.is_dir():
            artifact.verify()
        else:
            missing.append(task)
    return missing


def _finished(expanded: Sequence[Cell], folder: Path) -> list[Artifact]:
    """Return the artifacts that are there, each once."""
    names = {task.folder for cell in expanded for task in cell.tasks}
    return [Artifact(folder / name) for name in sorted(names) if (folder / name).is_dir()]


def _rows(cell: Cell, study: Study, folder: Path, failures: dict[str, str]) -> list[dict[str, Any]]:
    """Return what became of a cell, one entry for each row of it that is shown."""
    told: dict[str, Any] = {"values": cell.values, "seed": cell.seed, "settings": list(study.changes(cell.values))}
    failed = [failures[task.hash] for task in cell.tasks if task.hash in failures]
    if failed:
        return [told | {"row": row, "failed": failed[0]} for row in (cell.made or study.rows)]
    if cell.report:
        summary = Artifact(folder / cell.report.folder).json("summary.json")
        return [told | _of_summary(row, folder, cell) for row in summary["rows"] if row["name"] in study.rows]
    return [told | _of_model(row, task, cell, folder) for row, task in cell.made.items()]


def _of_summary(row: dict[str, Any], folder: Path, cell: Cell) -> dict[str, Any]:
    from safetensors.torch import load_file

    names = ("clean", "worst_case", "attacks", "images", "sparsity", "nonzeros", "macs_dense", "macs_nonzero")
    assert cell.report is not None
    judged = load_file(folder / cell.report.inputs["evaluate"].folder / "outcomes.safetensors")
    right = torch.stack([found for label, found in judged.items() if label.startswith(row["name"] + ".")]).amin(0)
    return {
        "row": row["name"],
        **{name: row[name] for name in (*names, "members_run", "training_passes", "seconds")},
        "outcomes": right.tolist(),
        "artifact": cell.report.folder,
    }


def _of_model(row: str, task: Task, cell: Cell, folder: Path) -> dict[str, Any]:
    """Return the numbers of a single model."""
    from sparsemble.evaluation.cost import count_macs, count_weights
    from sparsemble.models.model_io import load_model

    artifact = Artifact(folder / task.folder)
    outcomes = {
        label: Artifact(folder / attack.folder).json("outcome.json") for label, attack in cell.attacks[row].items()
    }
    clean = _clean(folder / next(iter(cell.attacks[row].values())).folder)
    right = [all(found) for found in zip(*(one["right"] for one in outcomes.values()), strict=True)]
    model = load_model(artifact.path, torch.device("cpu"))
    weights, made_from = count_weights(model), ancestry(artifact)
    shape = tuple(artifact.json("architecture.json")["shape"])
    macs = count_macs(model, (shape[0], shape[1], shape[2]))
    return {
        "row": row,
        "clean": sum(clean) / len(clean),
        "worst_case": sum(right) / len(right),
        "attacks": {label: sum(one["right"]) / len(right) for label, one in outcomes.items()},
        "images": len(right),
        "outcomes": [int(value) for value in right],
        "sparsity": weights.sparsity,
        "nonzeros": weights.nonzeros,
        "macs_dense": macs.dense,
        "macs_nonzero": macs.nonzero,
        "members_run": {"clean": 1.0, "attacked": 1.0},
        "training_passes": sum(sum(stage.meta["passes"].values()) for stage in made_from),
        "seconds": sum(stage.meta["seconds"] for stage in made_from),
        "artifact": task.folder,
    }


def _clean(attack: Path) -> list[bool]:
    """Return which clean images were answered rightly, from the shards of an attack."""
    from safetensors.torch import load_file

    shards = sorted((attack / "ledger" / "clean").glob("*.safetensors"))
    return [bool(value) for shard in shards for value in load_file(shard)["right"].tolist()]
