"""Set a stopping rule, and the order of members, on stored logits of held-out images; attacks nothing itself."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, StoppingRule, stopping_rules
from sparsemble.core.registry import to_dict
from sparsemble.core.types import Counts, Flags, Labels, MemberLogits

GRAIN = 0.05
"""Members run; settings that differ by less are compared by what they lose."""
ORDER_GAIN = 0.2
"""Members that another order must save; the present one was chosen for robustness, on other images."""


@final
@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What members say to held-out images, clean and attacked."""

    clean: MemberLogits
    attacked: Mapping[str, MemberLogits]
    """One set for each attack; an image is right in the worst case if it is right in all of them and clean."""
    y: Labels
    combiner: Combiner

    def __post_init__(self) -> None:
        if len(self.y) < 2 or len(self.y.unique()) < 2:
            raise InputError(f"calibration needs images of at least two classes, got {len(self.y)} images")

    def ordered(self, order: Sequence[int]) -> "HeldOut":
        """Return the same with members in another order."""
        chosen = list(order)
        attacked = {name: logits[chosen] for name, logits in self.attacked.items()}
        return dataclasses.replace(self, clean=self.clean[chosen], attacked=attacked)


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rule does on held-out images."""

    clean: float
    """Accuracy."""
    worst_case: float
    """Share of images that are right clean and under every attack."""
    members_run: float
    """Mean on clean images."""
    attacked_members_run: float
    """Mean on the attacked images of the set on which the rule runs the most."""


@final
@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What one constant of the rule does when it is a tenth smaller or larger; a count, one smaller or larger."""

    setting: str
    factor: float
    outcome: Outcome


