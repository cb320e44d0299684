"""Averaging the weights: the recursion written out, BatchNorm by hand, and what the loop does with the average."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import Augmentation
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.pruning.mask import KeepZero, Mask
from sparsemble.training import EMA, Batches, Callback, Checkpoint, Guard, KeepBest, Schedule, TrainingLoss, fit
from sparsemble.training.ema import EMAModel
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from tests.helpers import Kill, Killed, random_split, small_network
from tests.helpers import same_state as same

net = partial(small_network, channels=2)
split = partial(random_split, shape=(2, 4, 4))

THREAT = ThreatModel(eps=0.1)
AVERAGING = EMA(decay=0.8, batches=2)
SCHEDULE = Schedule(learning_rate=0.2, batch_size=8, lr_schedule=OneCycle(), ema=AVERAGING, guard=Guard(max_drop=1.0))
PGD_TRAINING = PGDAT(attack=PGD(steps=2, keep_best=False))
EPOCHS = 4
STEPS = 3
"""Of an epoch."""


class Trace(Callback):
    """Remembers the weights after every step, and what it was shown after every epoch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.shown: list[nn.Module] = []

    def after_step(self, model: nn.Module) -> None:
        self.steps.append(copy.deepcopy(model.state_dict()))

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        self.shown.append(copy.deepcopy(model))


