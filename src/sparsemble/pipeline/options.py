"""What the options of `sparsemble run` and the arguments of `sparsemble.run` stand for, as settings after --set."""

from json import dumps

from sparsemble.core.errors import InputError
from sparsemble.pipeline.parent import parent_settings
from sparsemble.pipeline.recipe import read_named

SMALLEST = 16
"""Side, in pixels, below which photographs are not scaled."""


def option_settings(
    recipe: str,
    *,
    parent: str = "",
    data: str = "",
    size: int | None = None,
    eps: str = "",
    minutes: float | None = None,
) -> list[str]:
    """Return settings for options that are given.

    Args:
        recipe: name of a shipped recipe, or a .toml file.
        parent: a trained classifier, as after --parent.
        data: folder of the images, of a recipe that reads one; or the .npz file of one that reads arrays.
        size: side of the images in pixels, of a recipe that reads a folder.
        eps: radius of the attacks, a number or a fraction.
        minutes: time of the whole run, > 0.

    Raises:
        InputError: the recipe does not read what `data` or `size` names.
    """
    settings = parent_settings(parent) if parent else []
    if data or size is not None:
        source = read_named(recipe, "recipe")[1].get("data", "")
        table = source if isinstance(source, dict) else {"name": source}
        kind = str(table.get("name"))
        field = {"image_folder": "root", "arrays": "path"}.get(kind, "root" if "root" in table else "")
        if data and not field:
            raise InputError(
                f'--data {data}: the recipe {recipe} reads the data set "{kind}", which is no folder; '
                "use the recipe photos"
            )
        if size is not None and size < SMALLEST:
            raise InputError(f"--size {size}: photographs of fewer than {SMALLEST} pixels show nothing; use 32 or more")
        if size is not None and kind != "image_folder":
            raise InputError(f'--size {size}: the images of "{kind}" have a size of their own')
        settings += [f"data.{field}={dumps(data)}"] if data else []
        settings += [f"data.size={size}"] if size is not None else []
    settings += [f"threat.eps={dumps(eps)}"] if eps else []
    return settings + ([f"minutes={minutes:g}"] if minutes is not None else [])
