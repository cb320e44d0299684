"""All fifty checks of one evaluation: what evidence each needs, and in which order they are put."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sparsemble.core.dynamic import decide
from sparsemble.core.interfaces import Ensemble, StoppingRule, combiners
from sparsemble.core.results import CheckResult, EvaluationResult
from sparsemble.core.types import Images, Labels, Logits, draw_seed, seeded
from sparsemble.evaluation import checks
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.job import Decide, EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.run_attacks import Outcomes, accuracy
from sparsemble.evaluation.sanity_attacks import USUAL, Doubled, SampleSizes, differentiable_views

BUDGET = "the budget of passes did not allow for it; `sparsemble evaluate --checks full` does"
REASONS = {
    25: "needs a standard model and one with a published AutoAttack value; neither was attacked here",
    26: "agreement with the reference is measured by benchmarks/attacks.py, not in every evaluation",
    31: "no single model of equal cost was evaluated beside this one; a run or `sparsemble compare` does",
    32: "one model was evaluated; ablations are rows of a study",
    42: "the model was not exported",
    43: "no speed-up is claimed",
    45: "one training was evaluated; nothing is claimed to be better",
    49: "optional; no other norm, corruption or rotation was tried",
    50: "the result was not shown yet",
}
"""Why checks are skipped for which one evaluation of one model has no evidence."""


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the checks of an evaluation are made from."""

    job: EvaluationJob
    target: LoadedModel
    outcomes: Outcomes
    result: EvaluationResult
    """Complete but for its checks."""
    sizes: SampleSizes
    gradients: Outcomes | None = None
    """One step, and twenty, on the first images."""
    doubled: Doubled | None = None
    transferred: Outcomes | None = None
    """Images crafted on the dense parent."""
    blind: tuple[Outcomes, ...] = ()
    """Attacks that use no gradients, on the first images."""
    available: int | None = None
    """Test images of the data set, where that is known."""
    beside: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Rows evaluated beside this one, by name."""

    @property
    def few(self) -> tuple[Images, Labels]:
        """The images that checks of the model itself use."""
        split = self.job.split
        return split.subset(torch.arange(min(self.sizes.model, len(split)), device=split.labels.device)).tensors()


def all_checks(evidence: Evidence) -> tuple[CheckResult, ...]:
    """Return the fifty checks of an evaluation, in order; those without evidence are skipped with the reason."""
    parts: tuple[Callable[[Evidence], Iterator[CheckResult]], ...] = (
        _of_model,
        _of_sanity,
        _of_attacks,
        _of_ensemble,
        _of_rows,
        _of_result,
    )
    return checks.complete(checks.merged(check for part in parts for check in part(evidence)), REASONS)


def _of_model(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 2, 3, 7 to 12 and 38: the model alone."""
    job, (x, y) = evidence.job, evidence.few
    model, rng = job.model, seeded(draw_seed(job.seed, "checks"), x.device)
    rule, early = job.rule, job.stops_early

    def decide_with_gradient(images: Images) -> Logits:
        if isinstance(model, Ensemble) and rule is not None and early:
            return decide(model, images, rule).logits
        logits: Logits = model(images)
        return logits

    declared = checks.STOPPING if early else ()
    yield checks.normalised_once(model, x, y)
    yield checks.independent_of_neighbours(model, x)
    yield checks.returns_logits(model, x)
    yield checks.repeatable(job.decide, x)
    yield checks.gradients_flow(differentiable_views(job), x, y)
    yield checks.agrees_with_differences(model, x[:20], y[:20], rng=rng)
    yield checks.plain_forward(decide_with_gradient, x, layers=model, declared=declared)
    yield checks.smooth_loss(model, x, y, job.threat, rng=rng)
    yield checks.independent_of_batch(job.decide, x)


