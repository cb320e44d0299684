"""AutoAttack (Croce & Hein 2020): a schedule of several attacks, each on the images that are still correct."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Generator

from sparsemble.attacks.apgd import APGD
from sparsemble.attacks.apgd_core import plain_logits
from sparsemble.attacks.apgd_focused import APGDFocused
from sparsemble.attacks.apgd_targeted import APGDTargeted
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.eot import EOT
from sparsemble.attacks.fab import FAB
from sparsemble.attacks.fab_targeted import FABTargeted
from sparsemble.attacks.losses.dlr import DLR
from sparsemble.attacks.losses.margin import Margin, margin_of
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels

STILL_CORRECT, WRONG_WHEN_CLEAN = -1, -2
RANDOM_PASSES = 20
"""Passes that `rand` averages."""

SHORT_SQUARE = Square(queries=200)
"""Last of the fast parts: where it raises the margin above that of the gradient attacks, these cannot be trusted."""
LONG_SQUARE = Square(queries=1000)
"""For the images on which it did; for all where they are many, and where it breaks one, the published one follows."""
MASKED = 0.25
"""Fraction of the remaining images from which on gradients may be masked for all of them."""
FAST_SCHEDULE = (APGD(steps=30), APGD(steps=20, loss=Margin()), APGDFocused(), SHORT_SQUARE, LONG_SQUARE)


@final
@attacks.register("autoattack")
@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """Several attacks in a row; an image is passed to the next one only while it is classified correctly.

    The schedule (`schedule` returns it):

    | variant, mode | attacks, in order |
    |---|---|
    | standard, exact | APGD (cross-entropy), targeted APGD, targeted FAB, Square |
    | the same in l1 | APGD (cross-entropy) x5, targeted APGD (5 targets), targeted FAB, Square |
    | plus | APGD (cross-entropy) x5, APGD (DLR) x5, FAB x5, Square, targeted APGD, targeted FAB |
    | rand | APGD (cross-entropy) and APGD (DLR), both averaged over 20 passes |
    | standard, fast | APGD (30 steps), APGD (margin, 20 steps), `apgd_focused`, Square (200, 1000, 5000 queries) |

    Source: Croce & Hein 2020, section 5, in l1 Croce & Hein 2021, section 5, and the authors' code for the settings.
    With K classes there are min(9, K - 1) targets; the DLR needs three classes and the targeted DLR four, below which
    the plain difference of logits is used. `fast` is ours. Its Square parts depend on what was seen: where the first
    raises the margin of an image above that of all gradient attacks, the image gets the second; where it does so on
    more than a quarter of the remaining images, gradients may be masked, and all remaining images get the second; if
    that breaks one of them, all get the third, published one.
    """

    version: ClassVar[int] = 3

    variant: Literal["standard", "plus", "rand"] = "standard"
    """standard: the usual one; plus: more parts and restarts; rand: for models with randomness."""
    mode: Literal["exact", "fast"] = "exact"
    """exact: the published parts; fast: a shorter schedule of our own, for `standard` only."""

    def __post_init__(self) -> None:
        if self.mode == "fast" and self.variant != "standard":
            raise InputError(f'mode = "fast" goes with variant = "standard", not with "{self.variant}"')
        parts = ["autoattack", *[self.variant] * (self.variant != "standard"), *["fast"] * (self.mode == "fast")]
        self._set_label("-".join(parts))

    def schedule(self, classes: int, norm: Norm) -> tuple[Attack, ...]:
        """Return the attacks, in the order in which they run, for a number of classes and a norm."""
        ratio = DLR() if classes >= 3 else Margin()
        square = Square(rescale=False)
        if self.variant == "rand":
            return EOT(passes=RANDOM_PASSES, attack=APGD()), EOT(passes=RANDOM_PASSES, attack=APGD(loss=ratio))
        if self.variant == "plus":
            untargeted = APGD(restarts=5), APGD(restarts=5, loss=ratio), FAB(restarts=5)
            return *untargeted, square, APGDTargeted(), FABTargeted()
        if self.mode == "fast":
            return *FAST_SCHEDULE, square
        gradient = (APGD(restarts=5), APGDTargeted(targets=5)) if norm == "l1" else (APGD(), APGDTargeted())
        return *gradient, FABTargeted(), square

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Run the schedule."""
        return self.cascade(model, x, y, threat, rng=rng)[0]

    def cascade(
        self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> tuple[Images, Counts]:
        """Run the schedule, and say which part succeeded on each image.

        Args:
            model: maps images to logits (or log-probabilities); differentiable.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball.
            rng: source of random draws, on the device of `x`.

        Returns:
            (B, C, H, W) adversarial images, and (B) the index in `schedule(K, norm)` of the part that succeeded: -1
            where none did, -2 where the image is misclassified when clean.
        """
        judge = model
        if self.variant == "rand":
            judge = EOT(passes=RANDOM_PASSES).expected(model, rng)
        logits = plain_logits(judge, x)
        best = BestPoints.of_clean(x, logits.argmax(1) != y)
        part_index = torch.where(best.success, WRONG_WHEN_CLEAN, STILL_CORRECT)
        scheduled = torch.ones_like(best.success)
        masked = False
        for index, part in enumerate(self.schedule(logits.shape[1], threat.norm)):
            rows = (scheduled & ~best.success).nonzero()[:, 0]
            if not len(rows):
                break
            with for_images(rows):
                x_adv = part(model, x[rows], y[rows], threat, rng=rng)
                logits = plain_logits(judge, x_adv)
            margin = margin_of(logits, y[rows])
            if part is SHORT_SQUARE:
                further = margin > best.score[rows]
                masked = float(further.float().mean()) > MASKED
                scheduled = scheduled if masked else torch.zeros_like(scheduled).index_put((rows,), further)
            elif part is LONG_SQUARE and not (masked and bool((margin > 0).any())):
                scheduled = torch.zeros_like(scheduled)
            best.improve_(rows, x_adv, logits.argmax(1) != y[rows], margin)
            part_index[rows[best.success[rows]]] = index
        return best.images, part_index


attacks.alias("autoattack-fast", "autoattack", mode="fast")
