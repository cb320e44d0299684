"""Commands that run a recipe, up to the end or to a stage, and studies of many."""

import shlex
import signal
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from sparsemble.cli.app import (
    FOLLOWS,
    Device,
    Engine,
    Out,
    Quiet,
    RecipeName,
    Seed,
    Set,
    TensorBoard,
    Workers,
    app,
    interrupt,
    need_train,
    say,
)
from sparsemble.core.errors import RunError

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
        out: Out = None,
        settings: Set = None,
        seed: Seed = None,
        device: Device = "auto",
        workers: Workers = 0,
        engine: Engine = "local",
        tensorboard: TensorBoard = False,
        quiet: Quiet = False,
    ) -> None:
        changes = [*(settings or []), *([f"seed={seed}"] if seed is not None else [])]
        how = {"device": device, "workers": workers, "engine": engine, "tensorboard": tensorboard}
        run_recipe(recipe, out, changes, until, how | {"quiet": quiet or FOLLOWS})

    app.command(name, help=f"{text}\n\nExample: [bold]sparsemble {name} digits[/]")(command)


for _name, (_until, _text) in COMMANDS.items():
    _add(_name, _until, _text)


def run_recipe(name: str, out: Path | None, changes: list[str], until: str, given: dict[str, Any]) -> None:
    """Run a recipe and say what came out."""
    need_train("run")
    from sparsemble.pipeline.recipe import load_recipe
    from sparsemble.pipeline.run import Settings, read_summary, run

    console = Console(stderr=True)
    title, recipe = load_recipe(name, tuple(changes))
    folder = out or Path("runs") / title
    words = ["sparsemble", "run", name, *(word for change in changes for word in ("--set", change))]
    settings = Settings(folder=folder, until=until, **given)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        artifacts = run(recipe, title, shlex.join(words), settings, console)
    except KeyboardInterrupt:
        say(console, f"stopped; what is finished is kept in {folder}, run the same command to go on")
        raise typer.Exit(1) from None
    if settings.quiet:
        return
    if until in ("report", "export"):
        from sparsemble.report import run_table

        Console().print(run_table(read_summary(folder)))
        typer.echo(f"report: {folder / 'report' / 'index.html'}")
        if until == "export":
            typer.echo(f"packed ensemble: {folder / 'export' / 'ensemble.sparsemble'}")
    else:
        for artifact in artifacts:
            typer.echo(str(artifact.path))


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study: a recipe, axes with values, seeds.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder; runs/NAME unless given.")] = None,  # noqa: UP045
    device: Device = "auto",
    workers: Workers = 0,
    quiet: Quiet = False,
) -> None:
    """Run every combination of settings and seeds, and put them in one table; finished cells are kept.

    Example: [bold]sparsemble study studies/pruning-digits.toml[/]
    """
    need_train("study")
    from sparsemble.pipeline.study import load_study
    from sparsemble.pipeline.study_command import run_study

    console = Console(stderr=True)
    folder = out or Path("runs") / file.stem
    signal.signal(signal.SIGTERM, interrupt)
    command = shlex.join(["sparsemble", "study", str(file)])
    try:
        asked = load_study(file)
        result = run_study(asked, folder, command, device=device, workers=workers, console=console, quiet=quiet)
    except KeyboardInterrupt:
        say(console, f"stopped; finished cells are kept in {folder}, run the same command to go on")
        raise typer.Exit(1) from None
    if not quiet:
        say(Console(), (folder / "study.md").read_text("utf-8"))
    failed = sum(cell.failed is not None for cell in result.cells)
    if failed:
        raise RunError(f"{failed} of {len(result.cells)} models; {folder / 'study.md'} says why")
