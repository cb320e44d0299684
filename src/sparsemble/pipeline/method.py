"""The whole method, top to bottom: from a recipe to the graph of its stages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.hijack import Hijack
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.suite import full_suite
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.interfaces import combiners
from sparsemble.evaluation.run_models import ROWS, RunIndex
from sparsemble.pipeline.recipe import Prune, Recipe
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.stages.attack import AttackStage
from sparsemble.pipeline.stages.curve import CurveStage
from sparsemble.pipeline.stages.evaluate import EvaluateStage
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

COMMANDS = ("train", "prune", "select", "ensemble", "calibrate", "evaluate", "report", "export")
"""The stages that the command line can stop after."""


MADE = ("dense", "select", "ensemble", "stop", "harp", "small_dense")
"""Roles of the tasks between the pool and the attacks, in the order in which they start."""


class Method(NamedTuple):
    """The tasks of a run, in reading order, and where each command stops."""

    tasks: list[Task]
    until: Mapping[str, list[Task]]


def method(recipe: Recipe, title: str, command: str) -> Method:
    """Lay out the stages of a run; nothing is computed.

    Args:
        recipe: the settings.
        title: name of the run, for the report.
        command: what reproduces the run, for the report.
    """
    made, pool = lay_out(recipe)
    attacked = attack(recipe, made, pool)
    latency = Task(
        "measure latency",
        LatencyStage(seed=recipe.seed, data=recipe.data, combiner=recipe.ensemble.combiner),
        made | pool,
        cost=2,
        alone=True,
    )
    evaluated = evaluate(recipe, made, pool, {**attacked, "latency": latency})
    report = Task(
        "write the report",
        ReportStage(seed=recipe.seed, title=title, command=command, recipe=recipe),
        {**made, "evaluate": evaluated, "latency": latency},
        cost=4,
    )
    export = Task(
        "export the ensemble",
        ExportStage(seed=recipe.seed, title=title, recipe=recipe),
        {"dense": made["dense"], "ensemble": made["ensemble"], "stop": made["stop"], "report": report},
        cost=3,
    )
    tasks = [made["dense"], *pool.values(), *(made[name] for name in MADE[1:])]
    tasks += [*attacked.values(), latency, evaluated, report, export]
    until = {
        "train": [made["dense"]],
        "prune": list(pool.values()),
        "select": [made["select"]],
        "ensemble": [made["ensemble"]],
        "calibrate": [made["stop"]],
        "evaluate": [evaluated],
        "report": [report],
        "export": [report, export],
    }
    return Method(tasks, until)


def lay_out(recipe: Recipe) -> tuple[dict[str, Task], dict[str, Task]]:
    """Return the tasks that make models and what chooses among them, by role, and the pool of sub-models."""
    dense = train(recipe)
    pool = prune(recipe, dense)
    select = choose(recipe, pool)
    ensemble = learn_together(recipe, dense, pool, select)
    rule = calibrate(recipe, ensemble)
    harp, small_dense = rivals(recipe, dense, select)
    return dict(zip(MADE, (dense, select, ensemble, rule, harp, small_dense), strict=True)), pool


def train(recipe: Recipe) -> Task:
    """Section 2.1: adversarial training of one dense parent, unless a trained one is brought along."""
    if recipe.parent:
        adopt = LoadParentStage(
            seed=recipe.seed,
            data=recipe.data,
            model=recipe.model,
            threat=recipe.threat,
            parent=recipe.parent,
            held_out_attack=recipe.held_out_attack,
        )
        return Task("take over the dense parent", adopt, {}, cost=1)
    return Task("train the dense parent", training(recipe), {}, cost=recipe.train.epochs)


def training(recipe: Recipe) -> TrainStage:
    """Return the stage that trains a network from fresh weights."""
    return TrainStage(
        seed=recipe.seed,
        data=recipe.data,
        model=recipe.model,
        threat=recipe.threat,
        train=recipe.train,
        held_out_attack=recipe.held_out_attack,
        precision=recipe.precision,
    )


def prune(recipe: Recipe, dense: Task) -> dict[str, Task]:
    """Sections 2.2 to 2.4: one sparse sub-model for each score and data share."""
    return {
        f"pool.{score.name}-{fold}": pruned(
            recipe, recipe.prune, dense, f"prune {score.name}-{fold}", score, fold, recipe.member_sparsity
        )
        for score, fold in recipe.prune.pool
    }


def choose(recipe: Recipe, pool: Mapping[str, Task]) -> Task:
    """Section 2.5: the ensemble, by robust diversity."""
    stage = SelectStage(
        seed=recipe.seed,
        data=recipe.data,
        threat=recipe.threat,
        select=recipe.select,
        members=recipe.members,
        combiner=recipe.ensemble.combiner,
        held_out_attack=recipe.held_out_attack,
    )
    return Task("select the ensemble", stage, pool, cost=2)


def learn_together(recipe: Recipe, dense: Task, pool: Mapping[str, Task], select: Task) -> Task:
    """Section 2.6: ensemble learning; the dense parent may teach."""
    stage = EnsembleStage(
        seed=recipe.seed,
        data=recipe.data,
        threat=recipe.threat,
        ensemble=recipe.ensemble,
        held_out_attack=recipe.held_out_attack,
        eval_every=recipe.train.eval_every,
        precision=recipe.precision,
    )
    inputs = {"dense": dense, "select": select, **pool}
    return Task("train the ensemble", stage, inputs, cost=recipe.ensemble.epochs * 2.5 * recipe.members)


def calibrate(recipe: Recipe, ensemble: Task) -> Task:
    """Section 2.7: the stopping rule."""
    stage = CalibrateStage(
        seed=recipe.seed,
        data=recipe.data,
        threat=recipe.threat,
        stopping=recipe.stopping,
        held_out_attack=recipe.held_out_attack,
    )
    return Task("calibrate the stopping rule", stage, {"ensemble": ensemble}, cost=8)


def rivals(recipe: Recipe, dense: Task, select: Task) -> tuple[Task, Task]:
    """What the ensemble is compared with: one HARP model of the same total sparsity, one small dense network.

    The HARP model learns its mask on all images and is fine-tuned as long as a sub-model and the ensemble together. It
    keeps single weights where the members are N:M, which has one sparsity only.
    """
    longer = replace(recipe.prune, folds=1, finetune_epochs=recipe.prune.finetune_epochs + recipe.ensemble.epochs)
    if isinstance(longer.granularity, NM):
        longer = replace(longer, granularity=Weight())
    harp = pruned(recipe, longer, dense, "prune the single HARP model", ERM(), 1, recipe.sparsity)
    stage = SmallDenseStage(seed=recipe.seed, parent=training(recipe))
    small = Task("train the small dense network", stage, {"select": select}, cost=0.4 * recipe.train.epochs)
    return harp, small


def attack(recipe: Recipe, made: Mapping[str, Task], pool: Mapping[str, Task]) -> dict[str, Task]:
    """Every attack on every row, and the security curves; one task each, so that they run side by side."""
    tasks = {}
    for row in ROWS:
        for one in ensemble_attacks_on(row, recipe):
            stage = AttackStage(
                seed=recipe.seed,
                data=recipe.data,
                threat=recipe.threat,
                combiner=recipe.ensemble.combiner,
                row=row,
                attack=one,
                images=recipe.evaluate.images,
            )
            # Long ones begin first, so that none is left alone at the end.
            long = 10.0 if one.label.startswith("autoattack") else 3.0 if isinstance(one, Hijack | Slowdown) else 1.0
            cost = long * (4.0 if row.startswith("ensemble") else 1.0)
            tasks[f"attack.{row}.{one.label}"] = Task(
                f"attack {row}: {one.label}", stage, row_inputs(row, made, pool), cost=cost
            )
    for row in ("dense", "harp", "ensemble_static") if recipe.evaluate.curve_eps else ():
        curve = CurveStage(
            seed=recipe.seed,
            data=recipe.data,
            threat=recipe.threat,
            combiner=recipe.ensemble.combiner,
            row=row,
            attack=recipe.evaluate.curve_attack,
            eps=recipe.evaluate.curve_eps,
            images=recipe.evaluate.images,
            curve_images=recipe.evaluate.curve_images,
        )
        inputs = row_inputs(row, made, pool)
        cost = 5.0 if row.startswith("ensemble") else 1.5
        tasks[f"curve.{row}"] = Task(f"security curve of {row}", curve, inputs, cost=cost)
    return tasks


def evaluate(recipe: Recipe, made: Mapping[str, Task], pool: Mapping[str, Task], attacked: Mapping[str, Task]) -> Task:
    """Put the attacks together."""
    stage = EvaluateStage(
        seed=recipe.seed,
        data=recipe.data,
        threat=recipe.threat,
        combiner=recipe.ensemble.combiner,
        images=recipe.evaluate.images,
        claimed_sparsity=claimed_sparsity(recipe),
        parent_trained_here=recipe.parent is None,
    )
    return Task("evaluate", stage, {**made, **pool, **attacked}, cost=6)


def claimed_sparsity(recipe: Recipe) -> dict[str, float]:
    """Return the sparsity that the recipe asks for, by row; of ensembles counted against one dense parent."""
    claimed = {"dense": 0.0, "small_dense": 0.0, "best_member": recipe.member_sparsity}
    return {row: claimed.get(row, recipe.sparsity) for row in ROWS}


def run_index(recipe: Recipe) -> RunIndex:
    """Return what is needed to load the models of a run from its folder."""
    made, pool = lay_out(recipe)
    return RunIndex(
        data=recipe.data,
        threat=recipe.threat,
        combiner=recipe.ensemble.combiner,
        rows={row: {role: task.folder for role, task in row_inputs(row, made, pool).items()} for row in ROWS},
        claimed_sparsity=claimed_sparsity(recipe),
        extra_data="none" if recipe.parent is None else None,
    )


def ensemble_attacks_on(row: str, recipe: Recipe) -> tuple[EnsembleAttack, ...]:
    """Return the attacks on a row, none twice.

    What is crafted for the static ensemble is shown to the dynamic one, too; beside it the dynamic row is attacked where
    it stops early: on shorter prefixes, on the expected answer, by queries, and on the stopping rule itself.
    """
    asked = tuple(
        SurrogateAttack(attack=one, surrogate=FullEnsemble(), label=one.label) for one in recipe.evaluate.attacks
    )
    if not row.startswith("ensemble"):
        return asked
    others = [combiners.build(name) for name in combiners.names() if name != recipe.ensemble.combiner.name]
    climb, queries = recipe.evaluate.adaptive, recipe.evaluate.black_box
    static = full_suite(recipe.members, [climb], others, stops_early=False)
    if row == "ensemble_static":
        return asked + static
    known = {one.label for one in static}
    everything = full_suite(recipe.members, [climb], others, black_box=queries)
    first = SurrogateAttack(attack=climb, surrogate=Prefix(length=1)).label  # the first member alone is in `static`
    return tuple(one for one in everything if one.label not in known | {first})


def row_inputs(row: str, made: Mapping[str, Task], pool: Mapping[str, Task]) -> dict[str, Task]:
    """Return the tasks that a row is loaded from."""
    if row == "best_member":
        return {"select": made["select"], **pool}
    if row == "ensemble_dynamic":
        return {"ensemble": made["ensemble"], "stop": made["stop"]}
    if row == "ensemble_static":
        return {"ensemble": made["ensemble"]}
    return {row: made[row]}


def pruned(
    recipe: Recipe, prune: Prune, dense: Task, title: str, score: PruningScore, fold: int, sparsity: float
) -> Task:
    """Prune the dense parent with one score on one share of the images, to a sparsity of its own."""
    stage = PruneStage(
        seed=recipe.seed,
        data=recipe.data,
        threat=recipe.threat,
        prune=replace(prune, scores=(score,)),
        score=score,
        fold=fold,
        sparsity=sparsity,
        held_out_attack=recipe.held_out_attack,
        eval_every=recipe.train.eval_every,
        precision=recipe.precision,
    )
    part = 2 / max(prune.folds, 2)
    return Task(title, stage, {"dense": dense}, cost=1.3 * prune.finetune_epochs * part)
