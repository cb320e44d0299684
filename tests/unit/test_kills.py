"""Real kills: a process that trains on the digits, ended by SIGKILL at any moment and started again."""

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.processes import start_python, wait_for, wait_for_line

TRAINING = """
import json, sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.digits import Digits
from sparsemble.models.architecture import build_model
from sparsemble.models.tiny import Tiny
from sparsemble.training import EMA, Batches, Callback, Checkpoint, KeepBest, Schedule, fit
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.lr_schedules.one_cycle import OneCycle

torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
data = Digits(crop=1).load()
threat = ThreatModel(eps=0.15)
model = build_model(Tiny(width=2), data.shape, 10, data.mean, data.std, rng=seeded(int(sys.argv[3])))


def probe(model):
    x, y = data.selection.tensors()
    x_adv = PGD(steps=3, keep_best=False)(model, x, y, threat, rng=seeded(1))
    with torch.no_grad():
        clean, robust = ((model(images).argmax(1) == y).float().mean() for images in (x, x_adv))
    return {"held_out_clean": float(clean), "held_out_robust": float(robust)}


class Collapse(Callback):
    '''Says that robustness collapsed in epoch 5, at the whole rate.'''

    def after_epoch(self, model, epoch, epochs, record):
        record["held_out_robust"] = 0.0 if epoch == 5 and record["learning_rate"] > 0.1 else 0.5


print("ready", flush=True)
history = fit(
    model,
    PGDAT(attack=PGD(steps=2, keep_best=False)),
    Batches(split=data.train, batch_size=100, augmentation=data.augmentation),
    Schedule(learning_rate=0.2, batch_size=100, lr_schedule=OneCycle(), ema=EMA(decay=0.9, batches=3)),
    epochs=8,
    threat=threat,
    rng=seeded(5),
    callbacks=[KeepBest(probe, every=2), Collapse()],
    checkpoint=Checkpoint(folder),
)
for record in history:
    del record["seconds"]
(out / "history.json").write_text(json.dumps(history))
save_file(model.state_dict(), out / "model.safetensors")
"""


def live(folder: Path, out: Path, seed: int, seconds: float | None) -> bool:
    """Train for so long at most, counted from the first step; return whether training ended by itself."""
    process = start_python(TRAINING, folder, out, seed, out=out)
    wait_for_line(process, out, "ready")
    process.join(seconds)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return True
    process.kill()
    assert wait_for(process) == -signal.SIGKILL
    return False


def result(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_file(out / "model.safetensors"), json.loads((out / "history.json").read_text())


@pytest.mark.slow
def test_resuming_is_bit_identical(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("whole", "whole_out", "killed", "killed_out")}
    for folder in folders.values():
        folder.mkdir()
    assert live(folders["whole"], folders["whole_out"], 0, None)
    weights, history = result(folders["whole_out"])
    assert len(history) == 8
    assert sum(len(record.get("rolled_back", [])) for record in history) == 1

    moments = random.Random(0)
    for kills in range(40):
        seconds = moments.uniform(0.1, 0.3 * (kills + 1))  # longer each time: it ends on a slow machine, too
        seed = kills if any(folders["killed"].glob("*.safetensors")) else 0  # from then on the weights are the file's
        if live(folders["killed"], folders["killed_out"], seed, seconds):
            break
    assert 2 <= kills < 39
    resumed, said = result(folders["killed_out"])
    assert said == history
    assert list(resumed) == list(weights)
    assert all(resumed[name].equal(weights[name]) for name in weights)
