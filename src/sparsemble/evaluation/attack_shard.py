"""One attack on one shard of images, decided by the deployed decision."""

import math
import time
from dataclasses import replace
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack, search_inside
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.minimum_norm import MinimumNorm, bring_inside, minimum_on_copy
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Ensemble, members_of
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.types import Classifier, Counts, Flags, Images, Labels, Logits, PerImage
from sparsemble.evaluation.job import DTYPES, AnyAttack, EvaluationJob
from sparsemble.evaluation.outcome_store import Outcome
from sparsemble.evaluation.search_copy import may_search_on_copy


def attack_shard(
    job: EvaluationJob, attack: AnyAttack, x: Images, y: Labels, clean_correct: Flags, rng: Generator
) -> tuple[Outcome, Images]:
    """Attack the images of a shard that are classified correctly when clean; the others stay as they are.

    Args:
        job: what is attacked; its own attacks do not run.
        attack: on a model, or on an ensemble and its rule.
        x: (B, C, H, W) in [0, 1].
        y: (B) true classes.
        clean_correct: (B) which clean images the deployed decision classifies correctly, on the CPU.
        rng: draws the attack's random starts.

    Returns:
        The outcome and the adversarial images, on the CPU.
    """
    rows = clean_correct.to(x.device).nonzero()[:, 0]
    if isinstance(attack, EnsembleAttack) and attack.aims_at_cost:
        rows = torch.arange(len(x), device=x.device)
    started = time.perf_counter()
    found = _search(job, attack, x[rows], y[rows], rng)
    seconds = time.perf_counter() - started
    x_adv = x.clone()
    x_adv[rows] = found.images
    outcome = outcome_of(job, x_adv, x, y)
    if not found.minimum.isnan().any():
        outcome.minimum.zero_()  # an image that is misclassified when clean is adversarial at distance 0
    outcome.minimum[rows.cpu()] = found.minimum
    outcome.part[rows.cpu()] = found.part
    outcome.passes[rows.cpu()] = found.passes
    outcome.seconds.fill_(seconds)
    # A clean image that is misclassified counts as such, whatever an attack on cost makes of it.
    return replace(outcome, correct=outcome.correct & clean_correct), x_adv.cpu()


def outcome_of(job: EvaluationJob, x_adv: Images, x: Images, y: Labels) -> Outcome:
    """Return the outcome of images that the deployed decision classifies, in float32, as of an attack without cost.

    Args:
        job: what decides.
        x_adv: (B, C, H, W) adversarial images in [0, 1].
        x: (B, C, H, W) the clean images.
        y: (B) true classes.

    Raises:
        RunError: the model returned NaN or infinite logits.
    """
    output = job.decide(x_adv)
    if not output.logits.isfinite().all():
        raise RunError("the model returned NaN or infinite logits on an attacked image; its outcome is unknown")
    prediction = output.logits.argmax(1)
    return Outcome(
        prediction=prediction.cpu(),
        correct=(prediction == y).cpu(),
        members_run=output.members_run.cpu(),
        distance=job.threat.distance(x_adv, x).cpu(),
        minimum=torch.full((len(x),), math.nan),
        part=torch.full((len(x),), -1),
        passes=torch.zeros(len(x), 2, dtype=torch.float64),
        seconds=torch.zeros(1, dtype=torch.float64),
    )


class _Found(NamedTuple):
    """What a search found for each image: adversarial images, and on the CPU what `Outcome` describes."""

    images: Images
    minimum: PerImage
    part: Counts
    passes: Float[Tensor, "B 2"]