@final
@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A stopping rule and what it did on the calibration images."""

    rule: StoppingRule
    order: tuple[int, ...]
    """Members, as places in the order that was given."""
    tried: int
    """Settings compared, over all orders."""
    images: int
    allowed: int
    """Images the rule may lose against the static ensemble, clean and in the worst case."""
    outcome: Outcome
    static: Outcome
    sensitivity: tuple[Sensitivity, ...]


def calibrate(
    start: StoppingRule,
    held_out: HeldOut,
    *,
    max_accuracy_drop: float,
    attacked_share: float = 0.0,
    reorder: bool = False,
) -> Calibrated:
    """Choose the settings, and with `reorder` the order of members, that cost least without losing accuracy.

    Settings that lose more than is allowed are ranked by what they lose.

    Args:
        start: the rule; its `candidates` are compared.
        held_out: logits, members in the present order.
        max_accuracy_drop: allowed loss against the static ensemble, in [0, 1]: clean and in the worst case, there never
            finer than one image, and on average over clean images and all attacks.
        attacked_share: how much of the cost is that under attack, in [0, 1]; the rest is that of clean images.
        reorder: compare orders, too.
    """
    members, count = len(held_out.clean), len(held_out.y)
    allowed = max(1, int(max_accuracy_drop * count + 1e-9))  # 0.29 * 100 is a little less than 29
    best: tuple[tuple[float, ...], tuple[int, ...], StoppingRule] | None = None
    tried = 0
    present = tuple(range(members))
    for order in orders(members) if reorder else [present]:
        stored = _Stored(held_out.ordered(order))
        static = stored.right(torch.full_like(stored.labels[0], members - 1))
        for candidate in start.candidates(stored.clean):
            answer_with, run = stored.decide(candidate)
            right = stored.right(answer_with - 1)
            lost = max(int(static[0].sum() - right[0].sum()), int(static.all(0).sum() - right.all(0).sum()))
            cost = (1 - attacked_share) * stored.clean_cost(run) + attacked_share * stored.attacked_cost(run)
            cost += ORDER_GAIN * (order != present)
            # The worst case of so few images is coarse, and the cheapest of many settings is the one it flatters most;
            # the average over all sets sees losses that it does not.
            average = float((static.double() - right.double()).mean())
            over = (float(max(lost - allowed, 0)), max(average - max_accuracy_drop, 0.0))
            # Less than a grain of cost is within the noise of so few images, and no reason to lose another one.
            rank = (*over, float(round(cost / GRAIN)), float(lost), cost)
            if best is None or rank < best[0]:
                best = (rank, order, candidate)
            tried += 1
    assert best is not None
    _, order, rule = best
    stored = _Stored(held_out.ordered(order))
    whole = torch.full_like(stored.labels[0], members)
    return Calibrated(
        rule=rule,
        order=order,
        tried=tried,
        images=count,
        allowed=allowed,
        outcome=stored.outcome(*stored.decide(rule)),
        static=stored.outcome(whole, whole),
        sensitivity=tuple(
            Sensitivity(setting=name, factor=factor, outcome=stored.outcome(*stored.decide(varied)))
            for name, factor, varied in _varied(rule)
        ),
    )


def judged(rule: StoppingRule, held_out: HeldOut) -> Outcome:
    """Return what a rule does on held-out images, members in the present order."""
    stored = _Stored(held_out)
    return stored.outcome(*stored.decide(rule))


def orders(members: int) -> list[tuple[int, ...]]:
    """Return the orders compared: each member first, the others as they are; the present order comes first.

    Most images see one member only, so who comes later matters little.
    """
    return [(first, *(i for i in range(members) if i != first)) for first in range(members)]


def _varied(rule: StoppingRule) -> list[tuple[str, float, StoppingRule]]:
    """Return the rule with each of its constants a tenth smaller and a tenth larger; counts one smaller and larger."""
    settings = to_dict(rule)
    others: list[tuple[str, float, float]] = []
    for name, value in settings.items():
        if isinstance(value, float):
            others += [(name, factor, factor * value) for factor in (0.9, 1.1)]
        elif isinstance(value, int) and value:
            others += [(name, other / value, other) for other in (value - 1, value + 1)]
    varied = []
    for name, factor, other in others:
        with contextlib.suppress(InputError):  # a count may be at its least
            varied.append((name, factor, stopping_rules.build({**settings, name: other})))
    return varied


class _Stored:
    """Logits of all sets side by side, and the answers of every prefix, worked out once."""

    def __init__(self, held_out: HeldOut) -> None:
        sets = [held_out.clean, *held_out.attacked.values()]
        self.clean, self.together = held_out.clean, torch.cat(sets, 1)
        self.images, self.y = len(held_out.y), held_out.y
        prefixes = range(1, len(self.together) + 1)
        self.labels = torch.stack([held_out.combiner(self.together[:m]).argmax(1) for m in prefixes])

    def decide(self, rule: StoppingRule) -> tuple[Counts, Counts]:
        """Return with which prefix each image is answered, and how many members run, for all sets side by side."""
        members, count = len(self.together), self.together.shape[1]
        answer_with = torch.zeros(count, dtype=torch.long, device=self.y.device)
        run = torch.zeros_like(answer_with)
        for m in range(1, members + 1):
            decision = rule(self.together[:m], last=m == members)
            now = (run == 0) & (decision.stop | (m == members))
            answer_with = torch.where(now, decision.answer_with, answer_with)
            run = torch.where(now, m, run)
        return answer_with, run

    def right(self, prefix: Int[Tensor, " all"]) -> Tensor:
        """Return which images (sets, B) are answered rightly by the prefixes, counted from 0."""
        answers = self.labels.gather(0, prefix[None])[0].view(-1, self.images)
        return answers == self.y

    def clean_cost(self, run: Counts) -> float:
        """Return the mean members run on clean images."""
        return float(run[: self.images].double().mean())

    def attacked_cost(self, run: Counts) -> float:
        """Return the mean members run on the set that costs the most; that of clean images where there is no other."""
        return float(run.view(-1, self.images).double().mean(1).max())

    def outcome(self, answer_with: Counts, run: Counts) -> Outcome:
        """Put what happened in numbers."""
        right: Flags = self.right(answer_with - 1)
        return Outcome(
            clean=float(right[0].double().mean()),
            worst_case=float(right.all(0).double().mean()),
            members_run=self.clean_cost(run),
            attacked_members_run=self.attacked_cost(run),
        )
