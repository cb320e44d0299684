"""Transfer attack: images crafted on another model."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Generator

from sparsemble.attacks.attack import Access, Attack
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Runs an attack on `source` in place of the model it is called with.

    Not registered, as a recipe cannot name a model: the evaluation makes it. Let `attack` continue after its first
    success (`stop_at_success = false`): a point just across the decision boundary of one model rarely crosses that of
    another.
    """

    name: ClassVar[str] = "transfer"
    access: ClassVar[Access] = "labels"

    attack: Attack
    """Crafts the images."""
    source: Classifier
    """The model on which they are crafted."""

    def __post_init__(self) -> None:
        self._set_label(f"transfer_{self.attack.label}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Craft on the source; `model` is not used."""
        self.attack.check_norm(threat.norm)
        return self.attack.perturb(self.source, x, y, threat, rng=rng)
