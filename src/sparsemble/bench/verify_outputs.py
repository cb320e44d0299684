"""Verify, before anything is timed, that every engine predicts as torch does."""

from collections.abc import Sequence

import numpy as np
import torch

from sparsemble.bench.engines import Floats, TimedEngine
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Combiner, Ensemble, stopping_rules
from sparsemble.core.types import MemberLogits, seeded
from sparsemble.export.agreement import check_agreement
from sparsemble.runtime.combiners import Combiner as RuntimeCombiner
from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.predictor import Prediction, Predictor
from sparsemble.runtime.stopping import Counts, StoppingRule

TOLERANCE = 1e-3
"""Largest difference of an engine's logits from torch's, relative to the largest logit; of an ensemble's probabilities,
relative to their range."""
ROUNDING = 1e-6
"""Of a probability; those of random networks are nearly equal for all classes."""


def verify_engines(engines: Sequence[TimedEngine], x: Floats) -> None:
    """Refuse engines whose logits differ from those of the first one, torch, with a `RunError`."""
    expected = engines[0].call(x)
    for engine in engines[1:]:
        _check_logits(engine.name, expected, engine.call(x))


def _check_logits(name: str, expected: np.ndarray, logits: np.ndarray) -> None:
    """Refuse logits that differ by more than the tolerance."""
    difference = float(np.abs(logits - expected).max()) / max(float(np.abs(expected).max()), 1e-12)
    if not difference <= TOLERANCE:
        raise RunError(f"{name} differs from torch by {difference:.2g} of the largest logit; it was not timed")


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
    for number, (expected, of_member) in enumerate(zip(torch_logits.numpy(), logits, strict=True), start=1):
        _check_logits(f"{name}: member {number}", expected, of_member)
    _check_probabilities(name, prediction, torch_logits, reference.combiner)
    if rule is None:
        combiner, own_rule = reference.combiner, stopping_rules.build(dict(predictor.ensemble.rule))
        near = check_agreement(torch_logits, torch.from_numpy(logits), combiner, own_rule, rng=seeded(0)).near
        decided = decide_from_logits(torch.from_numpy(logits), combiner, own_rule)
        members_run, prefix = decided.members_run.numpy(), decided.answered_with.numpy()
    else:
        near = 0
        combine = build_combiner(predictor.ensemble.combiner)
        members_run, prefix = decide_with_rule(logits, rule, combine)
    different = int(((prediction.members_run != members_run) | (prediction.answered_with != prefix)).sum())
    if different > near:
        raise RunError(f"{name}: stops elsewhere than its rule for {different} of {len(x)} images; it was not timed")
    return prediction


def _check_probabilities(name: str, prediction: Prediction, torch_logits: MemberLogits, combiner: Combiner) -> None:
    """Compare the prediction with torch's combination of the same prefix of members."""
    for prefix in np.unique(prediction.answered_with):
        rows = prediction.answered_with == prefix
        expected = combiner(torch_logits[: int(prefix), torch.from_numpy(rows)]).softmax(-1).numpy()
        allowed = TOLERANCE * float(expected.max() - expected.min()) + ROUNDING
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
