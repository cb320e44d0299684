"""The command line: words into calls of the pipeline; rooms are imported when a command needs them."""

import contextlib
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Optional

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
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write training curves to RUN/tensorboard, too.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

FOLLOWS = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
"""Whether torchrun started this process beside a first one, which does the talking."""

COMMANDS = {
    "run": ("export", "Run a whole recipe: train, prune, select, ensemble, calibrate, evaluate, report, export."),
    "train": ("train", "Train the dense parent of a recipe."),
    "prune": ("prune", "Prune the parent into the pool of sub-models, training it first where it is missing."),
    "select": ("select", "Choose the team, making what it is chosen from where that is missing."),
    "ensemble": ("ensemble", "Train the team together, making what it needs where that is missing."),
    "calibrate": ("calibrate", "Set the stopping rule of the team, making what it needs where that is missing."),
    "report": ("report", "Write the report of a recipe's run, making what it needs where that is missing."),
}


def main() -> None:
    """Run the command line; exit status 0 done, 1 the run failed or was stopped, 2 bad input."""
    console = Console(stderr=True, quiet=FOLLOWS)
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
        tensorboard: TensorBoard = False,
        quiet: Quiet = False,
    ) -> None:
        changes = [*(settings or []), *([f"seed={seed}"] if seed is not None else [])]
        how = {"device": device, "workers": workers, "engine": engine, "tensorboard": tensorboard}
        _run(recipe, out, changes, until, how | {"quiet": quiet or FOLLOWS})

    app.command(name, help=f"{text}\n\nExample: [bold]sparsemble {name} digits[/]")(command)


for _name, (_until, _text) in COMMANDS.items():
    _add(_name, _until, _text)


def _run(name: str, out: Path | None, changes: list[str], until: str, given: dict[str, Any]) -> None:
    """Run a recipe and say what came out."""
    _need_train("run")
    from sparsemble.pipeline.recipe import load_recipe
    from sparsemble.pipeline.run import Settings, read_summary, run

    console = Console(stderr=True)
    title, recipe = load_recipe(name, tuple(changes))
    folder = out or Path("runs") / title
    words = ["sparsemble", "run", name, *(word for change in changes for word in ("--set", change))]
    settings = Settings(folder=folder, until=until, **given)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        artifacts = run(recipe, title, shlex.join(words), settings, console)
    except KeyboardInterrupt:
        _say(console, f"stopped; what is finished is kept in {folder}, run the same command to go on")
        raise typer.Exit(1) from None
    if settings.quiet:
        return
    if until in ("report", "export"):
        from sparsemble.report.tables import summary_table

        Console().print(summary_table(read_summary(folder)))
        typer.echo(f"report: {folder / 'report' / 'index.html'}")
        if until == "export":
            typer.echo(f"packed team: {folder / 'export' / 'team.sparsemble'}")
    else:
        for artifact in artifacts:
            typer.echo(str(artifact.path))


