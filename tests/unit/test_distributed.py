"""Two processes train what one would: gradients, BatchNorm, draws, averaging, rollbacks and resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsemble.core.distributed_rng import normal_like, sharded, uniform_like
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import TensorSplit
from sparsemble.training import Batches
from tests.processes import run_together

SCRIPT = """
import json, sys, torch
from pathlib import Path
from torch import nn
from safetensors.torch import save_file
from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import TensorSplit
from sparsemble.training import EMA, Batches, Callback, Checkpoint, Guard, KeepBest, LossOutput, Schedule, fit
from sparsemble.training import distributed
from sparsemble.training.loss import TrainingLoss, training_losses
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.lr_schedules.cosine import Cosine

out, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # signs of gradients amplify what rounding leaves
distributed.start("cpu")
reduced = []
plain = torch.distributed.all_reduce
def counted(tensor, *args, **kwargs):
    reduced.append(tensor.numel())
    return plain(tensor, *args, **kwargs)
torch.distributed.all_reduce = counted


class Die(Callback):
    def after_history_change(self, history):
        if len(history) == settings.get("die"):
            sys.exit(9)


class NaNOnFirstSlice(TrainingLoss):
    calls = 0
    def __call__(self, model, x, y, threat, *, rng):
        NaNOnFirstSlice.calls += 1
        bad = NaNOnFirstSlice.calls == 7 and distributed.rank() == 0
        return LossOutput(nn.functional.cross_entropy(model(x), y) * (float("nan") if bad else 1.0))


draw = seeded(11)
split = TensorSplit(torch.rand(50, 1, 6, 6, generator=draw), torch.randint(0, 3, (50,), generator=draw))
split.images = lambda chosen: split.pixels[chosen]  # in 64 bits
torch.manual_seed(distributed.rank() if settings.get("mixed") else 0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
    nn.Flatten(), nn.Linear(16, 3),
)
loss = NaNOnFirstSlice() if settings.get("nan") else training_losses.build(settings["loss"])
ema = EMA(decay=0.8, batches=2) if settings.get("ema") else None
schedule = Schedule(
    learning_rate=0.1, batch_size=12, lr_schedule=Cosine(), ema=ema, guard=Guard(max_drop=1.0),
    max_grad_norm=settings.get("max_grad_norm", 0.0), optimiser=SGD(nesterov=True),
)
def probe(model):
    x, y = split.tensors()
    with torch.no_grad():
        value = float(nn.functional.cross_entropy(model(x), y))
    return {"held_out_clean": 0.0, "held_out_robust": 1 / (1 + value)}

