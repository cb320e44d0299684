"""Are the zeros, bytes and milliseconds real (checks 39 to 43)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsemble.core.types import Classifier, Images, Labels
from sparsemble.evaluation.checks.check import Check, verdict, waived
from sparsemble.evaluation.checks.result import Result, missing
from sparsemble.evaluation.cost import count_weights

CLAIM = 1e-3
"""Share by which a claimed number of weights may be off."""
LOGITS = 1e-3
"""Share of the spread of the logits by which two versions of a model may differ."""
RUNTIME = ("runtime", "dtype", "compiled", "device", "threads", "batch")
"""What must be equal on both sides of a speed-up."""


def sparsity_is_real(claimed: float, counted: float) -> Check:
    """Check 39: sparsity recounted from the stored weights is what was asked for; no passes.

    More is no fault: weights of dead channels are taken out beyond what was asked.
    """
    return verdict(39, counted >= claimed - CLAIM, f"asked {claimed:.4f}, counted {counted:.4f}")


def weights_recounted(model: nn.Module, nonzeros: int, claimed_sparsity: float | None = None) -> Check:
    """Check 39: non-zeros of the evaluated model, all members summed, are those reported and claimed; no passes.

    Args:
        model: what is evaluated.
        nonzeros: what the result says.
        claimed_sparsity: of this model against itself, where it claims any; more is no fault.
    """
    found = count_weights(model)
    good = abs(found.nonzeros - nonzeros) <= CLAIM * max(found.nonzeros, 1)
    detail = f"{found.nonzeros} of {found.total} weights are not 0, {nonzeros} reported"
    if claimed_sparsity is not None:
        good &= found.sparsity >= claimed_sparsity - CLAIM
        detail += f"; sparsity {found.sparsity:.4f}, {claimed_sparsity:.4f} claimed"
    layers = [(name, part.weight) for name, part in model.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    name, weight = max(layers, key=lambda layer: float(layer[1].count_nonzero()) / layer[1].numel())
    detail += f"; densest layer {name or 'itself'} with {int(weight.count_nonzero())} of {weight.numel()}"
    return verdict(39, bool(good), detail)


def zeros_stay(regrown: int) -> Check:
    """Check 40: no pruned weight came back after its mask was fixed; no passes."""
    return verdict(40, regrown == 0, f"{regrown} weights came back")


def masks_hold(model: nn.Module, keep: Mapping[str, Tensor]) -> Check:
    """Check 40: every weight that a mask removed is 0 in the model; no passes.

    Args:
        model: after fine-tuning.
        keep: True where a weight stays, by the layer's name.
    """
    if not keep:
        return waived(40, "no mask was stored with the model")
    layers = dict(model.named_modules())
    regrown = 0
    for name, mask in keep.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        regrown += int(weight[~mask.to(weight.device)].count_nonzero())
    return zeros_stay(regrown)


def costs_apart(result: Result) -> Check:
    """Check 41: bytes, memory, operations and latency with its spread are separate fields, and possible; no passes."""
    lacking = missing(result, [f"size.{name}" for name in ("bytes", "nonzeros", "macs_dense", "macs_nonzero")])
    lacking += missing(result, ["device", "dtype", "latency"])
    if lacking:
        return verdict(41, False, f"the result lacks {', '.join(lacking)}")
    size = result["size"]
    faults = [] if size["macs_nonzero"] <= size["macs_dense"] else ["more operations without the zeros than with them"]
    faults += [] if 0 < size["nonzeros"] <= size["bytes"] else ["fewer bytes than weights that are not 0"]
    times: dict[str, Any] = result["latency"] or {}
    faults += [f"latency.{field} is not given" for field in missing(times, TIMES) if times]
    if faults:
        return verdict(41, False, "; ".join(faults))
    absent = [] if times else ["latency"]
    absent += [] if "peak_memory" in size else ["peak memory"]
    operations = f"{size['macs_nonzero']:.3g} of {size['macs_dense']:.3g} operations"
    detail = f"{size['bytes']} bytes, {size['nonzeros']} non-zeros, {operations}"
    return waived(41, f"{' and '.join(absent)} not measured; {detail}") if absent else verdict(41, True, detail)


TIMES = [f"{batch}.{field}" for batch in ("batch_1", "batch_64") for field in ("median_ms", "spread_ms")]


@torch.no_grad()
def versions_agree(versions: Mapping[str, Classifier], x: Images, adversarial: Images, y: Labels) -> Check:
    """Check 42: all versions of a model give the same logits, and are broken by the same images.

    Costs 2 forward passes an image for each version.

    Args:
        versions: masked, shrunk, packed, exported: by name, the first one decides.
        x: clean images.
        adversarial: images crafted on the first.
        y: their classes.
    """
    if len(versions) < 2:
        return waived(42, f"there is only one version of the model: {', '.join(versions) or 'none'}")
    (first, model), *others = versions.items()
    clean, attacked = model(x), model(adversarial)
    faults, farthest = [], 0.0
    for name, other in others:
        apart = max(_apart(other(x), clean), _apart(again := other(adversarial), attacked), key=lambda v: (v != v, v))
        right, wanted = (int((logits.argmax(1) == y).sum()) for logits in (again, attacked))
        if not apart <= LOGITS:
            faults.append(f"logits of {name} and {first} are {apart:.1e} of their spread apart")
        if right != wanted:
            faults.append(f"{name} answers {right} adversarial images rightly, {first} {wanted}")
        farthest = max(farthest, apart)
    return verdict(
        42, not faults, "; ".join(faults) or f"{', '.join(versions)} agree within {farthest:.1e} of the logits' spread"
    )


def speed_up_is_fair(baseline: Mapping[str, Any] | None, measured: Mapping[str, Any] | None) -> Check:
    """Check 43: both sides of a speed-up ran alike (`RUNTIME`), and the slower one is the dense parent; no passes.

    Args:
        baseline: the conditions of the first side, `model` and `RUNTIME`.
        measured: those of the second.
    """
    if baseline is None or measured is None:
        return waived(43, "no speed-up is claimed")
    unlike = [name for name in RUNTIME if name not in baseline or baseline.get(name) != measured.get(name)]
    faults = [f"{name}: {baseline.get(name)} against {measured.get(name)}" for name in unlike]
    if baseline.get("model") != "dense parent":
        faults.append(f"the baseline is {baseline.get('model')}, not the dense parent")
    return verdict(43, not faults, "; ".join(faults) or f"over the dense parent, same {', '.join(RUNTIME)}")


def _apart(logits: Tensor, wanted: Tensor) -> float:
    spread = (wanted - wanted.mean(1, keepdim=True)).abs().max().clamp_min(1e-12)
    return float((logits - wanted).abs().max() / spread)
