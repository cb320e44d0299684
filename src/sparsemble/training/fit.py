"""The only training loop."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, nn

from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.passes import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.objective import Objective
from sparsemble.training.schedule import Schedule


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    schedule: Schedule,
    *,
    epochs: int,
    threat: ThreatModel,
    rng: Generator,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, Any]]:
    """Train a model in place.

    Args:
        model: any module; its parameters that want a gradient are trained.
        objective: what goes down.
        batches: where the images come from.
        schedule: optimiser and rate.
        epochs: passes over the batches, >= 1.
        threat: handed to the objective.
        rng: draws order, augmentation and attack starts, on the model's device.
        callbacks: what else happens.
        checkpoint: where to keep the state after every epoch; an existing one is resumed, bit for bit on a CPU.

    Returns:
        One record an epoch: `epoch`, `loss`, parts of the loss, `rate`, `seconds`, `forward_passes` and
        `backward_passes` (images, attacks and probes included), and what callbacks added.

    Raises:
        InputError: epochs below 1.
        RunError: the loss became NaN or infinite.
    """
    if epochs < 1:
        raise InputError(f"epochs = {epochs} must be 1 or more")
    optimiser = schedule.optimiser(model.parameters())
    history = checkpoint.restore(model, optimiser, rng, callbacks) if checkpoint else []
    counted = list(model.members) if isinstance(model, Ensemble) else [model]
    for epoch in range(len(history), epochs):
        with count_passes(*counted) as passes:
            record = _one_epoch(model, objective, batches, schedule, optimiser, epoch, epochs, threat, rng, callbacks)
            for callback in callbacks:
                callback.after_epoch(model, epoch + 1, epochs, record)
        record |= {"forward_passes": passes.forward, "backward_passes": passes.backward}
        history.append(record)
        if checkpoint:
            checkpoint.save(model, optimiser, rng, callbacks, history)
    for callback in callbacks:
        callback.finish(model)
    model.eval()
    return history


def _one_epoch(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    schedule: Schedule,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    epochs: int,
    threat: ThreatModel,
    rng: Generator,
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    started = time.perf_counter()
    model.train()
    sums: dict[str, torch.Tensor] = {}
    rate = 0.0
    for i, (x, y) in enumerate(batches.epoch(rng)):
        rate = schedule.rate * schedule.decay((epoch + i / len(batches)) / epochs)
        for group in optimiser.param_groups:
            group["lr"] = rate
        output = objective(model, x, y, threat, rng=rng)
        optimiser.zero_grad(set_to_none=True)
        output.loss.backward()
        optimiser.step()
        for callback in callbacks:
            callback.after_step(model)
        for name, term in {"loss": output.loss.detach(), **output.terms}.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term
    means = {name: float(total) / len(batches) for name, total in sums.items()}
    if not math.isfinite(means["loss"]):
        raise RunError(
            f"the loss became {means['loss']} in epoch {epoch + 1}; lower rate = {schedule.rate:g} and run again "
            "(earlier epochs are kept)"
        )
    return {"epoch": epoch + 1, **means, "rate": rate, "seconds": time.perf_counter() - started}
