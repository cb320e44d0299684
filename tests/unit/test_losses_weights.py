"""Adversarial weight perturbation against a literal version; what it leaves alone, and what it wraps."""

import contextlib
import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.losses.dverge import DVERGE
from sparsemble.training.loss import LossOutput, TrainingLoss, training_losses
from sparsemble.training.losses.awp import AWP
from sparsemble.training.losses.distillation import Distillation
from sparsemble.training.losses.fgsm_rs import FGSMRS
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.losses.trades import TRADES
from tests.unit.test_losses import L2, LINF, batch, literal_cross_entropy, literal_worst, net
from tests.unit.test_losses_more import SEED, SHORT, literal_trades

GAMMA = 0.02


@dataclass(frozen=True)
class Watched(TrainingLoss):
    """Cross-entropy; remembers the weights that the network computed with."""

    seen: list[dict[str, Tensor]]

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        self.seen.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
        return LossOutput(F.cross_entropy(model(x), y))


@dataclass(frozen=True)
class Broken(TrainingLoss):
    """Fails when it is asked for the second time."""

    calls: list[int]

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        self.calls.append(1)
        if len(self.calls) > 1:
            raise RuntimeError("out of memory")
        return LossOutput(F.cross_entropy(model(x), y))


def literal_ascent(model: nn.Module, loss: Tensor) -> nn.Module:
    """Return a fresh copy whose tensors of two dimensions and more moved up the loss by gamma times their norm."""
    moved = net()
    model.zero_grad()
    loss.backward()
    for own, other in zip(model.parameters(), moved.parameters(), strict=True):
        if own.ndim > 1:
            assert own.grad is not None
            other.data += GAMMA * own.detach().norm() / own.grad.norm() * own.grad
    return moved


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_is_the_loss_and_gradient_at_the_worse_weights_on_the_same_images(threat: ThreatModel) -> None:
    ours = net()
    x, y = batch()
    before = copy.deepcopy(dict(ours.named_parameters()))
    output = AWP(inner=PGDAT(attack=SHORT), gamma=GAMMA)(ours, x, y, threat, rng=seeded(SEED))
    output.loss.backward()
    x_adv = literal_worst(net(), x, y, threat, SEED)
    climbing = net()
    worse = literal_ascent(climbing, literal_cross_entropy(climbing(x_adv), y))
    expected = literal_cross_entropy(worse(x_adv), y)
    expected.backward()
    torch.testing.assert_close(output.adversarial, x_adv)
    torch.testing.assert_close(output.loss, expected)
    for (name, parameter), other in zip(ours.named_parameters(), worse.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=2e-4, atol=2e-6, msg=name)
        assert torch.equal(parameter, before[name]), "weights do not move"
    for (name, tensor), other in zip(ours.named_buffers(), worse.buffers(), strict=True):
        torch.testing.assert_close(tensor, other, msg=name)
        assert not name.endswith("num_batches_tracked") or int(tensor) == 1


def test_climbs_the_whole_loss_of_what_it_wraps() -> None:
    """TRADES: the ascent is on its sum, and the images stay those of the weights as they are."""
    x, y = batch()
    inner = TRADES(attack=replace(SHORT, start_noise=0.001, loss=TRADES().attack.loss), label_smoothing=0.2)
    found = AWP(inner=inner, gamma=GAMMA)(net(), x, y, LINF, rng=seeded(SEED))
    climbing = net()
    loss = literal_trades(climbing, x, y, LINF)
    worse = literal_ascent(climbing, loss)
    assert found.adversarial is not None
    output = inner.loss(worse, x, found.adversarial, y)
    torch.testing.assert_close(found.loss, output.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inner(net(), x, y, LINF, rng=seeded(SEED)).adversarial, found.adversarial)
    assert found.loss > loss


