"""HARP's budget, gradients and exact result; one-shot pruning."""

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels
from sparsemble.models.graph import Graph
from sparsemble.pruning import Mask, prunable_layers, pruning_methods
from sparsemble.pruning.budget import budgets
from sparsemble.pruning.learned_mask import ScoredNetwork
from sparsemble.pruning.methods.harp import HARP, BudgetTerm, KeepRate, projected_keep_rates
from sparsemble.pruning.methods.one_shot import OneShot
from sparsemble.pruning.score import rescale
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.loss import LossOutput, TrainingLoss
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.schedule import Schedule
from tests.helpers import Interrupt, Shape, examples, magnitudes, tiny_model
from tests.helpers import pruning_context as context
from tests.helpers import sparsity_target as target


def make() -> nn.Module:
    return tiny_model().eval()


HARP_QUICK = HARP(epochs=2, penalty=0.1)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


@dataclass(frozen=True, kw_only=True)
class TwoPasses(TrainingLoss):
    """Cross-entropy after a pass without gradients, as attacks make; counts its calls."""

    calls: list[nn.Module]

    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        with torch.no_grad():
            model(x)
        self.calls.append(model)
        return LossOutput(F.cross_entropy(model(x), y))


class Catch(Callback):
    def __init__(self, models: list[Any]) -> None:
        self.models = models

    def after_step(self, model: nn.Module) -> None:
        if not self.models:
            self.models.append(copy.deepcopy(model))


class Learner(NamedTuple):
    """What HARP trains."""

    network: ScoredNetwork
    rates: dict[str, KeepRate]
    budget: BudgetTerm

    def final_mask(self) -> Mask:
        return self.network.final_mask(projected_keep_rates(self.rates))


def learner(keep: float = 0.5, network: nn.Module | None = None, shape: Shape = (3, 2, 2), **harp: Any) -> Learner:
    network = network or nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    settings, asked, scores = HARP(**harp), target(network, 1 - keep, shape), rescale(magnitudes(network))
    rates = settings.initial_rates(scores, asked)
    masked = ScoredNetwork(network, scores, asked, free_norms=True, keep_rates=rates)
    return Learner(masked, rates, BudgetTerm(rates, asked, settings.penalty))


class TestEveryMethod:
    @pytest.mark.parametrize("method", [HARP_QUICK, OneShot()], ids=lambda method: method.name)
    @pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.3, 0.8, 0.95, 0.99])
    def test_prunes_exactly_and_leaves_the_given_model_as_found(self, method: Any, sparsity: float) -> None:
        model = make()
        before = copy.deepcopy(model.state_dict())
        pruned, mask, history = method(model, magnitudes(model), target(model, sparsity), context())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        total = mask.total
        assert mask.nonzeros == math.floor((1 - sparsity) * total + 0.5)
        assert all(keep.any() for keep in mask.values())
        assert Mask.of(pruned).nonzeros == mask.nonzeros
        for name, layer in prunable_layers(pruned).items():
            assert torch.equal(layer.weight, torch.where(mask[name], before[f"{name}.weight"], 0.0))
            assert type(layer) in (nn.Conv2d, nn.Linear)
        assert pruned.state_dict().keys() == before.keys()
        assert all(parameter.requires_grad for parameter in pruned.parameters())
        assert len(history) == (2 if method is HARP_QUICK and sparsity else 0)

    @pytest.mark.parametrize("name", sorted(pruning_methods.components))
    def test_a_sparsity_that_empties_a_layer_gives_a_sentence_before_any_work(self, name: str) -> None:
        model, calls = make(), []
        run, given = pruning_methods.build(name), context(TwoPasses(calls=calls))
        with pytest.raises(InputError, match=r"sparsity = 0.995 would empty one of the 8 layers.*lower the sparsity"):
            run(model, magnitudes(model), target(model, 0.995), given)
        assert not calls

    def test_one_shot_keeps_the_best_of_every_layer(self) -> None:
        model = make()
        scores = magnitudes(model)
        _, mask, _ = OneShot()(model, scores, target(model, 0.7), context())
        for name, keep in mask.items():
            assert abs(keep.float().mean() - 0.3) <= 1 / keep.numel()
            assert scores[name][keep].min() >= scores[name][~keep].max()


