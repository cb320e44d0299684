"""How long the stages of a run take, from throughput that was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from sparsemble.attacks.attack import Attack
from sparsemble.data.dataset import Dataset
from sparsemble.evaluation.job import AnyAttack
from sparsemble.evaluation.run_models import ROWS
from sparsemble.evaluation.work import BACKWARD, expected_shard, expected_work
from sparsemble.pipeline.makespan import makespan
from sparsemble.pipeline.recipe import Prune, Recipe, Train
from sparsemble.pipeline.stage import Stage, Task
from sparsemble.pipeline.stages.attack import SHARD, AttackStage, CurveStage
from sparsemble.pipeline.stages.evaluate import BUDGET, EvaluateStage
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
from sparsemble.pruning.method import PruningMethod

FIXED = {"attack": 0.5, "curve": 0.5, "latency": 6.0, "evaluate": 4.0, "report": 4.0, "export": 5.0}
"""Seconds of a stage that do not depend on the network."""
TIMED = 6_000
"""Forward passes of one network whose latency is measured."""
CHECKED = 4_000
"""Units of work of the checks of a row, at least."""
CURVE = 0.4
"""Work at a radius of a security curve: of the images, fewer and fewer withstand it."""


@final
@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Seconds that an image takes on one worker, while the others work, too."""

    train: float
    """A step of the dense parent's training."""
    narrow: float
    """The same of the small dense network."""
    mask: float
    """A step of learning a mask; 0 of a method that learns none."""
    finetune: float
    """A step of fine-tuning a sub-model."""
    ensemble: float
    """A step of the ensemble's training."""
    attack: float
    """A unit of work of an attack on the dense network: about a forward pass."""
    call: float
    """Seconds of a unit of work of a batch beyond those of its images: what a call costs however few they are."""

    def slower(self, other: "Throughput") -> "Throughput":
        """Return the slower of two measurements, one by one."""
        return Throughput(**{name: max(value, getattr(other, name)) for name, value in vars(self).items()})


@final
@dataclass(frozen=True)
class Unit:
    """What the work of a stage is expressed in."""

    backward: float
    """Forward passes that a backward pass counts as."""
    fixed: float
    """Factor on the seconds of a stage that do not depend on the network."""


SECONDS = Unit(BACKWARD, 1.0)


