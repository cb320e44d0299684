"""How fast this machine trains, prunes and attacks the networks of a recipe."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn

from sparsemble.api.context import Context
from sparsemble.attacks.pgd import PGD
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Ensemble, members_of
from sparsemble.core.module_state import copy_network
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.types import seeded
from sparsemble.data.dataset import Dataset, Split, TensorSplit
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.run_attacks import run_attacks
from sparsemble.evaluation.work import Work, expected_work
from sparsemble.models.architecture import Architecture
from sparsemble.models.graph import Graph
from sparsemble.models.plain_network import prunable_layers
from sparsemble.models.tiny import Tiny
from sparsemble.pipeline.choice import fit, possible_widths, with_width
from sparsemble.pipeline.estimate import SECONDS, Throughput, Unit, learning_epochs
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Inputs, WithData, dataset, stages
from sparsemble.pipeline.stages.models import load_parent, narrowed
from sparsemble.pruning.method import PruningContext
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.batches import Batches
from sparsemble.training.fit import fit as train_network
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.schedule import Schedule

ATTACK, ATTACKED, FEW = PGD(steps=10, stop_at_success=False), 100, 8
"""What is timed as an attack, and on how many images at a time: many, and few."""
LEAST_STEPS = 4
"""Training steps that are timed, at least."""
MACS = 0.8
"""The share of multiply-accumulates that pruning leaves, at a guess, over the root of the share of weights: the small
dense network is not known before the ensemble is selected."""
THROUGHPUT = "throughput.json"
BUDGET = 2.0
"""Seconds of a measurement, about; there are six for each width."""
FORWARD, CALLS = 32, 2
"""Images of the forward pass, and batches of each loss, where work is counted and not measured."""
NARROW, MASKED = 0.7, 1.3
"""Time of a step of the small dense network and of one that learns a mask, over a plain one's, where not measured."""
COUNTED_SIDE, COUNTED_WIDTH = 16, 4
"""Side of the images, and channels of the network, on which passes are counted."""
POSITIVE = re.compile(r"\b(?!0\.0+\b)\d+\.\d+")
LEARNING_RATE = 1e-6
"""Of steps that are only timed."""


