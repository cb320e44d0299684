"""The interfaces that several rooms speak of: ensembles, combiners, stopping rules."""

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
    """Turns the logits of the members that ran into one logit vector; works for every prefix."""

    @abstractmethod
    def __call__(self, member_logits: MemberLogits) -> Logits:
        """Combine (m, B, K), 1 <= m <= M, into (B, K)."""


@dataclass(frozen=True)
class Decision:
    """What a stopping rule says after m members."""

    stop: Flags
    """Whether this image needs no further member."""
    answer_with: Counts
    """Length of the prefix that answers, in 1..m; meaningful where `stop` is true."""


class StoppingRule(Component):
    """Says, image by image, when to stop running members and which prefix answers.

    The rule sees members 1..m only and treats each image alone: the same answer in a batch of 1 and of 256.
    """

    @abstractmethod
    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members from their logits (m, B, K); `last` says that there is no further member."""

    @abstractmethod
    def stop_probability(self, member_logits: MemberLogits) -> Float[Tensor, "M B"]:
        """Return a differentiable probability that prefix 1..M answers, summing to 1 over M; for attackers."""

    @abstractmethod
    def candidates(self, member_logits: MemberLogits) -> Iterable["StoppingRule"]:
        """Return the settings worth trying, this one included, given held-out logits; for calibration."""


@dataclass(frozen=True)
class DynamicOutput:
    """Answers of an ensemble that stops early."""

    logits: Logits
    """Combined logits of the prefix that answers."""
    answered_with: Counts
    """Length of the prefix that answers, in 1..M."""
    members_run: Counts
    """How many members were run, in 1..M; what an image costs."""


class ShapedModule(nn.Module):
    """A model that knows which images it was made for; any other takes what its layers happen to take."""

    shape: tuple[int, int, int] | None
    """Channels, height and width; none where whoever made it did not say."""


@final
class Ensemble(nn.Module):
    """Members that see the same images, and the combiner that makes them one classifier."""

    def __init__(self, members: Iterable[nn.Module], combiner: Combiner) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise InputError("an ensemble needs at least one member")
        _check_same_images(self.members)
        self.combiner = combiner

    def member_logits(self, x: Images) -> MemberLogits:
        """Return the logits of every member, (M, B, K), in running order."""
        return stack_logits([member(x) for member in self.members])

    def forward(self, x: Images) -> Logits:
        """Return the combined logits of the whole ensemble."""
        return self.combiner(self.member_logits(x))


def stack_logits(found: Sequence[Logits]) -> MemberLogits:
    """Put the logits of members, each (B, K), together.

    Raises:
        InputError: they do not know the same classes.
    """
    for i, logits in enumerate(found):
        if logits.shape != found[0].shape:
            raise InputError(
                f"member {i + 1} gives {logits.shape[-1]} classes and member 1 {found[0].shape[-1]}; members of an "
                "ensemble must know the same classes"
            )
    return torch.stack(list(found))


def _check_same_images(members: Iterable[nn.Module]) -> None:
    known = [(i, one.shape) for i, one in enumerate(members, start=1) if isinstance(one, ShapedModule) and one.shape]
    for i, shape in known:
        first, other = known[0]
        if shape != other:
            made, makes = ("x".join(map(str, one)) for one in (shape, other))
            raise InputError(
                f"member {i} was made for images of {made} (channels x height x width) and member {first} for {makes}; "
                "members of an ensemble must see the same images"
            )


combiners: Registry[Combiner] = Registry("combiner", Combiner)
stopping_rules: Registry[StoppingRule] = Registry("stopping rule", StoppingRule)
