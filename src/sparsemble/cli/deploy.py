"""Commands of packed ensembles: written, and run."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsemble.cli.app import Device, Json, Quiet, app, need_train, sentences


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    values: Annotated[
        str, typer.Option("--values", help="float16, float32 or int8; the recipe's own unless given.")
    ] = "",
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's ensemble for others: a packed file, ONNX graphs, a folder for model hubs; and compare them.

    Example: [bold]sparsemble export runs/digits[/]
    """
    need_train("export")
    from sparsemble.pipeline.run import export as export_run

    found = export_run(run, values, {"device": device, "quiet": quiet}, Console(stderr=True))
    if json:
        import json as format_

        typer.echo(format_.dumps(found, indent=1))
    elif not quiet:
        from sparsemble.core.config import from_dict
        from sparsemble.core.results import ExportResult
        from sparsemble.report import export_table

        Console().print(export_table(from_dict(ExportResult, found)).terminal())
        typer.echo(f"packed ensemble: {run / 'export' / 'ensemble.sparsemble'}")


@app.command()
def predict(
    ensemble: Annotated[
        Path, typer.Argument(metavar="TEAM", help="A packed ensemble, as `sparsemble export` leaves it.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Image files, or folders of them.")],
    threads: Annotated[int, typer.Option("--threads", help="Chunks that run side by side, >= 1.")] = 1,
    resize: Annotated[bool, typer.Option("--resize", help="Squeeze images of another size.")] = False,
    json: Json = False,
) -> None:
    """Classify images with a packed ensemble; needs no torch.

    Example: [bold]sparsemble predict ensemble.sparsemble a.png b.jpg folder/[/]
    """
    from sparsemble.runtime.command import predict_files
    from sparsemble.runtime.terminal_escape import printable

    with sentences():
        rows = predict_files(ensemble, images, threads=threads, resize=resize)
    if json:
        import json as format_

        typer.echo(format_.dumps(rows, indent=1))
        return
    table = Table("image", "label", "probability", "members run", box=None, header_style="bold")
    for row in rows:
        words = (printable(row["image"]), row["label"], f"{row['probability']:.3f}", str(row["members_run"]))
        table.add_row(*map(Text, words))
    Console().print(table)
