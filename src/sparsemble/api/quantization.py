"""An ensemble in 8-bit arithmetic: ranges and stopping rule calibrated on held-out images."""

from dataclasses import replace
from typing import Any

from sparsemble.api.calibration import calibrate
from sparsemble.api.context import Context
from sparsemble.api.results import Data, as_split
from sparsemble.attacks.attack import Attack
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.export.quantize import quantize
from sparsemble.models.folded import to_torch_ensemble
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.training.validation import adversarial_images


def in_8_bits(
    ensemble: Ensemble,
    converted: PackedEnsemble,
    data: Data,
    threat: ThreatModel,
    *,
    rule: StoppingRule,
    held_out_attack: Attack,
    context: Context,
    **stopping: Any,
) -> PackedEnsemble:
    """Return a converted ensemble in 8-bit arithmetic.

    Args:
        ensemble: the trained one, on the device of the context; adversarial images are crafted on it.
        converted: the ensemble for the runtime.
        data: the first half of its held-out images gives the ranges, the second half the stopping rule.
        threat: what the adversary may do.
        rule: where its calibration starts.
        held_out_attack: crafts adversarial images.
        context: randomness and progress.
        **stopping: settings of `calibrate`.

    Raises:
        InputError: no held-out images, an operation without 8-bit arithmetic, or a range of zero width.
    """
    split = as_split(data, "selection").to(context.device)
    adversarial = adversarial_images(ensemble, split, held_out_attack, threat, context.rng("ranges"))
    quantized = quantize(converted, split.tensors()[0], adversarial)
    context.report_progress(0.1, "calibrated the ranges")
    if rule.name == "never":
        return quantized
    inner = replace(context, report_progress=lambda done, text: context.report_progress(0.1 + 0.4 * done, text))
    model = to_torch_ensemble(quantized).to(context.device)
    settings = {"rule": rule, **stopping, "reorder": False, "held_out_attack": held_out_attack, "context": inner}
    return replace(quantized, rule=to_dict(calibrate(model, data, threat, **settings).rule))
