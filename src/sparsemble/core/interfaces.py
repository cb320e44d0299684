"""The interfaces that several rooms share: ensembles, combiners, stopping rules."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Component, Registry
from sparsemble.core.types import Counts, Flags, Images, Logits, MemberLogits


class Combiner(Component):
    """Combines the logits of several members into one logit vector; works for every prefix of the members."""

    @abstractmethod
    def __call__(self, member_logits: MemberLogits) -> Logits:
        """Combine member logits (m, B, K), 1 <= m <= M, into logits (B, K)."""


@dataclass(frozen=True)
class Decision:
    """The decision of a stopping rule after m members, for each image."""

    stop: Flags
    """Whether no further member is run (B)."""
    answer_with: Counts
    """Length of the prefix that answers (B), in 1..m; meaningful where `stop` is true."""


class StoppingRule(Component):
    """Decides for each image when to stop running members and which prefix of them answers.

    The decision depends on members 1..m and on this image only: it is the same in a batch of 1 and of 256. What a
    prefix predicts is what `combiner`, that of the ensemble, makes of its members.
    """

    @abstractmethod
    def __call__(self, member_logits: MemberLogits, combiner: Combiner, *, last: bool) -> Decision:
        """Decide after m members, from their logits (m, B, K); after the `last` member every image stops."""

    @abstractmethod
    def log_stop_probability(self, member_logits: MemberLogits, combiner: Combiner) -> Float[Tensor, "M B"]:
        """Return the log of a probability that prefix 1..M answers, (M, B), largest at the prefix that does.

        Attacks follow its gradient, so it must be computed from logits and not as the log of a probability, which is 0
        or 1, without a gradient, where the rule is sure. Like the decision, it is fixed for a prefix m < M by members
        1..m. It may be -inf where a prefix never answers.
        """

    @abstractmethod
    def candidates(self, member_logits: MemberLogits, combiner: Combiner) -> Iterable["StoppingRule"]:
        """Return the rules to compare in calibration, this one first, given held-out logits (M, B, K)."""


@dataclass(frozen=True)
class DynamicOutput:
    """Predictions of an ensemble that stops early."""

    logits: Logits
    """Combined logits of the prefix that answers (B, K)."""
    answered_with: Counts
    """Length of the prefix that answers (B), in 1..M."""
    members_run: Counts
    """Number of members that were run (B), in 1..M: the cost of an image."""


class ShapedModule(nn.Module):
    """A model that knows which images it was made for; any other takes what its layers happen to take."""

    shape: tuple[int, int, int] | None
    """Channels, height and width; none where whoever made it did not say."""


@final
class Ensemble(nn.Module):
    """Members that take the same images, and the combiner that makes them one classifier.

    Args:
        members: networks in running order, at least one.
        combiner: combines the logits of any prefix.
        together: computes the logits of all members at once, from images to (M, B, K), as the members do one by one;
            None: they run one by one.

    Raises:
        InputError: no members, or members made for images of different shapes.
    """

    def __init__(self, members: Iterable[nn.Module], combiner: Combiner, *, together: nn.Module | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise InputError("an ensemble needs at least one member")
        _check_same_images(self.members)
        self.combiner = combiner
        self.together = together

    def member_logits(self, x: Images) -> MemberLogits:
        """Return the logits of every member, (M, B, K), in running order."""
        if self.together is not None:
            logits: MemberLogits = self.together(x)
            return logits
        return stack_logits([member(x) for member in self.members])

    def forward(self, x: Images) -> Logits:
        """Return the combined logits of the whole ensemble."""
        return self.combiner(self.member_logits(x))


def members_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of an ensemble; a single model is its only member."""
    return list(model.members) if isinstance(model, Ensemble) else [model]


def stack_logits(logits: Sequence[Logits]) -> MemberLogits:
    """Stack the logits of members, each (B, K), to (M, B, K)."""
    for i, member in enumerate(logits):
        if member.shape != logits[0].shape:
            raise InputError(
                f"member {i + 1} gives {member.shape[-1]} classes and member 1 {logits[0].shape[-1]}; members of an "
                "ensemble must know the same classes"
            )
    return torch.stack(list(logits))


def _check_same_images(members: Iterable[nn.Module]) -> None:
    known = [(i, m.shape) for i, m in enumerate(members, start=1) if isinstance(m, ShapedModule) and m.shape]
    for i, shape in known:
        first, other = known[0]
        if shape != other:
            made, first_made = ("x".join(map(str, sizes)) for sizes in (shape, other))
            raise InputError(
                f"member {i} was made for images of {made} (channels x height x width) and member {first} for "
                f"{first_made}; members of an ensemble must see the same images"
            )


combiners: Registry[Combiner] = Registry("combiner", Combiner)
stopping_rules: Registry[StoppingRule] = Registry("stopping rule", StoppingRule)