folder = Path(sys.argv[3]) if distributed.rank() == 0 else Path(sys.argv[3] + f"-{distributed.rank()}")
folder.mkdir(exist_ok=True)
history = fit(
    model, loss, Batches(split=split, batch_size=12, augmentation=Augmentation(crop=1, flip=True)), schedule,
    epochs=3, threat=ThreatModel(eps=0.1), rng=seeded(5), callbacks=[KeepBest(probe, 1), Die()],
    checkpoint=Checkpoint(folder),
)
name = f"{distributed.world_size()}-{distributed.rank()}"
save_file(model.state_dict(), out / f"{name}.safetensors")
(out / f"{name}.json").write_text(json.dumps({"history": history, "reduced": reduced}))
distributed.stop()
"""
MADRY = {"name": "pgd_at", "attack": {"name": "pgd", "steps": 2, "keep_best": False}}


def start(out: Path, settings: dict[str, Any], processes: int, checkpoint: Path) -> int:
    """Run the script in some processes and return the worst exit status."""
    ended = run_together(SCRIPT, out, json.dumps(settings), checkpoint, processes=processes)
    print(*(one.stderr for one in ended))
    return max(one.returncode for one in ended)


def result(out: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(out / f"{name}.safetensors"), json.loads((out / f"{name}.json").read_text("utf-8"))


def plain(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key in ("epoch", "loss", "learning_rate", "held_out_robust")}
        for record in history
    ]


def compare(tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in one and in two processes; the weights must agree. Return what the first of two left."""
    for processes in (1, 2):
        assert start(tmp_path, settings, processes, tmp_path / f"checkpoint{processes}") == 0
    (one, alone), (first, beside), (second, _) = (result(tmp_path, name) for name in ("1-0", "2-0", "2-1"))
    for name, tensor in one.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-9, atol=1e-10, msg=name)
        assert torch.equal(first[name], second[name])
    for ours, theirs in zip(plain(beside["history"]), plain(alone["history"]), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)
    return beside


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.slow
    def test_train_what_one_would_with_everything_that_has_a_state(self, tmp_path: Path) -> None:
        left = compare(tmp_path, {"loss": MADRY, "ema": True, "max_grad_norm": 1.0})
        # Each step: mean and variance of 2 BatchNorms forward and backward, loss, gradients. None for the attack.
        steps, weights = 12, (1 * 9 + 1) * 4 + 8 + (4 * 9 + 1) * 4 + 8 + 17 * 3
        assert left["reduced"].count(weights) == steps
        of_average = 3 * 2 * 2 * 2  # epochs, batches, BatchNorms, mean and variance
        of_epochs = 3  # passes
        assert len(left["reduced"]) == steps * (2 * 2 * 2 + 2) + of_average + of_epochs

    def test_losses_that_look_at_gradients_or_draw_noise(self, tmp_path: Path) -> None:
        compare(tmp_path, {"loss": {"name": "awp", "inner": {"name": "n_fgsm"}, "gamma": 0.05}})

    def test_start_from_the_weights_of_the_first(self, tmp_path: Path) -> None:
        compare(tmp_path, {"loss": {"name": "standard"}, "mixed": True})

    def test_go_back_together_where_one_meets_nan(self, tmp_path: Path) -> None:
        left = compare(tmp_path, {"nan": True})
        assert [len(record.get("rolled_back", [])) for record in left["history"]] == [0, 1, 0]

    def test_go_on_from_a_checkpoint_together(self, tmp_path: Path) -> None:
        settings = {"loss": MADRY, "ema": True}
        assert start(tmp_path, settings, 1, tmp_path / "whole") == 0
        assert start(tmp_path, settings | {"die": 2}, 2, tmp_path / "checkpoint") == 9
        assert start(tmp_path, settings, 2, tmp_path / "checkpoint") == 0
        (one, _), (first, _) = result(tmp_path, "1-0"), result(tmp_path, "2-0")
        for name, tensor in one.items():
            torch.testing.assert_close(first[name], tensor, rtol=1e-9, atol=1e-10, msg=name)


class TestSlices:
    @pytest.mark.parametrize("draw", [uniform_like, normal_like])
    def test_draws_of_all_slices_are_those_of_one_process(self, draw: Any) -> None:
        whole = draw(torch.zeros(6, 2, 3, 3), seeded(0))
        generators = [seeded(0) for _ in range(3)]
        parts = []
        for rank, rng in enumerate(generators):
            with sharded(rank, 3):
                parts.append(draw(torch.zeros(2, 2, 3, 3), rng))
        assert torch.equal(torch.cat(parts), whole)
        assert len({bytes(rng.get_state().tolist()) for rng in generators}) == 1

    def test_batches_of_all_slices_are_those_of_one_process(self) -> None:
        draw = seeded(3)
        split = TensorSplit(torch.rand(25, 1, 5, 5, generator=draw), torch.arange(25))
        settings: dict[str, Any] = {"batch_size": 8, "augmentation": Augmentation(crop=2, flip=True)}
        whole = list(Batches(split=split, **settings).epoch(seeded(1)))
        parts = [list(Batches(split=split, shard=(rank, 4), **settings).epoch(seeded(1))) for rank in range(4)]
        assert len(whole) == 3
        for i, (x, y) in enumerate(whole):
            assert torch.equal(torch.cat([part[i][0] for part in parts]), x)
            assert torch.equal(torch.cat([part[i][1] for part in parts]), y)
