"""What `sparsemble bench` times answers as torch does; who answers something else is refused before the clock runs."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemble.bench.engines import Timed
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Ensemble, combiners, stopping_rules
from sparsemble.core.types import MemberLogits, seeded
from sparsemble.evaluation.folded import FoldedNetwork
from sparsemble.export.agreement import check_agreement
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.predictor import Prediction, Predictor
from sparsemble.runtime.stopping import Counts, StoppingRule

Floats = NDArray[np.float32]

TOLERANCE = 1e-3
"""Largest difference of an engine's logits from torch's, relative to the largest logit; of an ensemble's probabilities,
relative to how far the largest and the smallest lie apart."""
ROUNDING = 1e-6
"""Of a probability, which drawn networks give to all classes nearly alike."""


def agree(timed: Sequence[Timed], x: Floats) -> None:
    """Refuse engines that answer something else than the first one, torch.

    Raises:
        RunError: naming the engine.
    """
    expected = timed[0].call(x)
    for one in timed[1:]:
        _same_logits(one.name, expected, one.call(x))


def _same_logits(name: str, expected: np.ndarray, found: np.ndarray) -> None:
    difference = float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-12)
    if not difference <= TOLERANCE:
        raise RunError(f"{name} differs from torch by {difference:.2g} of the largest logit; it was not timed")


@final
class TorchEnsemble:
    """The same ensemble in torch, to which the engine's answers are held.

    Args:
        ensemble: what is timed.
    """

    def __init__(self, ensemble: PackedEnsemble) -> None:
        members = [FoldedNetwork(member) for member in ensemble.members]
        self._ensemble = Ensemble(members, combiners.build(dict(ensemble.combiner))).eval()

    @torch.inference_mode()
    def agrees(self, name: str, predictor: Predictor, x: Floats, rule: StoppingRule | None = None) -> Prediction:
        """Return the engine's answers if they are torch's: labels, probabilities, members run and prefixes.

        Args:
            name: of the row.
            predictor: the ensemble in our engine.
            x: images.
            rule: the predictor's rule in place of the ensemble's own, which torch need not know: asked once more, about
                the logits of all members; none: the ensemble's own rule in torch decides.

        Raises:
            RunError: an answer, or a decision, that differs by more than rounding explains.
        """
        found = predictor.predict(x)
        theirs, ours = self._ensemble.member_logits(torch.from_numpy(x)), predictor.member_logits(x)
        for number, (one, other) in enumerate(zip(theirs.numpy(), ours, strict=True), start=1):
            _same_logits(f"{name}: member {number}", one, other)
        self._same_answers(name, found, theirs)
        if rule is None:
            combiner, own_rule = self._ensemble.combiner, stopping_rules.build(dict(predictor.ensemble.rule))
            near = check_agreement(theirs, torch.from_numpy(ours), combiner, own_rule, rng=seeded(0)).near
            decided = decide_from_logits(torch.from_numpy(ours), combiner, own_rule)
            run, answered = decided.members_run.numpy(), decided.answered_with.numpy()
        else:
            near = 0
            run, answered = _decided(ours, rule)
        others = int(((found.members_run != run) | (found.answered_with != answered)).sum())
        if others > near:
            raise RunError(f"{name}: stops elsewhere than its rule for {others} of {len(x)} images; it was not timed")
        return found

    def _same_answers(self, name: str, found: Prediction, theirs: MemberLogits) -> None:
        """Compare with torch's combination of the members that are said to answer."""
        for prefix in np.unique(found.answered_with):
            rows = found.answered_with == prefix
            expected = self._ensemble.combiner(theirs[: int(prefix), torch.from_numpy(rows)]).softmax(-1).numpy()
            allowed = TOLERANCE * float(expected.max() - expected.min()) + ROUNDING
            difference = float(np.abs(found.probabilities[rows] - expected).max())
            labelled = np.take_along_axis(expected, found.labels[rows][:, None], 1)[:, 0]
            behind = float((expected.max(-1) - labelled).max())
            if not (difference <= allowed and behind <= 2 * allowed):
                raise RunError(
                    f"{name}: differs from torch by {difference:.2g} in a probability, and a label's is {behind:.2g} "
                    f"below the largest ({allowed:.2g} and twice that are allowed); it was not timed"
                )


def _decided(member_logits: Floats, rule: StoppingRule) -> tuple[Counts, Counts]:
    """Return how many members run and how many answer, from the logits of all (M, B, K)."""
    total, images, _ = member_logits.shape
    run, answered = np.zeros(images, np.int64), np.zeros(images, np.int64)
    undecided = np.arange(images)
    for m in range(1, total + 1):
        done, prefix = rule(member_logits[:m, undecided], last=m == total)
        run[undecided[done]], answered[undecided[done]] = m, prefix[done]
        undecided = undecided[~done]
    return run, answered
