"""Choose the ensemble (EED main paper, section 4.1)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images
from sparsemble.data.dataset import Dataset
from sparsemble.ensemble.selection.rule import PoolLogits, SelectionRule, select
from sparsemble.evaluation.cost import count_macs
from sparsemble.models.model_io import load_model
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.pruning.mask import Mask, jaccard
from sparsemble.training.validation import adversarial_images, member_logits


@final
@stages.register("select")
@dataclass(frozen=True, kw_only=True)
class SelectStage(WithData):
    """Choose by what sub-models say to images crafted against the average of the pool and against each of them."""

    version: ClassVar[int] = 2

    seed: int
    threat: ThreatModel
    select: SelectionRule
    members: int
    combiner: Combiner
    held_out_attack: Attack

    def run(self, work: Work) -> None:
        """Leave `select.json`."""
        data = dataset(self.data).to(work.device)
        members = {label: load_model(artifact.path, work.device) for label, artifact in work.pool("pool").items()}
        labels = list(members)
        pool = Ensemble(members.values(), self.combiner).eval()
        x, y = data.choose.everything()
        with work.counting(*members.values()):
            logits = {
                "clean": member_logits(pool, x),
                "pool": member_logits(pool, self._against(pool, data, work, "select")),
            }
            for i, (label, member) in enumerate(members.items()):
                logits[label] = member_logits(pool, self._against(member, data, work, "best"))
                work.tell((i + 1) / len(labels), f"attacked {label}")
        pool_logits = PoolLogits(logits=logits, y=y, combiner=self.combiner)
        selected = select(pool_logits, self.members, self.select)
        clean = (logits["clean"].argmax(-1) == y).float().mean(1)
        robust = torch.stack([(logits[label][i].argmax(-1) == y).float().mean() for i, label in enumerate(labels)])
        chosen = [labels[i] for i in selected.members]
        write_json(
            work.folder / "select.json",
            {
                "ensemble": chosen,
                "robust_diversity": selected.robust_diversity,
                "reason": selected.reason,
                "ensembles_scored": selected.ensembles_scored,
                "pool": labels,
                "held_out_clean": clean.tolist(),
                "held_out_transfer": (1 - pool_logits.failures.float().mean(1)).tolist(),
                "held_out_robust": robust.tolist(),
                "best_member": labels[int(robust.argmax())],
                "macs_nonzero": sum(count_macs(members[label], data.shape).nonzero for label in chosen),
                **_masks(members),
            },
        )

    def _against(self, model: nn.Module, data: Dataset, work: Work, words: str) -> Images:
        return adversarial_images(model, data.choose, self.held_out_attack, self.threat, work.rng(words))


def _masks(members: dict[str, nn.Module]) -> dict[str, object]:
    """Return per-layer sparsity of every sub-model and the overlap of all pairs of masks."""
    masks = {label: Mask.of(model) for label, model in members.items()}
    first = next(iter(masks.values()))
    return {
        "layers": list(first),
        "layer_weights": [keep.numel() for keep in first.values()],
        "layer_sparsity": {n: [1 - float(k.float().mean()) for k in mask.values()] for n, mask in masks.items()},
        "overlap": [[jaccard(a, b) for b in masks.values()] for a in masks.values()],
    }
