"""The training loop against a literal one, and resuming after a kill."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.data.augmentation import Augmentation
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.training import (
    Batches,
    Callback,
    Checkpoint,
    Guard,
    KeepBest,
    LossOutput,
    ReportProgress,
    Schedule,
    TrainingLoss,
    fit,
)
from sparsemble.training.callbacks import kept_epoch
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.optimisers.sgd import SGD
from tests.helpers import Kill, Killed
from tests.helpers import random_split as split
from tests.helpers import same_state as same
from tests.helpers import small_network as net

THREAT = ThreatModel(eps=0.1)
SCHEDULE = Schedule(learning_rate=0.2, batch_size=8, lr_schedule=OneCycle(), guard=Guard(max_drop=1.0))
PGD_TRAINING = PGDAT(attack=PGD(steps=2, keep_best=False))
EPOCHS = 4


def batches() -> Batches:
    return Batches(split=split(), batch_size=8, augmentation=Augmentation(crop=1, flip=True))


@dataclass(frozen=True)
class Scripted(TrainingLoss):
    """Returns a loss that a test writes."""

    compute: Callable[[nn.Module, Images], LossOutput]

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        return self.compute(model, x)


def contrary(model: nn.Module) -> dict[str, float]:
    """Probe that likes bad models, so that the best epoch is an early one and has to outlive the kill."""
    x, y = split().tensors()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x), y))
    return {"held_out_clean": 0.0, "held_out_robust": math.tanh(loss)}


def train(checkpoint: Checkpoint | None, *others: Callback, start: int = 0) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Train with everything that has a state: momentum, BatchNorm, augmentation, attack starts, KeepBest."""
    model = net(start)
    history = fit(
        model,
        PGD_TRAINING,
        batches(),
        SCHEDULE,
        epochs=EPOCHS,
        threat=THREAT,
        rng=seeded(5),
        callbacks=[KeepBest(contrary, every=1), *others],
        checkpoint=checkpoint,
    )
    return model, [{key: value for key, value in record.items() if key != "seconds"} for record in history]


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, list[dict[str, Any]]]:
    """A training that nothing interrupted."""
    model, history = train(None)
    assert max(history, key=lambda record: record["held_out_robust"])["epoch"] < EPOCHS - 1
    return model, history


class TestKeptEpoch:
    @given(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=9),
        st.integers(1, 3),
        st.sampled_from([0.0, 0.5]),
    )
    def test_the_history_tells_which_weights_were_kept(
        self, accuracies: list[tuple[int, int]], every: int, first: float
    ) -> None:
        model, history = nn.Linear(1, 1), []
        left = iter(accuracies)

        def probe(_: nn.Module) -> dict[str, float]:
            clean, robust = next(left)
            return {"held_out_clean": clean / 4, "held_out_robust": robust / 4}

        best = KeepBest(probe, every, first)
        for epoch in range(1, len(accuracies) + 1):
            nn.init.constant_(model.weight, epoch)
            history.append({"epoch": epoch})
            best.after_epoch(model, epoch, len(accuracies), history[-1])
        best.finish(model)
        kept = kept_epoch(history, len(accuracies), first)
        assert kept is not None
        assert kept["epoch"] == int(model.weight)

    def test_what_was_not_measured_is_not_known(self) -> None:
        assert kept_epoch([{"epoch": 1}], 1, 0.5) is None


