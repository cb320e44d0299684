"""`sparsemble.run`: a recipe by its name, from its data to the files that others run."""

import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rich.console import Console

from sparsemble.core.artifacts import Artifact
from sparsemble.core.results import RunSummary
from sparsemble.pipeline import run as running
from sparsemble.pipeline.options import option_settings
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.report import run_table

PACKED, SUMMARY = Path("export") / "ensemble.sparsemble", Path("report") / "summary.json"
"""The packed ensemble and the results, in the folder of a run."""


@final
@dataclass(frozen=True)
class NamedRun:
    """A recipe that was read, and where it runs."""

    title: str
    recipe: Recipe
    command: str
    """What reproduces it."""
    folder: Path

    @staticmethod
    def of(name: str, changes: Sequence[str], out: Path | None = None) -> "NamedRun":
        """Read a recipe.

        Args:
            name: of a shipped recipe, or a .toml file.
            changes: settings as after --set.
            out: folder of the run; runs/NAME unless given.
        """
        title, recipe = load_recipe(name, tuple(changes))
        command = ["sparsemble", "run", name, *(part for change in changes for part in ("--set", change))]
        return NamedRun(title, recipe, shlex.join(command), out or Path("runs") / title)

    def run(self, until: str, **options: Any) -> list[Artifact]:
        """Run up to a stage, and return what it left; `options` are other fields of `RunOptions`."""
        return running.run(
            self.recipe, self.title, self.command, running.RunOptions(folder=self.folder, until=until, **options)
        )


@final
@dataclass(frozen=True, repr=False)
class FinishedRun:
    """A finished run: its folder and its results."""

    folder: Path
    """Has `report/index.html`, `export/ensemble.sparsemble` and every trained network."""
    summary: RunSummary

    @property
    def packed(self) -> Path:
        """File of the packed ensemble, which `sparsemble.runtime.load` reads."""
        return self.folder / PACKED

    def to_json(self) -> str:
        """Return the results as JSON."""
        return self.summary.to_json()

    def __repr__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120).print(run_table(self.summary))
        return text.getvalue()


def run(
    recipe: str,
    *,
    data: str | Path | None = None,
    size: int | None = None,
    eps: float | str | None = None,
    minutes: float | None = None,
    parent: str | Path | None = None,
    settings: Sequence[str] = (),
    seed: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    workers: int = 0,
    force: bool = False,
    quiet: bool = False,
) -> FinishedRun:
    """Run a recipe to the end: train, prune, select, train the ensemble, calibrate, evaluate, report, export.

    Args:
        recipe: name of a shipped recipe (`photos`, `digits`, ...), or a .toml file.
        data: folder of the images, of a recipe that reads one.
        size: side of the images in pixels, of a recipe that reads a folder.
        eps: radius of the attacks, as 0.01 or "4/255".
        minutes: time of the whole run, > 0; epochs and images are set from throughput that is measured first.
        parent: a trained classifier to prune, as after --parent.
        settings: changes as after --set: "train.epochs=5".
        seed: of all randomness, >= 0.
        out: folder of the run; runs/NAME unless given. The same call goes on there, or reads what is finished.
        device: auto, cpu, cuda or cuda:N.
        workers: worker processes; 0: one a core, at most 4, and one on a GPU.
        force: go on where the run would stop, as what it made is no better than chance.
        quiet: show no progress.

    Returns:
        The folder and the results, which print themselves as a table.

    Raises:
        InputError: a setting, an image or a number of minutes that cannot be; before any work.
        RunError: a stage failed; what is finished is kept.
    """
    changes = option_settings(
        recipe,
        parent="" if parent is None else str(parent),
        data="" if data is None else str(data),
        size=size,
        eps="" if eps is None else str(eps),
        minutes=minutes,
    )
    changes += [*settings, *([f"seed={seed}"] if seed is not None else [])]
    named = NamedRun.of(recipe, changes, None if out is None else Path(out))
    named.run("export", device=device, workers=workers, force=force, quiet=quiet)
    return FinishedRun(named.folder, RunSummary.load(named.folder / SUMMARY))
