"""Verify, before anything is timed, that every engine predicts as torch does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sparsemble.bench.engines import FLOAT32, TimedEngine
from sparsemble.bench.models import BenchModel
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Combiner, Ensemble, stopping_rules
from sparsemble.core.types import MemberLogits, seeded
from sparsemble.export.agreement import EIGHT_BITS, check_agreement
from sparsemble.models.folded import FoldedNetwork
from sparsemble.runtime.combiners import Combiner as RuntimeCombiner
from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.network import Floats, Network
from sparsemble.runtime.predictor import Prediction, Predictor
from sparsemble.runtime.stopping import Counts, StoppingRule

TOLERANCES = {FLOAT32: 1e-3, "bfloat16": 0.05, "float16": 0.01, "int8": 0.25}
"""By arithmetic: largest difference of an engine's logits from torch's in float32, relative to the largest logit. Ours
in 8 bits is compared with the same 8-bit network in torch, within `EIGHT_BITS`."""
ROUNDING = 1e-6
"""Of a probability; those of random networks are nearly equal for all classes."""


def verify_engines(engines: Sequence[TimedEngine], x: Floats) -> None:
    """Refuse engines whose logits differ from those of the first one, torch, with a `RunError`.

    Args:
        engines: torch, in float32, first.
        x: (B, C, H, W) images.
    """
    known: dict[Network | None, np.ndarray] = {None: engines[0].call(x)}
    for engine in engines[1:]:
        reference = engine.reference
        if reference not in known:
            known[reference] = _run(reference, x)
        tolerance = EIGHT_BITS if reference and reference.steps else TOLERANCES[engine.arithmetic]
        _check_logits(engine.name, known[reference], engine.call(x), tolerance)


@torch.inference_mode()
def _run(network: Network | None, x: Floats) -> Floats:
    assert network is not None
    logits: Floats = FoldedNetwork(network)(torch.from_numpy(x)).numpy()
    return logits


def _check_logits(name: str, expected: np.ndarray, logits: np.ndarray, tolerance: float) -> None:
    """Refuse logits that differ by more than the tolerance, relative to the largest."""
    difference = float(np.abs(logits - expected).max()) / max(float(np.abs(expected).max()), 1e-12)
    if not difference <= tolerance:
        raise RunError(
            f"{name} differs from torch by {difference:.2g} of the largest logit (allowed {tolerance:g}); it was not "
            "timed"
        )


@dataclass(frozen=True)
class Quality:
    """How well an engine classifies."""

    agreement: float | None
    """Fraction of images with the label that torch returns in float32."""
    accuracy: float | None = None
    """On test images; None: the weights are random, or of no trained network."""


def measure_quality(engines: Sequence[TimedEngine], model: BenchModel, batch: int) -> dict[str, Quality]:
    """Compare labels; engines in float32 have those of torch, as their logits are compared.

    Args:
        engines: torch, in float32, first; each takes `batch` images.
        model: has the images, and their labels.
        batch: images.
    """
    expected = _labels(engines[0], model.images, batch)

    def quality(labels: np.ndarray) -> Quality:
        accuracy = None if model.labels is None else float((labels == model.labels).mean())
        return Quality(float((labels == expected).mean()), accuracy)

    measured = {}
    for engine in engines:
        if engine.reference is not None and engine.reference is model.narrow:
            measured[engine.name] = Quality(None)
        else:
            in_floats = engine.arithmetic == FLOAT32
            measured[engine.name] = quality(expected if in_floats else _labels(engine, model.images, batch))
    return measured


def _labels(engine: TimedEngine, images: Floats, batch: int) -> np.ndarray:
    """Return the labels of images, which the engine gets in batches of one size; the last is filled up."""
    starts = range(0, len(images), batch)
    parts = [engine.call(images[np.arange(start, start + batch) % len(images)]).argmax(1) for start in starts]
    return np.concatenate(parts)[: len(images)]


def measure_ensemble(model: BenchModel, predictor: Predictor, rule: StoppingRule | None) -> Quality:
    """Compare the labels of an ensemble with those of the same networks in float32 with the same rule.

    Args:
        model: has the ensemble, images and their labels.
        predictor: the ensemble in our engine.
        rule: the predictor's, in place of the ensemble's own.
    """
    assert model.ensemble
    labels = predictor.predict(model.images).labels
    agreement = 1.0
    if model.ensemble.arithmetic != FLOAT32:
        members = tuple(Network(member.image, member.nodes) for member in model.ensemble.members)
        in_floats = Predictor(replace(model.ensemble, members=members), rule=rule)
        agreement = float((in_floats.predict(model.images).labels == labels).mean())
    return Quality(agreement, None if model.labels is None else float((labels == model.labels).mean()))


@torch.inference_mode()
def verify_ensemble(
    name: str, predictor: Predictor, reference: Ensemble, x: Floats, rule: StoppingRule | None = None
) -> Prediction:
    """Return our engine's prediction if it equals torch's: labels, probabilities, members run and prefixes.

    Args:
        name: of the row.
        predictor: the ensemble in our engine.
        reference: the same ensemble in torch.
        x: images.
        rule: the predictor's rule in place of the ensemble's own, applied once more to the logits of all members; None:
            the ensemble's own rule in torch decides.

    Raises:
        RunError: a prediction or decision that differs by more than rounding.
    """
    prediction = predictor.predict(x)
    torch_logits, logits = reference.member_logits(torch.from_numpy(x)), predictor.member_logits(x)
    in_8_bits = predictor.ensemble.arithmetic != FLOAT32
    tolerance = EIGHT_BITS if in_8_bits else TOLERANCES[FLOAT32]
    for number, (expected, of_member) in enumerate(zip(torch_logits.numpy(), logits, strict=True), start=1):
        _check_logits(f"{name}: member {number}", expected, of_member, tolerance)
    _check_probabilities(name, prediction, torch_logits, reference.combiner, tolerance)
    if rule is None:
        combiner, own_rule = reference.combiner, stopping_rules.build(dict(predictor.ensemble.rule))
        allowed = {"tolerance": EIGHT_BITS} if in_8_bits else {}
        found = check_agreement(torch_logits, torch.from_numpy(logits), combiner, own_rule, rng=seeded(0), **allowed)
        near, decided = found.near, decide_from_logits(torch.from_numpy(logits), combiner, own_rule)
        members_run, prefix = decided.members_run.numpy(), decided.answered_with.numpy()
    else:
        near = 0
        combine = build_combiner(predictor.ensemble.combiner)
        members_run, prefix = decide_with_rule(logits, rule, combine)
    different = int(((prediction.members_run != members_run) | (prediction.answered_with != prefix)).sum())
    if different > near:
        raise RunError(f"{name}: stops elsewhere than its rule for {different} of {len(x)} images; it was not timed")
    return prediction


def _check_probabilities(
    name: str, prediction: Prediction, torch_logits: MemberLogits, combiner: Combiner, tolerance: float
) -> None:
    """Compare the prediction with torch's combination of the same prefix of members."""
    for prefix in np.unique(prediction.answered_with):
        rows = prediction.answered_with == prefix
        expected = combiner(torch_logits[: int(prefix), torch.from_numpy(rows)]).softmax(-1).numpy()
        allowed = tolerance * float(expected.max() - expected.min()) + ROUNDING
        difference = float(np.abs(prediction.probabilities[rows] - expected).max())
        labelled = np.take_along_axis(expected, prediction.labels[rows][:, None], 1)[:, 0]
        behind = float((expected.max(-1) - labelled).max())
        if not (difference <= allowed and behind <= 2 * allowed):
            raise RunError(
                f"{name}: differs from torch by {difference:.2g} in a probability, and a label's is {behind:.2g} "
                f"below the largest ({allowed:.2g} and twice that are allowed); it was not timed"
            )


def decide_with_rule(member_logits: Floats, rule: StoppingRule, combiner: RuntimeCombiner) -> tuple[Counts, Counts]:
    """Return the members run and the length of the prefix.

    Args:
        member_logits: (M, B, K) of all members.
        rule: decides for each image.
        combiner: of the ensemble.
    """
    total, images, _ = member_logits.shape
    members_run, answered_with = np.zeros(images, np.int64), np.zeros(images, np.int64)
    undecided = np.arange(images)
    for m in range(1, total + 1):
        done, prefix = rule(member_logits[:m, undecided], combiner, last=m == total)
        members_run[undecided[done]], answered_with[undecided[done]] = m, prefix[done]
        undecided = undecided[~done]
    return members_run, answered_with