@app.command()
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A run's folder, one of its artifacts, a packed team, a .safetensors file (with --model), "
            "file.py:factory, or a recipe (then every row of its table).",
        ),
    ],
    row: Annotated[str, typer.Option("--row", help="Row of a run's table; team_dynamic unless given.")] = "",
    model: Annotated[str, typer.Option("--model", help="Architecture of a .safetensors file, as in resnet18.")] = "",
    data: Annotated[
        str, typer.Option("--data", help="Data set, a table in TOML, or an .npz file; the target's own unless given.")
    ] = "",
    attacks: Annotated[
        str, typer.Option("--attacks", help="Names with commas between them, or a list in TOML.")
    ] = "autoattack",
    transfer: Annotated[str, typer.Option("--transfer", help="Another TARGET, on which images are crafted, too.")] = "",
    eps: Annotated[str, typer.Option("--eps", help="As in 8/255; the target's own unless given.")] = "",
    norm: Annotated[str, typer.Option("--norm", help="linf or l2; the target's own unless given.")] = "",
    images: Annotated[int, typer.Option("--images", help="Test images, drawn stratified; 0: all.")] = 0,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Of the attacks; 0 unless given.")] = None,  # noqa: UP045
    adaptive: Annotated[
        bool, typer.Option("--adaptive/--no-adaptive", help="Add all attacks on teams and stopping rules.")
    ] = True,
    search: Annotated[str, typer.Option("--search", help="float32 or bfloat16; float32 always decides.")] = "float32",
    shard: Annotated[int, typer.Option("--shard", help="Images attacked at once and kept together.")] = 100,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a classifier, check the evaluation, and say how far to believe it.

    Examples: [bold]sparsemble evaluate runs/digits[/], [bold]sparsemble evaluate mine.py:model --data cifar10[/]
    """
    _need_train("evaluate")
    from sparsemble.pipeline import evaluate_command as command
    from sparsemble.pipeline.recipe import shipped

    if target.endswith(".toml") or (target in shipped() and not Path(target).exists()):
        given = {"row": row, "model": model, "data": data, "transfer": transfer, "eps": eps, "norm": norm}
        changed = {
            "images": images,
            "json": json,
            "attacks": attacks != "autoattack",
            "search": search != "float32",
            "shard": shard != 100,
        }
        _refuse_for_recipes({**given, **changed, "no-adaptive": not adaptive})
        _run(target, out, [f"seed={seed}"] if seed is not None else [], "evaluate", {"device": device, "quiet": quiet})
        return
    asked = command.Asked(
        target=target,
        row=row,
        model=model,
        data=data,
        attacks=attacks,
        transfer=transfer,
        eps=eps,
        norm=norm,
        images=images,
        seed=seed or 0,
        adaptive=adaptive,
        search=search,
        shard=shard,
        out=out,
        device=device,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=True, quiet=quiet)
    plan = command.prepare(asked)
    try:
        result = command.run(plan, shlex.join(["sparsemble", *sys.argv[1:]]), console)
    except KeyboardInterrupt:
        _say(console, f"stopped; finished shards are kept in {plan.folder}, run the same command to go on")
        raise typer.Exit(1) from None
    _show_result(result, plan.folder, "evaluation", json, quiet)


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
    _need_train("study")
    from sparsemble.pipeline.study import load_study
    from sparsemble.pipeline.study_command import run_study

    console = Console(stderr=True)
    folder = out or Path("runs") / file.stem
    signal.signal(signal.SIGTERM, _interrupt)
    command = shlex.join(["sparsemble", "study", str(file)])
    try:
        asked = load_study(file)
        result = run_study(asked, folder, command, device=device, workers=workers, console=console, quiet=quiet)
    except KeyboardInterrupt:
        _say(console, f"stopped; finished cells are kept in {folder}, run the same command to go on")
        raise typer.Exit(1) from None
    if not quiet:
        _say(Console(), (folder / "study.md").read_text("utf-8"))
    failed = sum("failed" in cell for cell in result["cells"])
    if failed:
        raise RunError(f"{failed} of {len(result['cells'])} models; {folder / 'study.md'} says why")


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(metavar="A.json B.json ...", help="Files that evaluate left.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder for a page; none unless given.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Set evaluations side by side: intervals, and paired tests on the same images.

    Example: [bold]sparsemble compare dense/evaluation.json team/evaluation.json[/]
    """
    _need_train("compare")
    from sparsemble.pipeline.compare_command import compare_files

    found = compare_files(results, out)
    _show_result(found, out, "comparison", json, False)


