"""All fifty checks of one evaluation: what evidence each needs, and in which order they are put."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sparsemble.core.dynamic import decide
from sparsemble.core.interfaces import Ensemble, StoppingRule, combiners
from sparsemble.core.results import CheckResult, EvaluationResult, MembersTable, SecurityCurve
from sparsemble.core.source_file import first_line
from sparsemble.core.types import Images, Labels, Logits, draw_seed, seeded
from sparsemble.evaluation.checks import (
    attacks,
    complete,
    dynamic,
    ensemble,
    forward,
    merged,
    model,
    path,
    reporting,
    skipped,
    sparsity,
)
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.job import Decide, EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.metrics import first_images
from sparsemble.evaluation.run_attacks import Outcomes, accuracy
from sparsemble.evaluation.sanity_attacks import USUAL, differentiable_views

BUDGET = "the budget of passes did not allow for it; `sparsemble evaluate --checks full` does"
STAND_INS = "gradients of smooth stand-ins for its decisions"
NO_GRADIENTS = "attacks may not use gradients in this evaluation, so none were followed"


@final
@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is measured besides the attacks of the job; None where it was not."""

    doubled: CheckResult | None
    """Of the headline attack with twice its steps."""
    curve: SecurityCurve | None
    gradients: Outcomes | None
    """One step, and twenty, on the first images."""
    members: MembersTable | None
    transferred: Outcomes | None
    """Images crafted on the dense parent."""
    blind: tuple[Outcomes, ...]
    """Attacks that use no gradients, on the first images."""
    smoothed: Outcomes | None = None
    """An attack on stand-ins for decisions in the forward pass, where it makes any."""


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the checks of an evaluation are made from."""

    job: EvaluationJob
    target: LoadedModel
    outcomes: Outcomes
    result: EvaluationResult
    """Complete but for its checks."""
    sizes: Mapping[str, int]
    """Images for each part of the checks."""
    extras: Extras
    available: int | None = None
    """Test images of the data set, where that is known."""
    beside: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Rows evaluated beside this one, by name."""

    def first(self, part: str) -> tuple[Images, Labels]:
        """Return the images on which a part of the checks runs."""
        return first_images(self.job.split, self.sizes[part]).tensors()


def all_checks(evidence: Evidence) -> tuple[CheckResult, ...]:
    """Return the fifty checks of an evaluation, in order; those without evidence are skipped with the reason."""
    parts = (_of_model, _of_sanity, _of_attacks, _of_ensemble, _of_rows, _of_result)
    return complete(merged(check for part in parts for check in part(evidence)))


