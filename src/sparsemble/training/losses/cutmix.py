"""CutMix (Yun et al. 2019) in adversarial training (Rebuffi et al. 2021)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.distributed_rng import uniform_like
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits
from sparsemble.training.loss import AdversarialLoss, LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.n_fgsm import NFGSM


@final
@training_losses.register("cutmix")
@dataclass(frozen=True, kw_only=True)
class CutMix(TrainingLoss):
    """Another loss on images with a box from another image of the batch, whose label counts by the area of the box.

    (1 - area) inner(x_mixed, y) + area inner(x_mixed, y of the other image): both at the same adversarial images, from
    one forward pass. Meant for averaged weights (`schedule.ema`), as in Rebuffi et al. 2021.

    It takes the losses of one network that craft images: pgd_at, n_fgsm, fgsm_rs, trades, mart and distillation.
    `standard` crafts none; `awp` takes this loss inside, not the other way round.

    Source: Yun et al. 2019, equations 1 and 2 with alpha = 1: the area is uniform in [0, 1], one for the batch.
    Departs: each image has a box of its own, which is never cut off at the border; images are crafted for the label of
    the larger part, which makes no difference to TRADES.
    """

    inner: TrainingLoss = NFGSM()
    """The loss of the mixed images."""

    def __post_init__(self) -> None:
        if not isinstance(self.inner, AdversarialLoss) or self.inner.needs_ensemble:
            name = getattr(self.inner, "name", type(self.inner).__name__)
            raise InputError(
                f"cutmix cannot mix the labels of {name}; inner must be one of pgd_at, n_fgsm, fgsm_rs, trades, mart "
                "and distillation"
            )

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Mix images, craft adversarial ones and return the loss."""
        return self.prepare(model, x, y, threat, rng=rng)()

    def prepare(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Callable[[], LossOutput]:
        """Mix images, craft adversarial ones and return a function that computes the loss at the current weights."""
        self.check_complete()
        inner = self.inner
        assert isinstance(inner, AdversarialLoss), "checked when it was made"
        mixed, partner, area = mix(x, rng)
        x_adv = inner.adversarial_images(model, mixed, y if area <= 0.5 else y[partner], threat, rng=rng)

        def loss() -> LossOutput:
            network = _Remembering(model)
            first, second = (inner.loss(network, mixed, x_adv, labels) for labels in (y, y[partner]))
            terms = {name: torch.lerp(term, second.terms[name], area) for name, term in first.terms.items()}
            return LossOutput(torch.lerp(first.loss, second.loss, area), terms, x_adv)

        return loss


def mix(x: Images, rng: Generator) -> tuple[Images, Tensor, float]:
    """Return images with a box from another image, the index of that image (B), and the box's share of the area."""
    height, width = x.shape[2:]
    side = float(torch.rand((), generator=rng, device=x.device).sqrt())
    down, across = round(side * height), round(side * width)
    draws = uniform_like(x.new_empty(len(x), 3), rng)
    partner = draws[:, 0].argsort()
    inside = []
    for draw, length, whole in ((draws[:, 1], down, height), (draws[:, 2], across, width)):
        start = (draw * (whole - length + 1)).floor()[:, None]
        position = torch.arange(whole, device=x.device)
        inside.append((position >= start) & (position < start + length))
    rows, columns = inside
    box = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(box, x[partner], x), partner, down * across / (height * width)


class _Remembering(nn.Module):
    """A network that returns the logits of images that it has seen before, so that two losses share a pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[Images, Logits]] = []

    def forward(self, x: Images) -> Logits:
        for images, logits in self.seen:
            if images is x:
                return logits
        computed: Logits = self.network(x)
        self.seen.append((x, computed))
        return computed
