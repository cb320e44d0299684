"""The program, what its commands share, and how it ends."""

import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from safetensors import SafetensorError

from sparsemble import __version__
from sparsemble.core.artifacts import explain_disk
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
Parent = Annotated[
    str,
    typer.Option(
        "--parent",
        metavar="TARGET",
        help="A trained classifier to prune: .onnx, hf:NAME, file.py:factory, weights, an artifact, or a run.",
    ),
]
Data = Annotated[str, typer.Option("--data", metavar="FOLDER", help="Images of a recipe that reads a folder.")]
Size = Annotated[Optional[int], typer.Option("--size", help="Side of the images of a folder in pixels.")]  # noqa: UP045
Eps = Annotated[str, typer.Option("--eps", help="Radius of the attacks, as in 4/255; short for --set threat.eps=...")]
Minutes = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option("--minutes", help="Time of the whole run: epochs and images are set from measured throughput."),
]
Seed = Annotated[Optional[int], typer.Option("--seed", help="Short for --set seed=N.")]  # noqa: UP045
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[
    int, typer.Option("--workers", help="Worker processes; 0: one a core, at most 4, and one on a GPU.")
]
Engine = Annotated[str, typer.Option("--engine", help="Who runs the stages: local.")]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan", help="Print the stages, their passes and an estimate of time, memory and disk, and run nothing."
    ),
]
Throughput = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--throughput",
        metavar="N",
        help="For --plan: forward passes a second of an image through the dense network, instead of measuring them.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on where the run would stop, as what it made is no better than chance.")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write training curves to RUN/tensorboard, too.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]


def _hush(quiet: bool) -> bool:
    """Log errors only where nothing else is printed, either."""
    logging.getLogger("sparsemble").setLevel(logging.ERROR if quiet or not IS_FIRST_PROCESS else logging.NOTSET)
    return quiet


Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_hush, help="Print errors only.")]

TRAIN_PACKAGES = ("torch", "jaxtyping", "jinja2", "matplotlib", "scipy", "tomli_w")
"""What the extra `train` installs."""
IS_FIRST_PROCESS = int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"
"""Whether this process prints: of several that torchrun started, the first one does."""


def main() -> None:
    """Run the command line; exit status 0 done, 1 the run failed or was stopped, 2 bad input."""
    console = Console(stderr=True, quiet=not IS_FIRST_PROCESS)
    try:
        app()
    except InputError as error:
        say(console, f"error: {error}")
        sys.exit(2)
    except RunError as error:
        say(console, f"failed: {error}")
        sys.exit(1)
    except (OSError, SafetensorError) as error:
        known = explain_disk(error)
        if not known:
            raise
        say(console, f"failed: {known}")
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


def need_train(command: str) -> None:
    """Refuse a command whose extra is absent."""
    missing = [name for name in TRAIN_PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f"`sparsemble {command}` needs {', '.join(missing)}; install the extra `train`: "
            "pip install 'sparsemble[train]'"
        )


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn what the runtime refuses, which knows no other room, into bad input."""
    from sparsemble.runtime.errors import RuntimeInputError

    try:
        yield
    except RuntimeInputError as error:
        raise InputError(str(error)) from None


@contextlib.contextmanager
def stoppable(message: str) -> Iterator[None]:
    """End the command with exit status 1 and a message at Ctrl-C or SIGTERM."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say(Console(stderr=True), f"stopped; {message}")
        raise typer.Exit(1) from None


def show_result(
    to_json: Callable[[], str],
    table: Callable[[], Any],
    *,
    json: bool,
    quiet: bool = False,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Print a result as JSON, or as a table with the files that hold more.

    Args:
        to_json: returns the result as JSON.
        table: returns what the terminal shows.
        json: whether JSON is asked for.
        quiet: whether nothing is to be shown.
        files: by what they are; named below the table.
    """
    if json:
        typer.echo(to_json().rstrip("\n"))
    elif not quiet:
        shown = table()
        say(Console(), shown) if isinstance(shown, str) else Console().print(shown)
        for name, file in (files or {}).items():
            typer.echo(f"{name}: {file}")


def say(console: Console, text: str) -> None:
    """Print a text as it is, without wrapping its lines; bytes of a path that are no characters are escaped."""
    text = text.encode("utf-8", "backslashreplace").decode()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
