"""Are the zeros, bytes and milliseconds real (checks 39 to 43)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparsemble.core.results import CheckResult, EvaluationResult, FormatAgreement
from sparsemble.evaluation.checks import skipped, verdict
from sparsemble.evaluation.cost import count_weights

CLAIM = 1e-3
"""Fraction by which a claimed number of weights may be off."""
RUNTIME = ("runtime", "dtype", "compiled", "device", "threads", "batch")
"""What must be equal on both sides of a speed-up."""


def weights_recounted(model: nn.Module, nonzeros: int, claimed_sparsity: float | None = None) -> CheckResult:
    """Check 39: non-zeros of the evaluated model, all members summed, are those reported and claimed; no passes.

    Args:
        model: what is evaluated.
        nonzeros: the number in the result.
        claimed_sparsity: at least that of this model, where any is claimed.
    """
    weights = count_weights(model)
    if not weights.total:
        return skipped(39, "the model has no Conv2d or Linear layer whose weights could be counted")
    good = abs(weights.nonzeros - nonzeros) <= CLAIM * max(weights.nonzeros, 1)
    detail = f"{weights.nonzeros} of {weights.total} weights are not 0, {nonzeros} reported"
    if claimed_sparsity is not None:
        good &= weights.sparsity >= claimed_sparsity - CLAIM
        detail += f"; sparsity {weights.sparsity:.4f}, {claimed_sparsity:.4f} claimed"
    layers = [(name, part.weight) for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    name, weight = max(layers, key=lambda layer: float(layer[1].count_nonzero()) / layer[1].numel())
    detail += f"; densest layer {name or 'itself'} with {int(weight.count_nonzero())} of {weight.numel()}"
    return verdict(39, bool(good), detail)


def masks_hold(model: nn.Module, keep: Mapping[str, Tensor]) -> CheckResult:
    """Check 40: every weight that a mask removed (False, by the layer's name) is 0 in the model; no passes."""
    if not keep:
        return skipped(40, "no mask was stored with the model")
    regrown = 0
    for name, mask in keep.items():
        weight = model.get_submodule(name).get_parameter("weight")
        regrown += int(weight[~mask.to(weight.device)].count_nonzero())
    return verdict(40, regrown == 0, f"{regrown} weights came back")


def costs_apart(result: EvaluationResult) -> CheckResult:
    """Check 41: bytes, memory, operations and latency with its spread are separate fields, and possible; no passes."""
    cost, nonzeros = result.cost, result.model.nonzeros
    faults = [] if cost.macs_nonzero <= cost.macs_dense else ["more operations without the zeros than with them"]
    faults += [] if nonzeros <= cost.bytes else ["fewer bytes than weights that are not 0"]
    if faults:
        return verdict(41, False, "; ".join(faults))
    absent = [] if cost.latency else ["latency"]
    absent += [] if cost.peak_memory is not None else ["peak memory"]
    operations = f"{cost.macs_nonzero:.3g} of {cost.macs_dense:.3g} operations"
    detail = f"{cost.bytes} bytes, {nonzeros} non-zeros, {operations}"
    return skipped(41, f"{' and '.join(absent)} not measured; {detail}") if absent else verdict(41, True, detail)


def exports_agree(formats: Mapping[str, FormatAgreement]) -> CheckResult:
    """Check 42: every exported format gives the labels and decisions of the ensemble it was made from; no passes."""
    if not formats:
        return skipped(42, "the model was not exported")
    faults = [
        f"{name}: {differ} of {agreement.images} images differ"
        for name, agreement in formats.items()
        if (differ := max(agreement.labels, agreement.decisions)) > agreement.near
    ]
    farthest = max(agreement.logits for agreement in formats.values())
    return verdict(42, not faults, "; ".join(faults) or f"{', '.join(formats)} agree, logits within {farthest:.1e}")


def speed_up_is_fair(baseline: Mapping[str, Any] | None, measured: Mapping[str, Any] | None) -> CheckResult:
    """Check 43: both sides of a speed-up ran alike (`RUNTIME`), and the slower one is the dense parent; no passes."""
    if baseline is None or measured is None:
        return skipped(43, "no speed-up is claimed")
    unlike = [name for name in RUNTIME if name not in baseline or baseline.get(name) != measured.get(name)]
    faults = [f"{name}: {baseline.get(name)} against {measured.get(name)}" for name in unlike]
    if baseline.get("model") != "dense parent":
        faults.append(f"the baseline is {baseline.get('model')}, not the dense parent")
    return verdict(43, not faults, "; ".join(faults) or f"over the dense parent, same {', '.join(RUNTIME)}")
