"""Optimisers against their formulas, resuming with each, warm-up and the norm of the gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.training import Batches, Callback, Checkpoint, LossOutput, Optimiser, Schedule, TrainingLoss, fit
from sparsemble.training.losses.standard import Standard
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.optimiser import optimisers, trainable
from sparsemble.training.optimisers.adam import Adam
from sparsemble.training.optimisers.adamw import AdamW
from sparsemble.training.optimisers.sgd import SGD
from tests.helpers import Killed

Numbers = list[float]
GRADIENTS = [[0.3, -2.0, 0.01], [0.5, 1.0, -0.02], [-0.4, 0.0, 3.0]]
START = [1.0, -0.5, 2.0]
RATES = [0.1, 0.05, 0.2]
"""The rate moves, as schedules have it."""


def literal_sgd(momentum: float, nesterov: bool, weight_decay: float) -> Numbers:
    weights, velocity = list(START), [0.0] * 3
    for rate, gradients in zip(RATES, GRADIENTS, strict=True):
        for i, g in enumerate(gradients):
            g = g + weight_decay * weights[i]
            velocity[i] = momentum * velocity[i] + g
            weights[i] -= rate * (g + momentum * velocity[i] if nesterov else velocity[i])
    return weights


def literal_adam(decay: tuple[float, float], weight_decay: float, decoupled: bool) -> Numbers:
    weights, mean, square = list(START), [0.0] * 3, [0.0] * 3
    for t, (rate, gradients) in enumerate(zip(RATES, GRADIENTS, strict=True), 1):
        for i, g in enumerate(gradients):
            if decoupled:
                weights[i] *= 1 - rate * weight_decay
            else:
                g = g + weight_decay * weights[i]
            mean[i] = decay[0] * mean[i] + (1 - decay[0]) * g
            square[i] = decay[1] * square[i] + (1 - decay[1]) * g * g
            unbiased = mean[i] / (1 - decay[0] ** t), square[i] / (1 - decay[1] ** t)
            weights[i] -= rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
    return weights


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (SGD(), literal_sgd(0.9, False, 5e-4)),
        (SGD(momentum=0.0, weight_decay=0.0), literal_sgd(0.0, False, 0.0)),
        (SGD(momentum=0.7, nesterov=True, weight_decay=0.1), literal_sgd(0.7, True, 0.1)),
        (Adam(), literal_adam((0.9, 0.999), 0.0, False)),
        (Adam(betas=(0.5, 0.9), weight_decay=0.1), literal_adam((0.5, 0.9), 0.1, False)),
        (AdamW(), literal_adam((0.9, 0.999), 0.01, True)),
        (AdamW(betas=(0.5, 0.9), weight_decay=0.1), literal_adam((0.5, 0.9), 0.1, True)),
    ],
    ids=lambda value: str(value) if isinstance(value, Optimiser) else "",
)
def test_steps_follow_the_formula(component: Optimiser, expected: Numbers) -> None:
    weights, frozen = (
        nn.Parameter(torch.tensor(START, dtype=torch.float64)),
        nn.Parameter(torch.ones(2), requires_grad=False),
    )
    optimiser = component([frozen, weights])
    for rate, gradients in zip(RATES, GRADIENTS, strict=True):
        optimiser.param_groups[0]["lr"] = rate
        weights.grad = torch.tensor(gradients, dtype=torch.float64)
        optimiser.step()
    assert weights.tolist() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(frozen, torch.ones(2))


def test_every_rule_is_tested_here() -> None:
    assert set(optimisers.components) == {"sgd", "adam", "adamw"}


def test_trainable_are_those_with_a_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert [id(p) for p in trainable(model.parameters())] == [id(p) for p in model[1].parameters()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(momentum=1.0), "momentum = 1 must lie in"),
        (lambda: SGD(weight_decay=-1.0), "weight_decay = -1 must be 0 or more"),
        (lambda: Adam(betas=(0.9,)), r"betas = \[0.9\] must be two numbers in \[0, 1\)"),
        (lambda: Adam(betas=(0.9, 1.0)), r"betas = \[0.9, 1.0\] must be two numbers"),
        (lambda: Adam(betas=(math.nan, 0.9)), "must be two numbers"),
        (lambda: Adam(weight_decay=math.inf), "weight_decay = inf must be 0 or more"),
        (lambda: AdamW(betas=(0.9, 0.99, 0.999)), "must be two numbers"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay = -0.1 must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Optimiser], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.Flatten(), nn.Linear(80, 3)
    )


def split() -> TensorSplit:
    rng = seeded(11)
    return TensorSplit(torch.rand(27, 3, 8, 8, generator=rng), torch.randint(0, 3, (27,), generator=rng))


@dataclass
class Watch(Callback):
    """Sees every gradient that a step used; ends the process, so to say, after so many steps."""

    kill: int = 0

    def __post_init__(self) -> None:
        self.norms: Numbers = []
        self.weights: list[list[Tensor]] = []

    def after_step(self, model: nn.Module) -> None:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))
        self.weights.append([p.detach().clone() for p in model.parameters()])
        if len(self.norms) == self.kill:
            raise Killed


def train(
    model: nn.Module, schedule: Schedule, *callbacks: Callback, training_loss: TrainingLoss | None = None, **more: Any
) -> list[dict[str, Any]]:
    batches = Batches(split=split(), batch_size=8)
    settings = {"epochs": 4, "threat": ThreatModel(eps=0.1), "rng": seeded(5), "callbacks": callbacks, **more}
    return fit(model, training_loss or Standard(), batches, schedule, **settings)


@pytest.mark.parametrize("kill", [4, 11])
@pytest.mark.parametrize(
    "component", [SGD(), SGD(momentum=0.0), SGD(nesterov=True), Adam(weight_decay=0.01), AdamW()], ids=str
)
def test_resuming_is_bit_identical(component: Optimiser, kill: int, tmp_path: Path) -> None:
    schedule = Schedule(
        learning_rate=0.02, batch_size=8, optimiser=component, lr_schedule=OneCycle(), warmup=0.3, max_grad_norm=0.8
    )
    whole, resumed = net(), net(77)
    train(whole, schedule)
    with pytest.raises(Killed):
        train(net(), schedule, Watch(kill=kill), checkpoint=Checkpoint(tmp_path))
    train(resumed, schedule, checkpoint=Checkpoint(tmp_path))
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


class TestWarmUp:
    @pytest.mark.parametrize("decay", [Cosine(), MultiStep(), OneCycle()], ids=str)
    @pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
    def test_is_a_straight_line_times_the_decay(self, decay: Any, warmup: float) -> None:
        schedule = Schedule(learning_rate=0.3, lr_schedule=decay, warmup=warmup)
        for i in range(200):
            progress = i / 200
            line = 0.04 + 0.96 * progress / warmup if progress < warmup else 1.0
            assert schedule.learning_rate_at(progress) == pytest.approx(0.3 * line * decay(progress))

    def test_is_what_the_steps_are_taken_with(self) -> None:
        schedule = Schedule(
            learning_rate=0.3, batch_size=8, optimiser=SGD(momentum=0, weight_decay=0), lr_schedule=Cosine(), warmup=0.5
        )
        model, watch, gradients = net(), Watch(), []

        class Keep(Callback):
            def after_step(self, model: nn.Module) -> None:
                gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

        before = [p.detach().clone() for p in model.parameters()]
        history = train(model, schedule, watch, Keep())
        for step, (after, moved) in enumerate(zip(watch.weights, gradients, strict=True)):
            rate = 0.3 * min(1.0, 0.04 + 0.96 * step / 6) * 0.5 * (1 + math.cos(math.pi * step / 12))
            for old, new, g in zip(before, after, moved, strict=True):
                torch.testing.assert_close(new, old - rate * g)
            before = after
            if step % 3 == 2:
                assert history[step // 3]["learning_rate"] == pytest.approx(rate)


@dataclass(frozen=True)
class Steep(TrainingLoss):
    """A linear loss whose gradient has the same known norm at every step."""

    norm: float

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        weights = list(model.parameters())
        count = sum(p.numel() for p in weights)
        total = torch.stack([p.sum() for p in weights]).sum()
        return LossOutput(total * (self.norm / math.sqrt(count)))


class TestClip:
    @pytest.mark.parametrize(("clip", "norm", "left"), [(0.0, 5.0, 5.0), (2.0, 5.0, 2.0), (2.0, 1.5, 1.5)])
    def test_bounds_the_norm_of_all_gradients_together(self, clip: float, norm: float, left: float) -> None:
        plain = Schedule(
            learning_rate=0.1,
            batch_size=8,
            optimiser=SGD(momentum=0, weight_decay=0),
            lr_schedule=Cosine(),
            max_grad_norm=clip,
        )
        model, watch = net(), Watch()
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        history = train(model, plain, watch, training_loss=Steep(norm))
        assert watch.norms == pytest.approx([left] * 12, rel=1e-5)
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - start
        rates = [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
        torch.testing.assert_close(moved, torch.full_like(moved, -left * sum(rates) / math.sqrt(len(moved))))
        assert len(history) == 4

    def test_keeps_the_direction(self) -> None:
        free = Schedule(
            learning_rate=0.1, batch_size=8, optimiser=SGD(momentum=0, weight_decay=0), lr_schedule=Cosine()
        )
        ours, theirs = Watch(), Watch()
        models = net(), net()
        starts = [p.detach().clone() for p in models[0].parameters()]
        train(models[0], replace(free, max_grad_norm=1e-3), ours)
        train(models[1], free, theirs)
        scale = 1e-3 / theirs.norms[0]
        for start, clipped, whole in zip(starts, ours.weights[0], theirs.weights[0], strict=True):
            torch.testing.assert_close(clipped - start, scale * (whole - start), rtol=1e-2, atol=1e-7)
        assert max(ours.norms) <= 1e-3 * 1.001

    def test_an_infinite_gradient_is_noticed_not_hidden(self) -> None:
        clipped = Schedule(learning_rate=0.1, batch_size=8, lr_schedule=Cosine(), max_grad_norm=1.0)

        def spoil(model: nn.Module, x: Images) -> Tensor:
            logits: Tensor = model(x)
            return (logits.square().sum() - logits.square().sum().detach()).sqrt()  # 0, with an infinite slope

        @dataclass(frozen=True)
        class Infinite(TrainingLoss):
            def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Any:
                return LossOutput(spoil(model, x))

        with pytest.raises(
            Exception, match=r"became (nan|NaN or infinite) in epoch 1; training was rolled back 3 times"
        ):
            train(net(), clipped, training_loss=Infinite())
