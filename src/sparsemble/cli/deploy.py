"""Commands of packed ensembles: `export` and `predict`."""

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsemble.cli.app import Device, Json, Quiet, app, need_train, say, sentences, show_result
from sparsemble.core.errors import InputError


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    values: Annotated[
        str, typer.Option("--values", help="float16, float32 or int8; the recipe's own unless given.")
    ] = "",
    arithmetic: Annotated[
        str,
        typer.Option(
            "--arithmetic", help="float32, or int8: 8-bit weights and results; the recipe's own unless given."
        ),
    ] = "",
    file_format: Annotated[
        str, typer.Option("--format", help="c: one C99 file and a header for small devices, of a run or a packed file.")
    ] = "",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder of the C files; RUN/c, or c for a packed file, unless given."),
    ] = None,
    max_flash: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-flash", help="KB that the constants of the C file may take; 2048 unless given."),
    ] = None,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's ensemble as a packed file, ONNX graphs and a folder for model hubs, and compare them.

    With `--format c`: as C source, which needs no torch where the packed file exists.

    Example: [bold]sparsemble export runs/digits[/]
    """
    if file_format == "c":
        with sentences():
            _export_c(run, (values, arithmetic), out, max_flash, device, json=json, quiet=quiet)
        return
    if file_format:
        raise InputError(f'--format "{file_format}" is not known; c is, and without it all other formats are written')
    if out is not None or max_flash is not None:
        raise InputError("--out and --max-flash are for --format c; other formats are written to RUN/export")
    need_train("export")
    from sparsemble.pipeline.run import export as export_run
    from sparsemble.report import export_table

    result = export_run(run, values, arithmetic, device, quiet=quiet)
    files = {"packed ensemble": run / "export" / "ensemble.sparsemble"}
    show_result(result.to_json, lambda: export_table(result).terminal(), json=json, quiet=quiet, files=files)


def _export_c(
    run: Path,
    stored: tuple[str, str],
    out: Path | None,
    max_flash: int | None,
    device: str,
    *,
    json: bool,
    quiet: bool,
) -> None:
    """Write the C files of a packed ensemble, or of a run, which is exported first where it is not.

    Args:
        run: its folder, or a packed file.
        stored: values and arithmetic; empty: the recipe's own.
        out: folder of the C files.
        max_flash: KB that their constants may take.
        device: of the export.
        json: print the result as JSON.
        quiet: show no progress.
    """
    from sparsemble.export.c.write import MAX_FLASH_KB, write_c
    from sparsemble.runtime.format.packed import load

    file, folder = run, Path("c")
    if not run.is_file():
        file, folder = run / "export" / "ensemble.sparsemble", run / "c"
        if any(stored) or not file.is_file():
            need_train("export")
            from sparsemble.pipeline.run import export as export_run

            export_run(run, *stored, device, quiet=quiet)
    elif any(stored):
        raise InputError(
            f"the weights of {file} are rounded; --values needs the folder of the run, to measure the loss; so does "
            "--arithmetic"
        )
    limit = MAX_FLASH_KB if max_flash is None else max_flash
    made = write_c(load(file), folder if out is None else out, max_flash_kb=limit)
    lines = [
        f"memory  {made.ram:,} bytes of RAM; {made.flash:,} bytes of flash for constants, and a few KB for code",
        f"pixels  {made.pixels}",
    ]
    files = {"C source": Path(made.source), "header": Path(made.source).with_suffix(".h")}
    show_result(
        lambda: json_format.dumps(made.to_dict(), indent=1),
        lambda: "\n".join(lines),
        json=json,
        quiet=quiet,
        files=files,
    )


@app.command()
def predict(
    ensemble: Annotated[
        Path, typer.Argument(metavar="ENSEMBLE", help="A packed ensemble, as `sparsemble export` writes it.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Image files, or folders of them.")],
    threads: Annotated[int, typer.Option("--threads", help="Chunks that run side by side, >= 1.")] = 1,
    resize: Annotated[
        bool,
        typer.Option("--resize", help="Resize images of another size, where the ensemble was trained on arrays."),
    ] = False,
    json: Json = False,
) -> None:
    """Classify images with a packed ensemble, prepared as its training images were; needs no torch.

    A file that cannot be read is a row with an error.

    Example: [bold]sparsemble predict ensemble.sparsemble a.png b.jpg folder/[/]
    """
    from sparsemble.runtime.errors import printable

    with sentences():
        rows, note = _predict_files(ensemble, images, threads=threads, resize=resize)
    if note:
        say(Console(stderr=True), note)

    def table() -> Table:
        shown = Table("image", "label", "probability", "members run", box=None, header_style="bold")
        for row in rows:
            cells = [printable(row["image"])]
            if "error" in row:
                cells.append(f"error: {printable(row['error'])}")
            else:
                cells += [row["label"], f"{row['probability']:.3f}", str(row["members_run"])]
            shown.add_row(*map(Text, cells))
        return shown

    show_result(lambda: json_format.dumps(rows, indent=1), table, json=json)


def _predict_files(
    ensemble: Path, images: Sequence[Path], *, threads: int, resize: bool
) -> tuple[list[dict[str, Any]], str]:
    """Return a row for every image, and a sentence about the files in folders that are left out.

    A row has `image`, `label`, `probability` and `members_run`; of a file that cannot be read these are None beside an
    `error`. If no file can be read, the error of the first one is raised.
    """
    import numpy as np

    from sparsemble.runtime import RuntimeInputError, load
    from sparsemble.runtime.images import describe_left_out, image_files
    from sparsemble.runtime.predictor import FILES_AT_ONCE

    predictor = load(ensemble, threads=threads)
    files, left_out = image_files(images)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(files), FILES_AT_ONCE):
        batch, pixels = [], []
        for file in files[start : start + FILES_AT_ONCE]:
            row: dict[str, Any] = {"image": str(file), "label": None, "probability": None, "members_run": None}
            rows.append(row)
            try:
                pixels.append(predictor.read(file, resize=resize))
                batch.append(row)
            except RuntimeInputError as error:
                row["error"] = str(error)
        if not batch:
            continue
        prediction = predictor.predict(np.stack(pixels))
        for i, (row, label) in enumerate(zip(batch, prediction.labels.tolist(), strict=True)):
            row["label"] = predictor.ensemble.classes[label]
            row["probability"] = float(prediction.probabilities[i, label])
            row["members_run"] = int(prediction.members_run[i])
    if all("error" in row for row in rows):
        raise RuntimeInputError(rows[0]["error"])
    return rows, describe_left_out(left_out)


def describe_packed_file(path: Path) -> str:
    """Return what a packed ensemble holds, as text; the whole file is read and validated."""
    from sparsemble.runtime.errors import printable
    from sparsemble.runtime.format.packed import describe, load

    header, ensemble = describe(path), load(path)
    channels, height, width = ensemble.image
    classes = ", ".join(ensemble.classes[:12]) + (" ..." if len(ensemble.classes) > 12 else "")
    rule = "".join(f", {key} = {value:g}" for key, value in ensemble.rule.items() if key != "name")
    arithmetic = ", computed in 8 bits" if ensemble.arithmetic == "int8" else ""
    lines = [
        f"{printable(path.name)}: a packed ensemble of version {header['version']}, {header['bytes']:,} bytes",
        f"images    {width} x {height}, {channels} {'colours' if channels == 3 else 'channel(s)'}, in [0, 1]",
        *([f"files     {ensemble.preprocessing}"] if ensemble.preprocessing else []),
        f"classes   {len(ensemble.classes)}: {classes}",
        f"weights   {ensemble.nonzeros:,} not 0, in {header['values']}{arithmetic}; sparsity {ensemble.sparsity:.4f} "
        f"of {ensemble.parent_weights:,} in the dense parent",
        f"combiner  {ensemble.combiner['name']}",
        f"stopping  {ensemble.rule['name']}{rule}",
    ]
    for number, member in enumerate(ensemble.members, start=1):
        weights = member.weights()
        count, total = sum(weight.nonzeros for weight in weights), sum(weight.size for weight in weights)
        lines.append(f"member {number}  {len(member.nodes)} operations, {count:,} of {total:,} weights")
    for key, value in ensemble.provenance.items():
        if isinstance(value, str | int | float):
            lines.append(f"{printable(key):9} {printable(str(value))}")
    return "\n".join(lines)