class TestResume:
    @pytest.mark.parametrize("kill", [{"epochs": e} for e in range(1, EPOCHS + 1)] + [{"steps": s} for s in (1, 5, 11)])
    def test_is_bit_identical_after_a_kill_anywhere(self, whole, kill, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            train(Checkpoint(tmp_path), Kill(**kill))
        model, history = train(Checkpoint(tmp_path), start=77)  # the weights come from the file
        assert same(model, whole[0])
        assert history == whole[1]

    def test_is_bit_identical_after_a_kill_in_every_epoch(self, whole, tmp_path: Path) -> None:
        for _ in range(EPOCHS - 1):
            with pytest.raises(Killed):
                train(Checkpoint(tmp_path), Kill(steps=5))  # the second step of the second epoch from there
        model, history = train(Checkpoint(tmp_path))
        assert same(model, whole[0])
        assert history == whole[1]

    def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(
        self, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[Path] = []
        rename = Path.replace

        def die_at_the_third(path: Path, target: Path) -> Path:
            written.append(path)
            if len(written) == 3:
                raise Killed
            return rename(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", die_at_the_third)
            with pytest.raises(Killed):
                train(Checkpoint(tmp_path))
        model, history = train(Checkpoint(tmp_path), start=77)
        assert same(model, whole[0])
        assert history == whole[1]

    def test_a_truncated_file_means_from_the_start(self, whole, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            train(Checkpoint(tmp_path), Kill(epochs=3))
        path = Checkpoint(tmp_path).path
        path.write_bytes(path.read_bytes()[:-10])
        assert same(train(Checkpoint(tmp_path))[0], whole[0])

    def test_a_finished_training_is_not_done_again(self, whole, tmp_path: Path) -> None:
        train(Checkpoint(tmp_path))
        model, history = train(Checkpoint(tmp_path), Kill(steps=1, epochs=1), start=77)
        assert same(model, whole[0])
        assert history == whole[1]
        Checkpoint(tmp_path).remove()
        assert not list(tmp_path.iterdir())


def literal_training(model: nn.Sequential, epochs: int, rate: float, momentum: float, decay: float) -> None:
    """SGD with momentum and L2 penalty in plain tensors, on clean images in the order of the split's permutation."""
    pixels, labels = split().tensors()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    rng, steps = seeded(5), 3 * epochs
    for step in range(steps):
        if step % 3 == 0:
            order = torch.randperm(27, generator=rng)
        chosen = order[8 * (step % 3) :][:8]
        logits = model(pixels[chosen])
        loss = -sum(logits[i].log_softmax(0)[labels[chosen][i]] for i in range(8)) / 8
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        current = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                v.copy_(momentum * v + g + decay * p)
                p.sub_(current * v)


class TestFit:
    def run(
        self, model: nn.Module, training_loss: TrainingLoss, epochs: int = 2, callbacks: Sequence[Callback] = ()
    ) -> Any:
        return fit(
            model,
            training_loss,
            Batches(split=split(), batch_size=8),
            Schedule(
                learning_rate=0.2, batch_size=8, optimiser=SGD(momentum=0.8, weight_decay=0.01), lr_schedule=Cosine()
            ),
            epochs=epochs,
            threat=THREAT,
            rng=seeded(5),
            callbacks=callbacks,
        )

    def test_is_the_literal_loop(self) -> None:
        ours, literal = net(), net().train()
        self.run(ours, Standard(), epochs=3)
        literal_training(literal, 3, rate=0.2, momentum=0.8, decay=0.01)
        for (name, tensor), expected in zip(ours.state_dict().items(), literal.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, expected, msg=name)
        assert not same(ours, net())

    def test_leaves_frozen_weights_alone_and_the_model_in_eval_mode(self) -> None:
        model = net()
        model[0].requires_grad_(False)
        before = copy.deepcopy(model[0].weight)
        self.run(model, Standard())
        assert torch.equal(model[0].weight, before)
        assert not any(module.training for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_counts_every_pass_and_records_the_learning_rate(self) -> None:
        for training_loss, times in ((Standard(), 1), (PGD_TRAINING, 3)):
            history = self.run(net(), training_loss, epochs=2)
            assert [record["epoch"] for record in history] == [1, 2]
            for record in history:
                assert record["forward_passes"] == record["backward_passes"] == times * 24
            last_steps = (2 / 6, 5 / 6)
            expected = [0.1 * (1 + math.cos(math.pi * step)) for step in last_steps]
            assert [record["learning_rate"] for record in history] == pytest.approx(expected)

    def test_counts_every_member_of_an_ensemble(self) -> None:
        history = self.run(Ensemble([net(0), net(1)], MeanProbability()), PGD_TRAINING, epochs=1)
        assert history[0]["forward_passes"] == history[0]["backward_passes"] == 2 * 3 * 24

    def test_history_holds_the_mean_over_batches(self) -> None:
        seen: list[float] = []

        def compute(model: nn.Module, x: Images) -> LossOutput:
            loss = model(x).square().mean()
            seen.append(float(loss.detach()))
            return LossOutput(loss, {"part": 2 * loss.detach()})

        history = self.run(net(), Scripted(compute), epochs=2)
        for record, values in zip(history, (seen[:3], seen[3:]), strict=True):
            assert record["loss"] == pytest.approx(sum(values) / 3)
            assert record["part"] == pytest.approx(2 * sum(values) / 3)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_is_no_number_stops_it_with_a_sentence(self, bad: float, tmp_path: Path) -> None:
        left = [2 * 3]

        def compute(model: nn.Module, x: Images) -> LossOutput:
            left[0] -= 1
            return LossOutput(model(x).square().mean() * (bad if left[0] == 0 else 1.0))

        checkpoint = Checkpoint(tmp_path)
        schedule = replace(SCHEDULE, guard=Guard(max_rollbacks=0))
        settings = {"epochs": 4, "threat": THREAT, "rng": seeded(5), "checkpoint": checkpoint}
        with pytest.raises(RunError, match=f"the loss became {bad} in epoch 2; .* lower learning_rate = 0.2 or"):
            fit(net(), Scripted(compute), batches(), schedule, **settings)
        tensors, metadata = checkpoint.read()
        assert [record["epoch"] for record in metadata["history"]] == [1]
        assert all(tensor.isfinite().all() for tensor in tensors.values())

    def test_a_rate_far_too_high_ends_in_that_sentence_too(self) -> None:
        schedule = Schedule(learning_rate=1e30, batch_size=8, lr_schedule=Cosine())
        with pytest.raises(RunError, match=r"became \w+( or infinite)? in epoch 1; .* lower learning_rate = 1e\+30"):
            fit(net(), PGD_TRAINING, batches(), schedule, epochs=3, threat=THREAT, rng=seeded(0))

    def test_needs_an_epoch(self) -> None:
        with pytest.raises(InputError, match="epochs = 0 must be 1 or more"):
            self.run(net(), Standard(), epochs=0)

    def test_reports_its_progress(self) -> None:
        reports: list[tuple[float, str]] = []
        history = self.run(
            net(), Standard(), epochs=2, callbacks=[ReportProgress(lambda share, text: reports.append((share, text)))]
        )
        assert [share for share, _ in reports] == [0.5, 1.0]
        assert reports[1][1] == f"epoch 2/2, loss {history[1]['loss']:.3f}"
