"""The whole method, top to bottom: from a recipe to the graph of its stages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.suite import full_suite
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.interfaces import combiners
from sparsemble.evaluation.run_models import ROWS, RunIndex
from sparsemble.pipeline.recipe import Prune, Recipe
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.attack import AttackStage, CurveStage
from sparsemble.pipeline.stages.evaluate import EvaluateStage, claimed_sparsity
from sparsemble.pipeline.stages.export import ExportStage
from sparsemble.pipeline.stages.latency import LatencyStage
from sparsemble.pipeline.stages.models import (
    CalibrateStage,
    EnsembleStage,
    LoadParentStage,
    PruneStage,
    SelectStage,
    SmallDenseStage,
    TrainStage,
)
from sparsemble.pipeline.stages.report import ReportStage
from sparsemble.pruning.granularities.n_m import NM
from sparsemble.pruning.granularities.weight import Weight
from sparsemble.pruning.score import PruningScore
from sparsemble.pruning.scores.erm import ERM

CURVE_ROWS = ("dense", "harp", "ensemble_static")
"""Rows that have a security curve."""
Tasks = Mapping[str, Task]
"""Tasks by role."""


class RunGraph(NamedTuple):
    """The tasks of a run, in reading order, and where each command stops."""

    tasks: list[Task]
    until: Mapping[str, list[Task]]


def build_graph(recipe: Recipe, title: str, command: str) -> RunGraph:
    """Return the graph of a run; nothing is computed.

    Args:
        recipe: the settings.
        title: name of the run, for the report.
        command: what reproduces the run, for the report.
    """
    models, pool = model_tasks(recipe)
    attacks = _attack_tasks(recipe, models, pool)
    latency_stage = LatencyStage(seed=recipe.seed, data=recipe.data, combiner=recipe.ensemble.combiner)
    latency = Task("measure latency", latency_stage, {**models, **pool}, cost=2, alone=True)
    evaluate_stage = EvaluateStage(
        sparsity=recipe.sparsity,
        member_sparsity=recipe.member_sparsity,
        parent_trained_here=recipe.parent is None,
        **row_settings(recipe),
    )
    evaluate = Task("evaluate", evaluate_stage, {**models, **pool, **attacks, "latency": latency}, cost=6)
    report_stage = ReportStage(seed=recipe.seed, title=title, command=command, recipe=recipe)
    report = Task("write the report", report_stage, {**models, "evaluate": evaluate, "latency": latency}, cost=4)
    deployed = {role: models[role] for role in ("dense", "ensemble", "stop")}
    export_stage = ExportStage(seed=recipe.seed, title=title, recipe=recipe)
    export = Task("export the ensemble", export_stage, {**deployed, "report": report}, cost=3)
    dense, *others = models.values()
    tasks = [dense, *pool.values(), *others, *attacks.values(), latency, evaluate, report, export]
    until = {
        "train": [dense],
        "prune": list(pool.values()),
        "select": [models["select"]],
        "ensemble": [models["ensemble"]],
        "calibrate": [models["stop"]],
        "evaluate": [evaluate],
        "report": [report],
        "export": [report, export],
    }
    return RunGraph(tasks, until)


def model_tasks(recipe: Recipe) -> tuple[dict[str, Task], dict[str, Task]]:
    """Return the tasks that make models and what selects among them, and the pool of sub-models, by role.

    EED main paper: the dense parent, eqs. 1-2; a sub-model for each score and data fold, and the selection among them,
    section 4.1; training of the ensemble, in which the parent may teach, 4.2 and 4.3; the stopping rule, 4.4.
    """
    settings, combiner = _model_settings(recipe), recipe.ensemble.combiner
    dense = parent_task(recipe)
    pool = {
        f"pool.{score.name}-{fold}": prune_task(
            recipe, recipe.prune, dense, f"prune {score.name}-{fold}", score, fold, recipe.member_sparsity
        )
        for score, fold in recipe.prune.pool
    }
    select_stage = SelectStage(select=recipe.select, members=recipe.members, combiner=combiner, **settings)
    select = Task("select the ensemble", select_stage, pool, cost=2)
    ensemble_stage = EnsembleStage(
        ensemble=recipe.ensemble, eval_every=recipe.train.eval_every, precision=recipe.precision, **settings
    )
    cost = recipe.ensemble.epochs * 2.5 * recipe.members
    ensemble = Task("train the ensemble", ensemble_stage, {"dense": dense, "select": select, **pool}, cost=cost)
    stop_stage = CalibrateStage(stopping=recipe.stopping, **settings)
    stop = Task("calibrate the stopping rule", stop_stage, {"ensemble": ensemble}, cost=8)
    harp, small_dense = _baseline_tasks(recipe, dense, select)
    models = {"dense": dense, "select": select, "ensemble": ensemble, "stop": stop}
    return {**models, "harp": harp, "small_dense": small_dense}, pool


def parent_task(recipe: Recipe) -> Task:
    """Train one dense parent adversarially, unless the recipe names a trained one."""
    if recipe.parent:
        epochs = recipe.parent.finetune_epochs
        stage = LoadParentStage(
            model=recipe.model,
            parent=recipe.parent,
            finetune=replace(recipe.train, epochs=epochs) if epochs else None,
            precision=recipe.precision,
            **_model_settings(recipe),
        )
        title = "load and fine-tune the dense parent" if epochs else "load the dense parent"
        return Task(title, stage, {}, cost=max(epochs, 1))
    return Task("train the dense parent", _train_stage(recipe), {}, cost=recipe.train.epochs)


def prune_task(
    recipe: Recipe, prune: Prune, dense: Task, title: str, score: PruningScore, fold: int, sparsity: float
) -> Task:
    """Prune the dense parent with one score on one fold of the images.

    Args:
        recipe: the settings of the run.
        prune: the settings of the pruning.
        dense: the task of the parent.
        title: for people.
        score: rates the weights.
        fold: number of the data fold, counted from 1.
        sparsity: of this sub-model, in [0, 1).
    """
    stage = PruneStage(
        prune=replace(prune, scores=(score,)),
        score=score,
        fold=fold,
        sparsity=sparsity,
        eval_every=recipe.train.eval_every,
        precision=recipe.precision,
        **_model_settings(recipe),
    )
    fraction = 2 / max(prune.folds, 2)
    return Task(title, stage, {"dense": dense}, cost=1.3 * prune.finetune_epochs * fraction)


def _baseline_tasks(recipe: Recipe, dense: Task, select: Task) -> tuple[Task, Task]:
    """What the ensemble is compared with: one HARP model of the same total sparsity, one small dense network.

    The HARP model learns its mask on all images and is fine-tuned as long as a sub-model and the ensemble together. It
    keeps single weights where the members are N:M, which has one sparsity only. The multiply-accumulates of the
    selected members decide the width of the small network.
    """
    longer = replace(recipe.prune, folds=1, finetune_epochs=recipe.prune.finetune_epochs + recipe.ensemble.epochs)
    if isinstance(longer.granularity, NM):
        longer = replace(longer, granularity=Weight())
    harp = prune_task(recipe, longer, dense, "prune the single HARP model", ERM(), 1, recipe.sparsity)
    stage = SmallDenseStage(seed=recipe.seed, parent=_train_stage(recipe))
    small = Task("train the small dense network", stage, {"select": select}, cost=0.4 * recipe.train.epochs)
    return harp, small


def _attack_tasks(recipe: Recipe, models: Tasks, pool: Tasks) -> dict[str, Task]:
    """Every attack on every row, and the security curves; one task each, so that they run side by side."""
    tasks = {}
    for row in ROWS:
        for attack in attacks_on_row(row, recipe):
            stage = AttackStage(row=row, attack=attack, **row_settings(recipe))
            # Long ones start first, so that none is left alone at the end.
            long = 10 if attack.label.startswith("autoattack") else 3 if isinstance(attack, Slowdown) else 1
            cost = long * (4.0 if row.startswith("ensemble") else 1.0)
            title = f"attack {row}: {attack.label}"
            tasks[f"attack.{row}.{attack.label}"] = Task(title, stage, _row_inputs(row, models, pool), cost=cost)
    settings = recipe.evaluate
    for row in CURVE_ROWS if settings.curve_eps else ():
        curve = CurveStage(
            row=row,
            attack=settings.curve_attack,
            eps=settings.curve_eps,
            curve_images=settings.curve_images,
            **row_settings(recipe),
        )
        cost = 5.0 if row.startswith("ensemble") else 1.5
        tasks[f"curve.{row}"] = Task(f"security curve of {row}", curve, _row_inputs(row, models, pool), cost=cost)
    return tasks


def attacks_on_row(row: str, recipe: Recipe) -> tuple[EnsembleAttack, ...]:
    """Return the attacks on a row, each once.

    What is crafted for the static ensemble is evaluated on the dynamic one, too; beside it the dynamic row is attacked
    where it stops early: on shorter prefixes, on the expected prediction, by queries, and on the stopping rule itself.
    """
    listed = tuple(
        SurrogateAttack(attack=attack, surrogate=FullEnsemble(), label=attack.label)
        for attack in recipe.evaluate.attacks
    )
    if not row.startswith("ensemble"):
        return listed
    others = [combiners.build(name) for name in combiners.names() if name != recipe.ensemble.combiner.name]
    adaptive, black_box = recipe.evaluate.adaptive, recipe.evaluate.black_box
    static = full_suite(recipe.members, [adaptive], others, stops_early=False)
    if row == "ensemble_static":
        return listed + static
    everything = full_suite(recipe.members, [adaptive], others, black_box=black_box)
    first = SurrogateAttack(attack=adaptive, surrogate=Prefix(length=1)).label  # the first member alone is in `static`
    known = {attack.label for attack in static} | {first}
    return tuple(attack for attack in everything if attack.label not in known)


def run_index(recipe: Recipe) -> RunIndex:
    """Return what is needed to load the models of a run from its folder."""
    models, pool = model_tasks(recipe)
    return RunIndex(
        data=recipe.data,
        threat=recipe.threat,
        combiner=recipe.ensemble.combiner,
        rows={row: {role: task.folder for role, task in _row_inputs(row, models, pool).items()} for row in ROWS},
        claimed_sparsity=claimed_sparsity(recipe.sparsity, recipe.member_sparsity),
        extra_data="none" if recipe.parent is None else None,
    )


def _row_inputs(row: str, models: Tasks, pool: Tasks) -> Tasks:
    """Return the tasks that a row of the result table is loaded from."""
    if row == "best_member":
        return {"select": models["select"], **pool}
    if row == "ensemble_dynamic":
        return {"ensemble": models["ensemble"], "stop": models["stop"]}
    if row == "ensemble_static":
        return {"ensemble": models["ensemble"]}
    return {row: models[row]}


def _train_stage(recipe: Recipe) -> TrainStage:
    """Return the stage that trains a network from fresh weights."""
    return TrainStage(model=recipe.model, train=recipe.train, precision=recipe.precision, **_model_settings(recipe))


def _model_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all stages share that make models."""
    return {name: getattr(recipe, name) for name in ("seed", "data", "threat", "held_out_attack")}


def row_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all stages share that evaluate rows."""
    shared = {name: getattr(recipe, name) for name in ("seed", "data", "threat")}
    return {**shared, "combiner": recipe.ensemble.combiner, "images": recipe.evaluate.images}
