"""Each pruning method against a slow, literal version of its update."""

import copy
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.pruning import Mask, prunable_layers
from sparsemble.pruning.dynamic_mask import DynamicNetwork, UpdateSchedule, final_mask, first_mask
from sparsemble.pruning.learned_mask import ScoredNetwork
from sparsemble.pruning.methods.flying_bird import FlyingBird
from sparsemble.pruning.methods.flying_bird_plus import FlyingBirdPlus, OverfittingMonitor
from sparsemble.pruning.methods.hydra import HYDRA
from sparsemble.pruning.methods.mad import (
    MAD,
    equalise_rows,
    flatten_gradients,
    unfold_inputs,
)
from sparsemble.pruning.methods.radmm import RADMM, ADMMNetwork
from sparsemble.pruning.methods.rst import RST
from sparsemble.pruning.methods.twinrep import TwinNetwork, TwinRep
from sparsemble.pruning.score import inputs_and_output_gradients, rescale
from sparsemble.training.callbacks import Callback
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import Schedule
from tests.helpers import magnitudes, pruning_context, sparsity_target

SHAPE = (2, 4, 4)
context = partial(pruning_context, images=12, shape=SHAPE, batch_size=6)
target = partial(sparsity_target, shape=SHAPE)
PLAIN = SGD(momentum=0.0, weight_decay=0.0)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


def schedule(learning_rate: float, lr_schedule: Any = None) -> Schedule:
    return Schedule(learning_rate=learning_rate, optimiser=PLAIN, lr_schedule=lr_schedule or Cosine())


class Look(Callback):
    """Calls a function after every step or epoch."""

    def __init__(self, step: Callable[[], None] = lambda: None, epoch: Callable[[int], None] = lambda epoch: None):
        self.step, self.epoch = step, epoch

    def after_step(self, model: nn.Module) -> None:
        self.step()

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        self.epoch(epoch)


class TestScoredNetwork:
    def test_gradients_pass_straight_to_the_scores(self) -> None:
        model = net()
        scores = rescale(
            {name: torch.randn(value.shape, generator=seeded(4)) for name, value in magnitudes(model).items()}
        )
        learner = ScoredNetwork(copy.deepcopy(model), scores, target(model), free_norms=True)
        x, y = torch.rand(5, *SHAPE, generator=seeded(3)), torch.arange(5) % 3
        F.cross_entropy(learner(x), y).backward()
        hard = {}
        for name, layer in prunable_layers(model).items():
            order = scores[name].abs().flatten().argsort(descending=True)
            kept = torch.zeros(order.shape)
            kept[order[: learner.masks[name].kept]] = 1
            hard[name] = kept.view_as(layer.weight).requires_grad_()
        hidden = F.conv2d(x, model[0].weight * hard["0"], model[0].bias, padding=1).relu().mean((2, 3))
        F.cross_entropy(F.linear(hidden, model[4].weight * hard["4"], model[4].bias), y).backward()
        for name, mask in learner.masks.items():
            torch.testing.assert_close(mask.scores.grad, hard[name].grad * scores[name].sign())

    def test_hydra_learns_scores_and_nothing_else(self) -> None:
        model = net()
        asked = target(model)
        pruned, mask, history = HYDRA(epochs=8, schedule=schedule(20.0))(model, magnitudes(model), asked, context())
        assert len(history) == 8
        assert any(not torch.equal(mask[name], keep) for name, keep in asked.mask(magnitudes(model)).items())
        for name, layer in prunable_layers(pruned).items():
            assert torch.equal(layer.weight, model.get_submodule(name).weight * mask[name])
            assert torch.equal(layer.bias, model.get_submodule(name).bias)


class TestRST:
    def test_weights_are_random_signs_that_nothing_trains(self) -> None:
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), *list(net())[1:]).eval()
        model[1].weight.data.fill_(2.0)
        pruned, mask, _ = RST(epochs=2, schedule=schedule(0.3))(model, magnitudes(model), target(model), context())
        for name, layer in prunable_layers(pruned).items():
            size = math.sqrt(2 / layer.weight[0].numel())
            torch.testing.assert_close(layer.weight.abs(), size * mask[name].float())
            assert (layer.weight > 0).any()
            assert (layer.weight < 0).any()
            assert not layer.bias.any()
        assert torch.equal(pruned[1].weight, torch.ones(4))
        assert not pruned[1].bias.any()
        assert not RST.fine_tunes

    def test_does_not_look_at_what_it_is_given(self) -> None:
        first = RST(epochs=1, schedule=schedule(0.3))(net(0), magnitudes(net(0)), target(net(0)), context())
        other = RST(epochs=1, schedule=schedule(0.3))(net(5), magnitudes(net(6)), target(net(5)), context())
        assert all(torch.equal(first.mask[name], other.mask[name]) for name in first.mask)


