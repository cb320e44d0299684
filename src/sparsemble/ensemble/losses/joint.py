"""Adversarial training of the ensemble as one model, through its combiner."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits, MemberLogits
from sparsemble.ensemble.checked import as_ensemble, check_not_negative
from sparsemble.training.loss import AdversarialLoss, LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.trades import TRADES


@final
@training_losses.register("joint")
@dataclass(frozen=True, kw_only=True)
class Joint(AdversarialLoss):
    """Adversarial training of the ensemble as one model: images crafted on it, and the loss of what it answers there.

    L(h) + alone mean_i L(h_i) + prefixes mean_{m < M} L(h^m), where L is the loss of `base` on these images, h is the
    ensemble, h_i a member and h^m the first m of them.

    Source: "Strength in Numbers" (DeepMind, 2018) found that this, and not averaging, is what makes ensembles robust; the
    other two terms are ours.
    """

    needs_ensemble: ClassVar[bool] = True

    base: TrainingLoss = TRADES()
    """What is done to the ensemble as if it were one network; an objective that crafts first."""
    alone: float = 0.0
    """Weight of the members' own losses, >= 0; above 0 each of them stays a classifier by itself."""
    prefixes: float = 0.0
    """Weight of the losses of shorter prefixes, >= 0; above 0 an ensemble that stops early still answers well."""
    attack_prefixes: bool = False
    """Craft each batch on a prefix drawn for it, as who attacks an ensemble that stops early does."""

    def __post_init__(self) -> None:
        check_not_negative(alone=self.alone, prefixes=self.prefixes)
        if self.base.needs_ensemble:
            raise InputError(
                f'base = "{self.base.name}" is the loss of an ensemble, and must be one of a single network'
            )
        if not isinstance(self.base, AdversarialLoss):
            raise InputError(f'base = "{self.base.name}" must be one that crafts its images first, such as trades')

    def images(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Craft on the ensemble, or on a prefix of it."""
        model = as_ensemble(model, self)
        assert isinstance(self.base, AdversarialLoss)
        if not self.attack_prefixes:
            return self.base.images(model, x, y, threat, rng=rng)
        length = int(torch.randint(1, len(model.members) + 1, (), generator=rng, device=x.device))
        return self.base.images(Ensemble(model.members[:length], model.combiner), x, y, threat, rng=rng)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the loss of a batch whose adversarial images are there; every member sees each image once."""
        model = as_ensemble(model, self)
        assert isinstance(self.base, AdversarialLoss)
        seen, total = _Memory(model), len(model.members)
        found = self.base.loss(_View(seen, slice(0, total)), x, x_adv, y)
        terms, loss = dict(found.terms), found.loss
        views = {
            "alone": (self.alone, [slice(i, i + 1) for i in range(total)]),
            "prefixes": (self.prefixes, [slice(0, m) for m in range(1, total)]),
        }
        for name, (weight, parts) in views.items():
            if weight and parts:
                losses = [self.base.loss(_View(seen, part), x, x_adv, y).loss for part in parts]
                mean = torch.stack(losses).mean()
                loss, terms[name] = loss + weight * mean, mean.detach()
        return LossOutput(loss, terms, None if self.attack_prefixes else x_adv)


class _Memory:
    """What the members say to the images of one loss; each batch goes through them once, however often it is asked."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.said: list[tuple[Tensor, MemberLogits]] = []

    def __call__(self, x: Images) -> MemberLogits:
        for images, member_logits in self.said:
            if images is x:
                return member_logits
        self.said.append((x, self.ensemble.member_logits(x)))
        return self.said[-1][1]

    @property
    def combiner(self) -> Combiner:
        return self.ensemble.combiner


class _View(nn.Module):
    """Some members of an ensemble as one network."""

    def __init__(self, seen: _Memory, part: slice) -> None:
        super().__init__()
        self.seen, self.part = seen, part

    def forward(self, x: Images) -> Logits:
        """Combine what these members say."""
        return self.seen.combiner(self.seen(x)[self.part])