@final
@stages.register("throughput")
@dataclass(frozen=True, kw_only=True)
class ThroughputStage(WithData):
    """Time a few steps of each kind of training, and an attack, while other workers do the same."""

    recipe: Recipe
    """With the minutes and widths to choose for."""
    copy: int
    """Number of the worker, from 1."""
    workers: int
    """All of them."""

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `throughput.json`: by width of the network, from the narrowest to the first that is too slow."""
        data = dataset(self.data).to(context.device)
        found: dict[str, Throughput] = {}
        for width in possible_widths(self.recipe, data) or (None,):
            recipe = with_width(self.recipe, width)
            throughput = measure(recipe, data, context.device, BUDGET)
            found["" if width is None else str(width)] = throughput
            if width is None or fit(recipe, width, data, throughput, self.workers).factor < 1:
                break
        write_json(context.output / THROUGHPUT, {width: vars(throughput) for width, throughput in found.items()})


def measure(recipe: Recipe, data: Dataset, device: torch.device, budget: float) -> Throughput:
    """Return the seconds that an image takes in each kind of work.

    Args:
        recipe: networks, losses and schedules.
        data: its images, on the device.
        device: where the work runs.
        budget: seconds of each measurement, about.
    """
    return _Measurement(recipe=recipe, data=data, device=device, budget=budget).throughput()


def per_image_and_call(many: int, slow: float, quick: float) -> dict[str, float]:
    """Return the seconds of an image and those of a call beyond them.

    Args:
        many: images of the slow call.
        slow: its seconds.
        quick: seconds of a call with `FEW` images.
    """
    if many <= FEW or slow <= quick:
        return {"attack": slow / many, "call": 0.0}
    image = (slow - quick) / (many - FEW)
    return {"attack": image, "call": max(0.0, quick - FEW * image)}


@final
@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Passes that an image takes in a step of each training."""

    train: Work
    finetune: Work
    ensemble: Work

    @staticmethod
    def of(recipe: Recipe, data: Dataset, counted: dict[str, Work] | None = None) -> "StepWork":
        """Count the passes of each loss on two images through a small network; other networks take as many.

        Args:
            recipe: its losses.
            data: its images.
            counted: what was counted for other recipes, by loss; receives what is counted here.
        """
        known = {} if counted is None else counted
        side = min(COUNTED_SIDE, *data.shape[1:])
        classes, channels = len(data.classes), data.shape[0]
        images, labels = torch.rand(2, channels, side, side, generator=seeded(0)), torch.arange(2) % classes

        def network() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                return Tiny(width=COUNTED_WIDTH).build(channels, classes)

        def step(loss: TrainingLoss, members: int = 0) -> Work:
            # Of a weight, only whether it is 0 decides how many passes a loss takes.
            key = repr((POSITIVE.sub("positive", repr(loss)), members, recipe.threat.norm))
            if key not in known:
                combined = (
                    Ensemble([network() for _ in range(members)], recipe.ensemble.combiner) if members else network()
                )
                rng, complete = seeded(0), loss.with_teacher(network().eval()).at(1.0)
                with count_passes(*members_of(combined)) as passes:
                    for _ in range(CALLS):
                        complete(combined.train(), images, labels, recipe.threat, rng=rng).loss.backward()
                known[key] = Work(passes.forward, passes.backward).times(1 / (2 * CALLS))
            return known[key]

        return StepWork(
            train=step(recipe.train.loss),
            finetune=step(recipe.prune.loss),
            ensemble=step(recipe.ensemble.loss, recipe.members),
        )

    def throughput(self, unit: Unit, attack: float, call: float = 0.0) -> Throughput:
        """Return throughput from the passes of each step.

        Args:
            unit: what work is expressed in.
            attack: of a forward pass of an image.
            call: of a forward pass of a batch beyond its images, >= 0.
        """
        second = attack + call / FORWARD
        train, finetune, ensemble = (
            second * work.weighed(unit.backward) for work in (self.train, self.finetune, self.ensemble)
        )
        timed = unit == SECONDS
        return Throughput(
            train=train,
            narrow=NARROW * train if timed else train,
            mask=MASKED * finetune if timed else finetune,
            finetune=finetune,
            ensemble=ensemble,
            attack=attack,
            call=call,
        )


def counted_throughput(recipe: Recipe) -> Throughput:
    """Return throughput from the passes of each loss and the time of one forward pass."""
    data = dataset(recipe.data)
    dense = load_parent(recipe.model, recipe.parent, data)
    images = data.train.images(torch.arange(min(FORWARD, len(data.train))))

    def forward(count: int) -> float:
        with torch.no_grad():
            dense(images[:count])
            started = time.perf_counter()
            dense(images[:count])
        return time.perf_counter() - started

    attack = per_image_and_call(len(images), forward(len(images)), forward(FEW))
    return StepWork.of(recipe, data).throughput(SECONDS, **attack)


