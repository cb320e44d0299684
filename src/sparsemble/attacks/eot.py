"""Expectation over transformations (Athalye et al. 2018): any attack on a mean over random passes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.pgd import PGD
from sparsemble.core.argument_checks import check_at_least, check_interval
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, Logits

HELD = 512
"""Images whose activations are kept for the backward pass; those of more are computed again, which saves memory."""


@final
@attacks.register("eot")
@dataclass(frozen=True, kw_only=True)
class EOT(Attack):
    """Any attack on the mean logits of several passes: for models with randomness, or for robust adversarial images.

    Without transformations, the passes average over the randomness of the model. With them, every pass sees the images
    with other noise, shift and size, the same for all images of a batch, and what is found stays adversarial under
    them. To no loss it matters whether logits or log-probabilities are averaged.

    Source: Athalye et al. 2018 (Synthesizing robust adversarial examples), section 2. Departs: the attack follows the
    loss of the mean, not the mean of losses, so that it applies to attacks that have no loss, too. Where more than 512
    images of a batch go through the model, activations are computed twice.
    """

    attack: Attack = PGD()
    """Run on the mean."""
    passes: int = 10
    """Passes that are averaged wherever the model is evaluated, >= 1."""
    noise: float = 0.0
    """Standard deviation of normal noise, >= 0, where images span [0, 1]."""
    shift: float = 0.0
    """Largest shift along each side, in pixels, >= 0."""
    resize: float = 0.0
    """Images are resized by a factor of up to 1 plus or minus this, in [0, 1); the border is repeated or cut."""

    def __post_init__(self) -> None:
        check_at_least(1, passes=self.passes)
        check_at_least(0, noise=self.noise, shift=self.shift)
        check_interval("[0, 1)", resize=self.resize)
        self._set_label(f"eot{self.passes}-{self.attack.label}")
        object.__setattr__(self, "norms", self.attack.norms)
        object.__setattr__(self, "instead", self.attack.instead)

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Attack the mean."""
        return self.attack.perturb(self.expected(model, rng), x, y, threat, rng=rng)

    def expected(self, model: Classifier, rng: Generator) -> Classifier:
        """Return the classifier whose logits are the mean over passes; each call draws other transformations."""

        def classify(x: Images) -> Logits:
            total: Any = 0
            for _ in range(self.passes):
                transform = self._draw(x, rng)

                def run(images: Images, transform: Callable[[Images], Images] = transform) -> Logits:
                    return model(transform(images))

                again = self.passes * len(x) > HELD and x.requires_grad and torch.is_grad_enabled()
                total = total + (checkpoint(run, x, use_reentrant=False) if again else run(x))
            mean: Tensor = total / self.passes
            return mean

        return classify

    def _draw(self, x: Images, rng: Generator) -> Callable[[Images], Images]:
        """Draw a transformation of images of this shape."""

        def uniform() -> float:
            return 2 * float(torch.rand((), generator=rng, device=x.device)) - 1

        scale = 1 + self.resize * uniform() if self.resize else 1.0
        down, across = (self.shift * uniform() for _ in range(2)) if self.shift else (0.0, 0.0)
        noise: Any = 0
        if self.noise:
            noise = self.noise * torch.randn(x.shape[1:], generator=rng, device=x.device, dtype=x.dtype)

        def transform(images: Images) -> Images:
            if self.resize or self.shift:
                images = _moved(images, scale, down, across)
            return (images + noise).clamp(0, 1) if self.noise else images

        return transform


def _moved(x: Images, scale: float, down: float, across: float) -> Images:
    """Return images that are resized about their middle and moved by so many pixels, between pixels linearly."""
    height, width = x.shape[2:]
    matrix = [[1 / scale, 0.0, -2 * across / width / scale], [0.0, 1 / scale, -2 * down / height / scale]]
    grid = F.affine_grid(x.new_tensor(matrix).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)
