"""Commands that say what there is: parts and recipes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sparsemble.cli.app import app, need_train, say, sentences
from sparsemble.core.errors import InputError


@app.command("list")
def list_plugs(
    kind: Annotated[str | None, typer.Argument(help="Such as attack, objective or recipe; all unless given.")] = None,
) -> None:
    """List the parts that a recipe can name, and the shipped recipes.

    Example: [bold]sparsemble list attack[/]
    """
    need_train("list")
    from sparsemble.core.config import nearest
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
def show(name: Annotated[str, typer.Argument(help="Name of a part or of a recipe, or a packed ensemble.")]) -> None:
    """Show a part with its settings, a recipe, or what is in a packed ensemble.

    Examples: [bold]sparsemble show pgd[/], [bold]sparsemble show ensemble.sparsemble[/]
    """
    if name.endswith(".sparsemble"):
        from sparsemble.cli.deploy import describe_packed_file

        with sentences():
            say(Console(), describe_packed_file(Path(name)))
        return
    need_train("show")
    from sparsemble.core.config import nearest
    from sparsemble.pipeline.catalogue import catalogue

    entries = catalogue()
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise InputError(f'"{name}" is neither a part nor a recipe{nearest(name, {entry.name for entry in entries})}')
    for entry in found:
        say(Console(), f"{entry.kind} {entry.name}\n\n{entry.text}")
