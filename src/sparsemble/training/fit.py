"""The only training loop."""

from collections.abc import Sequence
from typing import Any

from torch import Generator, nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.guard import Fault
from sparsemble.training.loop import Loop
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import FLOAT32, Precision
from sparsemble.training.schedule import Schedule


def fit(
    model: nn.Module,
    loss: TrainingLoss,
    batches: Batches,
    schedule: Schedule,
    *,
    epochs: int,
    threat: ThreatModel,
    rng: Generator,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    precision: Precision = FLOAT32,
) -> list[dict[str, Any]]:
    """Train a model in place.

    Where training goes wrong it goes back to the last good epoch, and on more gently (`Schedule.guard`).

    Args:
        model: any module; its parameters that want a gradient are trained.
        loss: what goes down.
        batches: where the images come from.
        schedule: steps, rate, averaging, guard.
        epochs: passes over the batches, >= 1.
        threat: handed to the objective.
        rng: draws order, augmentation and attack starts, on the model's device.
        callbacks: what else happens.
        checkpoint: where to keep the state after every epoch; an existing one is resumed, bit for bit on a CPU.
        precision: number format, layout, compilation.

    Returns:
        One record an epoch: `epoch`, `loss`, parts of the loss, `rate`, `seconds`, `forward_passes` and
        `backward_passes` (images, attacks and probes included), what callbacks added, and `rolled_back`: sentences
        on the tries at this epoch that went wrong; `stopped`: why it is the last one, where robustness collapsed.

    Raises:
        InputError: epochs below 1, a number format that the device lacks, or a checkpoint of other settings.
        RunError: the weights blew up once more than the guard allows.
    """
    if epochs < 1:
        raise InputError(f"epochs = {epochs} must be 1 or more")
    precision.check(rng.device)
    parts = list(model.members) if isinstance(model, Ensemble) else [model]
    loop = Loop(
        model=model,
        loss=loss,
        batches=batches,
        schedule=schedule,
        epochs=epochs,
        threat=threat,
        rng=rng,
        callbacks=callbacks,
        checkpoint=checkpoint or Checkpoint(),
        precision=precision,
    )
    with precision.applied(model, parts):
        loop.resume()
        while len(loop.history) < epochs and not loop.stopped:
            with count_passes(*parts, *loop.averaged_parts()) as passes:
                found = loop.epoch()
            if isinstance(found, Fault):
                loop.roll_back(found, passes)
            else:
                loop.keep(found, passes)
    loop.finish()
    model.eval()
    return loop.history