def _show_result(result: dict[str, Any], folder: Path | None, kind: str, json: bool, quiet: bool) -> None:
    """Print a result as a table or as JSON, and where its page is."""
    if json:
        import json as format_

        typer.echo(format_.dumps(result, indent=1))
    elif not quiet:
        from sparsemble.report import comparison_table, evaluation_table

        Console().print(evaluation_table(result) if kind == "evaluation" else comparison_table(result))
        if folder:
            typer.echo(f"report: {folder / 'index.html'}")


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
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    values: Annotated[str, typer.Option("--values", help="float16 or float32; the recipe's own unless given.")] = "",
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's team for others: a packed file, ONNX graphs, a folder for model hubs; and compare them.

    Example: [bold]sparsemble export runs/digits[/]
    """
    _need_train("export")
    from sparsemble.pipeline.run import export as export_run

    found = export_run(run, values, {"device": device, "quiet": quiet}, Console(stderr=True))
    if json:
        import json as format_

        typer.echo(format_.dumps(found, indent=1))
    elif not quiet:
        from sparsemble.report.exported import export_table

        Console().print(export_table(found))
        typer.echo(f"packed team: {run / 'export' / 'team.sparsemble'}")


@app.command()
def bench(
    target: Annotated[
        str, typer.Argument(metavar="[TARGET]", help="A packed team or an exported run; none: drawn weights.")
    ] = "",
    data: Annotated[str, typer.Option("--data", help="Images for TARGET; those of its recipe unless given.")] = "",
    model: Annotated[str, typer.Option("--model", help="An architecture, or a table in TOML.")] = "resnet18",
    sparsity: Annotated[float, typer.Option("--sparsity", help="In [0, 1).")] = 0.9,
    granularity: Annotated[str, typer.Option("--granularity", help="weight, block, channel, or a table.")] = "weight",
    mask: Annotated[str, typer.Option("--mask", help="uniform, erk, or a mask.safetensors.")] = "uniform",
    members: Annotated[int, typer.Option("--members", help="Of a drawn team, >= 1.")] = 1,
    members_run: Annotated[float, typer.Option("--members-run", help="Of a drawn team, on average.")] = 1.6,
    batch: Annotated[str, typer.Option("--batch", help="Images at once, with commas between them.")] = "64",
    threads: Annotated[str, typer.Option("--threads", help="With commas between them.")] = "1",
    rounds: Annotated[int, typer.Option("--rounds", help="Timed rounds, >= 2.")] = 7,
    json: Annotated[Optional[Path], typer.Option("--json", help="File for the result.")] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option("--plot", help="File for a plot, .png or .svg.")] = None,  # noqa: UP045
    quiet: Quiet = False,
) -> None:
    """Time a sparse network or team in our engine, and the dense one in all that are installed (extra `bench`).

    Examples: [bold]sparsemble bench --model resnet18 --sparsity 0.9 --batch 64 --threads 1[/],
    [bold]sparsemble bench runs/digits --batch 1,64[/]
    """
    _need_train("bench")
    from sparsemble.core.artifacts import write_json
    from sparsemble.pipeline.bench import bench as measure
    from sparsemble.pipeline.bench import bench_table
    from sparsemble.pipeline.bench_subject import Asked

    numbers = {}
    for name, text in (("batch", batch), ("threads", threads)):
        if not all(word.strip().isdigit() for word in text.split(",")):
            raise InputError(f"--{name} = {text!r} must be whole numbers with commas between them, as in 1,64")
        numbers[name] = tuple(int(word) for word in text.split(","))
    console = Console(stderr=True, quiet=quiet)
    asked = Asked(
        target=target,
        data=data,
        model=model,
        sparsity=sparsity,
        granularity=granularity,
        mask=mask,
        members=members,
        members_run=members_run,
        batches=numbers["batch"],
        threads=numbers["threads"],
        rounds=rounds,
    )
    found = measure(asked, shlex.join(["sparsemble", *sys.argv[1:]]), lambda text: _say(console, text))
    if json:
        write_json(json, found)
    if plot:
        from sparsemble.report.bench import draw_bench

        draw_bench(found, plot)
    if not quiet:
        Console().print(bench_table(found))


@app.command()
def predict(
    team: Annotated[Path, typer.Argument(metavar="TEAM", help="A packed team, as `sparsemble export` leaves it.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Image files, or folders of them.")],
    threads: Annotated[int, typer.Option("--threads", help="Chunks that run side by side; 0: one a core.")] = 1,
    resize: Annotated[bool, typer.Option("--resize", help="Squeeze images of another size.")] = False,
    json: Json = False,
) -> None:
    """Classify images with a packed team; needs no torch.

    Example: [bold]sparsemble predict team.sparsemble a.png b.jpg folder/[/]
    """
    from sparsemble.runtime.command import predict_files

    with _sentences():
        rows = predict_files(team, images, threads=threads, resize=resize)
    if json:
        import json as format_

        typer.echo(format_.dumps(rows, indent=1))
        return
    table = Table("image", "label", "probability", "members run", box=None, header_style="bold")
    for row in rows:
        table.add_row(row["image"], row["label"], f"{row['probability']:.3f}", str(row["members_run"]))
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a part or of a recipe, or a packed team.")]) -> None:
    """Show a part with its settings, a recipe, or what is in a packed team.

    Examples: [bold]sparsemble show pgd[/], [bold]sparsemble show team.sparsemble[/]
    """
    if name.endswith(".sparsemble"):
        from sparsemble.runtime.command import describe_file

        with _sentences():
            _say(Console(), describe_file(Path(name)))
        return
    _need_train("show")
    from sparsemble.core.recipe import nearest
    from sparsemble.pipeline.catalogue import catalogue

    entries = catalogue()
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise InputError(f'"{name}" is neither a part nor a recipe{nearest(name, {entry.name for entry in entries})}')
    for entry in found:
        _say(Console(), f"{entry.kind} {entry.name}\n\n{entry.text}")


def _refuse_for_recipes(options: dict[str, object]) -> None:
    """Refuse options that a recipe's evaluation would ignore.

    Raises:
        InputError: naming the first.
    """
    for name, given in options.items():
        if given:
            raise InputError(
                f"--{name} does not go with a recipe, which says itself how it is evaluated; name a run's folder, or "
                "use `sparsemble run RECIPE --set evaluate...`"
            )


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


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn what the runtime refuses, which knows no other room, into bad input."""
    from sparsemble.runtime.refused import Refused

    try:
        yield
    except Refused as error:
        raise InputError(str(error)) from None


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
