"""Commands that run a recipe, up to the end or to a stage, and studies of many."""

import shlex
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from sparsemble.cli.app import (
    IS_FIRST_PROCESS,
    Data,
    Device,
    Engine,
    Eps,
    Force,
    Json,
    Minutes,
    Out,
    Parent,
    Plan,
    Quiet,
    RecipeName,
    Seed,
    Set,
    Size,
    TensorBoard,
    Throughput,
    Workers,
    app,
    need_train,
    show_result,
    stoppable,
)
from sparsemble.core.errors import InputError, RunError

COMMANDS = {
    "run": ("export", "Run a whole recipe: train, prune, select, ensemble, calibrate, evaluate, report, export."),
    "train": ("train", "Train the dense parent of a recipe."),
    "prune": ("prune", "Prune the parent into the pool of sub-models, training it first where it is missing."),
    "select": ("select", "Choose the ensemble, making what it is chosen from where that is missing."),
    "ensemble": ("ensemble", "Train the ensemble together, making what it needs where that is missing."),
    "calibrate": ("calibrate", "Set the stopping rule of the ensemble, making what it needs where that is missing."),
    "report": ("report", "Write the report of a recipe's run, making what it needs where that is missing."),
}


def _add(name: str, until: str, text: str) -> None:
    """Add a command that runs a recipe up to a stage."""

    def command(
        recipe: RecipeName,
        data: Data = "",
        size: Size = None,
        eps: Eps = "",
        minutes: Minutes = None,
        out: Out = None,
        settings: Set = None,
        parent: Parent = "",
        seed: Seed = None,
        device: Device = "auto",
        workers: Workers = 0,
        engine: Engine = "local",
        tensorboard: TensorBoard = False,
        force: Force = False,
        plan: Plan = False,
        throughput: Throughput = None,
        json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        need_train(name)
        from sparsemble.pipeline.options import option_settings

        changes = [
            *option_settings(recipe, parent=parent, data=data, size=size, eps=eps, minutes=minutes),
            *(settings or []),
            *([f"seed={seed}"] if seed is not None else []),
        ]
        if _is_plan(plan, throughput):
            options = {"device": device, "workers": workers, "throughput": throughput}
            plan_recipe(recipe, until, changes, json=json, quiet=quiet, **options)
            return
        run_recipe(
            recipe,
            until,
            changes,
            out=out,
            json=json,
            device=device,
            workers=workers,
            engine=engine,
            tensorboard=tensorboard,
            force=force,
            quiet=quiet or not IS_FIRST_PROCESS,
        )

    app.command(name, help=f"{text}\n\nExample: [bold]sparsemble {name} digits[/]")(command)


for _name, (_until, _text) in COMMANDS.items():
    _add(_name, _until, _text)


def _is_plan(plan: bool, throughput: float | None) -> bool:
    if throughput is not None and not plan:
        raise InputError(f"--throughput {throughput:g} is of --plan; a run measures its own")
    return plan


def plan_recipe(name: str, until: str, changes: list[str], *, json: bool, quiet: bool, **options: Any) -> None:
    """Print what a recipe will take up to a stage.

    Args:
        name: of a shipped recipe, or a .toml file.
        until: the command that the run stops after.
        changes: settings as after --set.
        json: print JSON.
        quiet: print nothing, but errors.
        **options: device, workers and throughput of `plan_run`.
    """
    from sparsemble.pipeline.cost_plan import plan_run
    from sparsemble.pipeline.run_named import NamedRun
    from sparsemble.report import cost_plan_table

    named = NamedRun.of(name, changes)
    plan = plan_run(named.recipe, named.title, named.command, until=until, **options)
    show_result(plan.to_json, lambda: cost_plan_table(plan), json=json, quiet=quiet)


def run_recipe(
    name: str, until: str, changes: list[str], *, out: Path | None, json: bool = False, quiet: bool, **options: Any
) -> None:
    """Run a recipe up to a stage, and print the result.

    Args:
        name: of a shipped recipe, or a .toml file.
        until: the command that the run stops after.
        changes: settings as after --set.
        out: folder of the run; runs/NAME unless given.
        json: print the summary as JSON.
        quiet: print errors only.
        **options: other fields of `RunOptions`.
    """
    need_train("run")
    from sparsemble.pipeline.run_named import PACKED, SUMMARY, NamedRun

    named = NamedRun.of(name, changes, out)
    folder = named.folder
    with stoppable(f"what is finished is kept in {folder}, run the same command to go on"):
        artifacts = named.run(until, quiet=quiet, **options)
    if quiet and not json:
        return
    if until not in ("report", "export"):
        paths = [str(artifact.path) for artifact in artifacts]
        lines = [*([_selected(artifacts[0])] if until == "select" else []), *paths]
        show_result(lambda: dumps(paths), lambda: "\n".join(lines), json=json, quiet=quiet)
        return
    from sparsemble.core.results import RunSummary
    from sparsemble.report import run_table

    summary = RunSummary.load(folder / SUMMARY)
    files = {"report": folder / "report" / "index.html"}
    if until == "export":
        files["packed ensemble"] = folder / PACKED
    show_result(summary.to_json, lambda: run_table(summary), json=json, quiet=quiet, files=files)


def _selected(artifact: Any) -> str:
    """Return which sub-models were selected, and why."""
    from sparsemble.api.selection import PoolRecord
    from sparsemble.core.config import from_dict

    return from_dict(PoolRecord, artifact.json("select.json"), "select.json").as_text()


@app.command()
def study(
    name: Annotated[
        str, typer.Argument(metavar="STUDY", help="A shipped study (see `sparsemble list study`) or a .toml file.")
    ],
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder; runs/NAME unless given.")] = None,  # noqa: UP045
    device: Device = "auto",
    workers: Workers = 0,
    plan: Plan = False,
    throughput: Throughput = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run every combination of settings and seeds, and put them in one table; finished cells are kept.

    Example: [bold]sparsemble study pruning-digits[/]
    """
    need_train("study")
    from sparsemble.pipeline.study import load_study
    from sparsemble.pipeline.study_command import run_study

    command = shlex.join(["sparsemble", "study", name])
    if _is_plan(plan, throughput):
        from sparsemble.pipeline.cost_plan import plan_study
        from sparsemble.report import cost_plan_table

        planned = plan_study(load_study(name), command, device=device, workers=workers, throughput=throughput)
        show_result(planned.to_json, lambda: cost_plan_table(planned), json=json, quiet=quiet)
        return
    folder = out or Path("runs") / Path(name).stem
    with stoppable(f"finished cells are kept in {folder}, run the same command to go on"):
        result = run_study(
            load_study(name),
            folder,
            command,
            device=device,
            workers=workers,
            quiet=quiet,
        )
    show_result(result.to_json, lambda: (folder / "study.md").read_text("utf-8"), json=json, quiet=quiet)
    if failed := sum(cell.failed is not None for cell in result.cells):
        raise RunError(f"{failed} of {len(result.cells)} models; {folder / 'study.md'} says why")
