"""CutMix against a literal version: what is mixed, what is crafted, and what a pass costs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sparsemble.core.distributed_rng import sharded
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.types import seeded
from sparsemble.ensemble.losses.eed import EED
from sparsemble.training.losses.awp import AWP
from sparsemble.training.losses.cutmix import CutMix, mix
from sparsemble.training.losses.mart import MART
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.losses.trades import TRADES
from tests.unit.test_losses import LINF, batch, net
from tests.unit.test_losses_more import SHORT


def test_each_image_is_itself_but_for_one_box_of_another() -> None:
    x = torch.arange(40.0).div(40).view(-1, 1, 1, 1).expand(-1, 2, 8, 6).contiguous()
    shares = []
    for seed in range(60):
        mixed, partner, area = mix(x, seeded(seed))
        assert sorted(partner.tolist()) == list(range(40))
        shares.append(area)
        for image, own, other in zip(mixed, x, x[partner], strict=True):
            assert ((image == own) | (image == other)).all()
            if not torch.equal(own, other):
                foreign = (image == other)[0]
                rows, columns = foreign.any(1), foreign.any(0)
                assert int(foreign.sum()) == int(rows.sum()) * int(columns.sum()) == round(area * 48)
    assert min(shares) < 0.1
    assert max(shares) > 0.9
    assert 0.4 < sum(shares) / len(shares) < 0.6


def test_loss_is_that_of_both_labels_by_area() -> None:
    x, y = batch()
    for seed in range(4):
        model = net()
        output = CutMix(inner=NFGSM())(model, x, y, LINF, rng=seeded(seed))
        mixed, partner, area = mix(x, rng := seeded(seed))
        major = y if area <= 0.5 else y[partner]
        x_adv = NFGSM().adversarial_images(net(), mixed, major, LINF, rng=rng)
        torch.testing.assert_close(output.adversarial, x_adv)
        logits = net()(x_adv)
        soft = (1 - area) * F.one_hot(y, logits.shape[1]) + area * F.one_hot(y[partner], logits.shape[1])
        torch.testing.assert_close(output.loss, F.cross_entropy(logits, soft))


@pytest.mark.parametrize(
    "inner", [NFGSM(), TRADES(attack=replace(SHORT, loss=TRADES().attack.loss, start_noise=0.001)), MART(attack=SHORT)]
)
def test_costs_no_pass_more_than_the_inner_loss(inner: NFGSM | TRADES | MART) -> None:
    x, y = batch()
    counted = []
    for training_loss in (inner, CutMix(inner=inner)):
        model = net()
        with count_passes(model) as passes:
            training_loss(model, x, y, LINF, rng=seeded(0)).loss.backward()
        counted.append((passes.forward, passes.backward))
    assert counted[0] == counted[1]


def test_terms_add_up() -> None:
    inner = TRADES(attack=replace(SHORT, loss=TRADES().attack.loss, start_noise=0.001))
    output = CutMix(inner=inner)(net(), *batch(), LINF, rng=seeded(0))
    torch.testing.assert_close(output.loss, output.terms["standard"] + inner.beta * output.terms["divergence"])


def test_inside_awp_images_are_crafted_once() -> None:
    x, y = batch()
    plain = CutMix(inner=PGDAT(attack=SHORT))
    perturbed = AWP(inner=plain)(net(), x, y, LINF, rng=seeded(0))
    output = plain(net(), x, y, LINF, rng=seeded(0))
    torch.testing.assert_close(perturbed.adversarial, output.adversarial)
    assert perturbed.loss > output.loss


def test_every_process_draws_the_same_area_and_boxes_of_its_own() -> None:
    x = torch.rand(8, 1, 6, 6, generator=seeded(1))
    _, _, whole = mix(x, first := seeded(3))
    with sharded(1, 2):
        _, partner, half = mix(x[4:], second := seeded(3))
    assert whole == half
    assert sorted(partner.tolist()) == [0, 1, 2, 3]
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize("inner", [Standard(), AWP(), EED(), CutMix()])
def test_refuses_losses_whose_labels_it_cannot_mix(inner: Standard | AWP | EED | CutMix) -> None:
    with pytest.raises(InputError, match=rf"cutmix cannot mix the labels of {inner.name}; inner must be one of pgd_at"):
        CutMix(inner=inner)
