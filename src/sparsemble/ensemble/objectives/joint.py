"""Adversarial training of the team as one model, through its combiner."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Generator, nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels
from sparsemble.ensemble.crafting import member_losses
from sparsemble.training.objective import Crafting, LossOutput, Objective, cross_entropy, objectives
from sparsemble.training.objectives.n_fgsm import NFGSM


@final
@objectives.register("joint")
@dataclass(frozen=True, kw_only=True)
class Joint(Crafting):
    """Adversarial training of the team as one model: images crafted on it, and the loss of what it answers there.

    CE(h(x_adv), y) + alone mean_i CE(h_i(x_adv), y) + prefixes mean_{m < M} CE(h^m(x_adv), y), where h is the team, h_i
    a member and h^m the first m of them.

    Source: "Strength in Numbers" (DeepMind, 2018) found that this, and not averaging, is what makes teams robust; the
    other two terms are ours.
    """

    base: Crafting = NFGSM()
    """Crafts the images on the team; the loss of an objective itself is had by naming it instead of this one."""
    alone: float = 0.0
    """Weight of the members' own losses, >= 0; above 0 each of them stays a classifier by itself."""
    prefixes: float = 0.0
    """Weight of the losses of shorter prefixes, >= 0; above 0 a team that stops early still answers well."""

    def __post_init__(self) -> None:
        if self.alone < 0 or self.prefixes < 0:
            raise InputError(f"alone = {self.alone:g} and prefixes = {self.prefixes:g} must be 0 or more")
        if not isinstance(self.base, Crafting):
            raise InputError(f'base = "{self.base.name}" must be a loss that crafts its images first, such as n_fgsm')

    def images(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Craft on the team."""
        return self.base.images(model, x, y, threat, rng=rng)

    def loss(self, model: nn.Module, x: Images, x_adv: Images, y: Labels) -> LossOutput:
        """Return the loss of a batch whose adversarial images are there."""
        assert isinstance(model, Ensemble)
        member_logits = model.member_logits(x_adv)
        loss = cross_entropy(model.combine(member_logits), y)
        terms = {"team": loss.detach()}
        if self.alone:
            alone = member_losses(member_logits, y).mean()
            loss, terms["alone"] = loss + self.alone * alone, alone.detach()
        if self.prefixes and len(model.members) > 1:
            shorter = [cross_entropy(model.combine(member_logits[:m]), y) for m in range(1, len(model.members))]
            prefixes = torch.stack(shorter).mean()
            loss, terms["prefixes"] = loss + self.prefixes * prefixes, prefixes.detach()
        return LossOutput(loss, terms, x_adv)

    def gentler(self, factor: float) -> Objective | None:
        """Return this objective with a gentler base."""
        base = self.base.gentler(factor)
        return replace(self, base=base) if isinstance(base, Crafting) else None

    def at(self, progress: float) -> Objective:
        """Return this objective with its base after a share of the training."""
        base = self.base.at(progress)
        assert isinstance(base, Crafting)
        return replace(self, base=base)

    def with_teacher(self, teacher: Classifier) -> Objective:
        """Return this objective with a teacher for its base."""
        base = self.base.with_teacher(teacher)
        assert isinstance(base, Crafting)
        return replace(self, base=base)
