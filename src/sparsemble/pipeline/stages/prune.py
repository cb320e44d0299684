"""One sparse sub-model: score, mask learning, fine-tuning (EED main paper, eqs. 6-11; supplement A.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_bytes, write_json
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, draw_seed
from sparsemble.data.dataset import Dataset, Split
from sparsemble.evaluation.cost import count_macs
from sparsemble.models.architecture import Architecture
from sparsemble.models.graph import Graph
from sparsemble.models.model_io import ModelSpec, load_model, save_model
from sparsemble.pipeline.recipe import Prune
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.pipeline.train_stage import learn
from sparsemble.pruning.dead_channels import find_dead_channels
from sparsemble.pruning.folds import data_folds
from sparsemble.pruning.mask import KeepZero, Mask
from sparsemble.pruning.method import PruningContext, PruningResult
from sparsemble.pruning.score import PruningScore
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Report, WriteHistory
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision
from sparsemble.training.validation import held_out_probe


@final
@stages.register("prune")
@dataclass(frozen=True, kw_only=True)
class PruneStage(WithData):
    """Prune the dense parent with one score on one share of the images, then fine-tune what is left."""

    parallel: ClassVar[bool] = True
    version: ClassVar[int] = 2

    seed: int
    model: Architecture
    threat: ThreatModel
    prune: Prune
    score: PruningScore
    fold: int
    """Number of the data share, counted from 1."""
    sparsity: float
    """Of this sub-model, in [0, 1)."""
    held_out_attack: Attack
    eval_every: int = 1
    precision: Precision = Precision()

    @property
    def stream(self) -> str:
        """Sub-models differ in their randomness as well as in their images."""
        return f"prune {self.score.name} {self.fold} {self.sparsity:.6f}"

    def run(self, work: Work) -> None:
        """Leave `model.safetensors`, `mask.safetensors`, `pruned.json`, `learning.jsonl` and `history.jsonl`."""
        data = dataset(self.data).to(work.device)
        # The partition is drawn anew for every score and is the same for its sub-models.
        partition = np.random.default_rng(draw_seed(self.seed, "shares", self.score.name))
        folds = data_folds(data.train.labels, self.prune.folds, partition)
        split = data.train.subset(folds[self.fold - 1].to(work.device))
        dense = load_model(work.inputs["dense"].path, work.device)
        training_loss = self.prune.loss.with_teacher(dense)
        model, mask, told = self._masked(work, dense, data, split, training_loss)
        if self.prune.finetune_epochs and self.prune.method.fine_tunes:
            learn(
                replace(work, tell=lambda fold, text: work.tell(0.3 + 0.7 * fold, text)),
                model,
                data,
                training_loss,
                self.prune.schedule,
                epochs=self.prune.finetune_epochs,
                threat=self.threat,
                held_out_attack=self.held_out_attack,
                eval_every=self.eval_every,
                precision=self.precision,
                split=split,
                callbacks=[KeepZero({"": mask})],
            )
        else:
            write_bytes(work.folder / "history.jsonl", b"")
        save_model(model, work.folder, ModelSpec.of(self.model, data))
        macs = count_macs(model, data.shape)
        told |= {"macs_dense": macs.dense, "macs_nonzero": macs.nonzero}
        told["held_out_after"] = held_out_probe(
            data.choose, self.held_out_attack, self.threat, lambda: work.rng("probe")
        )(model.eval())
        write_json(work.folder / "pruned.json", told)
        self._search(work).remove()

    def _masked(
        self, work: Work, dense: nn.Module, data: Dataset, split: Split, training_loss: TrainingLoss
    ) -> tuple[nn.Module, Mask, dict[str, Any]]:
        """Return the pruned model, its mask and the facts; an interrupted search goes on from its last epoch."""
        rng = work.rng("masks")
        batches = Batches(split=split, batch_size=self.prune.schedule.batch_size, augmentation=data.augmentation)

        def adversarial() -> Iterator[tuple[Images, Labels]]:
            for x, y in batches.epoch(work.rng("score")):
                yield self.held_out_attack(dense, x, y, self.threat, rng=rng), y

        with work.counting(dense):
            scores = self.score(dense, adversarial)
        target = self.prune.target(Graph(dense, data.shape), self.sparsity)
        context = PruningContext(
            batches=batches,
            held_out=held_out_probe(data.choose, self.held_out_attack, self.threat, lambda: work.rng("probe")),
            loss=training_loss,
            threat=self.threat,
            rng=rng,
            callbacks=[
                Report(lambda fold, text: work.tell(0.3 * fold, f"masks: {text}"), work.say),
                WriteHistory(work.folder / "learning.jsonl"),
            ],
            checkpoint=self._search(work),
            precision=replace(self.precision, compile=False),  # masked networks are looked into
        )
        pruned = self.prune.method(dense, scores, target, context)
        work.add_passes(pruned.history)
        return self._without_dead(work, pruned, data)

    def _without_dead(self, work: Work, pruned: PruningResult, data: Dataset) -> tuple[nn.Module, Mask, dict[str, Any]]:
        """Take out what has no influence any more, and write down what stays."""
        dead = find_dead_channels(pruned.mask, Graph(pruned.model, data.shape))
        dead.mask.apply_(pruned.model)
        dead.mask.save(work.folder / "mask.safetensors")
        told = {
            "sparsity": pruned.mask.sparsity,
            "nonzeros": pruned.mask.nonzeros,
            "dead_channels": dead.channels,
            "dead_weights": dead.weights,
            "layers": {name: [int(keep.sum()), keep.numel()] for name, keep in dead.mask.items()},
            "held_out_before": held_out_probe(
                data.choose, self.held_out_attack, self.threat, lambda: work.rng("probe")
            )(pruned.model.eval()),
        }
        return pruned.model, dead.mask, told

    def _search(self, work: Work) -> Checkpoint:
        """Return the checkpoint of the mask search; it stays until the fine-tuning is over."""
        return Checkpoint(work.folder, "masks")