def _of_model(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 2, 3, 7 to 12 and 38: the model alone."""
    job, (x, y) = evidence.job, evidence.first("model")
    rng = seeded(draw_seed(job.seed, "checks"), x.device)

    def decide_with_gradient(images: Images) -> Logits:
        if isinstance(job.model, Ensemble) and job.rule is not None and job.stops_early:
            return decide(job.model, images, job.rule).logits
        logits: Logits = job.model(images)
        return logits

    declared = forward.STOPPING if job.stops_early else ()
    parts: dict[int, Callable[[], CheckResult]] = {
        2: lambda: model.normalised_once(job.model, x, y),
        3: lambda: model.independent_of_neighbours(job.model, x),
        7: lambda: model.returns_logits(job.model, x),
        8: lambda: model.repeatable(job.decide, x),
        9: lambda: model.gradients_flow(differentiable_views(job), x, y),
        10: lambda: model.agrees_with_differences(job.model, x[:20], y[:20], rng=rng),
        11: lambda: forward.plain_forward(decide_with_gradient, x, layers=job.model, declared=declared),
        12: lambda: model.smooth_loss(job.model, x, y, job.threat, rng=rng),
        38: lambda: dynamic.independent_of_batch(job.decide, x),
    }
    for number, check in parts.items():
        yield _tried(number, check)


def _tried(number: int, check: Callable[[], CheckResult]) -> CheckResult:
    """Make a check; it is skipped with the reason where the model fails on the images that it makes."""
    try:
        return check()
    except Exception as error:  # the attacks are done: a model that fails now must not cost their outcomes
        return skipped(number, f"the model refuses the images of this check ({first_line(error)})")


def _of_sanity(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 13 to 17, 19 and 20: other attacks on some of the images."""
    job, outcomes, extras = evidence.job, evidence.outcomes, evidence.extras
    worst, curve = outcomes.worst_case, evidence.result.security_curve
    if extras.gradients is not None:
        order = {label: accuracy(outcome.correct) for label, outcome in extras.gradients.attacks.items()}
        order["all attacks"] = accuracy(worst[: len(extras.gradients.labels)])
        yield attacks.strength_in_order(order)
    else:
        yield skipped(13, BUDGET if job.access == "gradients" else NO_GRADIENTS)
    if curve is not None:
        clean = accuracy(outcomes.clean.correct[: curve.images])
        yield attacks.falls_with_eps(evidence.target.name, curve.accuracy, clean, 1.5 / evidence.result.data.classes)
    else:
        yield skipped(14, "no security curve was drawn")
    if extras.doubled is not None:
        yield extras.doubled
    else:
        no_steps = f"{outcomes.strongest} has no number of steps"
        yield skipped(15, no_steps if evidence.sizes["doubled"] else BUDGET)
    if evidence.sizes["paths"]:
        x, y = evidence.first("paths")
        paths = path.follow(USUAL, job.model, x, y, job.threat, rng=seeded(job.seed, x.device))
        yield path.loss_converged(paths)
        yield path.keeps_best(paths)
    else:
        reason = BUDGET if job.access == "gradients" else NO_GRADIENTS
        yield from (skipped(number, reason) for number in (16, 17))
    for blind in extras.blind:
        for label, outcome in blind.attacks.items():
            yield attacks.blind_is_weaker(worst[: len(blind.labels)].tolist(), outcome.correct.tolist(), label)
    if len(extras.blind) < 2:
        yield skipped(19, BUDGET)
    if extras.smoothed is not None:
        (outcome,) = extras.smoothed.attacks.values()
        white_box = worst[: len(outcome.correct)].tolist()
        yield attacks.blind_is_weaker(white_box, outcome.correct.tolist(), STAND_INS)
    if extras.transferred is not None:
        (outcome,) = extras.transferred.attacks.values()
        white_box = worst[: len(outcome.correct)].tolist()
        yield attacks.transfer_is_weaker(white_box, outcome.correct.tolist(), "the dense parent")
    else:
        yield skipped(20, BUDGET if evidence.target.parent else "there is no dense parent to transfer from")


def _of_attacks(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 2, 18, 21 to 24 and 27: the attacks of the evaluation."""
    job, outcomes, result = evidence.job, evidence.outcomes, evidence.result
    device = job.split.labels.device
    outcome, stored = outcomes.attacks[outcomes.strongest], outcomes.adversarial(outcomes.strongest)
    yield attacks.inside_threat([stored], job.split.tensors()[0].cpu(), job.threat)
    correct: dict[str, Tensor] = {"clean": outcomes.clean.correct}
    correct |= {label: one.correct for label, one in outcomes.attacks.items()}
    yield attacks.only_by_square(result.attacks, correct, {label: one.part for label, one in outcomes.attacks.items()})
    if job.access == "gradients":
        yield attacks.targeted_and_untargeted(result)
    else:
        yield skipped(21, "attacks may not use gradients in this evaluation, and those without are untargeted")
    yield attacks.headline_is_union(result)
    yield attacks.reproduces(job.decide, stored.to(device), outcome.prediction.tolist(), batch=64)
    x_adv = stored[: evidence.sizes["model"]].to(device)
    y, prediction = outcomes.labels[: len(x_adv)], outcome.prediction[: len(x_adv)]
    yield attacks.decided_in_float32(job.decide, x_adv, y.to(device), (prediction == y).tolist())
    yield attacks.minimum_norms_reported(result)


def _of_ensemble(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 28 to 30 and 33 to 37: ensembles and stopping rules."""
    job, result = evidence.job, evidence.result
    deployed = job.model.combiner.name if isinstance(job.model, Ensemble) else ""
    yield ensemble.combiners_attacked(result, deployed, combiners.names())
    yield ensemble.members_attacked(result)
    yield ensemble.members_reported(result)
    yield dynamic.stopping_attacked(result)
    yield dynamic.hijack_counted(result)
    yield dynamic.cost_under_attack(result)
    yield dynamic.speed_beside_cost(result)
    if job.members > 1 and job.rule is not None and job.stops_early:

        def decide_with(other: StoppingRule) -> Decide:
            return replace(job, rule=other).decide

        x, y = evidence.first("model")
        yield dynamic.no_knifes_edge(decide_with, job.rule, x, y, evidence.target.selected_on)
    else:
        yield skipped(37, dynamic.ALWAYS_ALL)


def _of_rows(evidence: Evidence) -> Iterator[CheckResult]:
    """Checks 4, 6, 31 and 43: rows of the same table."""
    result, beside = evidence.result, evidence.beside
    rows = [result, *beside.values()]
    yield reporting.one_eps(rows)
    if beside:
        yield reporting.same_images(rows)
    network = evidence.job.model
    if isinstance(network, Ensemble) and evidence.job.members > 1 and beside:
        channels, height, width = evidence.first("model")[0].shape[1:]
        macs = sum(count_macs(member, (channels, height, width)).nonzero for member in network.members)
        single = [
            _accuracy_and_cost(beside[name], beside[name].cost.macs_nonzero) if name in beside else None
            for name in ("harp", "small_dense")
        ]
        yield ensemble.single_models_beside(_accuracy_and_cost(result, macs), *single)
    dense = beside.get("dense")
    if dense is not None and dense.cost.latency and result.cost.latency:
        yield sparsity.speed_up_is_fair(_conditions(dense, "dense parent"), _conditions(result, result.name))


def _accuracy_and_cost(result: EvaluationResult, macs: float) -> dict[str, float]:
    return {"accuracy": result.robust_accuracy, "nonzeros": result.model.nonzeros, "macs": macs}


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
    """Checks 1, 4, 5, 39 to 42, 44 and 46 to 49: what the result holds."""
    result, target = evidence.result, evidence.target
    members = evidence.job.members
    # An ensemble of M claims 1 - (1 - s) / M of its own weights.
    claimed = None if target.claimed_sparsity is None else 1 - (1 - target.claimed_sparsity) / members
    yield reporting.threat_recorded(result)
    yield reporting.images_recorded(result, evidence.available)
    yield reporting.fairly_selected(result)
    yield sparsity.weights_recounted(evidence.job.model, result.model.nonzeros, claimed)
    yield sparsity.masks_hold(evidence.job.model, target.masks)
    yield sparsity.costs_apart(result)
    yield sparsity.exports_agree(target.exports)
    yield reporting.result_is_complete(result)
    yield reporting.extra_data_declared(result)
    yield reporting.curve_reaches_zero(result)
    yield reporting.quotes_have_sources(result)
    yield reporting.wider_tests(result)
