"""DVERGE: members are trained on each other's non-robust features (Yang et al. 2020)."""

import contextlib
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import input_gradient
from sparsemble.core.argument_checks import check_above_zero, check_at_least
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.module_state import eval_mode
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.ensemble.member_losses import MemberLoss, as_ensemble
from sparsemble.training.loss import LossOutput, training_losses


@final
@training_losses.register("dverge")
@dataclass(frozen=True, kw_only=True)
class DVERGE(MemberLoss):
    """Adversarial training of each member, also on images that carry non-robust features of another member.

    sum_i [ CE(F_i(x_adv), y) + beta sum_{j != i} CE(F_i(x~_j), y) ], where x~_j lies near x and has, in a hidden layer
    of member j, nearly the features of another image.

    Source: EED main paper, eq. 14, with Reg = 0; EED supplement, eq. 34; Yang et al. 2020, "plus adv".
    Departs: cross-entropy on adversarial images, as in "plus adv"; the other image comes from the same batch, rolled by
    a random offset, and the layer is drawn for every batch, not every epoch.
    """

    beta: float = 1.0
    """Weight of the diversity term, >= 0."""
    radius: float = 2.25
    """Radius of the feature distillation in units of eps, > 0; 2.25 is DVERGE's 0.07 for eps = 8/255."""
    steps: int = 10
    """Steps of the feature distillation, each of radius / steps, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(0, beta=self.beta)
        check_above_zero(radius=self.radius)
        check_at_least(1, steps=self.steps)

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss summed over members."""
        model = as_ensemble(model, self)
        own = self._craft(model, x, y, threat, rng)
        distilled = self._distilled(model, x, threat, rng) if self.beta else []
        robust, diversity = x.new_zeros(()), x.new_zeros(())
        for i, member in enumerate(model.members):
            others = [images for j, images in enumerate(distilled) if j != i]
            logits = member(torch.cat([own[i], *others]))
            losses = F.cross_entropy(logits, y.repeat(1 + len(others)), reduction="none").view(-1, len(x)).mean(1)
            robust, diversity = robust + losses[0], diversity + losses[1:].sum()
        terms = {"robust": robust.detach(), "diversity": diversity.detach()}
        return LossOutput(robust + self.beta * diversity, terms, self._shared(own))

    def _distilled(self, model: Ensemble, x: Images, threat: ThreatModel, rng: Generator) -> list[Images]:
        """Return x~_j for every member j."""
        offset = int(torch.randint(1, len(x), (), generator=rng, device=x.device)) if len(x) > 1 else 0
        layers = feature_layers(model.members[0])
        layer = layers[int(torch.randint(len(layers), (), generator=rng, device=x.device))]
        radius = min(self.radius * threat.eps, 1.0) if threat.norm == "linf" else self.radius * threat.eps
        wide = ThreatModel(norm=threat.norm, eps=radius)
        with eval_mode(model):
            return [distil_features(member, layer, x, x.roll(offset, 0), wide, self.steps) for member in model.members]


def distil_features(
    member: nn.Module, layer: str, x: Images, target: Images, threat: ThreatModel, steps: int
) -> Images:
    """Move x, inside the threat model, towards the features of the target images in one layer.

    Momentum 1 on l1-normalised gradients, no random start.

    Args:
        member: network whose features are distilled, in eval mode.
        layer: name of the layer, one of `feature_layers`.
        x: images to start from (B, C, H, W) in [0, 1].
        target: images whose features are distilled, of the same shape.
        threat: ball around x.
        steps: number of steps, each of threat.eps / steps.

    Source: Yang et al. 2020, eq. 1.
    """
    with torch.no_grad():
        target_features = features(member, layer, target)
    point, velocity = x, torch.zeros_like(x)
    for _ in range(steps):
        point = point.detach().requires_grad_()
        distance: Tensor = (features(member, layer, point) - target_features).square().flatten(1).sum(1)
        gradient = input_gradient(-distance, point)
        velocity = velocity + gradient / gradient.abs().flatten(1).sum(1).clamp_min(1e-12).view(-1, 1, 1, 1)
        point = threat.project(point.detach() + threat.eps / steps * threat.steepest(velocity), x)
    return point.detach()


def feature_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers whose outputs are features before a ReLU: the BatchNorms."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not layers:
        raise InputError(
            "dverge distils features in front of a ReLU, where a BatchNorm2d ends, and the model has no BatchNorm2d; "
            "add some, set its beta = 0, or use another loss, such as joint"
        )
    return layers


def features(model: nn.Module, layer: str, x: Images) -> Tensor:
    """Return the output of one layer; later layers are not computed.

    Args:
        model: the network; BatchNorm follows its mode.
        layer: name of the layer.
        x: images (B, C, H, W) in [0, 1].
    """
    outputs: list[Tensor] = []

    def stop_here(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output.float())
        raise _LayerReached

    handle = model.get_submodule(layer).register_forward_hook(stop_here)
    try:
        with contextlib.suppress(_LayerReached):
            model(x)
    finally:
        handle.remove()
    return outputs[0]


class _LayerReached(Exception):
    """Ends a forward pass at the requested layer."""