class TestPerturbation:
    def seen(self, model: nn.Module, gamma: float = GAMMA) -> list[dict[str, Tensor]]:
        seen: list[dict[str, Tensor]] = []
        AWP(inner=Watched(seen), gamma=gamma)(model, *batch(), LINF, rng=seeded(0))
        assert len(seen) == 2
        return seen

    @pytest.mark.parametrize("gamma", [0.005, 0.3])
    def test_has_the_stated_norm_relative_to_each_tensor(self, gamma: float) -> None:
        before, after = self.seen(net(), gamma)
        wide = [name for name, tensor in before.items() if tensor.ndim > 1]
        assert len(wide) > 2
        for name, tensor in before.items():
            if name in wide:
                ratio = float((after[name] - tensor).norm() / tensor.norm())
                assert ratio == pytest.approx(gamma, rel=1e-4), name
            else:
                assert torch.equal(after[name], tensor), name

    def test_weights_are_back_bit_for_bit(self) -> None:
        model = net()
        parameters, names = list(model.parameters()), [name for name, _ in model.named_parameters()]
        before = copy.deepcopy(model.state_dict())
        self.seen(model)
        assert [name for name, _ in model.named_parameters()] == names
        assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
        assert all(isinstance(parameter, nn.Parameter) and parameter.grad is None for parameter in model.parameters())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])

    def test_weights_are_back_after_an_error(self) -> None:
        model = net()
        parameters = list(model.parameters())
        with pytest.raises(RuntimeError, match="out of memory"):
            AWP(inner=Broken([]))(model, *batch(), LINF, rng=seeded(0))
        assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
        assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))

    def test_pruned_weights_stay_zero(self) -> None:
        model = net()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                keep = torch.rand(parameter.shape, generator=seeded(parameter.numel())) < 0.5
                parameter.data *= keep
        before, after = self.seen(model)
        for name, tensor in before.items():
            if tensor.ndim > 1:
                assert torch.equal(after[name] == 0, tensor == 0)
                assert float((after[name] - tensor).norm() / tensor.norm()) == pytest.approx(GAMMA, rel=1e-4)

    def test_raises_the_loss(self) -> None:
        x, y = batch(30)
        losses = [
            AWP(inner=Standard(), gamma=gamma)(net(), x, y, LINF, rng=seeded(0)).loss for gamma in (1e-9, 0.005, 0.02)
        ]
        assert losses[0] < losses[1] < losses[2]
        torch.testing.assert_close(losses[0], Standard()(net(), x, y, LINF, rng=seeded(0)).loss)

    def test_a_layer_without_gradient_stays(self) -> None:
        """A constant model: every gradient is 0, and there is no way up."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 3))
        nn.init.constant_(model[1].bias, -1e3)
        before, after = self.seen(model)
        assert torch.equal(after["1.weight"], before["1.weight"])
        assert all(tensor.isfinite().all() for tensor in after.values())

    def test_a_tensor_in_two_places_moves_in_both(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 3))
        model[3].weight = model[1].weight
        seen: list[Tensor] = []
        handles = [
            model[i].register_forward_pre_hook(lambda m, _: seen.append(m.weight.detach().clone())) for i in (1, 3)
        ]
        AWP(inner=Standard())(model, *batch(), LINF, rng=seeded(0))
        for handle in handles:
            handle.remove()
        assert torch.equal(seen[2], seen[3])
        assert not torch.equal(seen[0], seen[2])
        assert model[3].weight is model[1].weight


class TestAround:
    def test_costs_one_pass_more_each_way(self) -> None:
        x, y = batch()
        counts = []
        for training_loss in (PGDAT(attack=PGD(steps=3, keep_best=False)), FGSMRS()):
            for whole in (training_loss, AWP(inner=training_loss)):
                model = net()
                with count_passes(model) as passes:
                    whole(model, x, y, LINF, rng=seeded(0)).loss.backward()
                counts.append((passes.forward // len(x), passes.backward // len(x)))
        assert counts == [(4, 4), (5, 5), (2, 2), (3, 3)]

    def test_an_ensemble(self) -> None:
        """What does not craft first crafts again; the draws, the weights and the one pass of BatchNorm stay."""
        ensemble = Ensemble([net(), net()], MeanProbability()).train()
        x, y = batch()
        inner = DVERGE(attack=SHORT, steps=2)
        before = copy.deepcopy(dict(ensemble.named_parameters()))
        rng, plain = seeded(SEED), seeded(SEED)
        found = AWP(inner=inner, gamma=GAMMA)(ensemble, x, y, LINF, rng=rng)
        found.loss.backward()
        copied = Ensemble([net(), net()], MeanProbability()).train()
        assert found.loss > inner(copied, x, y, LINF, rng=plain).loss
        assert torch.equal(rng.get_state(), plain.get_state())
        for name, parameter in ensemble.named_parameters():
            assert torch.equal(parameter, before[name])
            assert parameter.grad is not None
            assert parameter.requires_grad
        for ours, theirs in zip(ensemble.buffers(), copied.buffers(), strict=True):
            assert ours.is_floating_point() or torch.equal(ours, theirs)

    @pytest.mark.parametrize("once", [parametrize.cached, contextlib.nullcontext])
    def test_learned_masks_are_left_to_what_it_wraps(self, once: Any) -> None:
        """Frozen weights seen through a learned mask: nothing that the network computes with is trained."""

        class Mask(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scores = nn.Parameter(torch.ones(3, 64))

            def forward(self, weight: Tensor) -> Tensor:
                return weight * self.scores

        def masked() -> nn.Module:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
            model[1].weight.requires_grad_(False)
            parametrize.register_parametrization(model[1], "weight", Mask())
            return model

        x, y = batch()
        losses = []
        for training_loss in (Standard(), AWP(inner=Standard(), gamma=0.5)):
            model = masked()
            with once():
                loss = training_loss(model, x, y, LINF, rng=seeded(0)).loss
            loss.backward()
            losses.append((loss, model[1].parametrizations["weight"][0].scores.grad))
        assert torch.equal(losses[0][0], losses[1][0])
        assert torch.equal(losses[0][1], losses[1][1])

    def test_delegates(self) -> None:
        wrapped = AWP(inner=NFGSM())
        assert wrapped.with_weaker_attack(0.5) == AWP(inner=NFGSM(noise=4.0))
        assert AWP(inner=PGDAT()).with_weaker_attack(0.5) is None
        taught: Any = AWP(inner=Distillation(attack=SHORT)).with_teacher(net().eval())
        assert taught == AWP(inner=Distillation(attack=SHORT))
        assert taught(net(), *batch(), LINF, rng=seeded(0)).loss.isfinite()

    def test_warms_up(self) -> None:
        inner, late = NFGSM(), AWP(inner=NFGSM(), warmup=0.25)
        assert late.at(0.0) == late.at(0.2499) == inner
        assert late.at(0.25) == late.at(1.0) == late
        assert AWP(inner=late).at(0.1) == AWP(inner=inner)
        assert AWP().at(0.0) == AWP()
        assert inner.at(0.5) is inner

    def test_is_named_in_a_recipe(self) -> None:
        built = training_losses.build({"name": "awp", "gamma": 0.01, "inner": {"name": "trades", "beta": 3}})
        assert built == AWP(inner=TRADES(beta=3.0), gamma=0.01)

    @pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"warmup": 1.0}, {"warmup": -0.1}])
    def test_refuses_settings_out_of_range(self, settings: dict[str, float]) -> None:
        with pytest.raises(InputError, match=f"{next(iter(settings))} = "):
            AWP(**settings)
