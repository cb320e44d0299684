"""Images crafted on another model."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Generator

from sparsemble.attacks.attack import Attack
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """An attack that sees `source` in place of the model it is called with.

    Not registered, as a recipe cannot name a model: the pipeline makes it. Let `attack` climb on after its first
    success (`stop_at_success = false`): a point just across the border of one model rarely crosses another's.
    """

    name: ClassVar[str] = "transfer"

    attack: Attack
    """Crafts the images."""
    source: Classifier
    """What they are crafted on."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", f"transfer_{self.attack.label}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Craft on the source; `model` is never asked."""
        return self.attack.perturb(self.source, x, y, threat, rng=rng)
