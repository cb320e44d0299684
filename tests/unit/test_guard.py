"""Failed training: detected, rolled back, continued more carefully, and the same after a kill."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from torch import Generator, Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.data.digits import Digits
from sparsemble.models.architecture import build_model
from sparsemble.models.tiny import Tiny
from sparsemble.training import (
    EMA,
    Batches,
    Callback,
    Checkpoint,
    Guard,
    KeepBest,
    LossOutput,
    LRSchedule,
    ReportProgress,
    Schedule,
    TrainingLoss,
    fit,
)
from sparsemble.training.guard import LEAST_DROP, divergence
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.optimisers.sgd import SGD
from tests.helpers import Kill, Killed, random_split, small_network
from tests.helpers import same_state as same

net = partial(small_network, channels=2)
split = partial(random_split, shape=(2, 4, 4))

THREAT = ThreatModel(eps=0.1)
EPOCHS = 5
STEPS = 3
"""Of an epoch."""
IMAGES = 8 * STEPS
"""Of an epoch."""


@final
@dataclass(frozen=True, kw_only=True)
class Slower(LRSchedule):
    """Cosine, with a factor of its own for every epoch: what rollbacks should amount to."""

    name: ClassVar[str] = "slower"
    factors: tuple[float, ...]

    def __call__(self, progress: float) -> float:
        return Cosine()(progress) * self.factors[int(progress * len(self.factors) + 1e-9)]


@final
@dataclass(frozen=True, kw_only=True)
class SingleStep(TrainingLoss):
    """Cross-entropy after one signed step: an objective with a step to make smaller."""

    step: float = 1.0

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        point = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(point), y), point)
        x_adv = threat.project(x + self.step * threat.eps * gradient.sign(), x)
        loss = nn.functional.cross_entropy(model(x_adv), y)
        return LossOutput(loss, {"step": torch.tensor(self.step)}, x_adv)

    def with_weaker_attack(self, factor: float) -> TrainingLoss:
        return replace(self, step=self.step * factor)


@final
@dataclass(frozen=True, kw_only=True)
class Phased(TrainingLoss):
    """Single-step training whose step is another one in every epoch: what rollbacks should amount to."""

    steps: tuple[float, ...]
    calls: list[int]

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        self.calls.append(1)
        return SingleStep(step=self.steps[(len(self.calls) - 1) // STEPS])(model, x, y, threat, rng=rng)


@final
@dataclass(frozen=True, kw_only=True)
class NaNOnce(TrainingLoss):
    """Cross-entropy that is no number in one of all the steps ever taken."""

    when: int
    calls: list[int]
    bad: float = math.nan

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        self.calls.append(1)
        loss = nn.functional.cross_entropy(model(x), y)
        return LossOutput(loss * (self.bad if len(self.calls) == self.when else 1.0))


class Scripted(Callback):
    """Writes scripted held-out numbers: by epoch, and by how gentle training has become."""

    def __init__(self, say: Callable[[int, dict[str, Any]], float | None]) -> None:
        self.say = say

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        found = self.say(epoch, record)
        if found is not None:
            record["held_out_robust"] = found


class Spoil(Callback):
    """Breaks the model after a step, each listed one of all the steps ever taken."""

    def __init__(self, steps: set[int], how: Callable[[nn.Module], None]) -> None:
        self.steps, self.how, self.taken = steps, how, 0

    def after_step(self, model: nn.Module) -> None:
        self.taken += 1
        if self.taken in self.steps:
            with torch.no_grad():
                self.how(model)


def nan_weight(model: nn.Module) -> None:
    model.get_submodule("4").weight[0, 0] = math.nan


def infinite_statistics(model: nn.Module) -> None:
    model.get_submodule("1").running_var[0] = math.inf


SCHEDULE = Schedule(learning_rate=0.2, batch_size=8, lr_schedule=Cosine())


def train(
    model: nn.Module,
    training_loss: TrainingLoss,
    *callbacks: Callback,
    schedule: Schedule = SCHEDULE,
    epochs: int = EPOCHS,
    checkpoint: Checkpoint | None = None,
    threat: ThreatModel = THREAT,
) -> list[dict[str, Any]]:
    history = fit(
        model,
        training_loss,
        Batches(split=split(), batch_size=8),
        schedule,
        epochs=epochs,
        threat=threat,
        rng=seeded(5),
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def slowed(*factors: float) -> Schedule:
    return replace(SCHEDULE, lr_schedule=Slower(factors=factors))


class TestDivergence:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_is_no_number_is_undone_and_the_rate_halved(self, bad: float) -> None:
        model, oracle = net(), net()
        history = train(model, NaNOnce(when=5, calls=[], bad=bad))
        expected = train(oracle, Standard(), schedule=slowed(1, 0.5, 0.5, 0.5, 0.5))
        assert same(model, oracle)
        sentence = f"the loss became {bad} in epoch 2; rolled back to epoch 1, continuing with a lower learning rate"
        assert history[1].pop("rolled_back") == [sentence]
        lost = 2 * 8  # the step before, and the one that went wrong
        assert history[1].pop("forward_passes") == history[1].pop("backward_passes") == IMAGES + lost
        del expected[1]["forward_passes"], expected[1]["backward_passes"]
        assert history == expected

    @pytest.mark.parametrize("how", [nan_weight, infinite_statistics])
    @pytest.mark.parametrize("epoch", [1, 3])
    def test_weights_that_break_in_the_last_step_of_an_epoch(self, how: Any, epoch: int) -> None:
        model, oracle = net(), net()
        history = train(model, Standard(), Spoil({epoch * STEPS}, how))
        train(oracle, Standard(), schedule=slowed(*[1.0] * (epoch - 1), *[0.5] * (EPOCHS - epoch + 1)))
        assert same(model, oracle)
        assert [record.get("rolled_back") for record in history] == [
            [
                f"weights or logits became NaN or infinite in epoch {epoch}; rolled back to epoch {epoch - 1}, "
                "continuing with a lower learning rate"
            ]
            if number == epoch
            else None
            for number in range(1, EPOCHS + 1)
        ]
        assert history[epoch - 1]["forward_passes"] == 2 * IMAGES

    @pytest.mark.parametrize("keep_best", [False, True])
    def test_weights_that_break_under_an_attack(self, keep_best: bool) -> None:
        training_loss = PGDAT(attack=PGD(steps=2, keep_best=keep_best))
        model, oracle = net(), net()
        history = train(model, training_loss, Spoil({4}, nan_weight))
        train(oracle, training_loss, schedule=slowed(1, 0.5, 0.5, 0.5, 0.5))
        assert same(model, oracle)
        assert "became" in history[1]["rolled_back"][0]

    def test_an_attack_that_fails_on_a_sound_model_is_not_called_divergence(self) -> None:
        @dataclass(frozen=True)
        class Failing(TrainingLoss):
            def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Any:
                raise RunError("left the allowed images")

        with pytest.raises(RunError, match="left the allowed images"):
            train(net(), Failing())

    def test_a_rate_too_high_comes_down_until_it_holds(self, tmp_path: Path) -> None:
        """A real one: without BatchNorm these rates overflow within an epoch, but for the third."""

        def plain() -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

        model, oracle = plain(), plain()
        schedule = replace(SCHEDULE, learning_rate=1e29, guard=Guard(backoff=1e-15))
        messages: list[str] = []
        report = ReportProgress(lambda share, text: messages.append(text))
        history = train(model, Standard(), report, schedule=schedule, checkpoint=Checkpoint(tmp_path))
        train(oracle, Standard(), schedule=replace(SCHEDULE, learning_rate=1e29 * 1e-15**2))
        assert same(model, oracle)
        assert len(history[0]["rolled_back"]) == 2
        assert [text for text in messages if "a lower learning rate" in text] == history[0]["rolled_back"]

    def test_knows_numbers(self) -> None:
        assert divergence(1e30) is None
        assert divergence(0.0) is None
        assert divergence(math.nan).message == "the loss became nan"
        assert divergence(-math.inf).kind == "diverged"


def until_weaker(bad: int, times: int = 1) -> Scripted:
    """Callback that reports a collapse in an epoch until the attack step (or the rate) was halved so often."""

    def say(epoch: int, record: dict[str, Any]) -> float:
        whole = SCHEDULE.learning_rate_at((epoch - 1 + (STEPS - 1) / STEPS) / EPOCHS)
        gentle = record.get("step", 1.0) * record["learning_rate"] / whole < 1.01 * 0.5**times
        return 0.05 if epoch == bad and not gentle else 0.4

    return Scripted(say)


class TestCollapse:
    @pytest.mark.parametrize("bad", range(2, EPOCHS + 1))
    def test_makes_the_rate_smaller(self, bad: int) -> None:
        model, oracle = net(), net()
        history = train(model, Standard(), until_weaker(bad))
        train(oracle, Standard(), schedule=slowed(*[1.0] * (bad - 1), *[0.5] * (EPOCHS - bad + 1)))
        assert same(model, oracle)
        assert history[bad - 1]["rolled_back"] == [
            f"held-out robust accuracy fell from 40.0% to 5.0% in epoch {bad}; "
            f"rolled back to epoch {bad - 1}, continuing with a lower learning rate"
        ]
        assert [record["held_out_robust"] for record in history] == [0.4] * EPOCHS
        assert [record["forward_passes"] for record in history] == [
            IMAGES * (1 + (e == bad)) for e in range(1, EPOCHS + 1)
        ]

    def test_makes_the_step_of_single_step_training_smaller_and_leaves_the_rate(self) -> None:
        model, oracle = net(), net()
        history = train(model, SingleStep(), until_weaker(3, times=2))
        expected = train(oracle, Phased(steps=(1, 1, 0.25, 0.25, 0.25), calls=[]))
        assert same(model, oracle)
        assert [record["step"] for record in history] == [1, 1, 0.25, 0.25, 0.25]
        assert [record["learning_rate"] for record in history] == [record["learning_rate"] for record in expected]
        sentence = (
            "held-out robust accuracy fell from 40.0% to 5.0% in epoch 3; rolled back to epoch 2, continuing with a "
        )
        assert history[2]["rolled_back"] == [sentence + "weaker attack"] * 2
        assert history[2]["forward_passes"] == history[2]["backward_passes"] == 3 * 2 * IMAGES

    def test_nan_makes_the_rate_smaller_even_there(self) -> None:
        history = train(net(), SingleStep(), Spoil({STEPS}, nan_weight))
        assert [record["step"] for record in history] == [1] * EPOCHS
        assert history[0]["rolled_back"][0].endswith("a lower learning rate")

    def test_goes_back_to_the_last_epoch_that_was_measured(self) -> None:
        """Epochs in between may have been bad already."""

        def say(epoch: int, record: dict[str, Any]) -> float | None:
            if epoch % 2:
                return None
            return 0.05 if epoch == 4 and record["step"] == 1 else 0.4

        model, oracle = net(), net()
        history = train(model, SingleStep(), Scripted(say))
        train(oracle, Phased(steps=(1, 1, 0.5, 0.5, 0.5), calls=[]))
        assert same(model, oracle)
        assert history[2]["rolled_back"][0].endswith(
            "in epoch 4; rolled back to epoch 2, continuing with a weaker attack"
        )
        assert [record["forward_passes"] // (2 * IMAGES) for record in history] == [1, 1, 3, 1, 1]

    def test_a_measured_collapse_before_any_good_measure_is_the_starting_point(self) -> None:
        """Nothing is lost that was never there: what counts is the fall from the best so far."""
        history = train(net(), Standard(), Scripted(lambda epoch, record: [0.0, 0.0, 0.05, 0.5, 0.45][epoch - 1]))
        assert not any("rolled_back" in record for record in history)

    def test_every_pass_ever_taken_stands_in_the_history_once(self) -> None:
        """Also where an epoch that had been undone and repeated is undone again."""

        def say(epoch: int, record: dict[str, Any]) -> float | None:
            bad = {4: 0.2, 5: 0.2}  # epoch 4 collapses twice, then epoch 5
            if epoch < 2 or epoch == 3:
                return None
            return 0.05 if record["step"] > bad.get(epoch, 2.0) * (1.5 if epoch == 4 else 1) else 0.4

        passes = [0]

        def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            passes[0] += len(inputs[0])

        model = net()
        model.register_forward_pre_hook(count)
        history = train(model, SingleStep(), Scripted(say))
        assert sum(len(record.get("rolled_back", [])) for record in history) == 3
        assert [len(record.get("rolled_back", [])) for record in history] == [0, 0, 2, 0, 1]
        assert sum(record["forward_passes"] for record in history) == passes[0]
        assert sum(record["backward_passes"] for record in history) == passes[0]

    def test_the_collapsed_epoch_is_not_chosen_however_clean_it_is(self) -> None:
        answers = iter([(0.5, 0.4), (1.0, 0.15), (0.5, 0.3), (0.5, 0.3), (0.5, 0.3), (0.5, 0.3)])
        weights: list[Tensor] = []

        def probe(model: nn.Module) -> dict[str, float]:
            weights.append(model.get_submodule("0").weight.detach().clone())
            clean, robust = next(answers)
            return {"held_out_clean": clean, "held_out_robust": robust}

        model = net()
        train(model, Standard(), KeepBest(probe, every=1))
        assert torch.equal(model[0].weight, weights[0])

    def test_with_an_average_the_average_goes_back_too(self) -> None:
        ema_model = {"ema": EMA(decay=0.8, batches=2)}
        model, oracle = net(), net()
        train(model, Standard(), until_weaker(3), schedule=replace(SCHEDULE, **ema_model))
        train(oracle, Standard(), schedule=replace(slowed(1, 1, 0.5, 0.5, 0.5), **ema_model))
        assert same(model, oracle)

    def test_needs_no_folder(self, tmp_path: Path) -> None:
        """What is held in memory does as well as what is on disk."""
        models = [net(), net()]
        histories = [
            train(model, SingleStep(), until_weaker(3, times=2), checkpoint=checkpoint)
            for model, checkpoint in zip(models, (None, Checkpoint(tmp_path)), strict=True)
        ]
        assert same(*models)
        assert histories[0] == histories[1]
        Checkpoint(tmp_path).remove()
        assert not list(tmp_path.iterdir())


class TestRule:
    def fault(self, *robust: float, **settings: Any) -> bool:
        records = [{"held_out_robust": value} for value in robust]
        found = Guard(**settings).collapse(records[-1], records[:-1])
        assert found is None or found.kind == "collapsed"
        return found is not None

    def test_half_of_what_it_lately_was_and_fifteen_points_must_be_gone(self) -> None:
        assert self.fault(0.5, 0.24)
        assert not self.fault(0.5, 0.26)
        assert self.fault(0.2, 0.04)
        assert not self.fault(0.2, 0.06)
        assert not self.fault(0.5, 0.36, max_drop=0.05)
        assert self.fault(0.5, 0.34, max_drop=0.05)
        assert not self.fault(1.0, 0.0, max_drop=1.0)
        assert not self.fault(0.0)
        assert LEAST_DROP == 0.15

    def test_what_it_lately_was_is_the_median_of_five(self) -> None:
        assert not self.fault(0.3, 0.3, 0.9, 0.3, 0.3, 0.16)  # a lucky draw is no level to fall from
        assert self.fault(0.3, 0.3, 0.9, 0.3, 0.3, 0.14)
        assert self.fault(0.9, 0.1, 0.2, 0.6, 0.6, 0.6, 0.29)
        assert not self.fault(0.9, 0.9, 0.9, 0.4, 0.4, 0.4, 0.21)

    def test_epochs_without_a_measure_say_nothing(self) -> None:
        assert Guard().collapse({"loss": 1.0}, [{"held_out_robust": 0.9}]) is None
        assert Guard().collapse({"held_out_robust": 0.1}, [{"held_out_robust": 0.9}, *[{"loss": 1.0}] * 9]) is not None

    @pytest.mark.parametrize("images", [149, 500])
    @pytest.mark.parametrize(
        "course",
        [(0.1, 0.1), (0.15, 0.15), (0.25, 0.25), (0.4, 0.4), (0.1, 0.45, 0.45, 0.35), (0.6, 0.4, 0.7)],
        ids=str,
    )
    def test_gives_hardly_an_alarm_at_chance(self, course: tuple[float, ...], images: int) -> None:
        """400 trainings of 40 measured epochs whose true accuracy moves along this line, on so few images."""
        corners = torch.tensor(course).view(1, 1, -1)
        line = nn.functional.interpolate(corners, 40, mode="linear", align_corners=True).view(40, 1)
        drawn = torch.rand(400, 40, images, generator=seeded(0)) < line
        runs = drawn.double().mean(2).tolist()
        assert sum(any(self.fault(*run[: n + 1]) for n in range(40)) for run in runs) <= 4

    def test_notices_a_real_collapse_on_few_images(self) -> None:
        truth = torch.tensor([0.1, 0.2, 0.3, 0.35, 0.35, 0.03]).view(-1, 1)
        runs = (torch.rand(400, 6, 149, generator=seeded(0)) < truth).double().mean(2).tolist()
        assert sum(self.fault(*run) for run in runs) >= 390

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_drop": 0.0}, r"guard.max_drop = 0 must lie in \(0, 1\]"),
            ({"max_drop": 1.1}, r"guard.max_drop = 1.1 must lie in \(0, 1\]"),
            ({"max_rollbacks": -1}, "guard.max_rollbacks = -1 must be 0 or more"),
            ({"backoff": 1.0}, r"guard.backoff = 1 must lie in \(0, 1\)"),
            ({"backoff": 0.0}, r"guard.backoff = 0 must lie in \(0, 1\)"),
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Guard(**settings)


class TestTries:
    def test_after_the_last_collapse_training_ends_with_what_was_good(self, tmp_path: Path) -> None:
        guarded = replace(SCHEDULE, guard=Guard(max_rollbacks=2))
        sentence = (
            "held-out robust accuracy fell from 40.0% to 5.0% in epoch 3; rolled back to epoch 2, training stops there"
        )
        good = net()
        train(good, Standard(), until_weaker(3, times=9), schedule=guarded)
        for _ in range(2):  # and the same when it is run again
            model = net(1)
            history = train(
                model, Standard(), until_weaker(3, times=9), schedule=guarded, checkpoint=Checkpoint(tmp_path)
            )
            assert [record["epoch"] for record in history] == [1, 2]
            assert [record.get("stopped") for record in history] == [None, sentence]
            state = Checkpoint(tmp_path).read()
            assert state is not None
            assert len(state[1]["rollbacks"]) == 3
            assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    def test_after_the_last_divergence_it_ends_in_a_sentence_and_keeps_the_files(self, tmp_path: Path) -> None:
        class Always(list[int]):
            def __len__(self) -> int:
                return 1

        message = (
            "^the loss became nan in epoch 1; training was rolled back 1 times and stops here; "
            "lower learning_rate = 0.2 or use"
        )
        guarded = replace(SCHEDULE, guard=Guard(max_rollbacks=1))
        for _ in range(2):  # and says the same when it is run again
            with pytest.raises(RunError, match=message):
                train(net(), NaNOnce(when=1, calls=Always()), schedule=guarded, checkpoint=Checkpoint(tmp_path))
        state = Checkpoint(tmp_path).read_good()
        assert state is not None
        assert all(tensor.isfinite().all() for tensor in state[0].values())

    def test_are_counted_over_the_whole_training(self) -> None:
        def say(epoch: int, record: dict[str, Any]) -> float:
            return 0.05 if record["step"] > 0.51 ** (epoch - 1) else 0.4

        history = train(net(), SingleStep(), Scripted(say))
        assert "in epoch 5; rolled back to epoch 4, training stops there" in history[-1]["stopped"]
        roomy = replace(SCHEDULE, guard=Guard(max_rollbacks=4))
        history = train(net(), SingleStep(), Scripted(say), schedule=roomy)
        assert [len(record.get("rolled_back", [])) for record in history] == [0, 1, 1, 1, 1]


def troubled(model: nn.Module, checkpoint: Checkpoint | None, *others: Callback) -> list[dict[str, Any]]:
    """Train where epoch 3 collapses once, epoch 4 twice, measured in every second epoch and after the last."""

    def say(epoch: int, record: dict[str, Any]) -> float | None:
        if epoch in (1, 3):
            return None
        return 0.05 if record["step"] > {2: 1.0, 4: 0.3, 5: 0.13}[epoch] else 0.4

    schedule = replace(SCHEDULE, ema=EMA(decay=0.8, batches=2))
    return train(model, SingleStep(), Scripted(say), *others, schedule=schedule, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, list[dict[str, Any]]]:
    """A training with three rollbacks that nothing interrupted."""
    model = net()
    history = troubled(model, None)
    assert [len(record.get("rolled_back", [])) for record in history] == [0, 0, 2, 0, 1]
    return model, history


class TestResume:
    @pytest.mark.parametrize(
        "kill",
        [{"steps": s} for s in (7, 12, 16, 19, 24, 26)]
        + [{"epochs": e} for e in range(3, 10)]
        + [{"rollbacks": r} for r in (1, 2, 3)],
    )
    def test_is_bit_identical_after_a_kill_around_rollbacks(
        self, whole: Any, kill: dict[str, int], tmp_path: Path
    ) -> None:
        with pytest.raises(Killed):
            troubled(net(), Checkpoint(tmp_path), Kill(**kill))
        model = net(77)
        assert troubled(model, Checkpoint(tmp_path)) == whole[1]
        assert same(model, whole[0])

    def test_is_bit_identical_after_many_kills(self, whole: Any, tmp_path: Path) -> None:
        for kills in range(30):
            model = net(kills)
            try:
                history = troubled(model, Checkpoint(tmp_path), Kill(steps=STEPS + 1))
            except Killed:
                continue
            assert history == whole[1]
            assert same(model, whole[0])
            assert kills > 5
            return
        pytest.fail("it never ended")

    def test_is_bit_identical_after_a_kill_between_any_two_writes(
        self, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename, writes = Path.replace, [0]

        def counted(path: Path, place: Path) -> Path:
            writes[0] += 1
            if writes[0] == fatal:
                raise Killed
            return rename(path, place)

        monkeypatch.setattr(Path, "replace", counted)
        for fatal in range(1, 100, 3):
            writes[0], folder = 0, tmp_path / str(fatal)
            folder.mkdir()
            try:
                troubled(net(), Checkpoint(folder))
            except Killed:
                model = net(77 if fatal > 1 else 0)  # before the first write there is nothing to go on from
                assert troubled(model, Checkpoint(folder)) == whole[1]
                assert same(model, whole[0])
            else:
                assert fatal > 15
                return

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"schedule": replace(SCHEDULE, learning_rate=0.3)},
                "schedule.learning_rate = 0.2, this one has 0.3; remove it to train anew",
            ),
            (
                {"schedule": replace(SCHEDULE, guard=Guard(max_drop=0.4))},
                "schedule.guard.max_drop = 0.5, this one has 0.4",
            ),
            ({"schedule": replace(SCHEDULE, ema=EMA())}, "schedule.ema.batches = unset, this one has 10"),
            ({"epochs": EPOCHS + 1}, f"epochs = {EPOCHS}, this one has {EPOCHS + 1}"),
            ({"threat": ThreatModel(eps=0.2)}, "threat.eps = 0.1, this one has 0.2"),
            ({"training_loss": PGDAT()}, "a training with loss.name = standard, this one has pgd_at"),
        ],
    )
    def test_of_other_settings_is_refused_by_name(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            train(net(), Standard(), Kill(epochs=2), checkpoint=Checkpoint(tmp_path))
        settings = {"training_loss": Standard(), **change}
        with pytest.raises(InputError, match=message):
            train(net(), **settings, checkpoint=Checkpoint(tmp_path))

    def test_rollbacks_are_in_the_checkpoint(self, tmp_path: Path) -> None:
        """Metadata is plain JSON, readable without our code."""
        with pytest.raises(Killed):
            troubled(net(), Checkpoint(tmp_path), Kill(steps=16))
        state = Checkpoint(tmp_path).read()
        assert state is not None
        assert json.loads(json.dumps(state[1])) == state[1]
        assert [rollback["backed_off"] for rollback in state[1]["rollbacks"]] == ["attack"]


@final
@dataclass(frozen=True, kw_only=True)
class Noisy(TrainingLoss):
    """N-FGSM whose remedy is its paper's: more noise before the step (de Jorge et al. 2022, section 5)."""

    noise: float = 0.0

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        return NFGSM(noise=self.noise)(model, x, y, threat, rng=rng)

    def with_weaker_attack(self, factor: float) -> TrainingLoss:
        return Noisy(noise=max(1.0, self.noise / factor))


