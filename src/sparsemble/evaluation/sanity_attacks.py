"""Attacks whose outcomes show whether an evaluation is sound, on as many images as a budget of passes allows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, final

from torch import Tensor

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.black_box.hop_skip_jump import HopSkipJump
from sparsemble.attacks.black_box.noise import Noise
from sparsemble.attacks.black_box.rays import RayS
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.ensemble.suite import every_surrogate
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.fgsm import FGSM
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.types import Classifier
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.metrics import CURVE_ATTACK, MEMBER_ATTACK, curve_radii, first_images
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_attacks import Outcomes, run_attacks
from sparsemble.evaluation.work import BACKWARD, Work, expected_work

SINGLE, USUAL = FGSM(), PGD(steps=20, label="pgd20")
NOISE = Noise(draws=10_000)
LABELS_ONLY = {
    "linf": RayS(queries=1000, label="hard_label1000"),
    "l2": HopSkipJump(queries=1000, label="hard_label1000"),
}
"""By norm; the label names the stream of random numbers."""
TRANSFERRED = PGD(steps=20, step_size=0.1, stop_at_success=False, label="pgd20")
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


@final
@dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """Images for each part of the checks, at most; 0 leaves the part out. The order is that in which they run."""

    model: int = 100
    """Checks of the model itself, without attacks."""
    doubled: int = 100
    """The headline attack with twice its steps."""
    curve: int = 200
    """The security curve."""
    gradients: int = 100
    """One step against twenty."""
    members: int = 200
    """Every member by itself."""
    transfer: int = 100
    """Images crafted on the dense parent."""
    paths: int = 12
    """An attack followed point by point."""
    labels: int = 20
    """An attack that sees only labels."""
    noise: int = 20
    """Random noise."""


FULL = SampleSizes()
PARTS = tuple(field.name for field in fields(SampleSizes))
WEIGHTS = {"doubled": 4.0, "curve": 3.0, "model": 1.5}
"""Of the parts, where the budget is divided; 1 for the others."""


def work_by_image(job: EvaluationJob, views: int) -> dict[str, Work]:
    """Return the expected work of each part of the checks for one image.

    Args:
        job: what is evaluated.
        views: differentiable views of the model, whose gradients are checked.
    """
    members, classes = job.members, job.classes or 10

    def of(attack: AnyAttack) -> Work:
        return expected_work(attack, members, classes)

    alone = Work(float(ALONE * members))
    return {
        "model": Work(22.0 * members + 2 * views * members, 2 * views * members).plus(alone.times(2)),
        "doubled": of(job.attacks[0]).times(2),
        "curve": of(CURVE_ATTACK).times(0.5 * len(curve_radii(job))),
        "gradients": of(SINGLE).plus(of(USUAL)),
        "members": of(MEMBER_ATTACK).plus(Work(members * members)),
        "transfer": of(TRANSFERRED),
        "paths": of(USUAL).times(ALONE),
        "labels": of(LABELS_ONLY[job.threat.norm]),
        "noise": of(NOISE),
    }


def sizes_within(
    budget: float, job: EvaluationJob, outcomes: Outcomes, views: int, present: Sequence[str] = PARTS
) -> SampleSizes:
    """Return the sizes of the parts that a budget of work allows, from counted passes and so the same at every run.

    Every part gets its share of the budget that is left, in their order, so that what one does not need is left to
    those after it.

    Args:
        budget: in units of work; `LEAST_BUDGET` may always be spent.
        job: what is evaluated.
        outcomes: of its attacks; the passes of the headline attack decide what twice its steps cost.
        views: differentiable views of the model.
        present: parts that can be made of this model.
    """
    left = max(budget, LEAST_BUDGET)
    by_image = {name: work.units for name, work in work_by_image(job, views).items()}
    headline = outcomes.attacks[outcomes.strongest]
    longer = 2 * (headline.passes[:, 0] + BACKWARD * headline.passes[:, 1]) * headline.correct
    by_image["labels"] *= FEW
    sizes = dict.fromkeys(PARTS, 0)
    for name in PARTS:
        if name not in present:
            continue
        rest = sum(WEIGHTS.get(other, 1.0) for other in PARTS[PARTS.index(name) :] if other in present)
        share = left * WEIGHTS.get(name, 1.0) / rest
        most = min(getattr(FULL, name), len(job.split))
        if name == "doubled":
            affordable = int((longer.cumsum(0) + OVERHEAD * longer.max() <= share).sum())
        else:
            affordable = int(share / by_image[name]) - OVERHEAD
        least = min(LEAST_IMAGES, most)
        sizes[name] = max(min(most, affordable), least if name == "model" else 0)
        if sizes[name] < least:
            sizes[name] = 0
        if sizes[name]:
            spent = float(longer[: sizes[name]].sum() + OVERHEAD * longer.max())
            left -= spent if name == "doubled" else (sizes[name] + OVERHEAD) * by_image[name]
    return SampleSizes(**sizes)


def doubled_work(outcomes: Outcomes, images: int) -> Work:
    """Return the work of the headline attack with twice its steps, on those of the first images that withstand it."""
    headline = outcomes.attacks[outcomes.strongest]
    forward, backward = (headline.passes * headline.correct[:, None])[:images].sum(0).tolist()
    return Work(2 * forward, 2 * backward)


@final
@dataclass(frozen=True)
class Doubled:
    """The headline attack again, with twice its steps."""

    name: str
    usual: tuple[bool, ...]
    """Images that are correct under the attack as it is."""
    doubled: tuple[bool, ...]
    """The same images, under both."""


def double_steps(
    job: EvaluationJob, attack: AnyAttack, correct: Tensor, images: int, store: OutcomeStore
) -> Doubled | None:
    """Run an attack with twice its steps on those of the first images that withstand it; None if it has no steps.

    Args:
        job: what is evaluated.
        attack: the attack behind the headline.
        correct: (n) which images are correct under it.
        images: how many of the first images.
        store: where outcomes are kept.
    """
    longer = lengthened(attack, job.classes or 10)
    if not longer:
        return None
    usual = correct[:images]
    rows = usual.nonzero()[:, 0]
    after = usual.clone()
    if len(rows):
        split = job.split.subset(rows.to(job.split.labels.device))
        again = run_attacks(replace(job, split=split, attacks=longer), store.part("doubled"))
        after[rows] = again.worst_case
    return Doubled(attack.label, tuple(usual.tolist()), tuple(after.tolist()))


def lengthened(attack: AnyAttack, classes: int) -> tuple[AnyAttack, ...]:
    """Return an attack with twice its steps, labelled anew so that it starts elsewhere; AutoAttack as its parts.

    Args:
        attack: any attack.
        classes: of the data set, which decides the parts of AutoAttack.
    """
    inner = attack.attack if isinstance(attack, SurrogateAttack) else attack
    if isinstance(inner, AutoAttack):
        parts = inner.schedule(classes)[: 4 if inner.mode == "fast" else None]
        longer: list[Any] = [twice for part in parts if (twice := _twice(part)) is not None]
    else:
        longer = [twice for twice in [_twice(inner)] if twice is not None]
    if isinstance(attack, SurrogateAttack):
        longer = [replace(attack, attack=twice) for twice in longer]
    return tuple(replace(twice, label=f"doubled {i}") for i, twice in enumerate(longer, start=1))


def _twice(attack: AnyAttack) -> AnyAttack | None:
    """Return a component with twice its steps; None if it has none."""
    assert is_dataclass(attack)
    settings = {name: 2 * value for name in DOUBLED if isinstance(value := getattr(attack, name, None), int)}
    inner = getattr(attack, "attack", None)
    if isinstance(inner, Attack) and (twice := _twice(inner)) is not None:
        settings["attack"] = twice
    changed: AnyAttack | None = replace(attack, **settings) if settings else None
    return changed


def run_on_first(job: EvaluationJob, images: int, store: OutcomeStore, *attacks: AnyAttack) -> Outcomes | None:
    """Run other attacks on the first images of an evaluation; None for no images.

    Args:
        job: what is evaluated.
        images: how many of the first images.
        store: where outcomes are kept.
        attacks: run in place of the job's.
    """
    if not images:
        return None
    return run_attacks(replace(job, split=first_images(job.split, images), attacks=attacks), store)


def transferred(source: Classifier) -> Transfer:
    """Return the attack on another model whose images are tried on the evaluated one."""
    return Transfer(attack=TRANSFERRED, source=source)


def differentiable_views(job: EvaluationJob) -> list[Classifier]:
    """Return what attacks differentiate: the model, or every view of an ensemble and its rule."""
    model = job.model
    if not isinstance(model, Ensemble):
        return [model]
    rule = job.rule
    assert rule is not None
    return [view(model, rule) for view in every_surrogate(job.members, stops_early=job.stops_early)]