class TestTwinRep:
    def test_begins_as_the_dense_parent_and_its_factors_share_each_weight(self) -> None:
        model = net()
        learner = TwinNetwork(copy.deepcopy(model), target(model))
        x = torch.rand(3, *SHAPE, generator=seeded(3))
        torch.testing.assert_close(learner(x), model(x))
        for name, twin in learner.twins.items():
            first = learner.layers[name].parametrizations.weight.original
            torch.testing.assert_close(first.abs(), twin.factor)

    def test_a_step_is_one_on_both_factors(self) -> None:
        """w1 -= rate g w2 and w2 -= rate g w1, where g is the gradient of the product."""
        model = net()
        given = context(images=6)
        seen: list[dict[str, Tensor]] = []
        twin = TwinRep(epochs=2, prune_at=1, schedule=schedule(0.3))
        ((x, y),) = list(given.images("twinrep").epoch(seeded(2)))
        slow = copy.deepcopy(model)
        F.cross_entropy(slow(x), y).backward()

        class First(Callback):
            def after_step(self, model: nn.Module) -> None:
                assert isinstance(model, TwinNetwork)
                if not seen:
                    seen.append({name: layer.weight.detach().clone() for name, layer in model.layers.items()})

        twin(model, magnitudes(model), target(model), context(images=6, callbacks=[First()]))
        for name, weight in seen[0].items():
            old, g = model.get_submodule(name).weight, slow.get_submodule(name).weight.grad
            one, two = old.sign() * old.abs().sqrt(), old.abs().sqrt()
            torch.testing.assert_close(weight, (one - 0.3 * g * two) * (two - 0.3 * g * one), atol=1e-5, rtol=1e-4)

    def test_masks_the_smallest_products_and_then_holds_the_mask(self) -> None:
        model = net()
        masks: list[Mask] = []

        class Watched(Callback):
            def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
                assert isinstance(model, TwinNetwork)
                masks.append(model.mask())

        twin = TwinRep(epochs=4, prune_at=2, schedule=schedule(0.3))
        pruned, mask, _ = twin(model, magnitudes(model), target(model, 0.7), context(callbacks=[Watched()]))
        assert masks[0].sparsity == 0
        assert masks[1].sparsity == pytest.approx(0.7, abs=0.01)
        for later in (*masks[2:], mask):
            assert all(torch.equal(later[name], masks[1][name]) for name in mask)
        assert Mask.of(pruned).nonzeros == mask.nonzeros

    @pytest.mark.parametrize("bad", [{"prune_at": 0}, {"epochs": 10, "prune_at": 10}])
    def test_an_epoch_that_leaves_no_training_gives_a_sentence(self, bad: dict[str, int]) -> None:
        with pytest.raises(InputError, match="prune_at"):
            TwinRep(**bad)


