"""Commands that describe what there is: components, recipes and studies."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sparsemble.cli.app import Json, app, need_train, say, sentences, show_result
from sparsemble.core.errors import InputError


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="Such as attack, loss or recipe; all unless given.")] = None,
    json: Json = False,
) -> None:
    """List the components that a recipe can name, and the shipped recipes and studies.

    Example: [bold]sparsemble list attack[/]
    """
    need_train("list")
    from sparsemble.core.config import nearest
    from sparsemble.pipeline.catalogue import catalogue

    entries = catalogue()
    kinds = {entry.kind for entry in entries}
    if kind is not None and kind not in kinds:
        raise InputError(f'"{kind}" is not a kind of component{nearest(kind, kinds)}')
    rows = [(entry.kind, entry.name, entry.sentence) for entry in entries if kind in (None, entry.kind)]

    def table() -> Table:
        shown = Table("kind", "name", "what it is", box=None, header_style="bold")
        for row in rows:
            shown.add_row(*row)
        return shown

    facts = [dict(zip(("kind", "name", "sentence"), row, strict=True)) for row in rows]
    show_result(lambda: json_format.dumps(facts, indent=1), table, json=json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a component, recipe or study, or a packed ensemble.")],
) -> None:
    """Show a component with its settings, a recipe or study, or what is in a packed ensemble.

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
    matches = [entry for entry in entries if entry.name == name]
    if not matches:
        known = {entry.name for entry in entries}
        raise InputError(f'"{name}" is no component, recipe or study{nearest(name, known)}')
    for entry in matches:
        say(Console(), f"{entry.kind} {entry.name}\n\n{entry.text}")
