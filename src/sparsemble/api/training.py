"""`sparsemble.train`: adversarial training of one network (EED main paper, eqs. 1-2)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparsemble.api.context import Context, resumable
from sparsemble.api.results import Data, Model, TrainedModel, network_of
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.module_state import copy_network, unwrapped
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import draw_seed, seeded
from sparsemble.data import load as load_data
from sparsemble.data.dataset import Dataset
from sparsemble.models.architecture import Architecture
from sparsemble.models.model_io import ModelSpec
from sparsemble.models.plain_network import check_has_weights, check_masks_hold, check_training_output, make_plain_
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, KeepBest, OnEpoch, ReportProgress, WriteHistory, kept_epoch
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.fit import fit
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule
from sparsemble.training.validation import held_out_probe

HELD_OUT_ATTACK = PGD(steps=20, stop_at_success=False)
"""Attack on held-out images by which epochs and ensembles are chosen and rules are calibrated."""
SCHEDULE = Schedule(lr_schedule=OneCycle())
FIRST_KEPT = 0.5
"""Share of the epochs before which none is chosen: early epochs win on few held-out images by luck only."""


def train(
    model: Architecture | nn.Module,
    data: Data,
    threat: ThreatModel,
    *,
    loss: TrainingLoss = PGDAT(),
    epochs: int = 30,
    schedule: Schedule = SCHEDULE,
    eval_every: int = 1,
    held_out_attack: Attack = HELD_OUT_ATTACK,
    precision: Precision = Precision(),
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> TrainedModel:
    """Train a network adversarially, and return the weights of the epoch that is best on held-out images.

    Args:
        model: an architecture, built for the images of the data with fresh weights, or a network, of which a copy is
            trained further.
        data: a data set, or training images as a split or tensors (x, y), of which a tenth is held out.
        threat: what the adversary may do.
        loss: what training minimises.
        epochs: passes over the training images, >= 1.
        schedule: learning rate, batch size, optimiser, EMA of the weights.
        eval_every: epochs between measurements on held-out images, >= 1; only measured epochs of the second half are
            chosen, by robust accuracy plus half of the clean one.
        held_out_attack: crafts the adversarial held-out images.
        precision: number format, memory layout and compilation of the training.
        seed: of weights, order, augmentation and attack starts, >= 0.
        folder: keeps a checkpoint after every epoch and the finished model; calling again with the same arguments goes
            on from there, or reads the finished model.
        device: auto, cpu, cuda or cuda:N.
        context: takes the place of seed, folder and device where the caller keeps them.

    Returns:
        The classifier, with its history.

    Raises:
        InputError: an argument out of range, a network whose weights are computed from others or that returns no logits
            in training mode, or a folder that holds another result.
        RunError: the weights became NaN more often than the schedule's guard allows.
    """
    settings = dict(locals())

    def compute(running: Context) -> TrainedModel:
        images = load_data(data).to(running.device)
        spec: ModelSpec | None = None
        network: nn.Module
        if isinstance(model, Architecture):
            spec = ModelSpec.of(model, images)
            network = built = spec.build(rng=seeded(draw_seed(running.seed, "train", "weights")))
            changes = built.changes
        else:
            network = _in_float32(model, running)
            changes = make_plain_(network, images.shape)
        changes.refuse_computed()
        for note in changes.notes:
            running.report_message(note)
        check_training_output(network.to(running.device), images.shape, len(images.classes))
        history = fit_best_epoch_(
            network,
            images,
            loss,
            schedule,
            epochs=epochs,
            threat=threat,
            held_out_attack=held_out_attack,
            eval_every=eval_every,
            precision=precision,
            context=running,
        )
        return TrainedModel(model=network.eval(), spec=spec, history=tuple(history))

    return resumable("train", settings, compute, TrainedModel.load)


def held_out_accuracy(history: Sequence[Mapping[str, Any]], epochs: int) -> Mapping[str, float] | None:
    """Return `held_out_clean` and `held_out_robust` of the weights that a training kept; None: not measured.

    Args:
        history: one record an epoch.
        epochs: number of epochs that were asked for.
    """
    return kept_epoch(history, epochs, FIRST_KEPT)


def plain_copy(model: Model, images: Dataset, context: Context) -> nn.Module:
    """Return a float32 copy of a trained network that can be pruned and trained, in eval mode; report what was changed.

    Args:
        model: left as found.
        images: what it is trained on.
        context: its device gets the copy.

    Raises:
        InputError: a layer in which a mask would not hold, or a network that returns no logits in training mode, or
            fewer than there are classes.
    """
    network = _in_float32(network_of(model), context).to(context.device).eval()
    for note in make_plain_(network, images.shape).notes:
        context.report_message(note)
    check_masks_hold(network, images.shape)
    check_training_output(network, images.shape, len(images.classes))
    return network


def _in_float32(model: nn.Module, context: Context) -> nn.Module:
    """Return a copy of a network whose floating-point tensors are float32, in which all training computes."""
    model = unwrapped(model)
    if isinstance(model, Ensemble):
        raise InputError("a single network is trained or pruned here, got an ensemble; give one of its members")
    check_has_weights(model)
    others = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()} - {"float32"}
    if others:
        context.report_message(f"weights are converted from {' and '.join(sorted(others))} to float32")
    return copy_network(model).float()


def fit_best_epoch_(
    model: nn.Module,
    data: Dataset,
    loss: TrainingLoss,
    schedule: Schedule,
    *,
    epochs: int,
    threat: ThreatModel,
    held_out_attack: Attack,
    eval_every: int,
    precision: Precision,
    context: Context,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, Any]]:
    """Train a model in place, load the weights of its best epoch, and return one record an epoch.

    Args:
        model: the network or ensemble, on the context's device.
        data: training images and augmentation; its held-out images choose the epoch.
        loss: what training minimises.
        schedule: learning rate, batch size, optimiser, EMA of the weights and guard.
        epochs: passes over the images, >= 1.
        threat: passed to the loss and the held-out attack.
        held_out_attack: crafts the adversarial held-out images.
        eval_every: epochs between measurements, >= 1.
        precision: number format, memory layout, compilation.
        context: randomness, progress, and a folder whose checkpoint is resumed; counts the passes.
        callbacks: called before those that measure and report.
    """
    batches = Batches(split=data.train, batch_size=schedule.batch_size, augmentation=data.augmentation)
    probe = held_out_probe(data.selection, held_out_attack, threat, lambda: context.rng("probe"))
    checkpoint = Checkpoint(context.folder)
    reports = [ReportProgress(context.report_progress, context.report_message), OnEpoch(context.report_epoch)]
    written = [WriteHistory(context.folder / "history.jsonl")] if context.folder else []
    history = fit(
        model,
        loss,
        batches,
        schedule,
        epochs=epochs,
        threat=threat,
        rng=context.rng("train"),
        callbacks=[*callbacks, KeepBest(probe, eval_every, FIRST_KEPT), *reports, *written],
        checkpoint=checkpoint,
        precision=precision,
    )
    context.add_passes(history)
    checkpoint.remove()
    return history
