"""The best of many random images."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from sparsemble.attacks.apgd_core import Outcome
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels

DRAWS_AT_ONCE = 50
POINTS_AT_ONCE = 1000


@final
@attacks.register("noise")
@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Random images of the ball, every other one from its border; keeps the one of largest margin.

    No gradient is asked for: if this breaks an image that gradients do not break, gradients are masked (Athalye et
    al. 2018; Carlini et al. 2019). The noise is the same for all images of a batch, so that no image's result depends
    on the others.
    """

    draws: int = 10_000
    """Random images tried for each image, >= 1; an image that is broken takes no more."""
    label: str = ""
    """Name in results."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"draws = {self.draws} must be 1 or more")
        if not self.label:
            object.__setattr__(self, "label", f"noise{self.draws}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Draw, and keep the best."""
        found = Outcome.nothing_yet(x)
        with torch.no_grad():
            found.broken = model(x).argmax(1) != y
            for done in range(0, self.draws, DRAWS_AT_ONCE):
                delta = threat.eps * unit_noise(x, threat, min(DRAWS_AT_ONCE, self.draws - done), rng)
                rows = (~found.broken).nonzero()[:, 0]
                if not len(rows):
                    break
                for part in rows.split(max(POINTS_AT_ONCE // len(delta), 1)):
                    with for_images(part.repeat_interleave(len(delta))):
                        best = best_of(model, x[part], y[part], threat, delta)
                    found.improve_(part, best)
        return found.images


def unit_noise(x: Images, threat: ThreatModel, draws: int, rng: Generator) -> Float[Tensor, "N C H W"]:
    """Draw noise of norm 1 at most: even rows uniform in the ball, odd ones at corners (linf) or its border (l2)."""
    shape = (draws, *x.shape[1:])
    odd = (torch.arange(draws, device=x.device) % 2 == 1).view(-1, 1, 1, 1)
    if threat.norm == "linf":
        inside = 2 * torch.rand(shape, generator=rng, device=x.device, dtype=x.dtype) - 1
        return torch.where(odd, inside.sign(), inside)
    border = threat.steepest(torch.randn(shape, generator=rng, device=x.device, dtype=x.dtype))
    radius = torch.rand(draws, generator=rng, device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
    return torch.where(odd, border, border * radius.view(-1, 1, 1, 1))


def best_of(
    model: Classifier, x: Images, y: Int[Tensor, "B"], threat: ThreatModel, delta: Float[Tensor, "N C H W"]
) -> Outcome:
    """Try all of the noise on each image."""
    draws = len(delta)
    clean = x.repeat_interleave(draws, dim=0)
    points = threat.project(clean + delta.repeat(len(x), 1, 1, 1), clean)
    logits = model(points)
    margin = Margin()(logits, logits, y.repeat_interleave(draws)).view(len(x), draws)
    broken = (logits.argmax(1) != y.repeat_interleave(draws)).view(len(x), draws)
    chosen = margin.argmax(1)
    at = torch.arange(len(x), device=x.device)
    return Outcome(
        points.view(len(x), draws, *x.shape[1:])[at, chosen], broken[at, chosen], margin[at, chosen], margin[at, chosen]
    )
