"""What a run will do and how long that is expected to take, shown before it begins."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sparsemble.pipeline.estimate import graph_seconds, learning_epochs
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Task

STEPS = {
    "train": "train the dense parent",
    "load_parent": "load the dense parent",
    "prune": "prune",
    "select": "select the ensemble",
    "ensemble": "train the ensemble",
    "small_dense": "train the small dense network",
    "calibrate": "calibrate the stopping rule",
    "attack": "attack every row",
    "curve": "draw security curves",
    "latency": "measure latency",
    "evaluate": "check the evaluation",
    "report": "write the report",
    "export": "export the ensemble",
}
"""Stages as the table of the times names them, in their order."""


def time_table(recipe: Recipe, tasks: Sequence[Task], workers: int) -> Table:
    """Return what a run will do and how long each part is expected to take, as a table.

    Args:
        recipe: what runs.
        tasks: those that are missing, with their seconds as costs.
        workers: processes that run side by side.
    """
    kinds = {name: [task for task in tasks if task.stage.name == name] for name in STEPS}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    table.add_column("what")
    table.add_column("core minutes", justify="right", no_wrap=True)
    what = _what(recipe)
    for name, members in kinds.items():
        if members:
            table.add_row(STEPS[name], what.get(name, ""), f"{sum(task.cost for task in members) / 60:.1f}")
    whole, beside = graph_seconds(tasks, workers) / 60, f", {workers} side by side" if workers > 1 else ""
    table.add_section()
    table.add_row("whole run", f"{whole:.1f} minutes{beside}", f"{sum(task.cost for task in tasks) / 60:.1f}")
    return table


def _what(recipe: Recipe) -> dict[str, str]:
    """Return what each kind of stage does, in a few words."""
    prune, width = recipe.prune, getattr(recipe.model, "width", None)
    learned = learning_epochs(prune.method)
    network = recipe.model.name + (f", width {width}" if width else "")
    return {
        "train": f"{recipe.train.epochs} epochs, {network}",
        "prune": f"{len(prune.pool)} sub-models and a baseline, {learned} + {prune.finetune_epochs} epochs",
        "select": f"{recipe.members} members",
        "ensemble": f"{recipe.ensemble.epochs} epochs, {recipe.members} members",
        "attack": f"{recipe.evaluate.images or 'all'} test images",
    }