class TestRADMM:
    def test_updates_are_those_of_the_formula(self) -> None:
        model = net()
        asked = target(model, 0.6)
        learner = ADMMNetwork(copy.deepcopy(model), asked, rho=0.01)
        u = {name: torch.zeros_like(value) for name, value in magnitudes(model).items()}
        for round_ in range(3):
            with torch.no_grad():
                for i, layer in enumerate(learner.layers.values()):
                    layer.weight += 0.1 * torch.randn(layer.weight.shape, generator=seeded(10 * round_ + i))
            w = {name: layer.weight.detach().clone() for name, layer in learner.layers.items()}
            learner.update_()
            mask = asked.mask({name: (w[name] + u[name]).abs() for name in w})
            for name in w:
                z = (w[name] + u[name]) * mask[name]
                u[name] = u[name] + w[name] - z
                torch.testing.assert_close(learner.auxiliary(name)[0], z)
                torch.testing.assert_close(learner.auxiliary(name)[1], u[name])
            expected = sum(float((w[n] - learner.auxiliary(n)[0] + u[n]).square().sum()) for n in w)
            assert float(learner.distance().detach()) == pytest.approx(0.005 * expected, rel=1e-5)

    def test_draws_the_weights_to_a_sparse_copy(self) -> None:
        """With a heavy weight the cut costs little; with none it costs what it costs."""
        model = net()

        def cut(rho: float) -> float:
            lost: list[float] = []

            class Last(Callback):
                def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
                    assert isinstance(model, ADMMNetwork)
                    mask = model.target.mask(
                        {name: layer.weight.detach().abs() for name, layer in model.layers.items()}
                    )
                    whole = sum(float(layer.weight.detach().square().sum()) for layer in model.layers.values())
                    gone = sum(
                        float(layer.weight.detach()[~mask[n]].square().sum()) for n, layer in model.layers.items()
                    )
                    lost.append(gone / whole)

            method = RADMM(epochs=12, every=2, rho=rho, schedule=schedule(0.1))
            method(model, magnitudes(model), target(model, 0.7), context(callbacks=[Last()]))
            return lost[-1]

        assert cut(3.0) < 0.3 * cut(1e-6)

    def test_rho_grows_at_every_update_but_not_after_the_last_epoch(self) -> None:
        seen: list[float] = []

        class Watched(Callback):
            def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
                assert isinstance(model, ADMMNetwork)
                seen.append(float(model.rho))

        model = net()
        RADMM(epochs=6, every=2, rho=0.1)(model, magnitudes(model), target(model), context(callbacks=[Watched()]))
        assert seen == pytest.approx([0.1, 0.13, 0.13, 0.169, 0.169, 0.169])


class TestFlyingBird:
    def learner(self, sparsity: float = 0.5) -> DynamicNetwork:
        model = net()
        asked = target(model, sparsity)
        return DynamicNetwork(copy.deepcopy(model), first_mask(magnitudes(model), asked, None), asked)

    def test_a_move_drops_the_smallest_and_grows_as_many_others_at_0(self) -> None:
        learner = self.learner()
        before, weights = learner.mask(), {n: layer.weight.detach().clone() for n, layer in learner.layers.items()}
        learner.update_mask_(0.25, None, seeded(1))
        after = learner.mask()
        for name in before:
            kept = int(before[name].sum())
            dropped = before[name] & ~after[name]
            grown = after[name] & ~before[name]
            count = round(0.25 * kept)
            assert int(after[name].sum()) == kept
            assert int(grown.sum()) == int(dropped.sum()) == count
            if count:
                stayed = weights[name][before[name] & after[name]].abs().min()
                assert weights[name][dropped].abs().max() <= stayed
            weight = learner.layers[name].weight
            assert not weight[grown].any()
            assert torch.equal(weight[before[name] & after[name]], weights[name][before[name] & after[name]])
            assert not weight[~after[name]].any()

    def test_it_is_as_sparse_as_asked_at_every_step(self) -> None:
        model = net()
        seen: list[tuple[int, int]] = []

        class Watched(Callback):
            def after_step(self, model: nn.Module) -> None:
                assert isinstance(model, DynamicNetwork)
                weights = sum(int((layer.weight != 0).sum()) for layer in model.layers.values())
                seen.append((model.mask().nonzeros, weights))

        bird = FlyingBird(epochs=6, every=0.5, schedule=schedule(0.3))
        _, mask, _ = bird(model, magnitudes(model), target(model, 0.6), context(callbacks=[Watched()]))
        assert len({nonzeros for nonzeros, _ in seen}) == 1
        assert all(weights <= nonzeros for nonzeros, weights in seen)
        assert mask.nonzeros == seen[0][0]
        first = first_mask(magnitudes(model), target(model, 0.6), seeded(2))
        assert any(not torch.equal(mask[name], first[name]) for name in mask)

    def test_shares_fall_along_a_cosine_and_then_the_mask_rests(self) -> None:
        plan = UpdateSchedule(steps=100, every=10, first=0.5, last=0.005, rest=0.25)
        moves = {step: plan.drop_at(step) for step in range(1, 101) if plan.drop_at(step)}
        assert list(moves) == [10, 20, 30, 40, 50, 60, 70]
        for step, share in moves.items():
            assert share == pytest.approx(0.005 + 0.495 * (1 + math.cos(math.pi * step / 75)) / 2)
        assert all(a > b for a, b in itertools.pairwise(moves.values()))

    @pytest.mark.parametrize("bad", [{"every": 0.0}, {"drop": 1.0}, {"drop_last": 0.6}, {"rest": 1.0}, {"epochs": 0}])
    def test_settings_that_cannot_be_give_a_sentence(self, bad: dict[str, float]) -> None:
        with pytest.raises(InputError, match=next(iter(bad))):
            FlyingBird(**bad)  # type: ignore[arg-type]


