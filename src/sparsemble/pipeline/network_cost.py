"""What a network costs: its weights, activations and time, and the memory and disk of the stages that use it."""

import math
import time
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.module_state import eval_mode
from sparsemble.data.dataset import Dataset
from sparsemble.data.stand_in import StandIn
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.work import BACKWARD
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Task, WithData, dataset
from sparsemble.pipeline.stages.attack import SHARD, AttackStage, CurveStage
from sparsemble.pipeline.stages.evaluate import EvaluateStage
from sparsemble.pipeline.stages.export import ExportStage
from sparsemble.pipeline.stages.models import (
    CalibrateStage,
    EnsembleStage,
    LoadParentStage,
    PruneStage,
    SelectStage,
    SmallDenseStage,
    TrainStage,
    load_parent,
)

LARGEST_BATCH = 64
"""Images of a step that is timed, at most."""
PROCESS = 400e6
"""Bytes of a worker process with torch, before it reads anything."""
FLOAT = 4
"""Bytes of a weight or an activation."""
TRAINED = 4
"""Copies of the weights in a training: weights, gradients, momentum, and an average or a best epoch."""
CHECKPOINT = 3
"""Copies of the weights in the checkpoint of a running training."""


@final
@dataclass(frozen=True)
class DenseNetwork:
    """The dense network of a recipe."""

    weights: int
    macs: int
    activations: int
    """Numbers that its layers return for one image."""
    model: nn.Module
    shape: tuple[int, int, int]

    @staticmethod
    def of(recipe: Recipe, data: Dataset) -> "DenseNetwork":
        """Make the network and count."""
        model = load_parent(recipe.model, recipe.parent, data)
        weights = sum(parameter.numel() for parameter in model.parameters())
        return DenseNetwork(
            weights, count_macs(model, data.shape).dense, _activations(model, data.shape), model, data.shape
        )

    def second(self, budget: float, device: torch.device) -> float:
        """Measure the seconds of a forward pass of an image on one worker, from steps of an attack.

        Args:
            budget: seconds that this may take, about.
            device: where it runs.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        try:
            model = self.model.to(device)
            first = self._step(model, 2, device)
            first = min(first, self._step(model, 2, device))
            batch = max(2, min(LARGEST_BATCH, int(budget / 3 / (first / 2))))
            ends, best = time.perf_counter() + budget, math.inf
            while time.perf_counter() < ends or best == math.inf:
                best = min(best, self._step(model, batch, device) / batch)
            return best / (1 + BACKWARD)
        finally:
            torch.set_num_threads(threads)

    def _step(self, model: nn.Module, batch: int, device: torch.device) -> float:
        x = torch.rand(batch, *self.shape, device=device).requires_grad_()
        started = time.perf_counter()
        with eval_mode(model):
            torch.autograd.grad(model(x).sum(), x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started


def _activations(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return how many numbers the layers of a network return for one image."""
    total = 0

    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    handles = [m.register_forward_hook(add) for m in model.modules() if not list(m.children())]
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *shape))
    finally:
        for handle in handles:
            handle.remove()
    return total


@final
@dataclass(frozen=True)
class Footprint:
    """Memory and disk of the stages of a recipe, at a rough estimate."""

    recipe: Recipe
    network: DenseNetwork

    def memory(self, task: Task) -> float:
        """Return the bytes of a worker that runs the task, at most."""
        weights, image = FLOAT * self.network.weights, FLOAT * self.network.activations
        recipe, members = self.recipe, self.recipe.members
        trained = image if recipe.precision.dtype == "float32" else image / 2
        read = self._read() if isinstance(task.stage, WithData) else 0.0
        match task.stage:
            case TrainStage() | SmallDenseStage() | LoadParentStage():
                needed = TRAINED * weights + recipe.train.schedule.batch_size * trained
            case PruneStage():
                needed = (TRAINED + 2) * weights + recipe.prune.schedule.batch_size * trained
            case EnsembleStage():
                needed = members * (TRAINED * weights + recipe.ensemble.schedule.batch_size * trained)
            case AttackStage() | CurveStage() | EvaluateStage() | CalibrateStage() | SelectStage():
                count = members if getattr(task.stage, "row", "ensemble").startswith("ensemble") else 1
                needed = count * (weights + min(SHARD, len(self._data.test)) * image)
            case _:
                needed = (members + 1) * weights
        return PROCESS + read + needed

    def disk(self, task: Task) -> float:
        """Return the bytes of the task's artifact, about."""
        weights = FLOAT * self.network.weights
        match task.stage:
            case TrainStage() | SmallDenseStage() | LoadParentStage() | PruneStage():
                return float(weights)
            case EnsembleStage():
                return float(self.recipe.members * weights)
            case ExportStage():
                return 2 * self.recipe.members * weights * (1 - self.recipe.member_sparsity) + weights
        return 100.0 * len(self._data.test) if isinstance(task.stage, AttackStage) else 0.0

    @property
    def checkpoint(self) -> float:
        """Bytes of the checkpoint of a running training, at most."""
        return float(CHECKPOINT * FLOAT * self.network.weights * self.recipe.members)

    def _read(self) -> float:
        """Return the bytes of the images that are kept in memory."""
        source, data = self.recipe.data, self._data
        if isinstance(source, StandIn) and not source.sizes.in_memory:
            return 0.0
        images = sum(len(part) for part in (data.train, data.selection, data.calibration, data.test))
        return float(images * math.prod(data.shape))

    @property
    def _data(self) -> Dataset:
        return dataset(self.recipe.data)
