"""Natural and adversarial training losses against slow literal versions, with their gradients."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.models import architectures, build_model
from sparsemble.training.loss import TrainingLoss, training_losses
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard

STEPS, STEP_SIZE = 3, 0.4
LINF = ThreatModel(norm="linf", eps=0.1)
L2 = ThreatModel(norm="l2", eps=0.5)
OBJECTIVES = [Standard(), PGDAT(attack=PGD(steps=STEPS, step_size=STEP_SIZE, keep_best=False))]


def net() -> nn.Module:
    """A small network in training mode whose BatchNorms have seen something."""
    rng = seeded(0)
    layout = architectures.build({"name": "tiny", "width": 3})
    model = build_model(layout, (1, 8, 8), 3, (0.5,), (0.3,), rng=rng).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=rng)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=rng)
    return model


def batch(images: int = 6) -> tuple[Images, Labels]:
    return torch.rand(images, 1, 8, 8, generator=seeded(1)), torch.arange(images) % 3


def literal_cross_entropy(logits: Tensor, y: Labels) -> Tensor:
    """Mean of log(sum_k exp z_k) - z_y, a number at a time."""
    total = torch.zeros(())
    for row, label in zip(logits, y.tolist(), strict=True):
        total = total + torch.stack([value.exp() for value in row]).sum().log() - row[label]
    return total / len(y)


def literal_walk(
    model: nn.Module,
    x: Images,
    start: Images,
    threat: ThreatModel,
    loss: Callable[[Tensor, int], Tensor],
    steps: int = STEPS,
    step_size: float = STEP_SIZE,
) -> Images:
    """Madry et al. 2018, section 2.1, with BatchNorm as at test time: an image at a time.

    The loss takes the logits of one image (1, K) and its place in the batch.
    """
    quiet = copy.deepcopy(model).eval()
    result = []
    for i, (clean, point) in enumerate(zip(x.split(1), start.split(1), strict=True)):
        for _ in range(steps):
            leaf = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(quiet(leaf), i), leaf)
            step = gradient.sign() if threat.norm == "linf" else gradient / gradient.norm()
            delta = point + step_size * threat.eps * step - clean
            if threat.norm == "linf":
                delta = torch.maximum(torch.minimum(delta, torch.tensor(threat.eps)), torch.tensor(-threat.eps))
            else:
                delta = delta * min(1.0, threat.eps / float(delta.norm()))
            point = (clean + delta).clamp(0, 1)
        result.append(point)
    return torch.cat(result)


def literal_worst(model: nn.Module, x: Images, y: Labels, threat: ThreatModel, seed: int, **walk: Any) -> Images:
    """Climb the cross-entropy from a random start."""
    start = threat.random_start(x, seeded(seed))
    return literal_walk(model, x, start, threat, lambda z, i: literal_cross_entropy(z, y[i : i + 1]), **walk)


def seen_by(training_loss: TrainingLoss) -> Callable[[nn.Module, Images, Labels, ThreatModel], Images]:
    """Return which images the loss is taken on, by the literal version."""
    if isinstance(training_loss, Standard):
        return lambda model, x, y, threat: x
    return lambda model, x, y, threat: literal_worst(model, x, y, threat, seed=4)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("training_loss", OBJECTIVES, ids=lambda training_loss: training_loss.name)
class TestAgainstALiteralVersion:
    def test_loss_and_every_gradient(self, training_loss: TrainingLoss, threat: ThreatModel) -> None:
        ours, literal = net(), net()
        x, y = batch()
        output = training_loss(ours, x, y, threat, rng=seeded(4))
        output.loss.backward()
        expected = literal_cross_entropy(literal(seen_by(training_loss)(literal, x, y, threat)), y)
        expected.backward()
        torch.testing.assert_close(output.loss, expected)
        for (name, parameter), other in zip(ours.named_parameters(), literal.parameters(), strict=True):
            assert other.grad is not None
            assert other.grad.abs().max() > 0, name
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)

    def test_batchnorm_moves_by_the_one_training_pass(self, training_loss: TrainingLoss, threat: ThreatModel) -> None:
        ours, literal = net(), net()
        x, y = batch()
        training_loss(ours, x, y, threat, rng=seeded(4))
        literal(seen_by(training_loss)(literal, x, y, threat))
        for (name, tensor), expected in zip(ours.named_buffers(), literal.buffers(), strict=True):
            torch.testing.assert_close(tensor, expected, msg=name)
        counted = [tensor for name, tensor in ours.named_buffers() if name.endswith("num_batches_tracked")]
        assert counted
        assert all(int(tensor) == 1 for tensor in counted)

    def test_changes_nothing_else(self, training_loss: TrainingLoss, threat: ThreatModel) -> None:
        model = net()
        before, state = copy.deepcopy(dict(model.named_parameters())), torch.get_rng_state()
        x, y = batch()
        kept = x.clone()
        training_loss(model, x, y, threat, rng=seeded(4))
        assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert all(module.training for module in model.modules())
        assert torch.equal(x, kept)
        assert torch.equal(state, torch.get_rng_state())

    def test_is_a_mean_so_that_a_doubled_batch_changes_nothing(
        self, training_loss: TrainingLoss, threat: ThreatModel
    ) -> None:
        if isinstance(training_loss, PGDAT):
            training_loss = PGDAT(attack=PGD(steps=STEPS, random_start=False, keep_best=False))
        x, y = batch()
        once = training_loss(net(), x, y, threat, rng=seeded(0)).loss
        twice = training_loss(net(), torch.cat([x, x]), torch.cat([y, y]), threat, rng=seeded(0)).loss
        torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("kind", [Standard, PGDAT])
class TestLabelSmoothing:
    def test_spreads_a_share_of_the_label_evenly(self, kind: type[Any]) -> None:
        x, y = batch()
        share, still = 0.3, ThreatModel(eps=0.0)
        found = kind(label_smoothing=share)(net(), x, y, still, rng=seeded(0)).loss
        logits = net()(x)
        even = torch.stack([literal_cross_entropy(logits, torch.full_like(y, c)) for c in range(3)]).mean()
        torch.testing.assert_close(found, (1 - share) * literal_cross_entropy(logits, y) + share * even)

    def test_zero_is_none(self, kind: type[Any]) -> None:
        x, y = batch()
        still = ThreatModel(eps=0.0)
        found = kind(label_smoothing=0.0)(net(), x, y, still, rng=seeded(0)).loss
        assert torch.equal(found, nn.functional.cross_entropy(net()(x), y))

    @pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
    def test_must_be_a_share(self, kind: type[Any], share: float) -> None:
        with pytest.raises(InputError, match=r"label_smoothing = .* must lie in \[0, 1\)"):
            kind(label_smoothing=share)


class TestMadry:
    @pytest.mark.parametrize("threat", [LINF, L2], ids=str)
    def test_hands_out_the_images_that_it_made(self, threat: ThreatModel) -> None:
        model = net()
        x, y = batch()
        made = OBJECTIVES[1](model, x, y, threat, rng=seeded(4)).adversarial
        assert made is not None
        assert not made.requires_grad
        torch.testing.assert_close(made, literal_worst(net(), x, y, threat, seed=4))
        assert (threat.distance(made, x) <= threat.eps + 1e-6).all()
        assert Standard()(model, x, y, threat, rng=seeded(4)).adversarial is None

    def test_without_a_budget_is_natural(self) -> None:
        x, y = batch()
        none = ThreatModel(eps=0.0)
        losses = [training_loss(net(), x, y, none, rng=seeded(0)).loss for training_loss in OBJECTIVES]
        assert torch.equal(*losses)

    def test_is_above_natural(self) -> None:
        x, y = batch(60)
        natural, madry = (training_loss(net(), x, y, LINF, rng=seeded(0)).loss for training_loss in OBJECTIVES)
        assert madry > natural

    def test_takes_another_attack(self) -> None:
        """One long step up the margin of two classes, from the clean image: the sign of a difference of weights."""
        linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False))
        attack = PGD(steps=1, step_size=1.0, random_start=False, keep_best=False, loss=Margin())
        x, y = batch(4)[0] * 0.5 + 0.25, torch.tensor([0, 1, 0, 1])
        output = PGDAT(attack=attack)(linear, x, y, LINF, rng=seeded(0))
        way = (linear[1].weight[1] - linear[1].weight[0]).detach().sign().view(1, 1, 8, 8)
        expected = x + LINF.eps * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * way
        torch.testing.assert_close(output.adversarial, expected)


@pytest.mark.parametrize("classes", [2, 10])
def test_an_untrained_guess_costs_log_of_the_classes(classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    x, y = batch()
    for training_loss in OBJECTIVES:
        loss = training_loss(model, x, y % classes, LINF, rng=seeded(0)).loss
        assert float(loss.detach()) == pytest.approx(math.log(classes))
    assert {"standard", "pgd_at"} <= set(training_losses.components)