def _of_sanity(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 13 to 17, 19 and 20: other attacks on some of the images."""
    job, outcomes, sizes = evidence.job, evidence.outcomes, evidence.sizes
    worst = outcomes.worst_case
    gradients = evidence.gradients
    if gradients is not None:
        order = {label: accuracy(outcome.correct) for label, outcome in gradients.attacks.items()}
        yield checks.strength_in_order({**order, "all attacks": accuracy(worst[: len(gradients.labels)])})
    else:
        yield checks.skipped(13, BUDGET)
    curve = evidence.result.security_curve
    if curve is not None:
        name = evidence.target.name
        clean = accuracy(outcomes.clean.correct[: curve.images])
        yield checks.falls_with_eps({name: list(curve.accuracy)}, {name: clean}, 1.5 / evidence.result.data.classes)
    else:
        yield checks.skipped(14, "no security curve was drawn")
    doubled = evidence.doubled
    if doubled is not None:
        yield checks.steps_suffice(doubled.usual, doubled.doubled, doubled.name)
    elif sizes.doubled:
        yield checks.skipped(15, f"{outcomes.strongest} has no number of steps")
    else:
        yield checks.skipped(15, BUDGET)
    if sizes.paths:
        indices = torch.arange(min(sizes.paths, len(job.split)), device=job.split.labels.device)
        x, y = job.split.subset(indices).tensors()
        paths = checks.follow(USUAL, job.model, x, y, job.threat, rng=seeded(job.seed, x.device))
        yield checks.loss_converged(paths)
        yield checks.keeps_best(paths)
    else:
        yield from (checks.skipped(number, BUDGET) for number in (16, 17))
    for blind in evidence.blind:
        for label, outcome in blind.attacks.items():
            yield checks.blind_is_weaker(worst[: len(blind.labels)].tolist(), outcome.correct.tolist(), label)
    if len(evidence.blind) < 2:
        yield checks.skipped(19, BUDGET)
    if evidence.transferred is not None:
        (outcome,) = evidence.transferred.attacks.values()
        white = worst[: len(outcome.correct)].tolist()
        yield checks.transfer_is_weaker(white, outcome.correct.tolist(), "the dense parent")
    else:
        yield checks.skipped(20, BUDGET if evidence.target.parent else "there is no dense parent to transfer from")


def _of_attacks(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 2, 18, 21 to 24 and 27: the attacks of the evaluation."""
    job, outcomes, result = evidence.job, evidence.outcomes, evidence.result
    device = job.split.labels.device
    strongest = outcomes.strongest
    outcome = outcomes.attacks[strongest]
    stored = outcomes.adversarial(strongest)
    yield checks.inside_threat([stored], job.split.tensors()[0].cpu(), job.threat)
    correct: dict[str, Tensor] = {"clean": outcomes.clean.correct}
    correct |= {label: one.correct for label, one in outcomes.attacks.items()}
    parts = {label: one.part for label, one in outcomes.attacks.items()}
    yield checks.only_by_square(result.attacks, correct, parts)
    yield checks.targeted_and_untargeted(result)
    yield checks.headline_is_union(result)
    decide_deployed = job.decide
    yield checks.reproduces(decide_deployed, stored.to(device), outcome.prediction.tolist(), batch=64)
    first = slice(0, min(len(stored), evidence.sizes.model))
    recorded = (outcome.prediction == outcomes.labels)[first].tolist()
    y = outcomes.labels[first].to(device)
    yield checks.decided_in_float32(decide_deployed, stored[first].to(device), y, recorded)
    yield checks.minimum_norms_reported(result)


def _of_ensemble(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 28 to 30 and 33 to 37: ensembles and stopping rules."""
    job, result = evidence.job, evidence.result
    model, rule = job.model, job.rule
    deployed = model.combiner.name if isinstance(model, Ensemble) else ""
    yield checks.combiners_attacked(result, deployed, combiners.names())
    yield checks.members_attacked(result)
    yield checks.members_reported(result)
    yield checks.stopping_attacked(result)
    yield checks.hijack_counted(result)
    yield checks.cost_under_attack(result)
    yield checks.speed_beside_cost(result)
    if job.members > 1 and rule is not None and job.stops_early:

        def decide_with(other: StoppingRule) -> Decide:
            return replace(job, rule=other).decide

        x, y = evidence.few
        yield checks.no_knifes_edge(decide_with, rule, x, y, evidence.target.selected_on)
    else:
        yield checks.skipped(37, "all members always run")


def _of_rows(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 4, 6, 31 and 43: rows of the same table."""
    result, beside = evidence.result, dict(evidence.beside)
    rows = [result, *beside.values()]
    yield checks.one_eps(rows)
    if beside:
        yield checks.same_images(rows)
    model = evidence.job.model
    if isinstance(model, Ensemble) and evidence.job.members > 1 and beside:
        _, *shape = evidence.few[0].shape
        macs = sum(count_macs(member, (shape[0], shape[1], shape[2])).nonzero for member in model.members)
        single = {
            name: {
                "accuracy": beside[name].robust_accuracy,
                "nonzeros": beside[name].model.nonzeros,
                "macs": beside[name].cost.macs_nonzero,
            }
            if name in beside
            else None
            for name in ("harp", "small_dense")
        }
        own = {"accuracy": result.robust_accuracy, "nonzeros": result.model.nonzeros, "macs": macs}
        yield checks.single_models_beside(own, single["harp"], single["small_dense"])
    dense = beside.get("dense")
    if dense is not None and dense.cost.latency and result.cost.latency:
        baseline, measured = _conditions(dense, "dense parent"), _conditions(result, result.name)
        yield checks.speed_up_is_fair(baseline, measured)


def _conditions(result: EvaluationResult, model: str) -> dict[str, object]:
    """Return under which conditions the latency of a row was measured."""
    engines, batches = sorted(result.cost.latency), sorted(next(iter(result.cost.latency.values())))
    return {
        "model": model,
        "runtime": " and ".join(engines),
        "dtype": "float32",
        "compiled": False,
        "device": result.device,
        "threads": torch.get_num_threads(),
        "batch": " and ".join(batches),
    }


def _of_result(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 1, 4, 5, 39 to 42, 44 and 46 to 48: what the result holds."""
    result, target = evidence.result, evidence.target
    members = evidence.job.members
    # An ensemble of M claims 1 - (1 - s) / M of its own weights.
    claimed = None if target.claimed_sparsity is None else 1 - (1 - target.claimed_sparsity) / members
    yield checks.threat_recorded(result)
    yield checks.images_recorded(result, evidence.available)
    yield checks.fairly_selected(result)
    yield checks.weights_recounted(evidence.job.model, result.model.nonzeros, claimed)
    yield checks.masks_hold(evidence.job.model, target.masks)
    yield checks.costs_apart(result)
    yield checks.exports_agree(target.exports)
    yield checks.result_is_complete(result)
    yield checks.extra_data_declared(result)
    yield checks.curve_reaches_zero(result)
    yield checks.quotes_have_sources(result)
