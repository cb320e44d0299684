"""The interfaces that several rooms speak of: ensembles, combiners, stopping rules."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import Plug, Registry
from sparsemble.core.types import Counts, Flags, Images, Logits, MemberLogits


class Combiner(Plug):
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


class StoppingRule(Plug):
    """Says, image by image, when to stop running members and which prefix answers.

    The rule sees members 1..m only and treats each image alone: the same answer in a batch of 1 and of 256.
    """

    @abstractmethod
    def __call__(self, member_logits: MemberLogits, *, last: bool) -> Decision:
        """Decide after m members from their logits (m, B, K); `last` says that there is no further member."""

    @abstractmethod
    def mass(self, member_logits: MemberLogits) -> Float[Tensor, "M B"]:
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


@final
class Ensemble(nn.Module):
    """Members that see the same images, and the combiner that makes them one classifier."""

    def __init__(self, members: Iterable[nn.Module], combine: Combiner) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise InputError("an ensemble needs at least one member")
        self.combine = combine

    def member_logits(self, x: Images) -> MemberLogits:
        """Return the logits of every member, (M, B, K), in running order."""
        found = [member(x) for member in self.members]
        for i, logits in enumerate(found):
            if logits.shape != found[0].shape:
                raise InputError(
                    f"member {i + 1} gives {logits.shape[-1]} classes and member 1 {found[0].shape[-1]}; members of a "
                    "team must know the same classes"
                )
        return torch.stack(found)

    def forward(self, x: Images) -> Logits:
        """Return the combined logits of the whole team."""
        return self.combine(self.member_logits(x))


combiners: Registry[Combiner] = Registry("combiner", Combiner)
stopping_rules: Registry[StoppingRule] = Registry("stopping rule", StoppingRule)
