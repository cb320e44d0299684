"""AutoAttack (Croce & Hein 2020): several attacks, each on what the ones before left standing."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Generator

from sparsemble.attacks.apgd import APGD
from sparsemble.attacks.apgd_core import Outcome, mean_logits
from sparsemble.attacks.apgd_focused import APGDFocused
from sparsemble.attacks.apgd_targeted import APGDTargeted
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.fab import FAB
from sparsemble.attacks.fab_targeted import FABTargeted
from sparsemble.attacks.losses.dlr import DLR
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.square import Square
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels

UNBROKEN, WRONG_WHEN_CLEAN = -1, -2

BLIND = Square(queries=200)
"""Last of the fast parts: where it gets further than those led by gradients, these are not to be trusted."""
LONGER = Square(queries=1000)
"""For the images on which it did, where they are few."""
MASKED = 0.25
"""Share of the images still standing from which on gradients are not to be trusted anywhere."""
FAST = (APGD(steps=30), APGD(steps=20, loss=Margin()), APGDFocused(), BLIND)


@final
@attacks.register("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """Four attacks in a row; an image goes to the next one only if it still stands.

    Source: Croce & Hein 2020, section 5, and the authors' code for the settings. Few classes: there are
    min(9, K - 1) targets; the ratio of logit differences needs three classes, aimed at a target four, and gives way
    to the plain difference below that. `fast` is ours: two short APGDs, then walk after walk towards targets that a
    glance shows to be near and a blind search from where they end, then a short one from the usual start. An image on
    which the latter gets further than all before goes through a longer one; where there are many such images,
    gradients are masked, and all that stand go through the published blind search.
    """

    version: ClassVar[int] = 2

    variant: Literal["standard", "plus", "rand"] = "standard"
    """standard: the usual one; plus: more parts and restarts; rand: for models that answer at random."""
    mode: Literal["exact", "fast"] = "exact"
    """exact: the published parts; fast: a shorter schedule of our own, for `standard` only."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.mode == "fast" and self.variant != "standard":
            raise InputError(f'mode = "fast" goes with variant = "standard", not with "{self.variant}"')
        if not self.label:
            words = ["autoattack", *[self.variant] * (self.variant != "standard"), *["fast"] * (self.mode == "fast")]
            object.__setattr__(self, "label", "-".join(words))

    @property
    def eot(self) -> int:
        """Passes averaged wherever the model is asked."""
        return 20 if self.variant == "rand" else 1

    def parts(self, classes: int) -> tuple[Attack, ...]:
        """Return the attacks, in the order in which they run."""
        ratio = DLR() if classes >= 3 else Margin()
        square = Square(rescale=False)
        if self.variant == "rand":
            return APGD(eot=self.eot), APGD(eot=self.eot, loss=ratio)
        if self.variant == "plus":
            untargeted = APGD(restarts=5), APGD(restarts=5, loss=ratio), FAB(restarts=5)
            return *untargeted, square, APGDTargeted(), FABTargeted()
        published = APGD(), APGDTargeted(), FABTargeted(), square
        return (*FAST, LONGER, square) if self.mode == "fast" else published

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Run the cascade."""
        return self.cascade(model, x, y, threat, rng=rng)[0]

    def cascade(
        self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> tuple[Images, Counts]:
        """Return adversarial images, and for each the place of the part that broke it in `parts(classes)`.

        Where none did: -1, and -2 where the image is misclassified as it is.
        """
        logits = mean_logits(model, x, self.eot)
        found = Outcome.nothing_yet(x)
        found.broken = logits.argmax(1) != y
        broken_by = torch.where(found.broken, WRONG_WHEN_CLEAN, UNBROKEN)
        due = torch.ones_like(found.broken)
        masked = False
        for place, part in enumerate(self.parts(logits.shape[1])):
            rows = (due & ~found.broken).nonzero()[:, 0]
            if not len(rows):
                break
            if part is LONGER and masked:
                continue
            with for_images(rows):
                now = self._judge(model, part(model, x[rows], y[rows], threat, rng=rng), y[rows])
            if part is BLIND:
                further = now.margin > found.margin[rows]
                masked = float(further.float().mean()) > MASKED
                due = due if masked else torch.zeros_like(due).index_put((rows,), further)
            elif part is LONGER:
                due = torch.zeros_like(due)
            found.improve_(rows, now)
            broken_by[rows[found.broken[rows]]] = place
        return found.images, broken_by

    def _judge(self, model: Classifier, x_adv: Images, y: Labels) -> Outcome:
        """Ask the model about points that a part returned."""
        logits = mean_logits(model, x_adv, self.eot)
        margin = Margin()(logits, logits, y)
        return Outcome(x_adv, logits.argmax(1) != y, margin, margin)


attacks.alias("autoattack-fast", "autoattack", mode="fast")
