"""The evaluator: attacks a classifier, measures its cost, checks the evaluation, and returns one typed result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal, TypeVar, final

from sparsemble.attacks.attack import Access, Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.black_box.hop_skip_jump import HopSkipJump
from sparsemble.attacks.black_box.pointwise import Pointwise
from sparsemble.attacks.black_box.rays import RayS
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.bpda import count_stand_ins
from sparsemble.attacks.ensemble.suite import BLACK_BOX, GRADIENT, full_suite
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.results import (
    DataRecord,
    EvaluationResult,
    SecurityCurve,
    ThreatRecord,
    Timing,
)
from sparsemble.core.threat import Norm, as_fraction
from sparsemble.data.dataset import Dataset, DataSource
from sparsemble.evaluation.check_suite import Evidence, Extras, all_checks
from sparsemble.evaluation.corrupted_images import CorruptedImages
from sparsemble.evaluation.corruption_accuracy import corruption_accuracy, plan_corruptions
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.evaluation.inputs import FIRST, SUBSET_SEED, select_indices
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.metrics import first_images, measure_cost, members_table, security_curve
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.progress import Progress, Report
from sparsemble.evaluation.result_records import model_record, outcome_fields
from sparsemble.evaluation.run_attacks import CLASSES, CraftedImages, Outcomes, plan_attacks, run_attacks
from sparsemble.evaluation.sanity_attacks import (
    FULL,
    LABELS_ONLY,
    NOISE,
    SINGLE,
    STAND_INS,
    TRANSFERRED,
    USUAL,
    double_steps,
    doubled_work,
    sizes_within,
    work_by_image,
)
from sparsemble.evaluation.work import Work, expected_shard

T = TypeVar("T")
CHECKS = "curve, sanity attacks and checks"
TITLES = {
    "doubled": "twice the steps of the headline attack",
    "curve": "security curve",
    "gradients": "sanity attacks",
    "members": "members one by one",
    "transfer": "images of the dense parent",
    "labels": "labels only",
    "noise": "random noise",
    "stand_ins": "stand-ins for decisions",
}
"""What is shown while a part of the checks runs."""


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What an evaluation reports besides the outcomes of its attacks."""

    command: str = ""
    """What reproduces it."""
    checks: Literal["default", "full"] = "default"
    """default: curve, sanity attacks and checks take at most the passes of the headline attack; full: as many images as
    `FULL` names."""
    budget: float = 0.8
    """Of the default checks, in passes of the headline attack; what is left is for timing and memory."""
    available: int | None = None
    """Test images of the data set, where that is known."""
    curve: SecurityCurve | Literal["draw"] | None = "draw"
    """The security curve: drawn here, drawn before, or none."""
    latency: dict[str, dict[str, Timing]] | None = None
    """Where it was measured before, alone on the machine; none: measured here."""
    training_passes: int | None = None
    training_seconds: float | None = None
    crafted: tuple[CraftedImages, ...] = ()
    """Adversarial images from another evaluation of the same images that are classified, too."""
    beside: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Rows of the same table that were evaluated before, by name."""
    corruptions: CorruptedImages | None = None
    """Common corruptions under which accuracy is measured, too."""


def evaluate(
    job: EvaluationJob,
    target: LoadedModel,
    data: DataRecord,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    store: OutcomeStore | None = None,
    report: Report = lambda fraction, text: None,
) -> EvaluationResult:
    """Attack a classifier, measure its cost, and check the evaluation.

    Args:
        job: the model, the images, the attacks.
        target: what is known of the model.
        data: what the images are.
        settings: what is reported besides the outcomes.
        store: where outcomes are kept, so that a killed evaluation is resumed; None keeps them in memory.
        report: receives the fraction of the work that is done, and a few words.

    Returns:
        The result, with all fifty checks.

    Raises:
        InputError: anything wrong that can be known before work begins.
        RunError: an attack left its threat model, or the model returned NaN.
    """
    _check_stand_ins(job)
    store = store or OutcomeStore()
    progress = Progress(job.model, report)
    plan_attacks(job, store, progress)
    progress.plan({CHECKS: (_expected_checks(job, settings), 1)})
    if settings.corruptions:
        plan_corruptions(job, progress)
    outcomes = run_attacks(job, store, crafted=settings.crafted, progress=progress)
    corrupted = None
    if settings.corruptions:
        part = store.part("corruptions")
        corrupted = corruption_accuracy(job, settings.corruptions, data.indices, outcomes.worst_case, part, progress)
    progress.drop(CHECKS)
    sizes = _sample_sizes(job, target, settings, outcomes)
    work = {name: work.times(sizes[name]) for name, work in work_by_image(job).items()}
    work["model"] = work["model"].plus(work.pop("paths"))
    work["doubled"] = doubled_work(outcomes, sizes["doubled"])
    progress.plan({name: (each, 1) for name, each in work.items()})
    extras = _measured(job, target, settings, outcomes, sizes, store, progress)
    result = EvaluationResult(
        name=target.name,
        command=settings.command,
        model=model_record(job, target),
        data=data,
        threat=ThreatRecord(
            norm=job.threat.norm,
            eps=job.threat.eps,
            eps_text=as_fraction(job.threat.eps),
            knowledge=job.knowledge,
        ),
        seed=job.seed,
        device=job.split.labels.device.type,
        search_dtype=job.search_dtype,
        **outcome_fields(job, _all_attacks(job, settings), outcomes),
        cost=replace(
            measure_cost(job, outcomes, settings.latency),
            training_passes=settings.training_passes,
            training_seconds=settings.training_seconds,
        ),
        security_curve=extras.curve,
        members=extras.members,
        corruptions=corrupted,
        machine=machine(job.split.labels.device),
        versions=versions(),
        source=source_revision() or None,
    )
    evidence = Evidence(
        job=job,
        target=target,
        outcomes=outcomes,
        result=result,
        sizes=sizes,
        extras=extras,
        available=settings.available,
        beside=settings.beside,
    )
    with progress.running("model", "checks"):
        checks = all_checks(evidence)
    report(1.0, "done")
    return replace(result, checks=checks)


def usual_attacks(access: Access, norm: Norm) -> tuple[AnyAttack, ...]:
    """Return the attacks of an evaluation that names none, by what they may use of the model and by the norm."""
    if access == "gradients":
        return (AutoAttack(),)
    searches: dict[Norm, Attack] = {"linf": RayS(), "l2": HopSkipJump(), "l1": Pointwise()}
    return (Square(), searches[norm]) if access == "scores" else (searches[norm],)


def with_adaptive(attacks: Sequence[AnyAttack], target: LoadedModel) -> tuple[AnyAttack, ...]:
    """Return attacks and, for an ensemble, every attack on ensembles and stopping rules that is not among them."""
    if not isinstance(target.model, Ensemble):
        return tuple(attacks)
    ensemble, rule = target.model, target.rule
    others = [combiners.build(name) for name in combiners.names() if name != ensemble.combiner.name]
    early = rule is not None and rule.name != "never"
    suite = full_suite(len(ensemble.members), [GRADIENT], others, black_box=BLACK_BOX, stops_early=early)
    taken = {attack.label for attack in attacks}
    return (*attacks, *(attack for attack in suite if attack.label not in taken))


def data_record(source: DataSource, sha256: str, data: Dataset, images: int) -> DataRecord:
    """Return what the evaluated test images are.

    Args:
        source: of the data set.
        sha256: fingerprint of the source.
        data: the loaded data set.
        images: number of test images, stratified; 0: all.
    """
    indices = select_indices(data, images)
    return DataRecord(
        name=source.name,
        sha256=sha256,
        images=len(indices),
        subset_seed=SUBSET_SEED if len(indices) < len(data.test) else None,
        classes=len(data.classes),
        indices=tuple(indices.tolist()),
    )


def _measured(
    job: EvaluationJob,
    target: LoadedModel,
    settings: EvaluationSettings,
    outcomes: Outcomes,
    sizes: Mapping[str, int],
    store: OutcomeStore,
    progress: Progress,
) -> Extras:
    """Run what the checks need, part by part."""

    def run(name: str, measure: Callable[[int], T]) -> T | None:
        if not sizes[name]:
            progress.drop(name)
            return None
        with progress.running(name, TITLES[name]):
            return measure(sizes[name])

    def sanity(name: str, *attacks: AnyAttack, access: Access = job.access) -> Outcomes | None:
        def attack_first(images: int) -> Outcomes:
            first = replace(job, split=first_images(job.split, images), attacks=attacks, access=access)
            return run_attacks(first, store.part(name))

        return run(name, attack_first)

    headline = outcomes.strongest
    attack = {one.label: one for one in _all_attacks(job, settings)}[headline]
    correct = outcomes.attacks[headline].correct
    doubled = run("doubled", lambda images: double_steps(job, attack, correct, images, store))
    drawn = run("curve", lambda images: security_curve(job, images, store))
    gradients = sanity("gradients", SINGLE, USUAL)
    members = run("members", lambda images: members_table(job, images, store))
    moved = sanity("transfer", Transfer(attack=TRANSFERRED, source=target.parent)) if target.parent else None
    blind = (sanity("labels", LABELS_ONLY[job.threat.norm]), sanity("noise", NOISE))
    # Also where attacks may use no gradients: rounding that hides them is no defence.
    smoothed = sanity("stand_ins", STAND_INS, access="gradients")
    return Extras(
        doubled=doubled,
        curve=drawn if settings.curve == "draw" else settings.curve,
        gradients=gradients,
        members=members,
        transferred=moved,
        blind=tuple(outcomes for outcomes in blind if outcomes is not None),
        smoothed=smoothed,
    )


def _expected_checks(job: EvaluationJob, settings: EvaluationSettings) -> Work:
    """Return the work that all checks are expected to be, before the attacks have run."""
    images, classes = len(job.split), job.classes or CLASSES
    parts = work_by_image(job).items()
    full = reduce(Work.plus, (work.times(min(FULL[name], images)) for name, work in parts))
    if settings.checks == "full":
        return full
    attacks = (expected_shard(attack, job.members, classes, images) for attack in job.attacks)
    budget = max(attacks, key=lambda work: work.units).times(settings.budget)
    return min(full, budget, key=lambda work: work.units)


def _sample_sizes(
    job: EvaluationJob, target: LoadedModel, settings: EvaluationSettings, outcomes: Outcomes
) -> dict[str, int]:
    """Return on how many images each part of the checks runs."""
    absent = {"members": job.members == 1, "curve": settings.curve != "draw", "transfer": target.parent is None}
    if job.access != "gradients":
        absent |= {"gradients": True, "paths": True, "members": True, "noise": not job.allows(NOISE)}
    absent["stand_ins"] = not _has_stand_ins(job)
    present = [name for name in FULL if not absent.get(name)]
    if settings.checks == "full":
        return {name: min(images, len(job.split)) * (name in present) for name, images in FULL.items()}
    budget = settings.budget * Work.of(outcomes.attacks[outcomes.strongest]).units
    return sizes_within(budget, job, outcomes, present)


def _check_stand_ins(job: EvaluationJob) -> None:
    """Refuse an attack through stand-ins on a model that has neither gradients nor anything to put one in place of."""
    if job.own_gradients and not _has_stand_ins(job):
        raise InputError(
            f"{job.own_gradients[0]} has no stand-in for anything in the forward pass, and attacks may not use "
            "gradients of the model; leave it out"
        )


def _has_stand_ins(job: EvaluationJob) -> bool:
    """Return whether the model makes decisions or takes steps for which BPDA has stand-ins."""
    x, _ = first_images(job.split, FIRST).tensors()
    return count_stand_ins(job.model, x) > 0


def _all_attacks(job: EvaluationJob, settings: EvaluationSettings) -> tuple[AnyAttack, ...]:
    """Return the attacks of the result, in its order."""
    return (*(crafted.attack for crafted in settings.crafted), *job.attacks)
