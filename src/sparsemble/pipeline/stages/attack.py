"""One attack on one row of the result table."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from safetensors.torch import load_file

from sparsemble.api.context import Context
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.artifacts import Artifact, write_json
from sparsemble.core.interfaces import Combiner
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images
from sparsemble.data.dataset import Dataset, Split, stratified
from sparsemble.ensemble.dynamic import predict_dynamic
from sparsemble.evaluation.robustness import evaluate
from sparsemble.pipeline.baselines import load_row
from sparsemble.pipeline.stage import Inputs, WithData, dataset, stages, with_prefix

SUBSET_SEED = 50
"""Fixed, so that every run and row is measured on the same test images."""
LEDGER = "ledger"
OUTCOME = "outcome.json"
ABSENT = "absent"
"""Stands alone in the outcome of an attack that was not run, with the reason."""
SHARD = 250
"""Images attacked at once; small networks gain from many."""


@final
@stages.register("attack")
@dataclass(frozen=True, kw_only=True)
class AttackStage(WithData):
    """Craft adversarial test images for a row and record what the deployed row answers; resumes shard by shard.

    Attacks are laid out before the ensemble is chosen, for the most members it may have. Those on a member or prefix that
    a smaller ensemble lacks are not run.
    """

    version: ClassVar[int] = 2

    seed: int
    threat: ThreatModel
    combiner: Combiner
    row: str
    attack: EnsembleAttack
    images: int = 0
    """Test images, stratified; 0 means all."""

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `outcome.json` and the shards that hold the adversarial images; only why, if there is none to run."""
        data = dataset(self.data)
        split = test_images(data, self.images).to(context.device)
        ensemble, rule = load_row(self.row, inputs, self.combiner, context.device)
        if (needed := members_needed(self.attack)) > len(ensemble.members):
            why = f"it needs {needed} members, and the ensemble that was chosen has {len(ensemble.members)}"
            write_json(context.output / OUTCOME, {ABSENT: why})
            return
        found = evaluate(
            ensemble,
            split,
            [self.attack],
            self.threat,
            rule=rule,
            decide=lambda x: predict_dynamic(ensemble, x, rule),
            classes=len(data.classes),
            seed=self.seed,
            shard=SHARD,
            folder=context.output / LEDGER,
            tell=context.report_progress,
        )
        outcome = found.attacks[self.attack.label]
        forward, backward = outcome.total_passes()
        context.add_passes([{"forward_passes": forward, "backward_passes": backward}])
        write_json(
            context.output / OUTCOME,
            {
                "answer": outcome.answer.tolist(),
                "right": outcome.right.tolist(),
                "members_run": outcome.members_run.tolist(),
                "part": outcome.part.tolist(),
                "seconds": float(outcome.seconds.sum()),
            },
        )


def members_needed(attack: EnsembleAttack) -> int:
    """Return how many members an ensemble must have for an attack to have something to look at."""
    match attack:
        case SurrogateAttack(surrogate=Member(index=needed) | Prefix(length=needed)):
            return needed
    return 1


def attacks_on(row: str, context: Context, inputs: Inputs) -> dict[str, Artifact]:
    """Return the attacks that were run on a row, by label."""
    found = with_prefix(inputs, f"attack.{row}")
    return {label: artifact for label, artifact in found.items() if ABSENT not in artifact.json(OUTCOME)}


def stored_images(artifact: Artifact, device: torch.device) -> Images:
    """Read the adversarial images that an attack stage left."""
    (folder,) = [place for place in artifact.file(LEDGER).iterdir() if place.name != "clean"]
    return torch.cat([load_file(file)["images"] for file in sorted(folder.glob("*.safetensors"))]).to(device)


def test_images(data: Dataset, images: int) -> Split:
    """Return the test split, or a fixed stratified part of it."""
    if not images or images >= len(data.test):
        return data.test
    return data.test.subset(test_places(data, images).to(data.test.labels.device))


def test_places(data: Dataset, images: int) -> torch.Tensor:
    """Return which test images those are, by their places in the test split."""
    if not images or images >= len(data.test):
        return torch.arange(len(data.test))
    return torch.from_numpy(stratified(data.test.labels.cpu().numpy(), images, SUBSET_SEED)[1])
