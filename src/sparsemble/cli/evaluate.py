"""Commands that measure: attacks on a classifier, results side by side, times."""

import os
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from typer.core import TyperCommand

from sparsemble.cli.app import Device, Json, Out, Quiet, app, need_train, say, show_result, stoppable
from sparsemble.cli.recipes import run_recipe
from sparsemble.core.errors import InputError

if TYPE_CHECKING:
    from sparsemble.pipeline.evaluate_command import EvaluationOptions

BARE = "--corruptions"


class CommandWithCorruptions(TyperCommand):
    """A command whose option --corruptions may stand without a folder, before the target, too."""

    def make_parser(self, ctx: Any) -> Any:
        """Return a parser that reads a bare --corruptions as `--corruptions generated`."""
        parser = super().make_parser(ctx)
        parse = parser.parse_args

        def with_value(args: list[str]) -> Any:
            following = [*args, "--"][1:]
            bare = [word == BARE and after.startswith("-") for word, after in zip(args, following, strict=True)]
            generated = [f"{BARE}=generated" if word == BARE else word for word in args]
            found = parse([new if alone else word for word, new, alone in zip(args, generated, bare, strict=True)])
            # The only word that is no option is the target.
            return parse(generated) if BARE in args and not isinstance(found[0].get("target"), str) else found

        parser.parse_args = with_value  # type: ignore[method-assign]
        return parser


@app.command(cls=CommandWithCorruptions)
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A run's folder, one of its artifacts, a packed ensemble, a .safetensors file (with --model), "
            "an .onnx file, hf:NAME, file.py:factory, or a recipe (then every row of its table).",
        ),
    ],
    row: Annotated[str, typer.Option("--row", help="Row of a run's table; ensemble_dynamic unless given.")] = "",
    model: Annotated[str, typer.Option("--model", help="Architecture of a .safetensors file, as in resnet18.")] = "",
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Data set, a table in TOML, an .npz file or a folder; the target's own unless given."
        ),
    ] = "",
    attacks: Annotated[
        str,
        typer.Option(
            "--attacks",
            help="Names with commas between them, or a list in TOML; autoattack unless given.",
        ),
    ] = "",
    transfer: Annotated[str, typer.Option("--transfer", help="Another TARGET, on which images are crafted, too.")] = "",
    eps: Annotated[str, typer.Option("--eps", help="As in 8/255; the target's own unless given.")] = "",
    norm: Annotated[str, typer.Option("--norm", help="linf, l2 or l1; the target's own unless given.")] = "",
    images: Annotated[int, typer.Option("--images", help="Test images, drawn stratified; 0: all.")] = 0,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Of the attacks; 0 unless given.")] = None,  # noqa: UP045
    adaptive: Annotated[
        bool, typer.Option("--adaptive/--no-adaptive", help="Add all attacks on ensembles and stopping rules.")
    ] = True,
    search: Annotated[str, typer.Option("--search", help="float32 or bfloat16; float32 always decides.")] = "float32",
    shard: Annotated[int, typer.Option("--shard", help="Images attacked at once and kept together.")] = 100,
    checks: Annotated[
        str,
        typer.Option(
            "--checks", help="default: they take at most the passes of the headline attack; full: all of them."
        ),
    ] = "default",
    access: Annotated[
        str, typer.Option("--access", help="What attacks may use of the model: gradients, scores or labels.")
    ] = "gradients",
    class_map: Annotated[
        str,
        typer.Option("--class-map", help="Output of the model for each class of the data, as in 3,5,7, or a file."),
    ] = "",
    mean: Annotated[
        str,
        typer.Option(
            "--mean", help="Of each channel, by which a file of weights or an .onnx file expects images normalised."
        ),
    ] = "",
    std: Annotated[str, typer.Option("--std", help="The same, of the standard deviation.")] = "",
    corruptions: Annotated[
        str,
        typer.Option(
            "--corruptions",
            metavar="[FOLDER]",
            help="Measure accuracy under the fifteen common corruptions, too; of a FOLDER as of CIFAR-10-C or "
            "ImageNet-C, or generated.",
        ),
    ] = "",
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a classifier, check the evaluation, and report how far to believe it.

    Examples: [bold]sparsemble evaluate runs/digits[/], [bold]sparsemble evaluate mine.py:model --data cifar10[/]
    """
    options = locals()  # by name
    need_train("evaluate")
    from sparsemble.core.config import from_dict
    from sparsemble.pipeline import evaluate_command as command
    from sparsemble.pipeline.recipe import shipped
    from sparsemble.report import evaluation_table

    settings = {name: value for name, value in options.items() if name not in ("json", "quiet")}
    asked = from_dict(command.EvaluationOptions, {**settings, "seed": seed or 0})
    if target.endswith(".toml") or (target in shipped() and not Path(target).exists()):
        _refuse_for_recipes(asked, json)
        changes = [f"seed={seed}"] if seed is not None else []
        run_recipe(target, "evaluate", changes, out=out, device=device, quiet=quiet)
        return
    plan = command.prepare(asked)
    with stoppable(f"finished shards are in {plan.folder}, run the same command to go on"):
        result = command.run(plan, shlex.join(["sparsemble", *sys.argv[1:]]), Console(stderr=True, quiet=quiet))
    files = {"report": plan.folder / "index.html"}
    show_result(result.to_json, lambda: evaluation_table(result), json=json, quiet=quiet, files=files)


@app.command()
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="A.json B.json ...",
            help="Files that evaluate left; beside them RobustBench's JSON files and logs of AutoAttack.",
        ),
    ],
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder for a page; none unless given.")] = None,  # noqa: UP045
    json: Json = False,
) -> None:
    """Set evaluations side by side: intervals, and paired tests on the same images.

    Example: [bold]sparsemble compare dense/evaluation.json ensemble/evaluation.json[/]
    """
    need_train("compare")
    from sparsemble.pipeline.evaluate_command import compare_files
    from sparsemble.report import comparison_table

    result = compare_files(results, out)
    files = {"report": out / "index.html"} if out else {}
    show_result(result.to_json, lambda: comparison_table(result), json=json, files=files)


def _refuse_for_recipes(asked: "EvaluationOptions", json: bool) -> None:
    """Refuse options that a recipe's evaluation would ignore."""
    ignored = [field for field in fields(asked) if field.name not in ("target", "seed", "out", "device")]
    changed = [field.name for field in ignored if getattr(asked, field.name) != field.default]
    for name in (*changed, *(["json"] if json else [])):
        option = name.replace("adaptive", "no-adaptive").replace("_", "-")
        raise InputError(
            f"--{option} does not go with a recipe, which says itself how it is "
            "evaluated; name a run's folder, or use `sparsemble run RECIPE --set evaluate...`"
        )


