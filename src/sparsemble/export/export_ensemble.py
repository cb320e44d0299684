"""Write a trained ensemble in every format, read it back, and check that each format predicts as the ensemble does."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from sparsemble.attacks.attack import Attack
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.results import ExportResult, FormatAgreement, HeldOutAccuracy, RunSummary
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.export.agreement import check_agreement, check_logits
from sparsemble.export.convert import convert_ensemble
from sparsemble.export.hub import load_folder, save_folder
from sparsemble.export.onnx import write_graphs
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import Values
from sparsemble.runtime.predictor import Predictor
from sparsemble.training.validation import adversarial_images, member_logits

PACKED_FILE = "ensemble.sparsemble"
NO_ONNX = "needs onnx and onnxruntime; pip install 'sparsemble[export]'"
ToTorch = Callable[[PackedEnsemble], Ensemble]
"""Builds a packed ensemble in torch, in eval mode: the reference of every format."""


def export_packed(
    ensemble: Ensemble,
    rule: StoppingRule,
    path: Path,
    *,
    images: Images,
    classes: tuple[str, ...],
    parent_weights: int,
    to_torch: ToTorch,
    values: Values = "float16",
    **metadata: Mapping[str, Any],
) -> PackedEnsemble:
    """Convert an ensemble, check the conversion, and write it as a packed file.

    Args:
        ensemble: members in running order, in eval mode, on the CPU.
        rule: the stopping rule.
        path: the file.
        images: (B, C, H, W) in [0, 1], on which the conversion is checked.
        classes: names, K of them.
        parent_weights: prunable weights of the dense parent.
        to_torch: builds a packed ensemble in torch.
        values: number format of the weights.
        metadata: `recipe` and `provenance`, stored in the file.

    Returns:
        The ensemble with its weights rounded, as the file stores them.

    Raises:
        InputError: an operation that the runtime does not know.
        RunError: the converted network computes other logits than the trained one.
    """
    channels, height, width = images.shape[1:]
    converted = convert_ensemble(ensemble, rule, classes, (channels, height, width), parent_weights, **metadata)
    pairs = zip(member_logits(ensemble, images), member_logits(to_torch(converted), images), strict=True)
    for number, (trained_logits, converted_logits) in enumerate(pairs, start=1):
        name = f"member {number} converted for the runtime"
        check_logits(trained_logits, converted_logits, name, "the trained member")
    rounded = packed.round_weights(converted, values)
    packed.save(rounded, path, values=values)
    return rounded


def export_ensemble(
    ensemble: Ensemble,
    rule: StoppingRule,
    folder: Path,
    *,
    held_out: Split,
    attack: Attack,
    threat: ThreatModel,
    classes: tuple[str, ...],
    parent_weights: int,
    to_torch: ToTorch,
    make_rng: Callable[[str], Generator],
    values: Values = "float16",
    summary: RunSummary | None = None,
    report_progress: Callable[[float, str], None] = lambda fraction, text: None,
    **metadata: Mapping[str, Any],
) -> ExportResult:
    """Write an ensemble as a packed file, ONNX graphs and a folder for model hubs, and check each of them.

    Every format is compared with the rounded ensemble in torch, on held-out images and adversarial ones.

    Args:
        ensemble: members in running order, in eval mode, on the CPU.
        rule: the stopping rule.
        folder: exists; gets `ensemble.sparsemble`, `onnx/` and `hub/`.
        held_out: images on which formats and accuracies are measured.
        attack: crafts the adversarial ones, on all members.
        threat: where it searches.
        classes: names, K of them.
        parent_weights: prunable weights of the dense parent.
        to_torch: builds a packed ensemble in torch.
        make_rng: returns the generator for a purpose, in the same state at every call.
        values: number format of the weights.
        summary: results of the run, for the model card.
        report_progress: receives the fraction of the work that is done, and a short text.
        metadata: `recipe` and `provenance`, stored in the file.

    Returns:
        Sizes, held-out accuracy before and after rounding, and the agreement of each format.

    Raises:
        InputError: an operation that the runtime does not know.
        RunError: a format predicts otherwise than its reference.
    """
    x, y = held_out.tensors()
    path = folder / PACKED_FILE
    rounded = export_packed(
        ensemble,
        rule,
        path,
        images=x,
        classes=classes,
        parent_weights=parent_weights,
        to_torch=to_torch,
        values=values,
        **metadata,
    )
    report_progress(0.2, "packed")
    reference = to_torch(rounded)
    accuracies, crafted = [], []
    for model in (ensemble, reference):
        crafted.append(adversarial_images(model, held_out, attack, threat, make_rng("export")))
        clean, adversarial = (
            decide_from_logits(member_logits(model, images), model.combiner, rule).logits.argmax(1) == y
            for images in (x, crafted[-1])
        )
        robust = float((clean & adversarial).double().mean())
        accuracies.append(HeldOutAccuracy(clean=float(clean.double().mean()), robust=robust))
    images = torch.cat([x, crafted[0]])
    reference_logits = member_logits(reference, images)
    report_progress(0.6, "measured what rounding does")

    def check(logits: MemberLogits) -> FormatAgreement:
        return check_agreement(reference_logits, logits, ensemble.combiner, rule, rng=make_rng("agreement"))

    formats = {"packed": check(torch.from_numpy(Predictor(packed.load(path)).member_logits(images.numpy())))}
    onnx_agreement = _export_onnx(rounded, folder / "onnx", images, ensemble.combiner(reference_logits), check)
    if onnx_agreement:
        formats["onnx"] = onnx_agreement
    save_folder(rounded, folder / "hub", summary, values=values)
    formats["hub"] = check(member_logits(to_torch(load_folder(folder / "hub")), images))
    return ExportResult(
        values=values,
        bytes=path.stat().st_size,
        share_of_dense_float32=path.stat().st_size / (4 * parent_weights),
        nonzeros=rounded.nonzeros,
        sparsity=rounded.sparsity,
        held_out_images=len(x),
        unrounded=accuracies[0],
        rounded=accuracies[1],
        formats=formats,
        not_written={} if onnx_agreement else {"onnx": NO_ONNX},
    )


def _export_onnx(
    ensemble: PackedEnsemble,
    folder: Path,
    images: Images,
    reference: torch.Tensor,
    check: Callable[[MemberLogits], FormatAgreement],
) -> FormatAgreement | None:
    """Write the ONNX graphs and run them; None where the packages for that are not installed.

    Args:
        ensemble: with rounded weights.
        folder: made here.
        images: (B, C, H, W)
        reference: (B, K) logits of the ensemble with all members.
        check: compares the logits of the members.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    members, static_ensemble = write_graphs(ensemble, folder)
    agreement = check(torch.from_numpy(np.stack([run_graph(file, images.numpy()) for file in members])))
    logits, single_logits = (torch.from_numpy(run_graph(static_ensemble, x.numpy())) for x in (images, images[:1]))
    graph = "the ONNX graph of the ensemble"
    return replace(
        agreement,
        static_ensemble=check_logits(reference, logits, graph, "the ensemble"),
        batch_of_one=check_logits(
            logits[:1], single_logits, f"{graph}, run on one image,", "the same graph on a batch"
        ),
    )


def run_graph(file: Path, images: np.ndarray) -> np.ndarray:
    """Return the logits of an ONNX graph, run by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"images": images})[0]
    return logits
