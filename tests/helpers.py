"""What several tests share: classifiers with known worst cases, small networks and data, and ways to interrupt."""

import math
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits, MemberLogits, PerImage, seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.models import architectures, build_model
from sparsemble.models.graph import Graph
from sparsemble.pruning import PruningContext, SparsityTarget, prunable_layers
from sparsemble.pruning.granularity import granularities
from sparsemble.training import Batches, Callback, TrainingLoss
from sparsemble.training.losses.standard import Standard

Shape = tuple[int, int, int]
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
"""Order of the norm by which a linear function's gain is divided to get a distance."""
FULL = os.environ.get("SPARSEMBLE_TESTS") == "full"
"""Whether property tests try all their examples, as in `.ci/full`."""


def examples(count: int, **more: Any) -> settings:
    """Return the settings of a property test with so many examples, or a quarter of them in a quick run."""
    return settings(deadline=None, max_examples=count if FULL else max(5, count // 4), **more)


def covering(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Return all pairs as parameters; those that are not needed to see each value once are marked slow."""
    quick = {(i % len(first), i % len(second)) for i in range(max(len(first), len(second)))}
    return [
        pytest.param(a, b, marks=() if (i, j) in quick else pytest.mark.slow)
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


class LinearClassifier(nn.Module):
    """Logits W (x - 0.5): a tie at the grey image, distances and worst margins in closed form."""

    def __init__(
        self,
        classes: int,
        shape: Shape = (3, 4, 4),
        *,
        seed: int = 1,
        scale: float = 1.0,
        log_probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, math.prod(shape), generator=seeded(seed)) * scale)
        self.log_probabilities = log_probabilities

    def forward(self, x: Images) -> Logits:
        logits = (x - 0.5).flatten(1) @ self.weight.T
        return logits.log_softmax(1) if self.log_probabilities else logits

    @torch.no_grad()
    def distance(self, x: Images, y: Labels, norm: str) -> PerImage:
        """Return the distance of each image to the nearest decision boundary, without the box."""
        logits = self(x)
        normal = self.weight - self.weight[y][:, None]
        length = torch.linalg.vector_norm(normal, ord=DUAL[norm], dim=2)
        own = nn.functional.one_hot(y, logits.shape[1]).bool()
        return ((logits.gather(1, y[:, None]) - logits) / length).masked_fill(own, math.inf).amin(1).clamp_min(0)

    @torch.no_grad()
    def worst_margin(self, x: Images, y: Labels, threat: ThreatModel) -> PerImage:
        """Return the largest margin (best wrong logit minus the true one) in the ball; box in linf only."""
        normal = self.weight[None] - self.weight[y][:, None]
        margins = self(x) - self(x).gather(1, y[:, None])
        flat = x.flatten(1)[:, None]
        if threat.norm == "linf":
            up, down = (1 - flat).clamp_max(threat.eps), flat.clamp_max(threat.eps)
            margins = margins + (normal.clamp_min(0) * up - normal.clamp_max(0) * down).sum(2)
        else:
            margins = margins + threat.eps * torch.linalg.vector_norm(normal, ord=DUAL[threat.norm], dim=2)
        return margins.scatter(1, y[:, None], -math.inf).amax(1)


class PlaneClassifier(nn.Module):
    """Two classes with logits w (x - 0.5) and their negatives, split by a plane through the grey image."""

    def __init__(self, seed: int = 1, size: int = 48) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, generator=seeded(seed)))

    def forward(self, x: Images) -> Logits:
        side = (x - 0.5).flatten(1) @ self.weight
        return torch.stack([side, -side], dim=1)

    @torch.no_grad()
    def distance(self, x: Images, norm: str) -> PerImage:
        """Return the distance of each image to the plane, without the box."""
        length = torch.linalg.vector_norm(self.weight, ord=DUAL[norm])
        return ((x - 0.5).flatten(1) @ self.weight).abs() / length


@torch.no_grad()
def margin(model: nn.Module, x: Images, y: Labels) -> PerImage:
    """Return the best wrong logit minus the true one."""
    logits = model(x)
    return Margin()(logits, logits, y)


@torch.no_grad()
def predicted(model: nn.Module, x: Images) -> Labels:
    """Return the labels that a model predicts."""
    labels: Labels = model(x).argmax(1)
    return labels


def tiny_model(
    classes: int = 3, shape: Shape = (1, 8, 8), *, width: int = 2, std: float = 0.3, seed: int = 0
) -> nn.Module:
    """Return the architecture `tiny`, in training mode, for images of mean 0.5."""
    channels, layout = shape[0], architectures.build({"name": "tiny", "width": width})
    return build_model(layout, shape, classes, (0.5,) * channels, (std,) * channels, rng=seeded(seed))


def tiny_ensemble(members: int, combiner: Combiner, *, classes: int = 5, shape: Shape = (1, 8, 8)) -> Ensemble:
    """Return an ensemble of `tiny` models with scaled last layers, so that some images are clear and some are not."""
    models = [tiny_model(classes, shape, seed=seed) for seed in range(members)]
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.mul_(40)
    return Ensemble(models, combiner).eval()


def small_network(seed: int = 0, *, channels: int = 1, classes: int = 3) -> nn.Sequential:
    """Return convolution, BatchNorm, ReLU and a linear layer for images of 4x4 pixels; sets torch's seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes))


def random_split(images: int = 27, shape: Shape = (1, 4, 4), *, classes: int = 3, seed: int = 11) -> TensorSplit:
    """Return random images with random labels."""
    rng = seeded(seed)
    return TensorSplit(torch.rand(images, *shape, generator=rng), torch.randint(0, classes, (images,), generator=rng))


def random_logits(
    members: int,
    images: int,
    *,
    classes: int = 5,
    scale: float = 3.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> MemberLogits:
    """Return logits of members that agree in part."""
    rng = seeded(seed)
    common = torch.randn(1, images, classes, generator=rng, dtype=dtype)
    return scale * (common + torch.randn(members, images, classes, generator=rng, dtype=dtype))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two models hold the same tensors under the same names, in the same order."""
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


class Kill(Callback):
    """Raises `Killed` at the given number of steps, epochs or rollbacks."""

    def __init__(self, *, steps: int = 0, epochs: int = 0, rollbacks: int = 0) -> None:
        self.left = {"steps": steps, "epochs": epochs, "rollbacks": rollbacks}

    def _count(self, unit: str) -> None:
        self.left[unit] -= 1
        if self.left[unit] == 0:
            raise Killed

    def after_step(self, model: nn.Module) -> None:
        self._count("steps")

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        self._count("epochs")

    def after_rollback(self, sentence: str) -> None:
        self._count("rollbacks")


class Interrupt(Callback):
    """Ctrl-C at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        if epoch == self.epoch:
            raise KeyboardInterrupt


def magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """Return the absolute value of every prunable weight: the simplest pruning scores."""
    return {name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()}


def sparsity_target(
    model: nn.Module, sparsity: float = 0.5, shape: Shape = (1, 8, 8), *, granularity: str = "weight"
) -> SparsityTarget:
    """Return a target by weights at uniform rates."""
    return SparsityTarget(graph=Graph(model, shape), sparsity=sparsity, granularity=granularities.build(granularity))


def pruning_context(
    training_loss: TrainingLoss = Standard(),  # noqa: B008 (a frozen value)
    *,
    images: int = 48,
    shape: Shape = (1, 8, 8),
    classes: int = 3,
    batch_size: int = 16,
    **more: Any,
) -> PruningContext:
    """Return what a pruning method may train with: random images with labels in turn, eps 0.1."""
    split = TensorSplit(torch.rand(images, *shape, generator=seeded(1)), torch.arange(images) % classes)
    given = {
        "batches": Batches(split=split, batch_size=batch_size),
        "loss": training_loss,
        "threat": ThreatModel(eps=0.1),
        "rng": seeded(2),
    }
    return PruningContext(**(given | more))