class TestBudget:
    @given(st.lists(st.floats(-8, 8), min_size=2, max_size=2), st.floats(0.02, 0.9))
    @examples(60)
    def test_the_violation_is_0_exactly_within_the_budget(self, quotas: list[float], keep: float) -> None:
        """EED supplement, eq. 25."""
        masks = learner(keep)
        for rate, quota in zip(masks.rates.values(), quotas, strict=True):
            rate.quota.data.fill_(quota)
        sizes = [60, 15]
        least = 0.1 * keep
        rates = [least + (1 - least) / (1 + math.exp(-quota)) for quota in quotas]
        exact = sum(n * rate for n, rate in zip(sizes, rates, strict=True)) / (keep * sum(sizes)) - 1
        budget_violation = float(masks.budget.violation().detach())
        assert budget_violation == pytest.approx(max(exact, 0), abs=1e-5)
        if abs(exact) > 1e-5:
            assert (budget_violation == 0) == (exact < 0)

    @given(st.floats(-6, 6))
    @examples(30)
    def test_the_mask_of_a_layer_keeps_what_its_quota_says(self, quota: float) -> None:
        masks = learner(0.3)
        for name, keep_rate in masks.rates.items():
            keep_rate.quota.data.fill_(quota)
            weight, rate = masks.network.layers[name].weight, keep_rate().detach().item()
            kept = int((weight != 0).sum())
            assert kept == weight.numel() - math.floor((1 - rate) * weight.numel())
            assert abs(kept / weight.numel() - rate) <= 1 / weight.numel()

    def test_starts_at_a_multiple_of_the_target_or_halfway_to_1(self) -> None:
        assert all(rate().detach().item() == pytest.approx(0.2) for rate in learner(0.1).rates.values())
        assert all(rate().detach().item() == pytest.approx(0.95) for rate in learner(0.9).rates.values())

    def test_the_last_projection_shifts_all_quotas_by_the_same_amount(self) -> None:
        masks = learner(0.4)
        for keep_rate, quota in zip(masks.rates.values(), (-1.0, 2.0), strict=True):
            keep_rate.quota.data.fill_(quota)
        found = masks.final_mask()
        assert found.nonzeros == 30
        shifts = []
        for (name, keep), quota in zip(found.items(), (-1.0, 2.0), strict=True):
            rate = (float(keep.float().mean()) - 0.04) / 0.96
            shifts.append(math.log(rate / (1 - rate)) - quota)
            scores = masks.network.masks[name].scores.abs()
            assert scores[keep].min() >= scores[~keep].max()
        assert shifts[0] == pytest.approx(shifts[1], abs=0.3)  # whole weights

    @pytest.mark.parametrize("quota", [-1e3, -1e30, 1e3])
    def test_a_quota_beyond_what_exp_can_hold_is_no_obstacle(self, quota: float) -> None:
        masks = learner(0.4)
        next(iter(masks.rates.values())).quota.data.fill_(quota)
        found = masks.final_mask()
        assert found.nonzeros == 30
        second = list(found.values())[1]
        # The layer that ran away gets all it can, or the least that the other leaves.
        assert second.float().mean() < 0.1 if quota > 0 else second.all()

    @pytest.mark.parametrize(("initial_keep", "expected"), [(2.0, [0.1, 0.2, 0.3]), (1.0, [0.1, 0.1, 0.1])])
    def test_its_weight_grows_until_it_is_met(self, initial_keep: float, expected: list[float]) -> None:
        model = make()
        slow = HARP(
            epochs=3,
            penalty=0.1,
            initial_keep=initial_keep,
            schedule=Schedule(learning_rate=1e-9, lr_schedule=Cosine()),
        )
        _, _, history = slow(model, magnitudes(model), target(model, 0.9), context())
        assert [record["budget_weight"] for record in history] == pytest.approx(expected)

    def test_is_met_by_learning(self) -> None:
        model = make()
        quick = HARP(epochs=6, penalty=1.0)
        _, _, history = quick(model, magnitudes(model), target(model, 0.7), context())
        assert history[0]["budget_violation"] > 0.1
        assert history[-1]["budget_violation"] < 0.02

    @pytest.mark.parametrize(
        "bad", [{"epochs": 0}, {"penalty": -1.0}, {"floor": 0.0}, {"floor": 1.0}, {"initial_keep": 0.1}]
    )
    def test_settings_that_cannot_be_give_a_sentence(self, bad: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(bad))):
            HARP(**bad)


