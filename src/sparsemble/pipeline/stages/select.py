"""Choose the team (EED main paper, section 4.1)."""

from dataclasses import dataclass
from typing import final

from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Dataset
from sparsemble.ensemble.selection.rule import SelectionRule
from sparsemble.evaluation.cost import count_macs
from sparsemble.pipeline.heldout import adversarial_images, logits_of, right
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.pipeline.store import load_model
from sparsemble.pruning.mask import Mask, jaccard


@final
@stages.register("select")
@dataclass(frozen=True, kw_only=True)
class SelectStage(WithData):
    """Score every team on one adversarial set that is crafted against the average of the whole pool."""

    seed: int
    threat: ThreatModel
    select: SelectionRule
    team_size: int
    combine: Combiner
    held_out_attack: Attack

    def run(self, work: Work) -> None:
        """Leave `select.json`."""
        data = dataset(self.data).to(work.device)
        members = {label: load_model(artifact, work.device) for label, artifact in work.pool("pool").items()}
        labels = list(members)
        pool = Ensemble(members.values(), self.combine).eval()
        x, y = data.choose.everything()
        with work.counting(*members.values()):
            x_adv = adversarial_images(pool, data.choose, self.held_out_attack, self.threat, work.rng("select"))
            failures = logits_of(pool, x_adv).argmax(-1) != y
            clean = (logits_of(pool, x).argmax(-1) == y).float().mean(1)
            best = self._best(members, data, work)
        selected = self.select(failures, self.team_size)
        chosen = [labels[i] for i in selected.team]
        write_json(
            work.folder / "select.json",
            {
                "team": chosen,
                "robust_diversity": selected.robust_diversity,
                "reason": selected.reason,
                "teams_scored": selected.teams_scored,
                "pool": labels,
                "held_out_clean": clean.tolist(),
                "held_out_transfer": (1 - failures.float().mean(1)).tolist(),
                "best_member": best,
                "macs_nonzero": sum(count_macs(members[label], data.shape).nonzero for label in chosen),
                **_masks(members),
            },
        )

    def _best(self, members: dict[str, nn.Module], data: Dataset, work: Work) -> str:
        """Return the sub-model that is most robust against its own attack on the choosing images."""
        y = data.choose.labels

        def robust(label: str) -> float:
            attack = self.held_out_attack
            x_adv = adversarial_images(members[label], data.choose, attack, self.threat, work.rng("best"))
            return float(right(members[label], x_adv, y).float().mean())

        return max(members, key=robust)


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
