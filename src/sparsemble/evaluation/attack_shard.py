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
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.minimum_norm import MinimumNorm, bring_inside
from sparsemble.core.dynamic import decide
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels, Logits, PerImage
from sparsemble.evaluation.inputs import check_range
from sparsemble.evaluation.outcome_store import Outcome

AnyAttack = Attack | EnsembleAttack
Decide = Callable[[Images], DynamicOutput]
"""The deployed decision."""


@final
@dataclass(frozen=True)
class Deployed:
    """What is attacked and what decides.

    Args:
        model: a network or an `Ensemble`, in eval mode.
        rule: the stopping rule of an ensemble; None where all of it always runs.
        threat: where adversarial images may lie.
        search_dtype: in which attacks search; float32 always decides.
    """

    model: nn.Module
    rule: StoppingRule | None
    threat: ThreatModel
    search_dtype: torch.dtype

    @torch.no_grad()
    def decide(self, x: Images) -> DynamicOutput:
        """Return the deployed predictions."""
        return deployed_decision(self.model, x, self.rule)

    def judge(self, x_adv: Images, x: Images, y: Labels) -> Outcome:
        """Return the outcome of adversarial images whose cost is not known.

        Args:
            x_adv: (B, C, H, W) adversarial images in [0, 1].
            x: (B, C, H, W) the clean images.
            y: (B) true classes.

        Raises:
            RunError: the model returned NaN or infinite logits.
        """
        return _outcome(self, x, y, _Search.unchanged(x_adv), torch.zeros(len(x), 2, dtype=torch.float64), 0.0)


@torch.no_grad()
def deployed_decision(model: nn.Module, x: Images, rule: StoppingRule | None) -> DynamicOutput:
    """Return the predictions of a deployed model.

    Args:
        model: a single model predicts with its largest logit; an ensemble runs its members one after the other.
        x: (B, C, H, W) in [0, 1].
        rule: of an ensemble that stops early; None runs all members.
    """
    if isinstance(model, Ensemble) and rule is not None:
        return decide(model, x, rule)
    members = len(model.members) if isinstance(model, Ensemble) else 1
    count = torch.full((len(x),), members, device=x.device)
    return DynamicOutput(model(x), count, count)


def predict_clean(deployed: Deployed, x: Images, y: Labels) -> tuple[Outcome, Tensor]:
    """Return the outcome of clean images; no images are stored with it.

    Args:
        deployed: the deployed classifier.
        x: (B, C, H, W) images in [0, 1].
        y: (B) true classes.
    """
    check_range(x)
    return deployed.judge(x, x, y), x[:0].cpu()


def attack_shard(
    deployed: Deployed, attack: AnyAttack, x: Images, y: Labels, clean_correct: Tensor, rng: torch.Generator
) -> tuple[Outcome, Images]:
    """Attack the images of a shard that are classified correctly when clean; the others stay as they are.

    Args:
        deployed: what is attacked.
        attack: on a model, or on an ensemble and its rule.
        x: (B, C, H, W) in [0, 1].
        y: (B) true classes.
        clean_correct: (B) which clean images the deployed decision classifies correctly.
        rng: draws the attack's random starts.

    Returns:
        The outcome and the adversarial images, on the CPU.
    """
    rows = clean_correct.to(x.device).nonzero()[:, 0]
    if isinstance(attack, EnsembleAttack) and attack.aims_at_cost:
        rows = torch.arange(len(x), device=x.device)
    model = deployed.model
    members = list(model.members) if isinstance(model, Ensemble) else [model]
    started = time.perf_counter()
    with count_passes(*members, images=len(rows)) as passes:
        attacked = _search(deployed, attack, x[rows], y[rows], rng)
    seconds = time.perf_counter() - started
    search = _Search.unchanged(x)
    search.fill_(rows, attacked)
    counts = torch.zeros(len(x), 2, dtype=torch.float64)
    counts[rows.cpu()] = passes.by_image.cpu()
    outcome = _outcome(deployed, x, y, search, counts, seconds)
    # A clean image that is misclassified counts as such, whatever an attack on cost makes of it.
    outcome = replace(outcome, correct=outcome.correct & clean_correct.cpu())
    return outcome, search.images.cpu()


@final
@dataclass
class _Search:
    """What an attack returns for each image."""

    images: Images
    minimum: PerImage
    part: Counts

    @staticmethod
    def unchanged(x: Images) -> "_Search":
        """Leave the images as they are."""
        none = torch.full((len(x),), math.nan, device=x.device)
        return _Search(x.clone(), none, torch.full((len(x),), -1, device=x.device))

    def fill_(self, rows: Tensor, attacked: "_Search") -> None:
        """Take over the results of some images; the others are misclassified at distance 0."""
        if not attacked.minimum.isnan().any():
            self.minimum.zero_()
        self.images[rows] = attacked.images.float()
        self.minimum[rows] = attacked.minimum.float()
        self.part[rows] = attacked.part


def _search(deployed: Deployed, attack: AnyAttack, x: Images, y: Labels, rng: torch.Generator) -> _Search:
    """Run the attack; one through the whole ensemble reports what the attack inside it reports."""
    model, threat = in_precision(deployed.model, deployed.search_dtype), deployed.threat
    search = _Search.unchanged(x)
    target: Classifier = model
    inner: AnyAttack = attack
    if isinstance(attack, EnsembleAttack):
        if not isinstance(model, Ensemble) or deployed.rule is None:
            raise InputError(f"{attack.label} attacks an ensemble with a stopping rule; this model is neither")
        if not (isinstance(attack, SurrogateAttack) and isinstance(attack.surrogate, FullEnsemble)):
            search.images = attack(model, deployed.rule, x, y, threat, rng=rng)
            return search
        inner, target = attack.attack, attack.classifier(model, deployed.rule)
    if isinstance(inner, MinimumNorm):
        nearest, success = inner.minimum(target, x, y, threat.norm, rng=rng)
        search.minimum = threat.distance(nearest, x).masked_fill(~success, math.inf)
        search.images = bring_inside(target, nearest, success, x, y, threat, rng=rng)
    elif isinstance(inner, AutoAttack) and len(x):
        images, part = inner.cascade(target, x, y, threat, rng=rng)
        search.images = search_inside(threat, x, lambda: images, inner.name)
        search.part = part.clamp_min(-1)
    else:
        assert isinstance(inner, Attack)
        search.images = inner(target, x, y, threat, rng=rng)
    return search


def _outcome(deployed: Deployed, x: Images, y: Labels, search: _Search, passes: Tensor, seconds: float) -> Outcome:
    """Judge images by the deployed decision, in float32."""
    output = deployed.decide(search.images)
    if not output.logits.isfinite().all():
        raise RunError("the model returned NaN or infinite logits on an attacked image; it cannot be judged")
    prediction = output.logits.argmax(1)
    return Outcome(
        prediction=prediction.cpu(),
        correct=(prediction == y).cpu(),
        members_run=output.members_run.cpu(),
        distance=deployed.threat.distance(search.images, x).cpu(),
        minimum=search.minimum.cpu(),
        part=search.part.cpu(),
        passes=passes,
        seconds=torch.tensor([seconds], dtype=torch.float64),
    )


@final
class Autocast(nn.Module):
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


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model that attacks search on: itself, or with its members in a lower precision."""
    if dtype == torch.float32:
        return model
    if isinstance(model, Ensemble):
        return Ensemble([Autocast(member, dtype) for member in model.members], model.combiner).eval()
    return Autocast(model, dtype)