@final
@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the time of a stage depends on beside its own settings."""

    throughput: Throughput
    unit: Unit = SECONDS
    """Of `seconds`, with a throughput of the same unit."""
    train: int
    """Training images."""
    selection: int
    """Held-out images that choose epochs and members."""
    calibration: int
    """Held-out images that calibrate."""
    test: int
    classes: int
    members: int
    """Of the ensemble."""

    @staticmethod
    def of(recipe: Recipe, data: Dataset, throughput: Throughput, unit: Unit = SECONDS) -> "Workload":
        """Return the workload of a recipe.

        Args:
            recipe: gives the members.
            data: its images.
            throughput: of its networks, in this unit.
            unit: what the work is expressed in.
        """
        return Workload(
            throughput=throughput,
            unit=unit,
            train=len(data.train),
            selection=len(data.selection),
            calibration=len(data.calibration),
            test=len(data.test),
            classes=len(data.classes),
            members=recipe.members,
        )

    def seconds(self, task: Task) -> float:
        """Return the expected seconds of a task."""
        match stage := task.stage:
            case TrainStage():
                return self._training(stage.train, stage.held_out_attack, self.throughput.train)
            case SmallDenseStage(parent=TrainStage() as parent):
                return self._training(parent.train, parent.held_out_attack, self.throughput.narrow)
            case LoadParentStage():
                tuned = stage.finetune
                tuning = self._training(tuned, stage.held_out_attack, self.throughput.train) if tuned else 0.0
                return self._probes(2, stage.held_out_attack) + tuning
            case PruneStage():
                return self._pruning(stage)
            case SelectStage():
                return self._probes(2 * len(task.inputs), stage.held_out_attack)
            case EnsembleStage():
                epochs = stage.ensemble.epochs
                probes = self.members * (evaluations(epochs, stage.eval_every) + 1)
                return epochs * self.train * self.throughput.ensemble + self._probes(probes, stage.held_out_attack)
            case CalibrateStage():
                return self._calibration(stage)
        return self._evaluation(task)

    def _evaluation(self, task: Task) -> float:
        """Return the expected seconds of a task that trains nothing."""
        match stage := task.stage:
            case AttackStage():
                return self._fixed(stage) + self._attack(stage.row, stage.attack, stage.images or self.test)
            case CurveStage():
                radius = self._attack(stage.row, stage.attack, stage.curve_images)
                return self._fixed(stage) + CURVE * len(stage.eps) * radius
            case LatencyStage():
                return self._fixed(stage) + self.throughput.attack * TIMED * (len(ROWS) - 2 + 2 * self.members)
            case EvaluateStage():
                return self._fixed(stage) + sum(self._checks(row, task) for row in ROWS)
        return self._fixed(stage)

    def _fixed(self, stage: Stage) -> float:
        return self.unit.fixed * FIXED.get(stage.name, 1.0)

    def _attack(self, row: str, attack: AnyAttack, images: int) -> float:
        """Return the seconds of an attack on so many images of a row."""
        members, throughput = self._members(row), self.throughput
        work = expected_shard(attack, members, self.classes, images).weighed(self.unit.backward)
        batches = -(-images // SHARD)
        each = expected_work(attack, members, self.classes).weighed(self.unit.backward)
        return throughput.attack * work + throughput.call * each * batches

    def _checks(self, row: str, evaluate: Task) -> float:
        """Return the seconds of the checks of a row."""
        attacks = [task.stage for task in evaluate.inputs.values() if isinstance(task.stage, AttackStage)]
        seconds = [self._attack(row, a.attack, a.images or self.test) for a in attacks if a.row == row]
        least = CHECKED * self._members(row) * self.throughput.attack
        return least + BUDGET * max(seconds, default=0.0)

    def _members(self, row: str) -> int:
        return self.members if row.startswith("ensemble") else 1

    def _probes(self, count: int, attack: Attack, images: int = 0) -> float:
        """Return the seconds of so many measurements of a network on held-out images, clean and attacked."""
        each = expected_work(attack, 1, self.classes).weighed(self.unit.backward) + 2
        return count * each * ((images or self.selection) * self.throughput.attack + self.throughput.call)

    def _training(self, train: Train, attack: Attack, step: float) -> float:
        probes = self._probes(evaluations(train.epochs, train.eval_every), attack) * step / self.throughput.train
        return train.epochs * self.train * step + probes

    def _pruning(self, stage: PruneStage) -> float:
        folds = stage.prune.folds
        images = self.train if folds == 1 else 2 * (self.train // folds)
        steps = learning_epochs(stage.prune.method) * self.throughput.mask
        steps += finetune_epochs(stage.prune) * self.throughput.finetune
        probes = evaluations(finetune_epochs(stage.prune), stage.eval_every) + 2
        return images * steps + self._probes(probes, stage.held_out_attack)

    def _calibration(self, stage: CalibrateStage) -> float:
        prefixes = sum(range(1, self.members + 1))  # and as many members one by one, then all of them
        seconds = self._probes(prefixes + 2 * self.members, stage.held_out_attack, self.calibration)
        for attack in stage.stopping.against:
            work = expected_work(attack, self.members, self.classes)
            image = self.calibration * self.throughput.attack + self.throughput.call
            seconds += stage.stopping.rounds * work.weighed(self.unit.backward) * image
        return seconds


def evaluations(epochs: int, every: int) -> int:
    """Return how often a training is measured on held-out images."""
    return -(-epochs // every)


def learning_epochs(method: PruningMethod) -> int:
    """Return the epochs that a method trains while it chooses the weights that stay."""
    return int(getattr(method, "epochs", 0))


def finetune_epochs(prune: Prune) -> int:
    """Return the epochs after the mask is fixed."""
    return prune.finetune_epochs if prune.method.fine_tunes else 0


def with_costs(tasks: Sequence[Task], seconds: Callable[[Task], float]) -> list[Task]:
    """Return the tasks of a graph, in the same order, with their expected seconds as costs."""
    changed: dict[Task, Task] = {}

    def of(task: Task) -> Task:
        if task not in changed:
            inputs = {role: of(needed) for role, needed in task.inputs.items()}
            changed[task] = replace(task, inputs=inputs, cost=seconds(task))
        return changed[task]

    return [of(task) for task in tasks]


def graph_seconds(tasks: Sequence[Task], workers: int, workload: Workload | None = None) -> float:
    """Return the expected seconds of the tasks of a graph.

    Args:
        tasks: with all that they need.
        workers: tasks that run at the same time, at most.
        workload: gives the seconds of each; none: its cost.
    """
    seconds = {task: workload.seconds(task) if workload else float(task.cost) for task in tasks}
    needs = {task: [needed for needed in task.inputs.values() if needed in seconds] for task in tasks}
    return makespan(needs, workers, seconds, alone={task for task in tasks if task.alone})
