"""Adversarial training of the ensemble as one model, through its combiner."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, Logits, MemberLogits
from sparsemble.ensemble.member_losses import as_ensemble
from sparsemble.training.loss import AdversarialLoss, LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.trades import TRADES


@final
@training_losses.register("joint")
@dataclass(frozen=True, kw_only=True)
class Joint(AdversarialLoss):
    """Adversarial training of the ensemble as one model: images are crafted on it, and its combined logits are trained.

    L(h) + alone mean_i L(h_i) + prefixes mean_{m < M} L(h^m), where L is the loss of `base` on these images, h is the
    ensemble, h_i a member and h^m the first m of them.

    Source: "Strength in Numbers" (DeepMind, 2018), which found that this, and not averaging, makes ensembles robust;
    the other two terms are ours.
    """

    needs_ensemble: ClassVar[bool] = True

    base: TrainingLoss = TRADES()
    """The loss of the ensemble as one network; one that crafts its images first (`AdversarialLoss`)."""
    alone: float = 0.0
    """Weight of the members' own losses, >= 0; above 0 each member remains a classifier on its own."""
    prefixes: float = 0.0
    """Weight of the losses of shorter prefixes, >= 0; above 0 an ensemble that stops early stays accurate."""
    attack_prefixes: bool = False
    """Craft each batch on a randomly drawn prefix, as an attack on an ensemble that stops early does."""

    def __post_init__(self) -> None:
        check_at_least(0, alone=self.alone, prefixes=self.prefixes)
        if self.base.needs_ensemble:
            raise InputError(
                f'base = "{self.base.name}" is the loss of an ensemble, and must be one of a single network'
            )
        if not isinstance(self.base, AdversarialLoss):
            raise InputError(f'base = "{self.base.name}" must be one that crafts its images first, such as trades')

    def adversarial_images(
        self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator
    ) -> Images:
        """Craft on the ensemble, or on a random prefix of it; arguments as in `AdversarialLoss`."""
        model = as_ensemble(model, self)
        assert isinstance(self.base, AdversarialLoss)
        if not self.attack_prefixes:
            return self.base.adversarial_images(model, x, y, threat, rng=rng)
        length = int(torch.randint(1, len(model.members) + 1, (), generator=rng, device=x.device))
        return self.base.adversarial_images(Ensemble(model.members[:length], model.combiner), x, y, threat, rng=rng)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the loss of a batch with its adversarial images; every member runs once on each image."""
        model = as_ensemble(model, self)
        assert isinstance(self.base, AdversarialLoss)
        logits, total = _CachedLogits(model), len(model.members)
        output = self.base.loss(_Members(logits, slice(0, total)), x, x_adv, y)
        terms, loss = dict(output.terms), output.loss
        extra = {
            "alone": (self.alone, [slice(i, i + 1) for i in range(total)]),
            "prefixes": (self.prefixes, [slice(0, m) for m in range(1, total)]),
        }
        for name, (weight, parts) in extra.items():
            if weight and parts:
                losses = [self.base.loss(_Members(logits, part), x, x_adv, y).loss for part in parts]
                mean = torch.stack(losses).mean()
                loss, terms[name] = loss + weight * mean, mean.detach()
        return LossOutput(loss, terms, None if self.attack_prefixes else x_adv)


class _CachedLogits:
    """Logits of all members; each batch of images runs through them once, however often it is requested."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.cache: list[tuple[Tensor, MemberLogits]] = []

    def __call__(self, x: Images) -> MemberLogits:
        for images, member_logits in self.cache:
            if images is x:
                return member_logits
        self.cache.append((x, self.ensemble.member_logits(x)))
        return self.cache[-1][1]

    @property
    def combiner(self) -> Combiner:
        return self.ensemble.combiner


class _Members(nn.Module):
    """Some members of an ensemble as one network."""

    def __init__(self, logits: _CachedLogits, part: slice) -> None:
        super().__init__()
        self.logits, self.part = logits, part

    def forward(self, x: Images) -> Logits:
        """Return the combined logits of these members."""
        return self.logits.combiner(self.logits(x)[self.part])
