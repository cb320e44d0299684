"""One attack on one row of the result table, and accuracy of a row against eps."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.api.context import Context
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.artifacts import Artifact, write_json
from sparsemble.core.interfaces import Combiner
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.evaluation.inputs import select_images
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.metrics import security_curve
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.evaluation.run_attacks import run_attacks
from sparsemble.evaluation.run_models import Row, load_row
from sparsemble.pipeline.stage import Inputs, WithData, dataset, stages, with_prefix

STORE = "outcomes"
ATTACK = "attack.json"
ABSENT = "absent"
"""Stands in `attack.json` of an attack that was not run, with the reason."""
SHARD = 250
"""Images attacked at once, at least; networks on small images gain from many."""
VALUES = 64_000
"""Numbers in the images attacked at once, unless these are fewer images than `SHARD`."""


@dataclass(frozen=True, kw_only=True)
class RowStage(WithData):
    """A stage that evaluates rows of the result table."""

    threat: ThreatModel
    combiner: Combiner
    images: int = 0
    """Test images, stratified; 0 means all."""

    def job(self, row: Row, attacks: tuple[AnyAttack, ...], device: torch.device) -> EvaluationJob:
        """Return the job that evaluates a row; the same settings and attack give the same outcomes.

        Args:
            row: what is deployed.
            attacks: with different labels.
            device: of the row.
        """
        data = dataset(self.data)
        return EvaluationJob(
            model=row.ensemble,
            rule=row.rule,
            split=select_images(data, self.images).to(device),
            threat=self.threat,
            attacks=attacks,
            classes=len(data.classes),
            seed=self.seed,
            shard=max(SHARD, VALUES // math.prod(data.shape)),
        )


@final
@stages.register("attack")
@dataclass(frozen=True, kw_only=True)
class AttackStage(RowStage):
    """Craft adversarial test images for a row and record the deployed predictions; resumes shard by shard.

    Attacks are laid out before the ensemble is selected, for the most members it may have. Those on a member or prefix
    that a smaller ensemble lacks are not run.
    """

    version: ClassVar[int] = 4

    row: str
    attack: EnsembleAttack

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `attack.json` and the store of outcomes; only the reason, if the attack cannot run."""
        row = load_row(self.row, inputs, self.combiner, context.device)
        needed, members = _members_needed(self.attack), len(row.ensemble.members)
        if needed > members:
            reason = f"it needs {needed} members, and the ensemble that was selected has {members}"
            write_json(context.output / ATTACK, {ABSENT: reason})
            return
        job = self.job(row, (self.attack,), context.device)
        progress = Progress(row.ensemble, context.report_progress)
        outcomes = run_attacks(job, OutcomeStore(context.output / STORE), progress=progress)
        forward, backward = outcomes.attacks[self.attack.label].total_passes()
        context.add_passes([{"forward_passes": forward, "backward_passes": backward}])
        write_json(context.output / ATTACK, {"label": self.attack.label, "attack": to_dict(self.attack)})


@final
@stages.register("curve")
@dataclass(frozen=True, kw_only=True)
class CurveStage(RowStage):
    """Attack one row at each radius, on the first test images, until accuracy is zero."""

    version: ClassVar[int] = 3

    row: str
    attack: Attack
    eps: tuple[float, ...]
    curve_images: int

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `curve.json`."""
        row = load_row(self.row, inputs, self.combiner, context.device)
        job = self.job(row, (self.attack,), context.device)
        curve = security_curve(job, self.curve_images, OutcomeStore(), attack=self.attack, radii=self.eps)
        write_json(context.output / "curve.json", to_dict(curve))


def _members_needed(attack: EnsembleAttack) -> int:
    """Return the number of members that an ensemble must have for an attack to be possible."""
    match attack:
        case SurrogateAttack(surrogate=Member(index=needed) | Prefix(length=needed)):
            return needed
    return 1


def attacks_on(row: str, inputs: Inputs) -> dict[str, Artifact]:
    """Return the attacks that were run on a row, by label."""
    artifacts = with_prefix(inputs, f"attack.{row}")
    return {label: artifact for label, artifact in artifacts.items() if ABSENT not in artifact.json(ATTACK)}
