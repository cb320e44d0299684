"""An ensemble of networks with all that is needed to answer as it was trained to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.network import Network
from sparsemble.runtime.terminal_escape import steers

Settings = Mapping[str, Any]
"""A component as in a recipe: its `name` and its settings, in words JSON has."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PackedEnsemble:
    """Members in running order, how their logits become one answer, and when to stop.

    Raises:
        RuntimeInputError: no member, members that see other images or know other classes, or classes whose names cannot be shown.
    """

    members: tuple[Network, ...]
    combiner: Settings
    """How logits are put together, as {"name": "mean_probability"}."""
    rule: Settings
    """When to stop, as {"name": "never"}."""
    classes: tuple[str, ...]
    parent_weights: int
    """Prunable weights of the dense parent that sparsity is counted against."""
    recipe: Settings = field(default_factory=dict)
    """What it was trained with."""
    provenance: Settings = field(default_factory=dict)
    """Where it comes from: hashes, versions, results."""

    def __post_init__(self) -> None:
        if not self.members:
            raise RuntimeInputError("an ensemble needs at least one member")
        for place, member in enumerate(self.members, start=1):
            if member.image != self.image or member.classes != len(self.classes):
                raise RuntimeInputError(
                    f"member {place} sees images of {member.image} and knows {member.classes} classes; the ensemble has "
                    f"{self.image} and {len(self.classes)}"
                )
        for name in self.classes:
            if any(steers(one) for one in name):
                raise RuntimeInputError(
                    f"the class {name!a:.80} has a control character in its name; printable ones are taken"
                )
        if self.parent_weights < 1:
            raise RuntimeInputError(f"parent_weights = {self.parent_weights} must be 1 or more")

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.members[0].image

    @property
    def nonzeros(self) -> int:
        """Prunable weights that are not 0, of all members."""
        return sum(weight.nonzeros for member in self.members for weight in member.weights())

    @property
    def sparsity(self) -> float:
        """Fraction of the dense parent's prunable weights that the whole ensemble does without."""
        return 1 - self.nonzeros / self.parent_weights
