"""An ensemble of networks with everything that is needed to predict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from sparsemble.runtime.errors import RuntimeInputError, affects_terminal
from sparsemble.runtime.images import Preprocessing
from sparsemble.runtime.network import Network

Settings = Mapping[str, Any]
"""A component as in a recipe: its `name` and its settings, as JSON values."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PackedEnsemble:
    """Members in running order, their combiner and stopping rule, classes and provenance.

    Raises:
        RuntimeInputError: no member, members with different images or classes, preprocessing that gives other images,
            or class names with control characters.
    """

    members: tuple[Network, ...]
    combiner: Settings
    """How the members' logits are combined, as {"name": "mean_probability"}."""
    rule: Settings
    """The stopping rule, as {"name": "never"}."""
    classes: tuple[str, ...]
    parent_weights: int
    """Prunable weights of the dense parent, the reference of the sparsity."""
    recipe: Settings = field(default_factory=dict)
    """Recipe of the training run."""
    provenance: Settings = field(default_factory=dict)
    """Origin of the ensemble: hashes, versions, results."""
    preprocessing: Preprocessing | None = None
    """How its training images were made of files; none: they were arrays."""

    def __post_init__(self) -> None:
        if not self.members:
            raise RuntimeInputError("an ensemble needs at least one member")
        for number, member in enumerate(self.members, start=1):
            if member.image != self.image or member.classes != len(self.classes):
                raise RuntimeInputError(
                    f"member {number} takes images of {member.image} and has {member.classes} classes; the ensemble "
                    f"has {self.image} and {len(self.classes)}"
                )
        if self.preprocessing and self.preprocessing.shape != self.image:
            raise RuntimeInputError(
                f"files become images of {self.preprocessing.shape}; the ensemble takes {self.image}"
            )
        for name in self.classes:
            if any(affects_terminal(character) for character in name):
                raise RuntimeInputError(
                    f"the class {name!a:.80} has a control character in its name; printable ones are taken"
                )
        if self.parent_weights < 1:
            raise RuntimeInputError(f"parent_weights = {self.parent_weights} must be 1 or more")

    @property
    def arithmetic(self) -> Literal["float32", "int8"]:
        """int8 where a member stores results in 8 bits."""
        return "int8" if any(member.steps for member in self.members) else "float32"

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.members[0].image

    @property
    def nonzeros(self) -> int:
        """Prunable weights that are not 0, of all members."""
        return sum(weight.nonzeros for member in self.members for weight in member.weights())

    @property
    def sparsity(self) -> float:
        """1 - non-zero weights of all members / prunable weights of the dense parent."""
        return 1 - self.nonzeros / self.parent_weights