class TestFlyingBirdPlus:
    def monitored(
        self, seen: list[tuple[float, float]], epochs: int = 8
    ) -> tuple[OverfittingMonitor, UpdateSchedule, DynamicNetwork]:
        learner = TestFlyingBird().learner()
        plan = UpdateSchedule(steps=100, every=10, first=0.5, last=0.005, rest=0.25)
        monitor = OverfittingMonitor(learner, plan, lambda model: {}, epochs=epochs, faster=0.4, slower=0.05)
        monitor.restore({"progress": torch.tensor(seen, dtype=torch.float64)})
        return monitor, plan, learner

    def test_grows_less_where_the_gap_widens_and_more_where_held_out_falls(self) -> None:
        overfits = [(1.0, 0.5), (0.9, 0.49), (0.8, 0.48), (0.7, 0.48), (0.6, 0.5)]
        assert self.monitored(overfits)[1].not_regrown == pytest.approx(0.4)
        assert self.monitored([*overfits[:-1], (0.6, 0.47)])[1].not_regrown == pytest.approx(0.35)
        assert self.monitored([(1.0, 0.5), (1.0, 0.5), (1.0, 0.5), (1.0, 0.5), (1.1, 0.4)])[
            1
        ].not_regrown == pytest.approx(-0.05)
        assert self.monitored([(1.0, 0.3), (0.9, 0.4), (0.8, 0.5), (0.7, 0.6), (0.6, 0.7)])[1].not_regrown == 0
        assert self.monitored(overfits[:3])[1].not_regrown == 0  # the first half of training

    def test_its_density_gives_way_and_ends_at_the_target(self) -> None:
        _, plan, learner = self.monitored([(1.0, 0.5), (0.9, 0.49), (0.8, 0.48), (0.7, 0.48), (0.6, 0.5)])
        asked = learner.mask().nonzeros
        learner.steps.fill_(40)
        learner.update_mask_(0.5, plan.counts(learner, 0.5), seeded(0))
        assert learner.mask().nonzeros < asked
        learner.steps.fill_(70)  # the last move
        learner.update_mask_(0.1, plan.counts(learner, 0.1), seeded(0))
        assert learner.mask().nonzeros == asked
        assert final_mask(learner).nonzeros == asked

    def test_without_held_out_images_it_says_so(self) -> None:
        model = net()
        with pytest.raises(InputError, match="needs held-out images"):
            FlyingBirdPlus(epochs=2)(model, magnitudes(model), target(model), context())


