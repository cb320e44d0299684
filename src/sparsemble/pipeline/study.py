"""Many recipes at once: the settings of a study, and the cells that it expands to."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast, final, get_args

from sparsemble.core.config import from_dict, nearest
from sparsemble.core.errors import InputError
from sparsemble.evaluation.run_models import ROWS
from sparsemble.models.graph import Graph
from sparsemble.pipeline.graph import attacks_on_row, build_graph, parent_task, prune_task, row_settings
from sparsemble.pipeline.recipe import Recipe, load_recipe, read_named
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.attack import AttackStage
from sparsemble.pipeline.validate_recipe import validate_recipe

Kind = Literal["pruned", "run"]
SINGLE_MODEL = ("members=2", "prune.folds=3")
"""Changes before those of a study of kind pruned: a recipe must allow an ensemble even where none is made."""


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """Every value of every axis, with every seed."""

    title: str = ""
    """The file's name unless given."""
    recipe: str
    """Name or path of the recipe that all cells begin with."""
    kind: Kind = "pruned"
    """pruned: a cell is one dense parent and one pruned model; run: the whole method. A value of an axis may change it,
    as "kind='run'", so that single pruned models and ensembles stand in one table."""
    set: tuple[str, ...] = ()
    """Changes for all cells, as after --set."""
    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ()
    """What of a cell is shown; of kind run, rows of its report: the ensemble with its stopping rule unless given."""
    axes: dict[str, dict[str, tuple[str, ...]]]
    """Axis -> value -> its changes."""

    def __post_init__(self) -> None:
        if not self.axes or not all(self.axes.values()):
            raise InputError(f"axes = {self.axes!r} must be tables, at least one, as in [axes.sparsity]")
        if not self.seeds or min(self.seeds) < 0:
            raise InputError(f"seeds = {list(self.seeds)} must be a list of whole numbers, 0 or more")
        if len({*self.seeds}) < len(self.seeds):
            raise InputError(f"seeds = {list(self.seeds)} names one twice; the same result twice says nothing new")
        known = ("pruned",) if self.kinds == "pruned" else ROWS
        for row in self.rows:
            if row not in known:
                raise InputError(f'rows names "{row}"{nearest(row, known)}')
            if row == "dense" and self.kinds == "mixed":
                raise InputError('rows names "dense", which has a line of its own beside single pruned models')
        object.__setattr__(self, "rows", tuple(dict.fromkeys(self.rows or known[-1:])))

    @property
    def kinds(self) -> Literal["pruned", "run", "mixed"]:
        """Kind of all cells; mixed: some are single models, others whole runs."""
        every = (dict(zip(self.axes, names, strict=True)) for names in itertools.product(*self.axes.values()))
        found = {self.kind_of(values) for values in every}
        return found.pop() if len(found) == 1 else "mixed"

    def kind_of(self, values: Mapping[str, str]) -> Kind:
        """Return the kind of the cell of these values."""
        named = [kind for change in self._of_values(values) if (kind := _as_kind(change))]
        return named[-1] if named else self.kind

    def changes(self, values: Mapping[str, str]) -> tuple[str, ...]:
        """Return what a cell of these values changes in the recipe, its seed aside."""
        return (*self.set, *(change for change in self._of_values(values) if not _as_kind(change)))

    def _of_values(self, values: Mapping[str, str]) -> list[str]:
        return [change for axis, value in values.items() for change in self.axes[axis][value]]


def _as_kind(change: str) -> Kind | None:
    """Return the kind that a change of an axis names; none: it changes the recipe."""
    key, _, value = change.partition("=")
    if key.strip() != "kind":
        return None
    for kind in get_args(Kind):
        if value.strip().strip("'\"") == kind:
            return cast(Kind, kind)
    raise InputError(f'kind = {value.strip()} must be "pruned" or "run"')


class Cell(NamedTuple):
    """One model, or one run, of a study."""

    values: dict[str, str]
    """Axis -> value; a dense parent of kind pruned has those that change it only."""
    seed: int
    recipe: Recipe
    made: dict[str, Task]
    """Row -> the task that makes it."""
    attacks: dict[str, Task]
    """Of a single model, by label: the tasks that attack the model."""
    report: Task | None
    """Of a whole run: the task whose artifact holds the summary."""

    @property
    def tasks(self) -> list[Task]:
        """All tasks of the cell, those it shares with others included."""
        tasks: dict[str, Task] = {}
        waiting = [*self.made.values(), *self.attacks.values(), *([self.report] if self.report else [])]
        while waiting:
            task = waiting.pop()
            if task.hash not in tasks:
                tasks[task.hash] = task
                waiting += task.inputs.values()
        return list(tasks.values())

    @property
    def label(self) -> str:
        """Say which cell it is."""
        named = ["dense parent"] if "dense" in self.made else []
        named += [f"{axis} = {value}" for axis, value in self.values.items()]
        return ", ".join([*named, f"seed {self.seed}"])

    @property
    def identity(self) -> tuple[str, ...]:
        """Hashes of what is measured: cells with equal ones hold the same model under the same attacks."""
        return tuple(task.hash for task in self.attacks.values())


