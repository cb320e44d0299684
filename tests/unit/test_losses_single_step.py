"""Single-step training: where its images lie, and how it is made gentler."""

from dataclasses import replace

import pytest
import torch

from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.training.losses.distillation import Distillation
from sparsemble.training.losses.fgsm_rs import FGSMRS
from sparsemble.training.losses.mart import MART
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.losses.trades import TRADES
from tests.unit.test_losses import LINF, batch, net


def test_reach() -> None:
    """N-FGSM leaves the ball, by as much as noise and step allow, and no image leaves the box."""
    x, y = batch(60)
    made = {}
    for training_loss in (FGSMRS(), NFGSM(), NFGSM(noise=0.5, step_size=0.25)):
        x_adv = training_loss(net(), x, y, LINF, rng=seeded(0)).adversarial
        assert x_adv is not None
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        made[training_loss] = float(LINF.distance(x_adv, x).max()) / LINF.eps
    assert list(made.values()) == pytest.approx([1.0, 3.0, 0.75], rel=0.02)


def test_noise_wider_than_images_are() -> None:
    x, y = batch()
    output = NFGSM(noise=100.0, step_size=50.0)(net(), x, y, LINF, rng=seeded(0))
    assert output.loss.isfinite()


def test_gentler_is_a_smaller_step_or_more_noise() -> None:
    assert FGSMRS().with_weaker_attack(0.5) == replace(FGSMRS(), step_size=0.5 * FGSMRS().step_size)
    assert NFGSM(noise=1.5).with_weaker_attack(0.5) == NFGSM(noise=3.0)
    assert NFGSM(noise=0.1).with_weaker_attack(0.5) == NFGSM(noise=1.0)


def test_a_smaller_step_is_a_weaker_attack() -> None:
    x, y = batch(30)
    softer = FGSMRS().with_weaker_attack(0.5)
    losses = [o(net(), x, y, LINF, rng=seeded(0)).loss for o in (FGSMRS(), softer, softer.with_weaker_attack(0.01))]
    assert losses[0] > losses[1] > losses[2]


def test_others_have_no_such_knob() -> None:
    assert [o.with_weaker_attack(0.5) for o in (Standard(), PGDAT(), TRADES(), MART(), Distillation())] == [None] * 5


def test_without_a_budget_is_natural() -> None:
    x, y = batch()
    none = ThreatModel(eps=0.0)
    natural = Standard()(net(), x, y, none, rng=seeded(0)).loss
    assert all(torch.equal(o(net(), x, y, none, rng=seeded(0)).loss, natural) for o in (FGSMRS(), NFGSM()))
