"""All fifty checks of one evaluation: what each needs, gathered and put in order."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from sparsemble.attacks.ensemble.suite import every_surrogate
from sparsemble.core.dynamic import decide as decide_dynamic
from sparsemble.core.interfaces import DynamicOutput, Ensemble, StoppingRule, combiners
from sparsemble.core.types import Classifier, Images, draw_seed, seeded
from sparsemble.data.dataset import Dataset, Split
from sparsemble.ensemble.dynamic import predict_dynamic
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation import checks
from sparsemble.evaluation.checks import Check
from sparsemble.evaluation.robustness import Evaluation, accuracy
from sparsemble.evaluation.shard import Decide
from sparsemble.pipeline.loaded_model import LoadedModel
from sparsemble.pipeline.sanity_attacks import TRANSFERRED, USUAL, Evidence

SAMPLE = 100
"""Images that checks of the model itself look at, at most."""
FEW = 12
"""Images whose attack is followed step by step, at most."""
REASONS = {
    25: "needs weights of a standard model and of one with a published AutoAttack value; none are given",
    26: "parity is measured by benchmarks/attacks.py, not in every evaluation (docs/evaluation.md)",
    31: "one target was evaluated; `sparsemble compare` and a run's result table set others beside it",
    32: "one target was evaluated; ablations are rows of a study",
    42: "one version of the model was evaluated",
    43: "no speed-up is claimed",
    45: "one training was evaluated; nothing is claimed to be better",
    49: "optional; no other norm, corruption or movement was tried",
}
"""Why checks are waived that one evaluation of one target cannot make."""


def all_checks(
    result: dict[str, Any],
    target: LoadedModel,
    data: Dataset,
    split: Split,
    found: Evaluation,
    evidence: Evidence,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the fifty checks of an evaluation, in order, as plain values."""
    part = split.subset(torch.arange(min(SAMPLE, len(split)), device=split.labels.device))
    x, y = part.tensors()
    decide = decided_by(target)
    made = [
        *_of_model(target, x, y, found, seed),
        *_of_attacks(result, target, data, x, y, decide, found, evidence, seed),
        *_of_ensembles(result, target, decide, x, y),
        *_of_result(result, target, data),
    ]
    ordered = checks.complete(checks.merged(made), REASONS)
    # The report shows every check that failed or was waived at its top; check 50 compares with what it will show.
    shown = " ".join(check.name for check in ordered if check.status != "pass")
    last = checks.open_checks_shown([check for check in ordered if check.number != 50], shown)
    return [asdict(last if check.number == 50 else check) for check in ordered]


def decided_by(target: LoadedModel, other: StoppingRule | None = None) -> Decide:
    """Return the deployed decision of a target, or that under another rule."""
    model, rule = target.model, other or target.rule or Never()
    if isinstance(model, Ensemble):
        return lambda images: predict_dynamic(model, images, rule)

    @torch.no_grad()
    def decide(images: Images) -> DynamicOutput:
        ones = torch.ones(len(images), dtype=torch.long, device=images.device)
        return DynamicOutput(model(images), ones, ones)

    return decide


def _of_model(target: LoadedModel, x: Images, y: torch.Tensor, found: Evaluation, seed: int) -> Iterable[Check]:
    """Checks 2, 3 and 7 to 12: the model alone."""
    model, rng = target.model, seeded(draw_seed(seed, "checks"), x.device)
    decide = decided_by(target)
    views: list[Classifier] = [model]
    declared: tuple[str, ...] = ()
    if isinstance(model, Ensemble):
        rule = target.rule or Never()
        early = not isinstance(rule, Never)
        views = [view(model, rule) for view in every_surrogate(len(model.members), stops_early=early)]
        declared = checks.STOPPING if early else ()
    yield checks.normalised_once(model, x, y)
    yield checks.independent_of_neighbours(model, x)
    yield checks.returns_logits(model, x)
    yield checks.repeatable(decide, x)
    yield checks.gradients_flow(views, x, y)
    yield checks.agrees_with_differences(model, x[:20], y[:20], rng=rng)
    yield checks.plain_forward(lambda images: decide_with_gradient(target, images), x, layers=model, declared=declared)
    yield checks.smooth_loss(model, x, y, found.threat, rng=rng)
    yield checks.independent_of_batch(decide, x)


def decide_with_gradient(target: LoadedModel, images: Images) -> torch.Tensor:
    """Return the logits of the deployed decision, with gradients through the members that answer."""
    if isinstance(target.model, Ensemble):
        return decide_dynamic(target.model, images, target.rule or Never()).logits
    logits: torch.Tensor = target.model(images)
    return logits


