"""The command line: words into calls of the pipeline; rooms are imported when a command needs them."""

import importlib.util
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from sparsemble import __version__
from sparsemble.core.errors import InputError, RunError

app = typer.Typer(
    help="Turn one image classifier into a robust, compact ensemble of sparse sub-models and run it fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe (see `sparsemble list recipe`) or a .toml file.")
]
Out = Annotated[Optional[Path], typer.Option("--out", help="Folder of the run; runs/NAME unless given.")]  # noqa: UP045
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in --set train.epochs=5; repeatable."),
]
Seed = Annotated[Optional[int], typer.Option("--seed", help="Short for --set seed=N.")]  # noqa: UP045
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int, typer.Option("--workers", help="Worker processes; 0: one a core, at most 4, and one on a GPU.")
]
Engine = Annotated[str, typer.Option("--engine", help="Who runs the stages: local.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

COMMANDS = {
    "run": ("report", "Run a whole recipe: train, prune, select, ensemble, calibrate, evaluate, report."),
    "train": ("train", "Train the dense parent of a recipe."),
    "prune": ("prune", "Prune the parent into the pool of sub-models, training it first where it is missing."),
    "select": ("select", "Choose the team, making what it is chosen from where that is missing."),
    "ensemble": ("ensemble", "Train the team together, making what it needs where that is missing."),
    "calibrate": ("calibrate", "Set the stopping rule of the team, making what it needs where that is missing."),
    "evaluate": ("evaluate", "Attack every row of the result table, making what it needs where that is missing."),
    "report": ("report", "Write the report of a recipe's run, making what it needs where that is missing."),
}


def main() -> None:
    """Run the command line; exit status 0 done, 1 the run failed or was stopped, 2 bad input."""
    console = Console(stderr=True)
    try:
        app()
    except InputError as error:
        _say(console, f"error: {error}")
        sys.exit(2)
    except RunError as error:
        _say(console, f"failed: {error}")
        sys.exit(1)


def _version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"sparsemble {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
) -> None:
    """Turn one image classifier into a robust, compact ensemble of sparse sub-models and run it fast."""


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
        quiet: Quiet = False,
    ) -> None:
        changes = [*(settings or []), *([f"seed={seed}"] if seed is not None else [])]
        _run(recipe, out, changes, device, workers, engine, quiet, until)

    app.command(name, help=f"{text}\n\nExample: [bold]sparsemble {name} digits[/]")(command)


for _name, (_until, _text) in COMMANDS.items():
    _add(_name, _until, _text)


def _run(
    name: str, out: Path | None, changes: list[str], device: str, workers: int, engine: str, quiet: bool, until: str
) -> None:
    """Run a recipe and say what came out."""
    _need_train("run")
    from sparsemble.pipeline.recipe import load_recipe
    from sparsemble.pipeline.run import Settings, read_summary, run

    console = Console(stderr=True)
    title, recipe = load_recipe(name, tuple(changes))
    folder = out or Path("runs") / title
    words = ["sparsemble", "run", name, *(word for change in changes for word in ("--set", change))]
    settings = Settings(folder=folder, device=device, workers=workers, engine=engine, until=until, quiet=quiet)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        artifacts = run(recipe, title, shlex.join(words), settings, console)
    except KeyboardInterrupt:
        _say(console, f"stopped; what is finished is kept in {folder}, run the same command to go on")
        raise typer.Exit(1) from None
    if quiet:
        return
    if until == "report":
        from sparsemble.report.tables import summary_table

        Console().print(summary_table(read_summary(folder)))
        typer.echo(f"report: {folder / 'report' / 'index.html'}")
    else:
        for artifact in artifacts:
            typer.echo(str(artifact.path))


@app.command("list")
def list_plugs(
    kind: Annotated[str | None, typer.Argument(help="Such as attack, objective or recipe; all unless given.")] = None,
) -> None:
    """List the parts that a recipe can name, and the shipped recipes.

    Example: [bold]sparsemble list attack[/]
    """
    _need_train("list")
    from sparsemble.core.recipe import nearest
    from sparsemble.pipeline.catalogue import catalogue

    entries = catalogue()
    kinds = {entry.kind for entry in entries}
    if kind is not None and kind not in kinds:
        raise InputError(f'"{kind}" is not a kind of part{nearest(kind, kinds)}')
    table = Table("kind", "name", "what it is", box=None, header_style="bold")
    for entry in entries:
        if kind in (None, entry.kind):
            table.add_row(entry.kind, entry.name, entry.sentence)
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a part or of a recipe.")]) -> None:
    """Show a part with its settings, or a recipe.

    Example: [bold]sparsemble show pgd[/]
    """
    _need_train("show")
    from sparsemble.core.recipe import nearest
    from sparsemble.pipeline.catalogue import catalogue

    entries = catalogue()
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise InputError(f'"{name}" is neither a part nor a recipe{nearest(name, {entry.name for entry in entries})}')
    for entry in found:
        _say(Console(), f"{entry.kind} {entry.name}\n\n{entry.text}")


def _need_train(command: str) -> None:
    """Refuse a command whose extra is absent.

    Raises:
        InputError: naming the extra.
    """
    missing = [
        name for name in ("torch", "jaxtyping", "jinja2", "matplotlib", "tomli_w") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise InputError(
            f"`sparsemble {command}` needs {', '.join(missing)}; install the extra `train`: "
            "pip install 'sparsemble[train]'"
        )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
