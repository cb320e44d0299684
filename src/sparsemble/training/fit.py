"""The training loop that dense training, pruning, fine-tuning and ensemble learning share."""

from collections.abc import Sequence
from typing import Any

from torch import Generator, nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import members_of
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
    """Train a model in place; after a failed epoch return to the last good one and continue more carefully.

    Args:
        model: any module from images to logits; its parameters with `requires_grad` are trained.
        loss: the function that is minimised.
        batches: training images (B, C, H, W) in [0, 1] with labels.
        schedule: optimiser, learning rate, averaging of weights, guard.
        epochs: passes over the batches, >= 1.
        threat: passed to the loss.
        rng: draws order, augmentation and attack starts, on the model's device.
        callbacks: called after steps, epochs and rollbacks.
        checkpoint: where the state is written after every epoch; an existing one is resumed, bit for bit on a CPU.
        precision: number format, memory layout, compilation.

    Returns:
        One record an epoch: `epoch`, `loss`, terms of the loss, `learning_rate`, `seconds`, `forward_passes` and
        `backward_passes` (images, those of attacks and evaluations included), and what callbacks added; `rolled_back`:
        messages of the failed attempts at this epoch; `stopped`: why it is the last one, where robustness collapsed.

    Raises:
        InputError: epochs below 1, a loss without its teacher, a number format that the device lacks, or a checkpoint
            of other settings.
        RunError: weights or loss diverged once more than the guard allows.
    """
    if epochs < 1:
        raise InputError(f"epochs = {epochs} must be 1 or more")
    loss.check_complete()
    precision.check(rng.device)
    precision = precision.on(rng.device)
    networks = members_of(model)
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
    with precision.applied(model, networks):
        loop.resume()
        while len(loop.history) < epochs and not loop.stopped:
            with count_passes(*networks, *loop.ema_networks()) as passes:
                outcome = loop.run_epoch()
            if isinstance(outcome, Fault):
                loop.roll_back(outcome, passes)
            else:
                loop.add_epoch(outcome, passes)
    loop.finish()
    model.eval()
    return loop.history
