"""Many recipes at once: what a study file asks for, and the cells that it expands to."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.config import nearest, read_toml
from sparsemble.core.errors import InputError
from sparsemble.evaluation.run_models import ROWS
from sparsemble.pipeline.method import method, pruned, train
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.attack import AttackStage
from sparsemble.pipeline.validate_recipe import check_against_data

KEYS = ("title", "recipe", "kind", "set", "seeds", "rows", "axes")
ALONE = ("members=2", "prune.folds=3")
"""Of kind pruned, before the study's own settings: recipes must be able to make an ensemble, even where none is made."""


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """Every value of every axis, with every seed."""

    title: str
    recipe: str
    """Name or path of the recipe that all cells begin with."""
    kind: Literal["pruned", "run"] = "pruned"
    """pruned: a cell is one dense parent and one pruned model; run: the whole method."""
    settings: tuple[str, ...] = ()
    """Changes for all cells, as after --set."""
    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ("pruned",)
    """What of a cell is shown: of kind run, rows of its report."""
    axes: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Axis -> value -> its changes."""

    def changes(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """Return what a cell of these values changes in the recipe, its seed aside."""
        return (*self.settings, *(change for axis, value in values.items() for change in self.axes[axis][value]))


class Cell(NamedTuple):
    """One model, or one run, of a study."""

    values: dict[str, str]
    """Axis -> value; a dense parent of kind pruned has those that change it only."""
    seed: int
    recipe: Recipe
    made: dict[str, Task]
    """Row -> the task that makes it."""
    attacks: dict[str, dict[str, Task]]
    """Row -> attack -> task."""
    report: Task | None
    """Kind run: the task whose artifact holds the summary."""

    @property
    def tasks(self) -> list[Task]:
        """All tasks of the cell, those it shares with others included."""
        found: dict[str, Task] = {}
        waiting = [*self.made.values(), *(t for ones in self.attacks.values() for t in ones.values())]
        waiting += [self.report] if self.report else []
        while waiting:
            task = waiting.pop()
            if task.hash not in found:
                found[task.hash] = task
                waiting += task.inputs.values()
        return list(found.values())

    @property
    def label(self) -> str:
        """Say which cell it is."""
        named = ["dense parent"] if "dense" in self.made else []
        named += [f"{axis} = {value}" for axis, value in self.values.items()]
        return ", ".join([*named, f"seed {self.seed}"])

    @property
    def identity(self) -> tuple[str, ...]:
        """Hashes of what is measured: cells with equal ones hold the same model under the same attacks."""
        return tuple(task.hash for ones in self.attacks.values() for task in ones.values())


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        InputError: no such file, or anything wrong in it.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; a study is a .toml file (docs/studies.md)")
    table = read_toml(path)
    for key in table:
        if key not in KEYS:
            raise InputError(f'"{key}" is not a setting of a study{nearest(key, KEYS)}')
    for key in ("recipe", "axes"):
        if key not in table:
            raise InputError(f"{path} lacks {key}")
    title, recipe, axes = table.get("title", path.stem), table["recipe"], table["axes"]
    for key, text in (("title", title), ("recipe", recipe)):
        if not isinstance(text, str):
            raise InputError(f"{key} = {text!r} must be a string in quotes")
    if not isinstance(axes, dict) or not axes:
        raise InputError(f"axes = {axes!r} must be tables, at least one, as in [axes.sparsity]")
    kind = table.get("kind", "pruned")
    if kind not in ("pruned", "run"):
        raise InputError(f'kind = "{kind}" is not known; use pruned or run')
    beside = path.parent / recipe
    return Study(
        title=title,
        recipe=str(beside) if beside.is_file() else recipe,
        kind=kind,
        settings=_changes(table.get("set", []), "set"),
        seeds=_seeds(table.get("seeds", [0])),
        rows=_rows(table.get("rows", ["pruned" if kind == "pruned" else "ensemble_dynamic"]), kind),
        axes={axis: _values(axis, values) for axis, values in axes.items()},
    )


def _seeds(seeds: Any) -> tuple[int, ...]:
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)):
        raise InputError(f"seeds = {seeds!r} must be a list of whole numbers, 0 or more")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds = {seeds!r} names one twice; the same result twice says nothing new")
    return tuple(seeds)


def _rows(rows: Any, kind: str) -> tuple[str, ...]:
    known = ("pruned",) if kind == "pruned" else ROWS
    if not (isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows)):
        raise InputError(f'rows = {rows!r} must be a list of names, as in ["{known[-1]}"]')
    for row in rows:
        if row not in known:
            raise InputError(f'rows names "{row}"{nearest(row, known)}')
    return tuple(dict.fromkeys(rows))


def _values(axis: str, values: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(values, dict) or not values:
        raise InputError(f"axes.{axis} must be a table of values, each a list of settings")
    return {name: _changes(changes, f"axes.{axis}.{name}") for name, changes in values.items()}


def _changes(changes: Any, where: str) -> tuple[str, ...]:
    if not (isinstance(changes, list) and all(isinstance(change, str) for change in changes)):
        raise InputError(f'{where} must be a list of settings, as in ["sparsity=0.9"], got {changes!r}')
    return tuple(changes)


def cells(study: Study) -> list[Cell]:
    """Expand a study; of kind pruned, the dense parents come first.

    Raises:
        InputError: a cell's recipe is wrong; it names the cell.
    """
    found: list[Cell] = []
    parents: list[Cell] = []
    for seed in study.seeds:
        for chosen in itertools.product(*(values.items() for values in study.axes.values())):
            values = dict(zip(study.axes, (name for name, _ in chosen), strict=True))
            recipe = _recipe(study, values, seed)
            if study.kind == "run":
                report = method(recipe, study.title, f"a cell of {study.title}").until["report"][0]
                found.append(Cell(values, seed, recipe, {}, {}, report))
                continue
            dense, whole = train(recipe), replace(recipe.prune, folds=1)
            title = "prune " + ", ".join([*values.values(), f"seed {seed}"])
            made = {"pruned": pruned(recipe, whole, dense, title, whole.scores[0], 1, recipe.sparsity)}
            found.append(Cell(values, seed, recipe, made, _attacked(recipe, made), None))
            dense = replace(dense, title=f"{dense.title}, seed {seed}")
            parent = {"dense": dense}
            parents.append(Cell(values, seed, recipe, parent, _attacked(recipe, parent), None))
    return [*_distinct(parents, list(study.axes)), *found]


def _distinct(parents: list[Cell], axes: list[str]) -> list[Cell]:
    """Return each dense parent once, named by the values of those axes that make a difference to it.

    Parents that differ by more than their seed must not stand in one line, as if they were draws of the same.
    """
    matter = []
    for axis in axes:
        alike: dict[tuple[Any, ...], set[tuple[str, ...]]] = {}
        for cell in parents:
            others = tuple(value for name, value in cell.values.items() if name != axis)
            alike.setdefault((cell.seed, others), set()).add(cell.identity)
        if any(len(identities) > 1 for identities in alike.values()):
            matter.append(axis)
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in parents:
        values = {axis: cell.values[axis] for axis in matter}
        found.setdefault((cell.seed, *values.values()), cell._replace(values=values))
    return list(found.values())


def _recipe(study: Study, values: Mapping[str, str], seed: int) -> Recipe:
    before = ALONE if study.kind == "pruned" else ()
    try:
        _, recipe = load_recipe(study.recipe, (*before, *study.changes(values), f"seed={seed}"))
        alone = study.kind == "pruned"
        check_against_data(recipe, (recipe.sparsity,) if alone else (), deploys=not alone)
    except InputError as error:
        said = ", ".join(f"{axis} = {value}" for axis, value in values.items())
        raise InputError(f"in the cell {said}: {error}") from None
    return recipe


def _attacked(recipe: Recipe, made: Mapping[str, Task]) -> dict[str, dict[str, Task]]:
    """Attack single models as `evaluate.attacks` says."""
    found: dict[str, dict[str, Task]] = {}
    for row, task in made.items():
        for one in recipe.evaluate.attacks:
            stage = AttackStage(
                seed=recipe.seed,
                data=recipe.data,
                threat=recipe.threat,
                combiner=recipe.ensemble.combiner,
                row=row,
                attack=SurrogateAttack(attack=one, surrogate=FullEnsemble(), label=one.label),
                images=recipe.evaluate.images,
            )
            what = task.title.removeprefix("prune ") if row == "pruned" else f"dense parent, seed {recipe.seed}"
            attack = Task(f"attack {what}: {one.label}", stage, {row: task}, cost=10)
            found.setdefault(row, {})[one.label] = attack
    return found