class TestMAD:
    def test_factors_are_those_of_kfac(self) -> None:
        """A from what a weight multiplies, G from the gradients of the summed loss, with plain loops."""
        model = net()
        x, y = torch.rand(3, *SHAPE, generator=seeded(3)), torch.arange(3) % 3
        inputs, gradients = inputs_and_output_gradients(model, x, y)
        a = unfold_inputs(model[0], inputs["0"])
        padded = F.pad(x, (1, 1, 1, 1))
        rows = [padded[b, :, i : i + 3, j : j + 3].flatten() for b in range(3) for i in range(4) for j in range(4)]
        torch.testing.assert_close(a, torch.stack(rows))
        weight = model[0].weight.detach().clone().requires_grad_()
        out = F.conv2d(x, weight, model[0].bias, padding=1)
        out.retain_grad()
        F.cross_entropy(model[4](out.relu().mean((2, 3))), y, reduction="sum").backward()
        g = flatten_gradients(gradients["0"])
        torch.testing.assert_close(g, out.grad.permute(0, 2, 3, 1).reshape(-1, 4))
        torch.testing.assert_close((g.T @ a).view_as(weight), weight.grad, atol=1e-5, rtol=1e-4)

    def test_the_importance_of_a_weight_is_that_of_the_formula(self) -> None:
        model = net()
        x, y = torch.rand(4, *SHAPE, generator=seeded(3)), torch.arange(4) % 3
        mad = MAD(fits=3)
        found = mad.importance(copy.deepcopy(model).requires_grad_(False), x, y)
        soft = mad.fit_masks(copy.deepcopy(model).requires_grad_(False), x, y)
        masked = copy.deepcopy(model)
        with torch.no_grad():
            for name, layer in prunable_layers(masked).items():
                layer.weight.mul_(soft[name])
        inputs, gradients = inputs_and_output_gradients(masked, x, y)
        for name, layer in prunable_layers(model).items():
            a, g = unfold_inputs(layer, inputs[name]), flatten_gradients(gradients[name])
            big_a = sum(torch.outer(row, row) for row in a) / len(x)
            taken = (layer.weight * (1 - soft[name])).detach().flatten(1)
            for j in range(len(taken)):
                curvature = float((g[:, j] ** 2).mean())
                spread = taken[j] @ big_a
                worth = [0.5 * curvature * float(taken[j, k]) * float(spread[k]) for k in range(taken.shape[1])]
                torch.testing.assert_close(found[name].flatten(1)[j], torch.tensor(worth), atol=1e-7, rtol=1e-4)

    def test_soft_masks_lie_in_0_1_and_lower_the_loss(self) -> None:
        model = net(3)
        x, y = torch.rand(9, *SHAPE, generator=seeded(3)), torch.arange(9) % 3
        soft = MAD(fits=40).fit_masks(model, x, y)
        assert all(float(mask.min()) >= 0 and float(mask.max()) <= 1 for mask in soft.values())
        other = copy.deepcopy(model)
        with torch.no_grad():
            before = F.cross_entropy(other(x), y)
            for name, layer in prunable_layers(other).items():
                layer.weight.mul_(soft[name])
            assert F.cross_entropy(other(x), y) < before - 0.005

    def test_a_mask_that_wants_to_grow_stays_at_1_and_may_come_back(self) -> None:
        """After every step the free values are projected, so that none is lost above 1 where the gradient is 0."""
        model = net(3).eval()
        x, y = torch.rand(9, *SHAPE, generator=seeded(3)), torch.arange(9) % 3
        free = {n: torch.full_like(m.weight, math.log(math.e - 1)) for n, m in prunable_layers(model).items()}
        adam = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in free.items()}
        for step in range(1, 6):
            leaves = {name: value.clone().requires_grad_() for name, value in free.items()}
            masked = {f"{n}.weight": model.get_submodule(n).weight * F.softplus(v) for n, v in leaves.items()}
            F.cross_entropy(functional_call(model, masked, (x,)), y).backward()
            for name, leaf in leaves.items():
                first, second = adam[name]
                first.mul_(0.9).add_(0.1 * leaf.grad)
                second.mul_(0.999).add_(0.001 * leaf.grad**2)
                move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                free[name] = (free[name] - 0.1 * move).clamp(math.log(math.expm1(1e-4)), math.log(math.e - 1))
        soft = MAD(fits=5).fit_masks(model, x, y)
        for name, value in free.items():
            torch.testing.assert_close(soft[name], F.softplus(value), atol=1e-4, rtol=1e-4)
        assert any(float((mask == 1).float().mean()) > 0.1 for mask in soft.values())

    def test_every_class_keeps_as_many_weights(self) -> None:
        worth = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0], [0.4, 0.1, 0.2, 0.3]])
        equal = equalise_rows(worth)
        assert torch.equal(equal.argsort(1), worth.argsort(1))
        torch.testing.assert_close(equal.sort(1).values, worth.sort(1).values.mean(0).expand(3, -1))
        kept = equal.flatten() >= equal.flatten().sort(descending=True).values[5]
        assert kept.view(3, 4).sum(1).tolist() == [2, 2, 2]

    def test_trains_nothing(self) -> None:
        model = net()
        mad = MAD(fits=2, attack=PGD(steps=1, keep_best=False))
        pruned, mask, history = mad(model, magnitudes(model), target(model, 0.6), context())
        assert history == []
        for name, layer in prunable_layers(pruned).items():
            assert torch.equal(layer.weight, model.get_submodule(name).weight * mask[name])
