"""`sparsemble.prune`: one sparse sub-model (EED main paper, eqs. 6-11; supplement A.2)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sparsemble.api.context import Context, resumable
from sparsemble.api.results import Data, Model, TrainedModel
from sparsemble.api.training import HELD_OUT_ATTACK, SCHEDULE, fit_best_epoch_, plain_copy
from sparsemble.attacks.attack import Attack
from sparsemble.core.results import HeldOutAccuracy, SubModelRecord
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.data import load as load_data
from sparsemble.evaluation.cost import count_macs
from sparsemble.models.graph import Graph
from sparsemble.models.plain_network import check_zeros
from sparsemble.pruning.budget import Budget
from sparsemble.pruning.budgets.weights import Weights
from sparsemble.pruning.dead_channels import find_dead_channels
from sparsemble.pruning.granularities.weight import Weight
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.layer_rates import LayerRates
from sparsemble.pruning.mask import KeepZero
from sparsemble.pruning.method import PruningContext, PruningMethod
from sparsemble.pruning.methods.harp import HARP
from sparsemble.pruning.permutation import permute_channels
from sparsemble.pruning.rates.uniform import Uniform
from sparsemble.pruning.score import PruningScore, Scores
from sparsemble.pruning.scores.nis import NIS
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, ReportProgress, WriteHistory
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule
from sparsemble.training.validation import held_out_probe

MASK_EPOCH = 1.3
"""Time of an epoch that learns the mask, in epochs of fine-tuning, for the progress report."""


def prune(
    parent: Model,
    data: Data,
    threat: ThreatModel,
    *,
    sparsity: float,
    score: PruningScore = NIS(),
    method: PruningMethod = HARP(),
    granularity: Granularity = Weight(),
    budget: Budget = Weights(),
    rates: LayerRates = Uniform(),
    floor: float = 0.1,
    finetune_epochs: int = 40,
    loss: TrainingLoss = PGDAT(),
    schedule: Schedule = SCHEDULE,
    eval_every: int = 1,
    held_out_attack: Attack = HELD_OUT_ATTACK,
    precision: Precision = Precision(),
    name: str = "",
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> TrainedModel:
    """Prune a trained network to a sparsity, and fine-tune the weights that are left; the parent is left as found.

    Args:
        parent: a trained model or network.
        data: a data set, or training images as a split or tensors (x, y), of which a tenth is held out.
        threat: what the adversary may do.
        sparsity: fraction of the budget to remove, in [0, 1).
        score: rates every weight of the parent.
        method: chooses the weights that stay, from the scores.
        granularity: what is removed as a piece: weights, N:M groups, blocks, channels.
        budget: what sparsity is a fraction of: weights, or multiply-accumulates.
        rates: divides the budget among the layers, where the method does not learn that.
        floor: least keep rate of a layer, as a fraction of the whole network's, in [0, 1).
        finetune_epochs: passes over the training images after the mask is fixed, >= 0.
        loss: what mask learning and fine-tuning minimise; one that has a teacher learns from the parent.
        schedule: of the fine-tuning; its batch size also holds while the mask is learned.
        eval_every: epochs between measurements on held-out images, >= 1.
        held_out_attack: crafts the held-out images, and the training images that scores are computed on.
        precision: number format, memory layout and compilation of the training.
        name: of the sub-model; that of the score unless given.
        seed: of order, augmentation and attack starts, >= 0.
        folder: keeps checkpoints and the finished model; the same call goes on from there.
        device: auto, cpu, cuda or cuda:N.
        context: takes the place of seed, folder and device where the caller keeps them.

    Returns:
        The sparse classifier with its mask; `record` has dead channels, multiply-accumulates and held-out accuracy
        before and after fine-tuning.

    Raises:
        InputError: a sparsity that the network cannot reach, a layer in which a mask would not hold, or a folder that
            holds another result.
        RunError: the pruned network computes with weights that its mask removes.
    """
    settings = dict(locals())
    score_name = getattr(score, "name", type(score).__name__)  # a score from outside has no registered name

    def compute(running: Context) -> TrainedModel:
        images = load_data(data).to(running.device)
        dense = plain_copy(parent, images, running)
        probe = held_out_probe(images.selection, held_out_attack, threat, lambda: running.rng("probe"))
        search_share = _search_share(method, finetune_epochs)
        context = PruningContext(
            batches=Batches(split=images.train, batch_size=schedule.batch_size, augmentation=images.augmentation),
            held_out=probe,
            loss=loss.with_teacher(dense),
            threat=threat,
            rng=running.rng("masks"),
            callbacks=_search_callbacks(running, search_share),
            checkpoint=Checkpoint(running.folder, "masks"),
            precision=replace(precision, compile=False),  # masked networks are inspected
        )
        target = SparsityTarget(
            graph=Graph(dense, images.shape),
            sparsity=sparsity,
            granularity=granularity,
            budget=budget,
            rates=rates,
            floor=floor,
        )
        scores = _scores(dense, score, context, held_out_attack, running)
        dense, scores = permute_channels(dense, scores, target)
        pruned = method(dense, scores, target, context)
        running.add_passes(pruned.history)
        dead = find_dead_channels(pruned.mask, Graph(pruned.model, images.shape))
        dead.mask.apply_(pruned.model)
        before = probe(pruned.model.eval())
        history: list[dict[str, Any]] = []
        if finetune_epochs and method.fine_tunes:
            history = fit_best_epoch_(
                pruned.model,
                images,
                context.loss,
                schedule,
                epochs=finetune_epochs,
                threat=threat,
                held_out_attack=held_out_attack,
                eval_every=eval_every,
                precision=precision,
                context=_after_search(running, search_share),
                callbacks=[KeepZero({"": dead.mask})],
            )
        after = probe(pruned.model.eval())
        check_zeros(pruned.model, dead.mask, images.shape)
        macs = count_macs(pruned.model, images.shape)
        record = SubModelRecord(
            name=name or score_name,
            weights=pruned.mask.total,
            nonzeros=pruned.mask.nonzeros,
            dead_channels=dead.channels,
            dead_weights=dead.weights,
            macs_dense=macs.dense,
            macs_nonzero=macs.nonzero,
            before_finetuning=_accuracy(before),
            after_finetuning=_accuracy(after),
        )
        if context.checkpoint:
            context.checkpoint.remove()  # kept until here, so that an interrupted fine-tuning need not search again
        spec = parent.spec if isinstance(parent, TrainedModel) else None
        return TrainedModel(model=pruned.model, spec=spec, mask=dead.mask, history=tuple(history), record=record)

    stream = f"prune {score_name} 1 {sparsity:.6f}"
    return resumable("prune", settings, compute, TrainedModel.load, stream)


def _search_callbacks(running: Context, share: float) -> list[Callback]:
    """Report the mask search as the first part of the work, and keep its history."""

    def report(fraction: float, text: str) -> None:
        running.report_progress(share * fraction, f"masks: {text}")

    progress = ReportProgress(report, running.report_message)
    return [progress, WriteHistory(running.folder / "learning.jsonl")] if running.folder else [progress]


def _after_search(running: Context, share: float) -> Context:
    """Return the context whose progress begins where the mask search ended."""
    return replace(
        running,
        report_progress=lambda fraction, text: running.report_progress(share + (1 - share) * fraction, text),
    )


def _search_share(method: PruningMethod, finetune_epochs: int) -> float:
    """Return the share of the work that learning the mask is."""
    learning = MASK_EPOCH * getattr(method, "epochs", 0)
    after = finetune_epochs if method.fine_tunes else 0
    return learning / (learning + after) if learning else 0.0


def _scores(dense: nn.Module, score: PruningScore, context: PruningContext, attack: Attack, running: Context) -> Scores:
    """Return the scores of every prunable weight, on adversarial training images where the score wants any."""
    batches = context.images(type(score).__name__)

    def adversarial() -> Iterator[tuple[Images, Labels]]:
        for x, y in batches.epoch(running.rng("score")):
            yield attack(dense, x, y, context.threat, rng=context.rng), y

    with running.counting(dense):
        return score(dense, adversarial)


def _accuracy(probed: dict[str, float]) -> HeldOutAccuracy:
    return HeldOutAccuracy(clean=probed["held_out_clean"], robust=probed["held_out_robust"])
