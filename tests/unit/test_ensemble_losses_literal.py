"""DVERGE, iGAT and EED, each with its gradient, against slow literal versions on the same images.

Images are crafted by the searches that the losses use, from equal seeds; the formulas are written out here.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.ensemble.losses.dverge import DVERGE, distil_features, feature_layers
from sparsemble.ensemble.losses.eed import EED
from sparsemble.ensemble.losses.igat import IGAT
from sparsemble.training.loss import TrainingLoss
from tests.unit.test_ensemble_losses import batch, make_ensemble
from tests.unit.test_ensemble_losses_more import ATTACK, THREAT, ce, named, same_loss_and_gradient

Literal = Callable[[Ensemble, Images, Labels, Generator], Tensor]
SEARCH = DVERGE(beta=0.5, steps=3, attack=ATTACK)


def literal_dverge(ensemble: Ensemble, x: Images, y: Labels, rng: Generator) -> Tensor:
    """sum_i [ CE(F_i(x_adv_i), y) + 0.5 sum_{j != i} CE(F_i(x~_j), y) ]."""
    own = [ATTACK(member, x, y, THREAT, rng=rng) for member in ensemble.members]
    offset, layers = int(torch.randint(1, len(x), (), generator=rng)), feature_layers(ensemble.members[0])
    layer, wide = layers[int(torch.randint(len(layers), (), generator=rng))], ThreatModel(eps=0.225)
    weak = [distil_features(member, layer, x, x.roll(offset, 0), wide, 3) for member in ensemble.members]
    total = torch.zeros(())
    for b, label in enumerate(y):
        for i, member in enumerate(ensemble.members):
            total = total + ce(member(own[i][b : b + 1])[0], label)
            for j in range(len(weak)):
                if j != i:
                    total = total + 0.5 * ce(member(weak[j][b : b + 1])[0], label)
    return total / len(y)


def literal_mistakes(probabilities: list[Tensor], y: Labels) -> Tensor:
    """Mean of psi (-log(1 - min(p*, 0.99))), from the probabilities (M, K) of each image."""
    total = torch.zeros(())
    for p, label in zip(probabilities, y, strict=True):
        if int(p.mean(0).argmax()) != int(label):
            highest = torch.cat([p[:, :label], p[:, label + 1 :]], 1).max()
            total = total - (1 - highest.clamp(max=0.99)).log()
    return total / len(y)


def literal_igat(ensemble: Ensemble, x: Images, y: Labels, rng: Generator) -> Tensor:
    """All members learn from an image the ensemble gets right, one drawn by 2^rank from the others; plus 2 L_R."""
    x_adv = ATTACK(ensemble, x, y, THREAT, rng=rng)
    outputs = [torch.stack([member(image[None])[0] for member in ensemble.members]) for image in x_adv]
    p = [output.softmax(1) for output in outputs]
    chances = torch.zeros(len(y), len(ensemble.members))
    for b, label in enumerate(y):
        for rank, i in enumerate(sorted(range(len(ensemble.members)), key=lambda i: float(p[b][i, label].detach()))):
            chances[b, i] = 2.0**rank
    drawn, total = torch.multinomial(chances, 1, generator=rng)[:, 0].tolist(), torch.zeros(())
    for b, label in enumerate(y):
        right = int(p[b].mean(0).argmax()) == int(label)
        total = total + sum(ce(one, label) for i, one in enumerate(outputs[b]) if right or i == drawn[b])
    return total / len(y) + 2.0 * literal_mistakes(p, y)


def literal_weights(ensemble: Ensemble) -> Tensor:
    """Mean over members of ||W_i||_1 / ||M_i||_0; the slope at a weight of 0 is 0."""
    means = []
    for member in ensemble.members:
        kept = [m.weight[m.weight != 0] for m in member.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        size, count = torch.zeros(()), sum(len(one) for one in kept)
        for one in kept:
            size = size + one[one > 0].sum() - one[one < 0].sum()
        means.append(size / count)
    return torch.stack(means).mean()


def literal_activations(ensemble: Ensemble, x_adv: Images) -> Tensor:
    """Mean over members, then ReLUs, of a^2 / (a^2 + e^2), e = 0.05 rms of the layer on the batch, without slope."""
    shares = []
    for member in ensemble.members:
        seen: list[Tensor] = []
        relus = [module for module in member.modules() if isinstance(module, nn.ReLU)]
        handles = [relu.register_forward_hook(lambda _m, _x, out, seen=seen: seen.append(out)) for relu in relus]
        member(x_adv)
        for handle in handles:
            handle.remove()
        edges = [0.05 * float(one.detach().pow(2).mean().sqrt()) for one in seen]
        layers = [(a * a / (a * a + edge * edge)).mean() for a, edge in zip(seen, edges, strict=True)]
        shares.append(torch.stack(layers).mean())
    return torch.stack(shares).mean()


def literal_eed(ensemble: Ensemble, x: Images, y: Labels, rng: Generator) -> Tensor:
    """L_E + 10 L_R + 4 (0.7 mean |W| + 0.25 share of active units), L_R and the units on images crafted on it."""
    base = literal_dverge(ensemble, x, y, rng)
    x_adv = ATTACK(ensemble, x, y, THREAT, rng=rng)
    p = [torch.stack([member(image[None])[0].softmax(0) for member in ensemble.members]) for image in x_adv]
    compact = 0.7 * literal_weights(ensemble) + 0.25 * literal_activations(ensemble, x_adv)
    return base + 10.0 * literal_mistakes(p, y) + 4.0 * compact


def literal_compactness(ensemble: Ensemble, x: Images, y: Labels, rng: Generator) -> Tensor:
    """L_E and L_C alone, which L_R would drown."""
    base = literal_dverge(ensemble, x, y, rng)
    x_adv = ATTACK(ensemble, x, y, THREAT, rng=rng)
    return base + 400.0 * (0.7 * literal_weights(ensemble) + 0.25 * literal_activations(ensemble, x_adv))


CASES: list[tuple[TrainingLoss, Literal]] = [
    (SEARCH, literal_dverge),
    (IGAT(attack=ATTACK, beta=2.0), literal_igat),
    (EED(base=SEARCH, attack=ATTACK), literal_eed),
    (EED(base=SEARCH, attack=ATTACK, omega=0.0, gamma=400.0), literal_compactness),
]


@pytest.mark.parametrize("members", [2, 3])
@pytest.mark.parametrize(("training_loss", "literal"), CASES, ids=named)
def test_loss_and_gradient_are_those_of_the_literal_formula(
    training_loss: TrainingLoss, literal: Literal, members: int
) -> None:
    ensemble, (x, y) = make_ensemble(members).eval(), batch(8)
    found = training_loss(ensemble, x, y, THREAT, rng=seeded(5)).loss
    same_loss_and_gradient(found, literal(ensemble, x, y, seeded(5)), ensemble)


@pytest.mark.parametrize("members", [2, 3])
def test_the_ensemble_is_right_on_some_of_these_images_and_wrong_on_others(members: int) -> None:
    """So that psi, and who learns from which image, matter above."""
    ensemble, (x, y) = make_ensemble(members).eval(), batch(8)
    errs = ensemble(ATTACK(ensemble, x, y, THREAT, rng=seeded(5))).argmax(1) != y
    assert 0 < int(errs.sum()) < len(y)
