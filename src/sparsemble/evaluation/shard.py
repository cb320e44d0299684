"""One attack on one shard of images, judged by the deployed decision."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import Attack, search_inside
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.minimum_norm import MinimumNorm, bring_inside
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Counts, Images, PerImage, draw_seed, seeded
from sparsemble.data.dataset import Split
from sparsemble.evaluation.inputs import check_range
from sparsemble.evaluation.outcome_store import Outcome
from sparsemble.evaluation.precision import in_precision

Decide = Callable[[Images], DynamicOutput]
"""The deployed decision."""


@final
@dataclass(frozen=True)
class EvaluationJob:
    """What is attacked, what decides, and on which images."""

    model: nn.Module
    decide: Decide
    rule: StoppingRule | None
    data: Split
    threat: ThreatModel
    seed: int
    search: torch.dtype


def answer_clean(job: EvaluationJob, chosen: Tensor) -> tuple[Outcome, Images]:
    """Answer clean images; what is kept beside the answers is no image."""
    x, y = job.data.images(chosen), job.data.labels[chosen]
    check_range(x)
    outcome = _outcome(job, x, x, y, _Found.nothing(x), torch.zeros(len(x), 2, dtype=torch.float64), 0.0)
    return outcome, x[:0].cpu()


def attack_shard(
    job: EvaluationJob, attack: Attack | EnsembleAttack, i: int, chosen: Tensor, clean_right: Tensor
) -> tuple[Outcome, Images]:
    """Attack the images of a shard that are right when clean; the others are broken already and stay as they are."""
    x, y = job.data.images(chosen), job.data.labels[chosen]
    todo = clean_right.to(x.device)[chosen].nonzero()[:, 0]
    if isinstance(attack, EnsembleAttack) and attack.aims_at_cost:
        todo = torch.arange(len(x), device=x.device)
    rng = seeded(draw_seed(job.seed, "evaluate", attack.label, str(i)), x.device)
    members = list(job.model.members) if isinstance(job.model, Ensemble) else [job.model]
    started = time.perf_counter()
    with count_passes(*members, images=len(todo)) as passes:
        found = _search(job, attack, x[todo], y[todo], rng)
    seconds = time.perf_counter() - started
    everything = _Found.nothing(x)
    everything.fill_(todo, found)
    counts = torch.zeros(len(x), 2, dtype=torch.float64)
    counts[todo.cpu()] = passes.by_image.cpu()
    outcome = _outcome(job, x, everything.images, y, everything, counts, seconds)
    # What is answered wrongly without an attack is broken, whatever an attack on cost makes of it.
    outcome = replace(outcome, right=outcome.right & clean_right[chosen.cpu()])
    return outcome, everything.images.cpu()


@final
@dataclass
class _Found:
    """What an attack hands back."""

    images: Images
    minimum: PerImage
    part: Counts

    @staticmethod
    def nothing(x: Images) -> "_Found":
        """Leave the images as they are."""
        none = torch.full((len(x),), math.nan, device=x.device)
        return _Found(x.clone(), none, torch.full((len(x),), -1, device=x.device))

    def fill_(self, rows: Tensor, found: "_Found") -> None:
        """Take over what was found for some of the images; the others are broken at distance 0."""
        if not found.minimum.isnan().any():
            self.minimum.zero_()
        self.images[rows] = found.images.float()
        self.minimum[rows] = found.minimum.float()
        self.part[rows] = found.part


def _search(job: EvaluationJob, attack: Attack | EnsembleAttack, x: Images, y: Tensor, rng: torch.Generator) -> _Found:
    """Run the attack."""
    model, threat = in_precision(job.model, job.search), job.threat
    found = _Found.nothing(x)
    if isinstance(attack, EnsembleAttack):
        assert isinstance(model, Ensemble)
        assert job.rule is not None
        found.images = attack(model, job.rule, x, y, threat, rng=rng)
    elif isinstance(attack, MinimumNorm):
        nearest, success = attack.minimum(model, x, y, threat.norm, rng=rng)
        found.minimum = threat.distance(nearest, x).masked_fill(~success, math.inf)
        found.images = bring_inside(model, nearest, success, x, y, threat, rng=rng)
    elif isinstance(attack, AutoAttack) and len(x):
        images, part = attack.cascade(model, x, y, threat, rng=rng)
        found.images = search_inside(threat, x, lambda: images, attack.name)
        found.part = part.clamp_min(-1)
    else:
        found.images = attack(model, x, y, threat, rng=rng)
    return found


def _outcome(
    job: EvaluationJob, x: Images, x_adv: Images, y: Tensor, found: _Found, passes: Tensor, seconds: float
) -> Outcome:
    """Judge images by the deployed decision, in float32."""
    output = job.decide(x_adv)
    if not output.logits.isfinite().all():
        raise RunError("the model returned NaN or infinite logits on an attacked image; it cannot be judged")
    answer = output.logits.argmax(1)
    return Outcome(
        answer=answer.cpu(),
        right=(answer == y).cpu(),
        members_run=output.members_run.cpu(),
        distance=job.threat.distance(x_adv, x).cpu(),
        minimum=found.minimum.cpu(),
        part=found.part.cpu(),
        passes=passes,
        seconds=torch.tensor([seconds], dtype=torch.float64),
    )


def largest_logit(model: nn.Module) -> Decide:
    """Return the decision of a model that answers with its largest logit; a static ensemble runs all its members."""

    @torch.no_grad()
    def decide(x: Images) -> DynamicOutput:
        logits = model(x)
        ones = torch.ones(len(x), dtype=torch.long, device=x.device)
        runs = len(model.members) * ones if isinstance(model, Ensemble) else ones
        return DynamicOutput(logits, runs, runs)

    return decide
