"""Attacks whose outcomes show whether an evaluation is sound, on as many images as a budget of passes allows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.black_box.hop_skip_jump import HopSkipJump
from sparsemble.attacks.black_box.noise import Noise
from sparsemble.attacks.black_box.pointwise import Pointwise
from sparsemble.attacks.black_box.rays import RayS
from sparsemble.attacks.bpda import BPDA
from sparsemble.attacks.ensemble.suite import every_surrogate
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.fgsm import FGSM
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.results import CheckResult
from sparsemble.core.threat import Norm
from sparsemble.core.types import Classifier, Flags
from sparsemble.evaluation.checks.attacks import steps_suffice
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.metrics import MEMBER_ATTACK, curve_attack, curve_radii
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_attacks import CLASSES, Outcomes, run_attacks
from sparsemble.evaluation.work import BACKWARD, Work, expected_work

SINGLE, USUAL = FGSM(), PGD(steps=20, label="pgd20")
NOISE = Noise(draws=10_000)
LABELS_ONLY = {
    "linf": RayS(queries=1000, label="hard_label1000"),
    "l2": HopSkipJump(queries=1000, label="hard_label1000"),
    "l1": Pointwise(queries=1000, label="hard_label1000"),
}
"""By norm; the label names the stream of random numbers."""
TRANSFERRED = PGD(steps=20, step_size=0.1, stop_at_success=False, label="pgd20")
STAND_INS = BPDA(attack=PGD(steps=40, step_size=0.1), label="stand_ins")
LEAST_BUDGET = 5_000
"""Units of work that the checks may always take."""
LEAST_IMAGES = 5
"""A part that the budget does not allow on so many images is left out."""
ALONE = 16
"""Time of a pass of one image alone, in passes of an image in a batch."""
OVERHEAD = 4
"""Time of a batch beyond that of its images, in images: attacks on few images are slower than their passes tell."""
FEW = 3
"""The same for an attack on a dozen images, which sees labels only and so evaluates few points at once."""
DOUBLED = ("steps", "queries", "draws")
"""Settings of attacks that stand for their length."""
FULL = {
    "model": 100,  # checks of the model itself, without attacks
    "doubled": 100,  # the headline attack with twice its steps
    "curve": 200,  # the security curve
    "gradients": 100,  # one step against twenty
    "members": 200,  # every member by itself
    "transfer": 100,  # images crafted on the dense parent
    "paths": 12,  # an attack followed point by point
    "labels": 20,  # an attack that sees only labels
    "noise": 20,  # random noise
    "stand_ins": 100,  # gradients of smooth stand-ins, where the model decides or rounds
}
"""Most images for each part of the checks, in the order in which the parts run."""
WEIGHTS = {"doubled": 4.0, "curve": 3.0, "model": 1.5}
"""Of the parts, where the budget is divided; 1 for the others."""


def work_by_image(job: EvaluationJob) -> dict[str, Work]:
    """Return the expected work of each part of the checks for one image."""
    members, views = job.members, len(differentiable_views(job))

    def of(attack: AnyAttack) -> Work:
        return expected_work(attack, members, job.classes or CLASSES)

    return {
        "model": Work((22.0 + 2 * ALONE + 2 * views) * members, 2 * views * members),
        "doubled": of(job.attacks[0]).times(2),
        "curve": of(curve_attack(job)).times(0.5 * len(curve_radii(job))),
        "gradients": of(SINGLE).plus(of(USUAL)),
        "members": of(MEMBER_ATTACK).plus(Work(members * members)),
        "transfer": of(TRANSFERRED),
        "paths": of(USUAL).times(ALONE),
        "labels": of(LABELS_ONLY[job.threat.norm]),
        "noise": of(NOISE),
        "stand_ins": of(STAND_INS),
    }


def sizes_within(budget: float, job: EvaluationJob, outcomes: Outcomes, present: Sequence[str]) -> dict[str, int]:
    """Return on how many images each part runs within a budget, from counted passes and so the same at every run.

    Every part gets its share of the budget that is left; what it does not need is left to those after it.

    Args:
        budget: in units of work; `LEAST_BUDGET` may always be spent.
        job: what is evaluated.
        outcomes: of its attacks; the passes of the headline attack decide what twice its steps cost.
        present: parts that this model has, in their order; the others get no images.
    """
    left = max(budget, LEAST_BUDGET)
    by_image = {name: work.units for name, work in work_by_image(job).items()}
    by_image["labels"] *= FEW
    passes = _doubled_passes(outcomes)
    longer = passes[:, 0] + BACKWARD * passes[:, 1]
    sizes = dict.fromkeys(FULL, 0)
    for i, name in enumerate(present):
        share = left * WEIGHTS.get(name, 1.0) / sum(WEIGHTS.get(other, 1.0) for other in present[i:])
        most = min(FULL[name], len(job.split))
        if name == "doubled":
            affordable = int((longer.cumsum(0) + OVERHEAD * longer.max() <= share).sum())
        else:
            affordable = int(share / by_image[name]) - OVERHEAD
        least = min(LEAST_IMAGES, most)
        images = max(min(most, affordable), least if name == "model" else 0)
        if images < least:
            continue
        sizes[name] = images
        spent = float(longer[:images].sum() + OVERHEAD * longer.max())
        left -= spent if name == "doubled" else (images + OVERHEAD) * by_image[name]
    return sizes


def doubled_work(outcomes: Outcomes, images: int) -> Work:
    """Return the work of the headline attack with twice its steps, on those of the first images that withstand it."""
    return Work(*_doubled_passes(outcomes)[:images].sum(0).tolist())


def _doubled_passes(outcomes: Outcomes) -> Tensor:
    """Return the passes (n, 2) of the headline attack with twice its steps; 0 for images that it breaks."""
    headline = outcomes.attacks[outcomes.strongest]
    return 2 * headline.passes * headline.correct[:, None]


def double_steps(
    job: EvaluationJob, attack: AnyAttack, correct: Flags, images: int, store: OutcomeStore
) -> CheckResult | None:
    """Check the headline attack with twice its steps, on images that withstand it; None if it has no steps.

    Args:
        job: what is evaluated.
        attack: the attack behind the headline.
        correct: (n) which images are correct under it.
        images: how many of the first images.
        store: where outcomes are kept.
    """
    longer = lengthened(attack, job.classes or CLASSES, job.threat.norm)
    if not longer:
        return None
    usual = correct[:images]
    rows = usual.nonzero()[:, 0]
    after = usual.clone()
    if len(rows):
        split = job.split.subset(rows.to(job.split.labels.device))
        after[rows] = run_attacks(replace(job, split=split, attacks=longer), store.part("doubled")).worst_case
    return steps_suffice(usual.tolist(), after.tolist(), attack.label)


def lengthened(attack: AnyAttack, classes: int, norm: Norm) -> tuple[AnyAttack, ...]:
    """Return an attack with twice its steps, labelled anew so that it starts elsewhere; AutoAttack as its parts.

    Args:
        attack: any attack.
        classes: of the data set.
        norm: of the threat model.
    """
    inner = attack.attack if isinstance(attack, SurrogateAttack) else attack
    parts: Sequence[Any] = [inner]
    if isinstance(inner, AutoAttack):
        parts = inner.schedule(classes, norm)[: 4 if inner.mode == "fast" else None]
    longer: list[Any] = [twice for part in parts if (twice := _twice(part)) is not None]
    if isinstance(attack, SurrogateAttack):
        longer = [replace(attack, attack=twice) for twice in longer]
    return tuple(replace(twice, label=f"doubled {i}") for i, twice in enumerate(longer, start=1))


def _twice(attack: Any) -> Any:
    """Return a component with twice its steps; None if it has none."""
    settings = {name: 2 * value for name in DOUBLED if isinstance(value := getattr(attack, name, None), int)}
    inner = getattr(attack, "attack", None)
    if isinstance(inner, Attack) and (twice := _twice(inner)) is not None:
        settings["attack"] = twice
    return replace(attack, **settings) if settings else None


def differentiable_views(job: EvaluationJob) -> list[Classifier]:
    """Return what attacks differentiate: the model, or every view of an ensemble and its rule."""
    if not isinstance(job.model, Ensemble):
        return [job.model]
    assert job.rule is not None
    return [view(job.model, job.rule) for view in every_surrogate(job.members, stops_early=job.stops_early)]