def _search(job: EvaluationJob, attack: AnyAttack, x: Images, y: Labels, rng: Generator) -> _Found:
    """Search on the copy of the model, and once more on the model for images that only the copy gets wrong."""
    copy = job.search_copy.of(job.model, x) if len(x) and may_search_on_copy(attack) else job.model
    found = _search_on(copy, job, attack, x, y, rng)
    if copy is job.model:
        return found
    seen, deployed = job.decide_by(copy, found.images), job.decide(found.images)
    missed = (seen.logits.argmax(1) != y) & (deployed.logits.argmax(1) == y)
    if isinstance(attack, EnsembleAttack) and attack.aims_at_cost:
        missed |= seen.members_run > deployed.members_run
    rows = missed.nonzero()[:, 0]
    if len(rows):
        again, cpu = _search_on(job.model, job, attack, x[rows], y[rows], rng), rows.cpu()
        found.images[rows] = again.images
        found.minimum[cpu], found.part[cpu] = again.minimum, again.part
        found.passes[cpu] += again.passes
    return found


def _search_on(
    network: nn.Module, job: EvaluationJob, attack: AnyAttack, x: Images, y: Labels, rng: Generator
) -> _Found:
    """Search on a network.

    Args:
        network: the model of the job, or a copy.
        job: what is attacked.
        attack: of the job.
        x: (B, C, H, W) clean images.
        y: (B) true classes.
        rng: source of random draws.
    """
    with count_passes(*members_of(job.model), images=len(x)) as passes:
        images, minimum, part = _attack(network, job, attack, x, y, rng)
    return _Found(images.float(), minimum.float().cpu(), part.cpu(), passes.by_image.cpu())


def _attack(
    network: nn.Module, job: EvaluationJob, attack: AnyAttack, x: Images, y: Labels, rng: Generator
) -> tuple[Images, PerImage, Counts]:
    """Return adversarial images, minimum distances and AutoAttack's parts; arguments as for `_search_on`."""
    model, threat = _in_precision(network, DTYPES[job.search_dtype]), job.threat
    minimum, part = torch.full((len(x),), math.nan), torch.full((len(x),), -1)
    target: Classifier = model
    original: Classifier = job.model
    inner: AnyAttack = attack
    if isinstance(attack, EnsembleAttack):
        assert isinstance(model, Ensemble)
        assert job.rule is not None
        if not (isinstance(attack, SurrogateAttack) and isinstance(attack.surrogate, FullEnsemble)):
            return attack(model, job.rule, x, y, threat, rng=rng), minimum, part
        # An attack through the whole ensemble reports what the attack inside it reports.
        assert isinstance(job.model, Ensemble)
        inner, target = attack.attack, attack.classifier(model, job.rule)
        original = attack.classifier(job.model, job.rule)
    if isinstance(inner, MinimumNorm):
        threat = inner.ball(threat)
        if model is job.model:
            nearest, success = inner.minimum(target, x, y, threat.norm, rng=rng)
        else:
            nearest, success = minimum_on_copy(inner, target, original, x, y, threat.norm, rng=rng)
        minimum = threat.distance(nearest, x).masked_fill(~success, math.inf)
        return bring_inside(original, nearest, success, x, y, threat, rng=rng), minimum, part
    if isinstance(inner, AutoAttack) and len(x):
        images, broken_by = inner.cascade(target, x, y, threat, rng=rng)
        return search_inside(threat, x, lambda: images, inner.name), minimum, broken_by.clamp_min(-1)
    assert isinstance(inner, Attack)
    return inner(target, x, y, threat, rng=rng), minimum, part


@final
class _Autocast(nn.Module):
    """A model that computes in a lower precision and returns float32 logits."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype
        self.eval()

    def forward(self, x: Images) -> Logits:
        """Return the inner model's logits."""
        with torch.autocast(x.device.type, self.dtype):
            logits: Tensor = self.inner(x)
        return logits.float()


def _in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model that attacks search on: itself, or with its members in a lower precision."""
    if dtype == torch.float32:
        return model
    if isinstance(model, Ensemble):
        together = model.together and _Autocast(model.together, dtype)
        members = [_Autocast(member, dtype) for member in model.members]
        return Ensemble(members, model.combiner, together=together).eval()
    return _Autocast(model, dtype)
