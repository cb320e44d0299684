"""What every training stage does around `fit`: checkpoint, choose the epoch, count passes, keep the history."""

from collections.abc import Sequence

from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Dataset, Split
from sparsemble.pipeline.stage import Work
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, KeepBest, Report, Show, WriteHistory
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.fit import fit
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule
from sparsemble.training.validation import held_out_probe

FIRST_KEPT = 0.5
"""Share of the epochs before which none is chosen: early epochs win on few held-out images by luck only."""


def learn(
    work: Work,
    model: nn.Module,
    data: Dataset,
    training_loss: TrainingLoss,
    schedule: Schedule,
    *,
    epochs: int,
    threat: ThreatModel,
    held_out_attack: Attack,
    eval_every: int,
    precision: Precision,
    split: Split | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train a model in place, resuming a checkpoint in the stage's folder; writes `history.jsonl`.

    Args:
        work: the running stage.
        model: what to train.
        data: its held-out images choose the epoch.
        loss: the loss.
        schedule: steps, rate, averaging and guard.
        epochs: passes over the images.
        threat: handed to the objective and the probe.
        held_out_attack: measures held-out robustness.
        eval_every: epochs between measurements.
        precision: number format, layout, compilation.
        split: training images, where not all of them.
        callbacks: what else happens.
    """
    train = data.train if split is None else split
    batches = Batches(split=train, batch_size=schedule.batch_size, augmentation=data.augmentation)
    best = KeepBest(
        held_out_probe(data.choose, held_out_attack, threat, lambda: work.rng("probe")), eval_every, FIRST_KEPT
    )
    checkpoint = Checkpoint(work.folder)
    history = fit(
        model,
        training_loss,
        batches,
        schedule,
        epochs=epochs,
        threat=threat,
        rng=work.rng("train"),
        callbacks=[
            *callbacks,
            best,
            Report(work.tell, work.say),
            Show(work.show),
            WriteHistory(work.folder / "history.jsonl"),
        ],
        checkpoint=checkpoint,
        precision=precision,
    )
    work.add_passes(history)
    checkpoint.remove()
