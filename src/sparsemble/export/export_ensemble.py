"""Write a trained ensemble in every format, read it back, and check that each format predicts as the ensemble does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator

from sparsemble.attacks.attack import Attack
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Ensemble, StoppingRule, stopping_rules
from sparsemble.core.results import ExportResult, FormatAgreement, HeldOutAccuracy, RunSummary
from sparsemble.core.same_outputs import TOLERANCE
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.export.agreement import EIGHT_BITS, check_agreement, check_logits
from sparsemble.export.hub import load_folder, save_folder
from sparsemble.export.onnx import write_graphs
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import Values
from sparsemble.runtime.predictor import Predictor
from sparsemble.training.validation import adversarial_images, member_logits

PACKED_FILE = "ensemble.sparsemble"
FLOATS_ONLY = "has no 8-bit arithmetic; the packed file and the hub folder have"
NO_ONNX = "needs onnx and onnxruntime; pip install 'sparsemble[export]'"
ToTorch = Callable[[PackedEnsemble], Ensemble]
"""Builds a packed ensemble in torch, in eval mode: the reference of every format."""


def export_packed(
    ensemble: Ensemble,
    converted: PackedEnsemble,
    path: Path,
    *,
    images: Images,
    to_torch: ToTorch,
    values: Values = "float16",
    quantized: PackedEnsemble | None = None,
) -> PackedEnsemble:
    """Check how an ensemble was converted, and write it as a packed file.

    Args:
        ensemble: the trained one, in eval mode, on the CPU.
        converted: what `convert_ensemble` made of it.
        path: the file.
        images: (B, C, H, W) in [0, 1], on which the conversion is checked.
        to_torch: builds a packed ensemble in torch.
        values: number format of the weights.
        quantized: the converted ensemble in 8-bit arithmetic, which is written instead; None: in float32.

    Returns:
        The ensemble with its weights rounded, as the file stores them.

    Raises:
        RunError: the converted network computes other logits than the trained one.
    """
    pairs = zip(member_logits(ensemble, images), member_logits(to_torch(converted), images), strict=True)
    for number, (trained_logits, converted_logits) in enumerate(pairs, start=1):
        name = f"member {number} converted for the runtime"
        check_logits(trained_logits, converted_logits, name, "the trained member")
    rounded = packed.round_weights(quantized or converted, values)
    packed.save(rounded, path, values=values)
    return rounded


def export_ensemble(
    ensemble: Ensemble,
    rule: StoppingRule,
    converted: PackedEnsemble,
    folder: Path,
    *,
    held_out: Split,
    attack: Attack,
    threat: ThreatModel,
    to_torch: ToTorch,
    make_rng: Callable[[str], Generator],
    values: Values = "float16",
    quantized: PackedEnsemble | None = None,
    summary: RunSummary | None = None,
    report_progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> ExportResult:
    """Write an ensemble as a packed file, ONNX graphs and a folder for model hubs, and check each of them.

    Every format is compared with the rounded ensemble in torch, on held-out images and adversarial ones.

    Args:
        ensemble: the trained one, in eval mode, on the CPU.
        rule: the stopping rule.
        converted: what `convert_ensemble` made of both.
        folder: exists; gets `ensemble.sparsemble`, `onnx/` and `hub/`.
        held_out: images on which formats and accuracies are measured.
        attack: crafts the adversarial ones, on all members.
        threat: where it searches.
        to_torch: builds a packed ensemble in torch.
        make_rng: returns the generator for a purpose, in the same state at every call.
        values: number format of the weights.
        quantized: the converted ensemble in 8-bit arithmetic, which is written instead; None: in float32.
        summary: results of the run, for the model card.
        report_progress: receives the fraction of the work that is done, and a short text.

    Returns:
        Sizes, held-out accuracy before and after rounding, and the agreement of each format.

    Raises:
        RunError: a format predicts otherwise than its reference.
    """
    x, y = held_out.tensors()
    path = folder / PACKED_FILE
    rounded = export_packed(ensemble, converted, path, images=x, to_torch=to_torch, values=values, quantized=quantized)
    report_progress(0.2, "packed")
    reference, stored_rule = to_torch(rounded), stopping_rules.build(dict(rounded.rule))
    accuracies, crafted = [], []
    for model, its_rule in ((ensemble, rule), (reference, stored_rule)):
        crafted.append(adversarial_images(model, held_out, attack, threat, make_rng("export")))
        clean, adversarial = (
            decide_from_logits(member_logits(model, images), model.combiner, its_rule).logits.argmax(1) == y
            for images in (x, crafted[-1])
        )
        robust = float((clean & adversarial).double().mean())
        accuracies.append(HeldOutAccuracy(clean=float(clean.double().mean()), robust=robust))
    images = torch.cat([x, crafted[0]])
    reference_logits = member_logits(reference, images)
    report_progress(0.6, "measured what rounding does")

    def check(logits: MemberLogits, tolerance: float = TOLERANCE) -> FormatAgreement:
        rng = make_rng("agreement")
        return check_agreement(reference_logits, logits, ensemble.combiner, stored_rule, rng=rng, tolerance=tolerance)

    engine_logits = torch.from_numpy(Predictor(packed.load(path)).member_logits(images.numpy()))
    formats = {"packed": check(engine_logits, EIGHT_BITS if quantized else TOLERANCE)}
    not_written = {}
    if quantized:
        not_written["onnx"] = FLOATS_ONLY
    elif onnx := _export_onnx(rounded, folder / "onnx", images, ensemble.combiner(reference_logits), check):
        formats["onnx"] = onnx
    else:
        not_written["onnx"] = NO_ONNX
    save_folder(rounded, folder / "hub", summary, values=values)
    formats["hub"] = check(member_logits(to_torch(load_folder(folder / "hub")), images))
    return ExportResult(
        values=values,
        arithmetic=rounded.arithmetic,
        bytes=path.stat().st_size,
        share_of_dense_float32=path.stat().st_size / (4 * rounded.parent_weights),
        nonzeros=rounded.nonzeros,
        sparsity=rounded.sparsity,
        held_out_images=len(x),
        unrounded=accuracies[0],
        rounded=accuracies[1],
        formats=formats,
        not_written=not_written,
    )


def _export_onnx(
    ensemble: PackedEnsemble,
    folder: Path,
    images: Images,
    reference: torch.Tensor,
    check: Callable[[MemberLogits], FormatAgreement],
) -> FormatAgreement | None:
    """Write the ONNX graphs and compare them, with all members with `reference`; None without the packages for that."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    members, static_ensemble = write_graphs(ensemble, folder)
    agreement = check(torch.from_numpy(np.stack([run_graph(file, images.numpy()) for file in members])))
    logits, single_logits = (torch.from_numpy(run_graph(static_ensemble, x.numpy())) for x in (images, images[:1]))
    graph = "the ONNX graph of the ensemble"
    difference = check_logits(reference, logits, graph, "the ensemble")
    single = check_logits(logits[:1], single_logits, f"{graph}, run on one image,", "the same graph on a batch")
    return replace(agreement, static_ensemble=difference, batch_of_one=single)


def run_graph(file: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits of an ONNX graph, run by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"images": images})[0]
    return logits
