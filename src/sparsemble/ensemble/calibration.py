"""Calibration: choose a stopping rule's settings, and the order of members, on stored logits of held-out images."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, StoppingRule, stopping_rules
from sparsemble.core.registry import to_dict
from sparsemble.core.results import HeldOutOutcome, SensitivityRecord
from sparsemble.core.types import Counts, Labels, MemberLogits

COST_RESOLUTION = 0.05
"""Members run; settings whose costs differ by less are ranked by the accuracy they lose."""
MIN_REORDER_SAVING = 0.2
"""Members run that another order must save; the present order was chosen for robustness, on other images."""


@final
@dataclass(frozen=True, kw_only=True)
class CalibrationLogits:
    """Logits of all members on held-out images, clean and attacked."""

    clean: MemberLogits
    """(M, B, K), members in running order."""
    attacked: Mapping[str, MemberLogits]
    """(M, B, K) for each attack; correct in the worst case means correct in every set, the clean one included."""
    y: Labels
    """True classes (B)."""
    combiner: Combiner
    """How a prefix of members is combined."""

    def __post_init__(self) -> None:
        if len(self.y) < 2 or len(self.y.unique()) < 2:
            raise InputError(f"calibration needs images of at least two classes, got {len(self.y)} images")

    def reordered(self, order: Sequence[int]) -> "CalibrationLogits":
        """Return the same logits with members in another order."""
        members = list(order)
        attacked = {name: logits[members] for name, logits in self.attacked.items()}
        return dataclasses.replace(self, clean=self.clean[members], attacked=attacked)


@final
@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """A stopping rule and its results on the calibration images."""

    rule: StoppingRule
    order: tuple[int, ...]
    """Members in running order, as positions in the order that was given."""
    tried: int
    """Settings compared, over all orders."""
    images: int
    """Calibration images."""
    allowed: int
    """Images the rule may lose against the full ensemble, clean and in the worst case."""
    outcome: HeldOutOutcome
    """Of the rule."""
    full_ensemble: HeldOutOutcome
    """Of all members, without a stopping rule."""
    sensitivity: tuple[SensitivityRecord, ...]
    """The rule with each of its constants a tenth smaller or larger; a count, one smaller or larger."""


def calibrate(
    rule: StoppingRule,
    logits: CalibrationLogits,
    *,
    max_accuracy_drop: float,
    attacked_share: float = 0.0,
    reorder: bool = False,
) -> CalibrationResult:
    """Choose the settings of a stopping rule on stored logits of held-out images; nothing is attacked here.

    Among candidates within `max_accuracy_drop` of the full ensemble, the one that runs the fewest members is chosen;
    candidates that lose more are ranked by how much more.

    Args:
        rule: a stopping rule; its `candidates` are compared.
        logits: of all members, in the present order, on clean and attacked held-out images.
        max_accuracy_drop: allowed loss of accuracy against the full ensemble, in [0, 1]: clean, in the worst case (each
            of these at least one image), and on average over clean images and all attacks.
        attacked_share: weight of the members run under attack in the cost, in [0, 1]; the rest is that of clean images.
        reorder: also compare orders of the members (`candidate_orders`).

    Returns:
        The rule, the order of members, what both do on these images, and how sensitive that is to each setting.

    Source: ours.
    """
    members, count = len(logits.clean), len(logits.y)
    allowed = max(1, int(max_accuracy_drop * count + 1e-9))  # 0.29 * 100 is a little less than 29
    best: tuple[tuple[float, ...], tuple[int, ...], StoppingRule] | None = None
    tried = 0
    present = tuple(range(members))
    for order in candidate_orders(members) if reorder else [present]:
        predictions = _PrefixPredictions(logits.reordered(order))
        full = predictions.correct(torch.full_like(predictions.labels[0], members))
        for candidate in rule.candidates(predictions.clean, logits.combiner):
            answer_with, members_run = predictions.decide(candidate)
            cost = predictions.cost(members_run, attacked_share) + MIN_REORDER_SAVING * (order != present)
            rank = _rank(predictions.correct(answer_with), full, cost, allowed, max_accuracy_drop)
            if best is None or rank < best[0]:
                best = (rank, order, candidate)
            tried += 1
    assert best is not None
    _, order, chosen = best
    predictions = _PrefixPredictions(logits.reordered(order))
    whole = torch.full_like(predictions.labels[0], members)
    return CalibrationResult(
        rule=chosen,
        order=order,
        tried=tried,
        images=count,
        allowed=allowed,
        outcome=predictions.outcome(*predictions.decide(chosen)),
        full_ensemble=predictions.outcome(whole, whole),
        sensitivity=tuple(
            SensitivityRecord(setting=name, factor=factor, outcome=predictions.outcome(*predictions.decide(varied)))
            for name, factor, varied in _perturbed(chosen)
        ),
    )


def evaluate_rule(rule: StoppingRule, logits: CalibrationLogits) -> HeldOutOutcome:
    """Return accuracies and members run of a stopping rule on held-out images, members in the present order."""
    predictions = _PrefixPredictions(logits)
    return predictions.outcome(*predictions.decide(rule))


def candidate_orders(members: int) -> list[tuple[int, ...]]:
    """Return the orders compared: each member first, the others as they are; the present order comes first.

    Most images need one member only, so the order of the later ones matters little.
    """
    return [(first, *(i for i in range(members) if i != first)) for first in range(members)]


def _rank(
    correct: Bool[Tensor, "sets B"], full: Bool[Tensor, "sets B"], cost: float, allowed: int, max_accuracy_drop: float
) -> tuple[float, ...]:
    """Return the sort key of a candidate; lower is better."""
    lost = max(int(full[0].sum() - correct[0].sum()), int(full.all(0).sum() - correct.all(0).sum()))
    # Worst-case accuracy on a few hundred images is coarse, and the cheapest of many candidates profits most from that;
    # the average over all sets shows losses that it hides.
    average = float((full.double() - correct.double()).mean())
    excess = (float(max(lost - allowed, 0)), max(average - max_accuracy_drop, 0.0))
    # Costs closer than this are within the noise of so few images: no reason to lose another image.
    return (*excess, float(round(cost / COST_RESOLUTION)), float(lost), cost)


def _perturbed(rule: StoppingRule) -> Iterator[tuple[str, float, StoppingRule]]:
    """Yield the rule with each constant a tenth smaller and larger, counts one smaller and larger; with the factor."""
    settings = to_dict(rule)
    changes: list[tuple[str, float, float]] = []
    for name, value in settings.items():
        if isinstance(value, float):
            changes += [(name, factor, factor * value) for factor in (0.9, 1.1)]
        elif isinstance(value, int) and value:
            changes += [(name, changed / value, changed) for changed in (value - 1, value + 1)]
    for name, factor, changed in changes:
        with contextlib.suppress(InputError):  # a count may be at its minimum
            yield name, factor, stopping_rules.build({**settings, name: changed})


class _PrefixPredictions:
    """Logits of all sets side by side, and the predicted class of every prefix, computed once."""

    def __init__(self, logits: CalibrationLogits) -> None:
        sets = [logits.clean, *logits.attacked.values()]
        self.clean, self.all_sets = logits.clean, torch.cat(sets, 1)
        self.images, self.y, self.combiner = len(logits.y), logits.y, logits.combiner
        prefixes = range(1, len(self.all_sets) + 1)
        self.labels = torch.stack([logits.combiner(self.all_sets[:m]).argmax(1) for m in prefixes])

    def decide(self, rule: StoppingRule) -> tuple[Counts, Counts]:
        """Return the length of the prefix that is used and the members run, for the images of all sets side by side."""
        members, count = len(self.all_sets), self.all_sets.shape[1]
        answer_with = torch.zeros(count, dtype=torch.long, device=self.y.device)
        members_run = torch.zeros_like(answer_with)
        undecided = torch.arange(count, device=self.y.device)
        for m in range(1, members + 1):
            decision = rule(self.all_sets[:m, undecided], self.combiner, last=m == members)
            now = decision.stop | (m == members)
            answer_with[undecided[now]] = decision.answer_with[now]
            members_run[undecided[now]] = m
            undecided = undecided[~now]
        return answer_with, members_run

    def correct(self, answer_with: Int[Tensor, " all"]) -> Bool[Tensor, "sets B"]:
        """Return which images are classified correctly by prefixes of these lengths, in 1..M."""
        predictions = self.labels.gather(0, answer_with[None] - 1)[0].view(-1, self.images)
        return predictions == self.y

    def members_run(self, members_run: Counts) -> Tensor:
        """Return the mean members run on each set, the clean one first."""
        return members_run.view(-1, self.images).double().mean(1)

    def cost(self, members_run: Counts, attacked_share: float) -> float:
        """Return the mean members run, part of it on the costliest set; on clean images where there is no other."""
        by_set = self.members_run(members_run)
        return (1 - attacked_share) * float(by_set[0]) + attacked_share * float(by_set.max())

    def outcome(self, answer_with: Counts, members_run: Counts) -> HeldOutOutcome:
        """Return accuracies and members run."""
        correct, by_set = self.correct(answer_with), self.members_run(members_run)
        return HeldOutOutcome(
            clean=float(correct[0].double().mean()),
            worst_case=float(correct.all(0).double().mean()),
            members_run=float(by_set[0]),
            attacked_members_run=float(by_set.max()),
        )