def load_study(name: str) -> Study:
    """Read a shipped study by its name, or a study file."""
    path, table = read_named(name, "study")
    study = from_dict(Study, table)
    beside = path.parent / study.recipe
    return replace(study, title=study.title or path.stem, recipe=str(beside) if beside.is_file() else study.recipe)


def cells(study: Study, change: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> list[Cell]:
    """Expand a study; the dense parents of single pruned models come first.

    Args:
        study: its axes and seeds.
        change: changes the recipe of each cell, such as its data set.
    """
    expanded: list[Cell] = []
    parents: list[Cell] = []
    checked: dict[str, Graph] = {}
    for seed in study.seeds:
        for chosen in itertools.product(*(values.items() for values in study.axes.values())):
            values = dict(zip(study.axes, (name for name, _ in chosen), strict=True))
            recipe = _recipe(study, values, seed, change, checked)
            if study.kind_of(values) == "run":
                report = build_graph(recipe, study.title, f"a cell of {study.title}").until["report"][0]
                expanded.append(Cell(values, seed, recipe, {}, {}, report))
                continue
            dense, one_fold = parent_task(recipe), replace(recipe.prune, folds=1)
            title = ", ".join([*values.values(), f"seed {seed}"])
            pruned = prune_task(recipe, one_fold, dense, f"prune {title}", one_fold.scores[0], 1, recipe.sparsity)
            expanded.append(_single(values, seed, recipe, "pruned", pruned, title))
            dense = replace(dense, title=f"{dense.title}, seed {seed}")
            parents.append(_single(values, seed, recipe, "dense", dense, f"dense parent, seed {seed}"))
    return [*_distinct(parents, list(study.axes)), *expanded]


def _single(values: dict[str, str], seed: int, recipe: Recipe, row: str, task: Task, title: str) -> Cell:
    """Return the cell of a single model, attacked as `evaluate.attacks` says."""
    attacks = {
        attack.label: Task(
            f"attack {title}: {attack.label}",
            AttackStage(row=row, attack=attack, **row_settings(recipe)),
            {row: task},
            cost=10,
        )
        for attack in attacks_on_row(row, recipe)
    }
    return Cell(values, seed, recipe, {row: task}, attacks, None)


def _distinct(parents: list[Cell], axes: list[str]) -> list[Cell]:
    """Return each dense parent once, named by the values of those axes that make a difference to it.

    Parents that differ by more than their seed must not stand in one line, as if they were draws of the same.
    """
    relevant = []
    for axis in axes:
        groups: dict[tuple[Any, ...], set[tuple[str, ...]]] = {}
        for cell in parents:
            others = tuple(value for name, value in cell.values.items() if name != axis)
            groups.setdefault((cell.seed, others), set()).add(cell.identity)
        if any(len(identities) > 1 for identities in groups.values()):
            relevant.append(axis)
    distinct: dict[tuple[Any, ...], Cell] = {}
    for cell in parents:
        values = {axis: cell.values[axis] for axis in relevant}
        distinct.setdefault((cell.seed, *values.values()), cell._replace(values=values))
    return list(distinct.values())


def _recipe(
    study: Study, values: Mapping[str, str], seed: int, change: Callable[[Recipe], Recipe], checked: dict[str, Graph]
) -> Recipe:
    """Return the recipe of a cell, changed and checked against its data.

    Args:
        study: its axes.
        values: of the cell.
        seed: of the cell.
        change: changes the recipe.
        checked: networks that were checked for other cells; receives that of this one.
    """
    single = study.kind_of(values) == "pruned"
    try:
        changes = (*(SINGLE_MODEL if single else ()), *study.changes(values), f"seed={seed}")
        recipe = change(load_recipe(study.recipe, changes)[1])
        validate_recipe(recipe, (recipe.sparsity,) if single else (), deploys=not single, checked=checked)
    except InputError as error:
        cell = ", ".join(f"{axis} = {value}" for axis, value in values.items())
        raise InputError(f"in the cell {cell}: {error}") from None
    return recipe