class TestLearning:
    def test_masked_weights_are_the_dense_ones_or_0(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 50))
        dense = network[1].weight.detach().clone()
        learner(0.25, network)
        weight = network[1].weight  # masked
        assert torch.equal(weight, torch.where(weight != 0, dense, 0.0))

    def test_gradients_pass_straight_through_the_mask(self) -> None:
        """d loss / d |s| = dL / dM for every weight, and d loss / d k = sum dL / dM."""
        learned = learner(0.4)
        masks = learned.network
        x, y = torch.rand(7, 3, 2, 2), torch.arange(7) % 3
        layers = prunable_layers(masks.network)
        dense = {name: layer.parametrizations.weight.original.detach() for name, layer in layers.items()}
        hard = {name: (layer.weight != 0).float().requires_grad_() for name, layer in layers.items()}
        for mask in masks.masks.values():
            mask.scores.data[::2] *= -1  # only |s| counts
        F.cross_entropy(masks(x), y).backward()

        hidden = F.linear(x.flatten(1), dense["1"] * hard["1"], layers["1"].bias).relu()
        F.cross_entropy(F.linear(hidden, dense["3"] * hard["3"], layers["3"].bias), y).backward()
        for name, mask in masks.masks.items():
            wanted = hard[name].grad
            assert wanted.abs().max() > 0
            torch.testing.assert_close(mask.scores.grad * mask.scores.sign(), wanted)
            rate = learned.rates[name]
            slope = (1 - rate.minimum) * rate.quota.sigmoid() * (1 - rate.quota.sigmoid())
            torch.testing.assert_close(rate.quota.grad, wanted.sum() * slope.detach())

    def test_weights_and_biases_are_frozen_and_batchnorm_is_not(self) -> None:
        model = make()
        masks = learner(0.5, model, (1, 8, 8))
        free = {name for name, parameter in masks.network.named_parameters() if parameter.requires_grad}
        norms = {f"network.{n}" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
        learned = {name for name in free if name.endswith(("0.scores", "0.kept.quota"))}
        assert len(learned) == 2 * len(prunable_layers(model))
        assert free - learned == {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")}

    def test_scores_and_quotas_learn_from_an_attack_that_starts_without_gradients(self) -> None:
        """Masked weights are computed once a batch; that computation must carry gradients."""
        model = make()
        loss = PGDAT(attack=PGD(steps=1, keep_best=True))
        harp = HARP(epochs=1, penalty=0.0, initial_keep=1.0)
        learned: list[Any] = []
        harp(model, magnitudes(model), target(model, 0.5), context(loss, callbacks=[Catch(learned)]))
        first, start = rescale(magnitudes(model)), math.log((0.5 - 0.05) / 0.5)
        for name, mask in learned[0].masks.items():
            assert not torch.equal(mask.scores, first[name])
            assert mask.kept.quota.item() != pytest.approx(start, abs=1e-6)

    def test_moves_batchnorm_of_the_result_only(self) -> None:
        model = make()
        pruned, _, _ = HARP_QUICK(model, magnitudes(model), target(model, 0.5), context())
        assert not torch.equal(pruned.body.norm.running_mean, model.body.norm.running_mean)
        assert not torch.equal(pruned.body.norm.weight, model.body.norm.weight)
        assert torch.equal(pruned.body.linear.bias, model.body.linear.bias)

    def test_goes_on_from_a_checkpoint(self, tmp_path: Any) -> None:
        model, harp = make(), HARP(epochs=4, penalty=0.1)
        whole = harp(model, magnitudes(model), target(model, 0.8), context())
        checkpoint = Checkpoint(tmp_path)
        interrupted = context(callbacks=[Interrupt(3)], checkpoint=checkpoint)
        with pytest.raises(KeyboardInterrupt):
            harp(model, magnitudes(model), target(model, 0.8), interrupted)
        again = harp(
            model, magnitudes(model), target(model, 0.8), context(callbacks=[Callback()], checkpoint=checkpoint)
        )
        assert all(torch.equal(whole.mask[name], again.mask[name]) for name in whole.mask)
        state = again.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in whole.model.state_dict().items())


class TestOtherBudgets:
    @pytest.mark.parametrize("budget", ["macs", "bytes"])
    def test_rates_are_learned_under_any_budget(self, budget: str) -> None:
        model = make()
        asked = SparsityTarget(graph=Graph(model, (1, 8, 8)), sparsity=0.7, budget=budgets.build(budget))
        quick = HARP(epochs=6, penalty=1.0)
        _, mask, history = quick(model, magnitudes(model), asked, context())
        assert history[0]["budget_violation"] > 0.1
        assert history[-1]["budget_violation"] < 0.05
        kept = torch.tensor([float(mask[name].sum()) for name in asked.shapes], dtype=torch.float64)
        spent = float(asked.budget.cost(kept, asked.sizes, asked.positions).sum())
        assert 0.98 * asked.max_cost < spent <= asked.max_cost
        assert len({round(float(keep.float().mean()), 2) for keep in mask.values()}) > 2, "rates are the layers' own"