@final
@dataclass(frozen=True, kw_only=True)
class _Measurement:
    recipe: Recipe
    data: Dataset
    device: torch.device
    budget: float

    def throughput(self) -> Throughput:
        """Measure everything."""
        recipe = self.recipe
        dense = self._network(recipe.model)
        narrow_model = narrowed(recipe.model, self.data, self._ensemble_macs(dense))
        ensemble = Ensemble([copy_network(dense) for _ in range(recipe.members)], recipe.ensemble.combiner).train()
        finetune_loss = recipe.prune.loss.with_teacher(dense)
        return Throughput(
            train=self._training(dense, recipe.train.loss, recipe.train.schedule),
            narrow=self._training(self._network(narrow_model), recipe.train.loss, recipe.train.schedule),
            mask=self._learning(dense, finetune_loss),
            finetune=self._training(copy_network(dense), finetune_loss, recipe.prune.schedule),
            ensemble=self._training(ensemble, recipe.ensemble.loss.with_teacher(dense), recipe.ensemble.schedule),
            **self._attack(dense),
        )

    def _network(self, model: Architecture) -> nn.Module:
        parent = self.recipe.parent if model is self.recipe.model else None
        return load_parent(model, parent, self.data).to(self.device)

    def _ensemble_macs(self, dense: nn.Module) -> int:
        """Return the multiply-accumulates of the selected members, at a guess."""
        share: float = MACS * (1 - self.recipe.sparsity) ** 0.5
        return round(share * count_macs(dense, self.data.shape).dense)

    def _seconds(self, size: int, work: Callable[[Split], object]) -> float:
        """Return the seconds of an image in work that goes through a split in batches of this size."""
        images = self.data.train
        one = images.subset(torch.arange(size, device=images.labels.device))
        work(one)  # the first batch fills caches
        first = self._timed(work, one)
        steps = min(len(images) // size, max(round(self.budget / first), LEAST_STEPS))
        some = images.subset(torch.arange(steps * size, device=images.labels.device))
        return self._timed(work, some) / (steps * size)

    def _timed(self, work: Callable[[Split], object], images: Split) -> float:
        started = time.perf_counter()
        work(images)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def _size(self, schedule: Schedule) -> int:
        return min(schedule.batch_size, len(self.data.train))

    def _training(self, network: nn.Module, loss: TrainingLoss, schedule: Schedule) -> float:
        """Time the steps of a training; those of a warm-up are not counted as cheaper."""
        size = self._size(schedule)

        def train(images: Split) -> None:
            train_network(
                network,
                loss.at(1.0),
                Batches(split=images, batch_size=size, augmentation=self.data.augmentation),
                replace(schedule, learning_rate=LEARNING_RATE),
                epochs=1,
                threat=self.recipe.threat,
                rng=seeded(0, self.device),
                precision=replace(self.recipe.precision, compile=False),
            )

        return self._seconds(size, train)

    def _learning(self, dense: nn.Module, loss: TrainingLoss) -> float:
        """Time the steps in which a pruning method learns a mask."""
        prune = self.recipe.prune
        if not learning_epochs(prune.method):
            return 0.0
        size = self._size(prune.schedule)
        settings = {name: getattr(prune, name) for name in ("granularity", "budget", "rates", "floor")}
        graph = Graph(dense, self.data.shape)
        target = SparsityTarget(graph=graph, sparsity=self.recipe.member_sparsity, **settings)
        method = replace(prune.method, epochs=1)  # type: ignore[type-var]

        def learn(images: Split) -> None:
            context = PruningContext(
                batches=Batches(split=images, batch_size=size, augmentation=self.data.augmentation),
                loss=loss.at(1.0),
                threat=self.recipe.threat,
                rng=seeded(0, self.device),
                precision=replace(self.recipe.precision, compile=False),
            )
            scores = {name: layer.weight.detach().abs() for name, layer in prunable_layers(dense).items()}
            method(dense, scores, target, context)

        return self._seconds(size, learn)

    def _attack(self, dense: nn.Module) -> dict[str, float]:
        """Time a unit of work of an attack, as the evaluator runs it, on many and on few images."""
        units = expected_work(ATTACK, 1, len(self.data.classes)).units

        def attack(images: Split) -> None:
            x, _ = images.tensors()
            with torch.no_grad():  # only what is classified correctly is attacked
                y = dense(x).argmax(1)
            split = TensorSplit(x, y)
            run_attacks(EvaluationJob(model=dense, split=split, threat=self.recipe.threat, attacks=(ATTACK,)))

        many = min(ATTACKED, len(self.data.train))
        return per_image_and_call(many, *(size * self._seconds(size, attack) / units for size in (many, FEW)))