@app.command()
def bench(
    target: Annotated[
        str, typer.Argument(metavar="[TARGET]", help="A packed ensemble or an exported run; none: drawn weights.")
    ] = "",
    data: Annotated[str, typer.Option("--data", help="Images for TARGET; those of its recipe unless given.")] = "",
    model: Annotated[str, typer.Option("--model", help="An architecture, or a table in TOML.")] = "resnet18",
    sparsity: Annotated[float, typer.Option("--sparsity", help="In [0, 1).")] = 0.9,
    granularity: Annotated[
        str, typer.Option("--granularity", help="weight, block, block-in, channel, or a table.")
    ] = "weight",
    arithmetic: Annotated[
        str, typer.Option("--arithmetic", help="Of our engine: float32 or int8; TARGET's own unless given.")
    ] = "",
    mask: Annotated[str, typer.Option("--mask", help="uniform, erk, or a mask.safetensors.")] = "uniform",
    members: Annotated[int, typer.Option("--members", help="Of a drawn ensemble, >= 1.")] = 1,
    members_run: Annotated[float, typer.Option("--members-run", help="Of a drawn ensemble, on average.")] = 1.6,
    batch: Annotated[str, typer.Option("--batch", help="Images at once, with commas between them.")] = "64",
    threads: Annotated[str, typer.Option("--threads", help="With commas between them.")] = "1",
    rounds: Annotated[int, typer.Option("--rounds", help="Timed rounds, >= 2.")] = 7,
    json: Annotated[Optional[Path], typer.Option("--json", help="File for the result.")] = None,  # noqa: UP045
    plot: Annotated[Optional[Path], typer.Option("--plot", help="File for a plot, .png or .svg.")] = None,  # noqa: UP045
    first_use: Annotated[
        bool, typer.Option("--first-use", help="Time first answers with an empty cache, too; up to a minute.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Time a sparse network or ensemble in our engine, and the dense one in all that are installed (extra `bench`).

    The dense network runs in float32, in OpenVINO's default precision and quantised to int8, and with fewer channels.

    Examples: [bold]sparsemble bench --model resnet18 --sparsity 0.9 --batch 64 --threads 1[/],
    [bold]sparsemble bench --sparsity 0.9 --granularity block-in --arithmetic int8[/],
    [bold]sparsemble bench runs/digits --batch 1,64[/]
    """
    options = locals()  # by name
    need_train("bench")
    from sparsemble.bench.models import BenchSettings
    from sparsemble.bench.timing import bench as measure

    numbers = {}
    for name, text in (("batch", batch), ("threads", threads)):
        if not all(word.strip().isdigit() for word in text.split(",")):
            raise InputError(f"--{name} = {text!r} must be whole numbers with commas between them, as in 1,64")
        numbers[name] = tuple(int(word) for word in text.split(","))
    console = Console(stderr=True, quiet=quiet)
    given = {name: value for name, value in options.items() if name not in ("batch", "json", "plot", "quiet")}
    settings = BenchSettings(**{**given, "batches": numbers["batch"], "threads": numbers["threads"]})
    _make_place(json, "--json")
    _make_place(plot, "--plot", (".png", ".svg"))
    result = measure(settings, shlex.join(["sparsemble", *sys.argv[1:]]), lambda text: say(console, text))
    if json:
        result.save(json)
    if plot:
        from sparsemble.report import draw_bench

        draw_bench(result, plot)
    if not quiet:
        from sparsemble.report import bench_table

        table = bench_table(result)
        Console().print(table.terminal())
        if table.caption:
            say(Console(), table.caption)


def _make_place(path: Path | None, option: str, endings: tuple[str, ...] = ()) -> None:
    """Make the folder that a file shall go to, before the work that the file is of."""
    if path is None:
        return
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{option} = {path} must end in {' or '.join(endings)}")
    if path.is_dir():
        raise InputError(f"{option} = {path} is a folder; name a file, as in {path / 'bench'}{(*endings, '.json')[0]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{option} = {path}: its folder cannot be made ({error.strerror}); name a file where you may write"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{option} = {path}: its folder cannot be written; name a file where you may write")
