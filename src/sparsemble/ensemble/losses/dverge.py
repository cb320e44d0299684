"""DVERGE: members learn to withstand each other's weaknesses (Yang et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack, input_gradient
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.module_state import eval_mode
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.ensemble.checked import as_ensemble, check_above_zero, check_not_negative
from sparsemble.ensemble.crafting import images_for_members
from sparsemble.ensemble.features import feature_layers, features
from sparsemble.training.loss import LossOutput, TrainingLoss, training_losses


@final
@training_losses.register("dverge")
@dataclass(frozen=True, kw_only=True)
class DVERGE(TrainingLoss):
    """Adversarial training of each member, and on images that hold the features another member sees elsewhere.

    sum_i [ CE(F_i(x_adv), y) + beta sum_{j != i} CE(F_i(x~_j), y) ], where x~_j lies near x and imitates, in a hidden
    layer of member j, the features of another image.

    Source: Yang et al. 2020, "plus adv", as method.md sections 2.6 and 6 state it (EED main paper, eq. 14, Reg = 0).
    Departs: the other image comes from the same batch, rolled by a random offset, and the layer is drawn for every
    batch, not every epoch.
    """

    needs_ensemble: ClassVar[bool] = True

    beta: float = 1.0
    """Weight of the diversity term, >= 0."""
    reach: float = 2.25
    """Radius of the feature search in units of eps; 2.25 makes DVERGE's 0.07 out of 8/255."""
    steps: int = 10
    """Steps of the feature search, each of radius / steps, >= 1."""
    attack: Attack = PGD(steps=10, keep_best=False)
    """Finds the adversarial images."""
    attack_ensemble: bool = False
    """Craft one adversarial set on the whole ensemble instead of one on each member."""

    def __post_init__(self) -> None:
        check_not_negative(beta=self.beta)
        check_above_zero(reach=self.reach)
        if self.steps < 1:
            raise InputError(f"steps = {self.steps} must be 1 or more")

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss summed over members."""
        model = as_ensemble(model, self)
        own = images_for_members(model, self.attack, x, y, threat, rng=rng, together=self.attack_ensemble)
        distilled = self._distilled(model, x, threat, rng) if self.beta else []
        robust, diversity = x.new_zeros(()), x.new_zeros(())
        for i, member in enumerate(model.members):
            others = [images for j, images in enumerate(distilled) if j != i]
            logits = member(torch.cat([own[i], *others]))
            losses = F.cross_entropy(logits, y.repeat(1 + len(others)), reduction="none").view(-1, len(x)).mean(1)
            robust, diversity = robust + losses[0], diversity + losses[1:].sum()
        terms = {"robust": robust.detach(), "diversity": diversity.detach()}
        return LossOutput(robust + self.beta * diversity, terms, own[0] if self.attack_ensemble else None)

    def _distilled(self, model: Ensemble, x: Images, threat: ThreatModel, rng: Generator) -> list[Images]:
        """Return x~_j for every member j."""
        offset = int(torch.randint(1, len(x), (), generator=rng, device=x.device)) if len(x) > 1 else 0
        layers = feature_layers(model.members[0])
        layer = layers[int(torch.randint(len(layers), (), generator=rng, device=x.device))]
        radius = min(self.reach * threat.eps, 1.0) if threat.norm == "linf" else self.reach * threat.eps
        wide = ThreatModel(norm=threat.norm, eps=radius)
        with eval_mode(model):
            return [imitate(member, layer, x, x.roll(offset, 0), wide, self.steps) for member in model.members]


def imitate(member: nn.Module, layer: str, x: Images, target: Images, threat: ThreatModel, steps: int) -> Images:
    """Move x, inside the threat model, until its features in a layer resemble those of the target images.

    Momentum 1 on l1-normalised gradients, no random start.
    """
    with torch.no_grad():
        wanted = features(member, layer, target)
    point, velocity = x, torch.zeros_like(x)
    for _ in range(steps):
        point = point.detach().requires_grad_()
        distance: Tensor = (features(member, layer, point) - wanted).square().flatten(1).sum(1)
        gradient = input_gradient(-distance, point)
        velocity = velocity + gradient / gradient.abs().flatten(1).sum(1).clamp_min(1e-12).view(-1, 1, 1, 1)
        point = threat.project(point.detach() + threat.eps / steps * threat.steepest(velocity), x)
    return point.detach()