@pytest.mark.slow
class TestRealCollapse:
    """Nothing is scripted here: FGSM without noise, from a robust network on, overfits catastrophically by itself."""

    EPS = 0.26

    def large(self, digits: TensorSplit) -> TensorSplit:
        return TensorSplit(nn.functional.interpolate(digits.pixels, scale_factor=2.0), digits.labels)

    def learn(
        self, model: nn.Module, training_loss: TrainingLoss, schedule: Schedule, epochs: int
    ) -> list[dict[str, Any]]:
        data = Digits().load()
        train, held_out = self.large(data.train), self.large(data.selection)
        threat = ThreatModel(eps=self.EPS)

        def probe(model: nn.Module) -> dict[str, float]:
            x, y = held_out.tensors()
            x_adv = PGD(steps=10, keep_best=False)(model, x, y, threat, rng=seeded(9))
            with torch.no_grad():
                clean, robust = ((model(images).argmax(1) == y).float().mean() for images in (x, x_adv))
            return {"held_out_clean": float(clean), "held_out_robust": float(robust)}

        return fit(
            model,
            training_loss,
            Batches(split=train, batch_size=50),
            schedule,
            epochs=epochs,
            threat=threat,
            rng=seeded(1),
            callbacks=[KeepBest(probe, every=1)],
        )

    def test_is_noticed_and_undone(self) -> None:
        data = Digits().load()
        robust = build_model(Tiny(width=8), (1, 16, 16), 10, data.mean, data.std, rng=seeded(0))
        fast = SGD(nesterov=True, weight_decay=0.0)
        slow_but_sure = PGDAT(attack=PGD(steps=4, step_size=0.4, keep_best=False))
        rising = Schedule(
            learning_rate=0.2, batch_size=50, optimiser=fast, lr_schedule=OneCycle(), guard=Guard(max_drop=1.0)
        )
        start = self.learn(robust, slow_but_sure, rising, 15)[-1]["held_out_robust"]
        assert start > 0.35

        steady = Schedule(learning_rate=0.2, batch_size=50, optimiser=fast, lr_schedule=MultiStep(milestones=()))
        unguarded = self.learn(copy.deepcopy(robust), Noisy(), replace(steady, guard=Guard(max_drop=1.0)), 8)
        collapsed = [record["held_out_robust"] for record in unguarded]
        assert min(collapsed) < 0.5 * collapsed[0]
        assert collapsed[-1] < 0.5 * start
        assert unguarded[-1]["held_out_clean"] > 0.8  # it still looks well on clean images

        guarded = self.learn(robust, Noisy(), steady, 8)
        saved = [record["held_out_robust"] for record in guarded]
        sentences = [sentence for record in guarded for sentence in record.get("rolled_back", [])]
        assert 1 <= len(sentences) <= 3
        assert all(sentence.startswith("held-out robust accuracy fell from ") for sentence in sentences)
        assert min(saved) > 0.5 * collapsed[0]
        assert saved[-1] > 0.7 * start
