"""Auto-PGD towards one class after another (Croce & Hein 2020)."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator

from sparsemble.attacks.apgd_core import Ascent, Outcome, mean_logits, start_at_edge
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Counts, Images, Labels, Logits, PerImage

SMALLEST = 1e-12


@final
@attacks.register("apgd_targeted")
@dataclass(frozen=True, kw_only=True)
class APGDTargeted(Attack):
    """APGD on the targeted ratio of logit differences, for each of the likeliest wrong classes in turn.

    Source: Croce & Hein 2020, eq. 7 and appendix; settings as in the authors' AutoAttack. With K classes it goes
    through min(targets, K - 1) of them; for K < 4, where the ratio is not defined, it climbs the difference between
    the target's logit and the true one. Departs: as `apgd`; the classes are ranked once, on the clean image.
    """

    steps: int = 100
    """Gradient steps for each target, >= 1."""
    targets: int = 9
    """Wrong classes to aim at, the likeliest on the clean image first, >= 1."""
    restarts: int = 1
    """Independent starts for each target, >= 1."""
    eot: int = 1
    """Passes averaged at each point, for models that answer at random; 1 for all others."""
    rho: float = 0.75
    """Share of the steps between two checkpoints that must raise the loss, else the step is halved."""
    stop_at_success: bool = True
    """Return the first misclassified point; off: go on to the largest margin."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        Ascent(steps=self.steps, eot=self.eot, rho=self.rho)
        if self.restarts < 1 or self.targets < 1:
            raise InputError(f"restarts = {self.restarts} and targets = {self.targets} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"apgd{self.steps}t{self.targets}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Walk towards each target."""
        ascent = Ascent(steps=self.steps, eot=self.eot, rho=self.rho, stop_at_success=self.stop_at_success)
        clean_logits = mean_logits(model, x, self.eot)
        found = Outcome.nothing_yet(x)
        found.broken = clean_logits.argmax(1) != y
        for target in likeliest_wrong(clean_logits, y, self.targets).unbind(1):
            for _ in range(self.restarts):
                start = start_at_edge(x, threat, rng)
                rows = (~found.broken if self.stop_at_success else torch.ones_like(found.broken)).nonzero()[:, 0]
                if not len(rows):
                    return found.images
                with for_images(rows):
                    walked = ascent(model, x[rows], y[rows], threat, start[rows], Towards(target[rows], y[rows]))
                # Ratios towards different targets cannot be compared; margins can.
                found.improve_(rows, replace(walked, score=walked.margin))
        return found.images


def likeliest_wrong(logits: Logits, y: Labels, most: int) -> torch.Tensor:
    """Return up to `most` wrong classes of each image, (B, targets), likeliest first."""
    wrong = logits.scatter(1, y[:, None], -float("inf"))
    return wrong.topk(min(most, logits.shape[1] - 1), dim=1).indices


def targeted_dlr(logits: Logits, y: Labels, target: Labels) -> PerImage:
    """Return eq. 7: positive exactly where the target beats the true class; their plain difference if K < 4."""
    ahead = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    if logits.shape[1] < 4:
        return ahead
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return ahead / (first - (third + fourth) / 2 + SMALLEST)


@final
@dataclass(frozen=True)
class Towards:
    """`targeted_dlr` of some images of a batch."""

    target: Labels
    y: Labels

    def __call__(self, logits: Logits, rows: Counts) -> PerImage:
        """Return the ratio of each image."""
        return targeted_dlr(logits, self.y[rows], self.target[rows])