def train(
    model: nn.Module,
    *callbacks: Callback,
    training_loss: TrainingLoss = PGD_TRAINING,
    schedule: Schedule = SCHEDULE,
    epochs: int = EPOCHS,
    checkpoint: Checkpoint | None = None,
    flip: bool = True,
) -> list[dict[str, Any]]:
    history = fit(
        model,
        training_loss,
        Batches(split=split(), batch_size=8, augmentation=Augmentation(crop=int(flip), flip=flip)),
        schedule,
        epochs=epochs,
        threat=THREAT,
        rng=seeded(5),
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def literal_average(start: nn.Module, steps: Sequence[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Return sum_k (1 - d_k) prod_{l > k} d_l w_k, with w_0 the start and d_0 = 0, in double precision."""
    factors = [0.0] + [min(decay, (1 + n) / (10 + n)) for n in range(len(steps))]
    points = [{name: p.detach() for name, p in start.named_parameters()}, *steps]
    found = {}
    for name in points[0]:
        total = torch.zeros_like(points[0][name], dtype=torch.float64)
        for k, point in enumerate(points):
            weight = 1 - factors[k]
            for later in factors[k + 1 :]:
                weight *= later
            total += weight * point[name].double()
        found[name] = total
    return found


class TestAverage:
    @pytest.mark.parametrize("decay", [0.0, 0.3, 0.8, 0.999])
    def test_is_the_weighted_sum_of_all_weights_so_far(self, decay: float) -> None:
        model, trace = net(), Trace()
        train(model, trace, schedule=replace(SCHEDULE, ema=EMA(decay=decay)))
        assert len(trace.steps) == EPOCHS * STEPS
        for epoch, shown in enumerate(trace.shown, 1):
            expected = literal_average(net(), trace.steps[: epoch * STEPS], decay)
            for name, weight in shown.named_parameters():
                torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
        assert same(model, trace.shown[-1])

    def test_its_first_steps_follow_faster(self) -> None:
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(0.0)
        ema_model = EMAModel(model, EMA(decay=0.25))
        with torch.no_grad():
            model.weight.fill_(1.0)
        left = 1.0
        for kept in (1 / 10, 2 / 11, 3 / 12, 0.25, 0.25):  # the fourth would be 4 / 13 > 0.25
            ema_model.update(model, torch.zeros(1, 1, 1, 1))
            left *= kept
            assert float(ema_model.model.weight) == pytest.approx(1 - left)

    def test_no_decay_is_the_last_weights(self) -> None:
        model, trace = net(), Trace()
        train(model, trace, schedule=replace(SCHEDULE, ema=EMA(decay=0.0)))
        for name, weight in model.named_parameters():
            assert torch.equal(weight, trace.steps[-1][name])

    def test_does_not_touch_training(self) -> None:
        plain, trace = Trace(), Trace()
        train(net(), plain, schedule=replace(SCHEDULE, ema=None))
        train(net(), trace)
        for ours, theirs in zip(trace.steps, plain.steps, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"decay": 1.0}, r"ema.decay = 1 must lie in \[0, 1\)"),
            ({"decay": -0.1}, r"ema.decay = -0.1 must lie in \[0, 1\)"),
            ({"decay": float("nan")}, r"ema.decay = nan must lie in \[0, 1\)"),
            ({"batches": 0}, "ema.batches = 0 must be 1 or more"),
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            EMA(**settings)


class TestBatchNorm:
    @pytest.mark.parametrize("batches", [1, 2, 10])
    def test_is_measured_on_the_last_batches_of_the_epoch(self, batches: int) -> None:
        seen: list[Tensor] = []

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            seen.append(inputs[0].clone())

        model = net()
        handle = model[0].register_forward_hook(keep)  # deep copies of the model carry it along
        schedule = replace(SCHEDULE, ema=EMA(decay=0.8, batches=batches))
        train(model, training_loss=Standard(), schedule=schedule, epochs=1)
        handle.remove()
        last = seen[:STEPS][-batches:]
        features = [nn.functional.conv2d(x, model[0].weight, model[0].bias) for x in last]
        mean = sum(f.mean((0, 2, 3)) for f in features) / len(last)
        variance = sum(f.var((0, 2, 3), unbiased=True) for f in features) / len(last)
        torch.testing.assert_close(model[1].running_mean, mean)
        torch.testing.assert_close(model[1].running_var, variance)
        assert model[1].momentum == 0.1
        assert int(model[1].num_batches_tracked) == len(last)

    def test_is_measured_on_adversarial_images_where_they_were_crafted(self) -> None:
        averaged_on: list[Tensor] = []
        update = EMAModel.update

        def spy(ema_model: EMAModel, model: nn.Module, seen: Tensor) -> None:
            averaged_on.append(seen)
            update(ema_model, model, seen)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(EMAModel, "update", spy)
            train(net(), training_loss=PGD_TRAINING, epochs=1, flip=False)
        pixels = split().pixels
        for x in averaged_on:
            away = torch.cdist(x.flatten(1), pixels.flatten(1), p=torch.inf).amin(1)
            assert away.amin() > 0.05
            assert away.amax() <= 0.1 + 1e-6
            assert not x.requires_grad

    def test_an_average_of_equal_weights_is_measured_the_same_wherever_it_came_from(self) -> None:
        x = split().pixels[:8]
        first, second = EMAModel(net(), AVERAGING), EMAModel(net(), AVERAGING)
        first.update(net(), torch.rand(8, 2, 4, 4, generator=seeded(0)))
        first.refresh()
        for ema_model in (first, second):
            ema_model.update(net(), x)
        assert same(first.refresh(), second.refresh())
        assert not any(module.training for module in first.model.modules())

    def test_models_without_it_are_not_run(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
        history = train(model, training_loss=Standard(), epochs=1)
        assert history[0]["forward_passes"] == 24


class TestLoop:
    def test_the_probe_measures_the_average_which_is_what_comes_back(self) -> None:
        measured: list[nn.Module] = []

        def probe(model: nn.Module) -> dict[str, float]:
            assert not any(module.training for module in model.modules())
            measured.append(copy.deepcopy(model))
            return {"held_out_clean": 0.0, "held_out_robust": [0.1, 0.7, 0.3, 0.2][len(measured) - 1]}

        model, trace = net(), Trace()
        train(model, trace, KeepBest(probe, every=1))
        assert [same(a, b) for a, b in zip(measured, trace.shown, strict=True)] == [True] * EPOCHS
        assert same(model, measured[1])
        raw = trace.steps[2 * STEPS - 1]
        assert not torch.equal(model[0].weight, raw["0.weight"])
        assert all(p.requires_grad for p in model.parameters())

    def test_its_passes_count(self) -> None:
        def probe(model: nn.Module) -> dict[str, float]:
            model(split().pixels)
            return {"held_out_clean": 0.0, "held_out_robust": 0.0}

        for model, members in ((net(), 1), (Ensemble([net(0), net(1)], MeanProbability()), 2)):
            for record in train(model, KeepBest(probe, every=1)):
                assert record["forward_passes"] == members * (STEPS * 3 * 8 + 2 * 8 + 27)
                assert record["backward_passes"] == members * STEPS * 3 * 8

    def test_masked_weights_stay_exactly_zero_and_frozen_ones_as_they_were(self) -> None:
        model, trace = net(), Trace()
        keep = torch.rand(model[0].weight.shape, generator=seeded(1)) < 0.5
        mask = Mask({"0": keep, "4": torch.rand(model[4].weight.shape, generator=seeded(2)) < 0.3})
        mask.apply_(model)
        model[4].bias.requires_grad_(False)
        bias = model[4].bias.clone()
        train(model, KeepZero({"": mask}), trace)
        for shown in [*trace.shown, model]:
            assert not shown[0].weight[~keep].any()
            assert not shown[4].weight[~mask["4"]].any()
            assert torch.equal(shown[4].bias, bias)
        assert Mask.of(model).nonzeros == mask.nonzeros

    def test_an_ensemble_is_averaged_member_by_member(self) -> None:
        make_ensemble, trace = Ensemble([net(0), net(1)], MeanProbability()), Trace()
        start = copy.deepcopy(make_ensemble)
        train(make_ensemble, trace)
        expected = literal_average(start, trace.steps, 0.8)
        for name, weight in make_ensemble.named_parameters():
            torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-7, msg=name)
        x = split().pixels
        with torch.no_grad():
            assert torch.equal(make_ensemble(x), trace.shown[-1](x))


def contrary(model: nn.Module) -> dict[str, float]:
    """Probe that likes bad models, so that the best epoch has to outlive the kill."""
    x, y = split().tensors()
    with torch.no_grad():
        return {
            "held_out_clean": 0.0,
            "held_out_robust": float(1 - torch.exp(-nn.functional.cross_entropy(model(x), y))),
        }


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, list[dict[str, Any]]]:
    """A training that nothing interrupted."""
    model = net()
    return model, train(model, KeepBest(contrary, every=1))


class TestResume:
    @pytest.mark.parametrize("kill", [{"epochs": e} for e in range(1, EPOCHS + 1)] + [{"steps": s} for s in (1, 5, 11)])
    def test_is_bit_identical_after_a_kill_anywhere(self, whole: Any, kill: dict[str, int], tmp_path: Path) -> None:
        with pytest.raises(Killed):
            train(net(), KeepBest(contrary, every=1), Kill(**kill), checkpoint=Checkpoint(tmp_path))
        model = net(77)
        history = train(model, KeepBest(contrary, every=1), checkpoint=Checkpoint(tmp_path))
        assert same(model, whole[0])
        assert history == whole[1]

    def test_of_an_ensemble_too(self, tmp_path: Path) -> None:
        def make_ensemble(seed: int) -> Ensemble:
            return Ensemble([net(seed), net(seed + 1)], MeanProbability())

        whole, resumed = make_ensemble(0), make_ensemble(70)
        train(whole)
        with pytest.raises(Killed):
            train(make_ensemble(0), Kill(steps=7), checkpoint=Checkpoint(tmp_path))
        train(resumed, checkpoint=Checkpoint(tmp_path))
        assert same(resumed, whole)