def _of_attacks(
    result: dict[str, Any],
    target: LoadedModel,
    data: Dataset,
    x: Images,
    y: torch.Tensor,
    decide: Decide,
    found: Evaluation,
    evidence: Evidence,
    seed: int,
) -> Iterable[Check]:
    """Checks 2 and 13 to 27: the attacks."""
    strongest = min(found.attacks, key=lambda label: int(found.attacks[label].right.sum()))
    outcome = found.attacks[strongest]
    device = x.device
    count = len(found.labels)
    stored = found.images(strongest)
    clean = data.test.images(torch.tensor(result["data"]["indices"])).cpu()
    yield checks.inside_threat([stored], clean, found.threat)
    sanity = {label: accuracy(one.right) for label, one in evidence.gradients.attacks.items()}
    union = found.worst_case[: len(evidence.gradients.labels)]
    yield checks.strength_in_order({**sanity, "all attacks": accuracy(union)})
    curve = result["security_curve"]
    if curve:
        first = curve["accuracy"][0]
        yield checks.falls_with_eps({target.name: curve["accuracy"]}, {target.name: first}, 1.5 / len(data.classes))
    usual, longer = list(evidence.gradients.attacks.values())[1:3]
    yield checks.steps_suffice(usual.right.tolist(), longer.right.tolist())
    paths = checks.follow(USUAL, target.model, x[:FEW], y[:FEW], found.threat, rng=seeded(seed, device))
    yield checks.loss_converged(paths)
    yield checks.keeps_best(paths)
    right = {"clean": found.clean.right, **{label: one.right for label, one in found.attacks.items()}}
    yield checks.only_by_square(result, right, {label: one.part for label, one in found.attacks.items()})
    few = found.worst_case[: len(evidence.blind.labels)].tolist()
    for label, one in evidence.blind.attacks.items():
        yield checks.blind_is_weaker(few, one.right.tolist(), label)
    if evidence.transferred is not None:
        other = evidence.transferred.attacks[f"transfer_{TRANSFERRED.label}"].right
        white = found.worst_case[: len(other)].tolist()
        yield checks.transfer_is_weaker(white, other.tolist(), "the dense parent")
    else:
        yield checks.waived(20, "there is no dense parent to transfer from")
    yield checks.targeted_and_untargeted(result)
    yield checks.headline_is_union(result)
    yield checks.reproduces(decide, stored.to(device), outcome.answer.tolist(), batch=64)
    first_part = slice(0, min(count, SAMPLE))
    held = (outcome.answer == found.labels)[first_part].tolist()
    yield checks.decided_in_float32(decide, stored[first_part].to(device), found.labels[first_part].to(device), held)
    yield checks.minimum_norms_told(result)


def _of_ensembles(
    result: dict[str, Any], target: LoadedModel, decide: Decide, x: Images, y: torch.Tensor
) -> Iterable[Check]:
    """Checks 28 to 30 and 33 to 37: ensembles and stopping rules."""
    model = target.model
    deployed = model.combiner.name if isinstance(model, Ensemble) else ""
    yield checks.combiners_attacked(result, deployed, combiners.names())
    yield checks.members_attacked(result)
    yield checks.members_reported(result)
    yield checks.stopping_attacked(result)
    yield checks.hijack_counted(result)
    yield checks.cost_under_attack(result)
    yield checks.speed_beside_cost(result)
    if isinstance(model, Ensemble) and target.rule is not None and not isinstance(target.rule, Never):
        tuned = "held-out" if target.kind in ("run", "artifact") else None
        yield checks.no_knifes_edge(lambda rule: decided_by(target, rule), target.rule, x, y, tuned)
    else:
        yield checks.waived(37, "the target always runs all of itself")


def _of_result(result: dict[str, Any], target: LoadedModel, data: Dataset) -> Iterable[Check]:
    """Checks 1, 4 to 6, 39 to 41, 44 and 46 to 48: what the result says."""
    yield checks.threat_recorded(result)
    yield checks.images_recorded(result, len(data.test))
    yield checks.fairly_selected(result)
    yield checks.one_eps([result])
    yield checks.weights_recounted(target.model, result["target"]["nonzeros"], _own_sparsity(target))
    yield (
        checks.masks_hold(target.model, target.masks)
        if target.masks
        else checks.waived(40, "no mask is stored with the model")
    )
    yield checks.costs_apart(result)
    yield checks.result_is_complete(result)
    yield checks.extra_data_declared(result)
    yield checks.curve_reaches_zero(result)
    yield checks.quotes_have_sources(result)


def _own_sparsity(target: LoadedModel) -> float | None:
    """Return what the target claims, counted against itself: an ensemble of M claims 1 - (1 - s) / M of its own weights."""
    if target.sparsity is None:
        return None
    members = len(target.model.members) if isinstance(target.model, Ensemble) else 1
    return 1 - (1 - target.sparsity) / members
