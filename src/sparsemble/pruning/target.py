"""Sparsity targets: how much of a network is removed, and the mask that does so exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.argument_checks import check_interval
from sparsemble.core.errors import InputError
from sparsemble.models.graph import Graph
from sparsemble.pruning.budget import Budget
from sparsemble.pruning.budgets.weights import Weights
from sparsemble.pruning.channels import Channels
from sparsemble.pruning.granularities.weight import Weight
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.layer_rates import KeepRates, LayerRates
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.rates.uniform import Uniform
from sparsemble.pruning.score import Scores

BISECTIONS = 100


@final
@dataclass(frozen=True, kw_only=True)
class SparsityTarget:
    """The sparsity of a network: granularity, budget and the division of the budget among layers.

    Masks meet it exactly: no layer can keep one more group of weights within the budget (single weights: within half a
    weight).

    Source: EED main paper, eq. 3. Departs: sparsity is a fraction of the weights, not a count (as printed, a count is
    bounded by a fraction).
    """

    graph: Graph
    """Operations of the network that is pruned."""
    sparsity: float
    """Fraction of the dense cost to remove, in [0, 1)."""
    granularity: Granularity = Weight()
    """Groups of weights that are kept or removed together."""
    budget: Budget = Weights()
    """The cost that sparsity is a fraction of."""
    rates: LayerRates = Uniform()
    """Divides the budget among layers."""
    floor: float = 0.1
    """Lowest keep rate of a layer, as a share of 1 - sparsity, in [0, 1); at least one group of a layer stays."""

    def __post_init__(self) -> None:
        check_interval("[0, 1)", sparsity=self.sparsity, floor=self.floor)
        self.granularity.check(self.shapes, self.sparsity)
        minimum_cost = float(self._cost(self._minimum_counts()).sum())
        if self.granularity.whole_channels:
            minimum_cost = self.channels.cost_of(self.channels.minimum_counts())
        if minimum_cost > self.max_cost:
            raise InputError(
                f"sparsity = {self.sparsity:g} would empty one of the {len(self.shapes)} layers: one group of each is "
                f"{minimum_cost / self.dense_cost:.2%} of the budget; lower the sparsity"
            )

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the prunable weights, by layer."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in self.graph.layers().items():
            assert isinstance(layer.module, nn.Conv2d | nn.Linear)
            shapes[name] = tuple(layer.module.weight.shape)
        return shapes

    @cached_property
    def sizes(self) -> Tensor:
        """Weights of each layer, (L), float64."""
        return torch.tensor([torch.Size(shape).numel() for shape in self.shapes.values()], dtype=torch.float64)

    @cached_property
    def positions(self) -> Tensor:
        """How often each layer uses a weight for one image, (L), float64."""
        return torch.tensor([layer.positions for layer in self.graph.layers().values()], dtype=torch.float64)

    @cached_property
    def channels(self) -> Channels:
        """The channel groups, for masks of whole channels."""
        return Channels(self.graph, self.shapes, self._cost)

    @property
    def dense_cost(self) -> float:
        """The cost of the dense network."""
        return float(self._cost(self.sizes).sum())

    @property
    def max_cost(self) -> float:
        """The highest cost of a mask: the budget, rounded to the nearest cheapest weight."""
        cheapest = float(self._cost(torch.ones_like(self.sizes)).min())
        return (1 - self.sparsity) * self.dense_cost + cheapest / 2

    def budget_violation(self, keep_rates: Tensor) -> Tensor:
        """Return the share by which keep rates (L) exceed the budget, at least 0; differentiable.

        Source: EED supplement, eq. 25. Departs: a differentiable count.
        """
        sizes, positions = self.sizes.to(keep_rates.device), self.positions.to(keep_rates.device)
        spent = self.budget.cost(keep_rates * sizes, sizes, positions).sum()
        return (spent / ((1 - self.sparsity) * self.dense_cost) - 1).clamp_min(0).to(keep_rates.dtype)

    def keep(self, name: str, scores: Tensor, count: int) -> Tensor:
        """Return which weights of one layer stay, without regard to the other layers.

        Args:
            name: of the layer.
            scores: of its weights.
            count: weights to keep; the granularity may allow only the nearest possible number.
        """
        if self.granularity.whole_channels and not self.channels.is_free(name):
            return torch.ones_like(scores, dtype=torch.bool)
        return self.granularity.keep(scores, min(count, self.granularity.capacity(tuple(scores.shape))))

    def counts(self, scores: Scores, keep_rates: KeepRates | None = None) -> dict[str, int]:
        """Return how many weights each layer keeps; `keep_rates`, by level, replace `rates`."""
        if self.granularity.whole_channels:
            return {name: int(keep.sum()) for name, keep in self.mask(scores, keep_rates).items()}
        rates = keep_rates or self.rates.keep_rates(scores)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fits = float(self._cost(self._exact_counts(rates(middle))).sum()) <= self.max_cost
            low, high = (middle, high) if fits else (low, middle)
        return self._fill_budget(self._exact_counts(rates(low)).floor(), rates(high))

    def mask(self, scores: Scores, keep_rates: KeepRates | None = None) -> Mask:
        """Return the exact mask of the highest scores; `keep_rates`, by level, replace `rates`."""
        self._check_scores(scores)
        if self.granularity.whole_channels:
            return self.channels.mask(scores, self.rates, keep_rates, self.max_cost)
        counts = self.counts(scores, keep_rates)
        return Mask({name: self.granularity.keep(score, counts[name]) for name, score in scores.items()})

    def _cost(self, counts: Tensor) -> Tensor:
        return self.budget.cost(counts, self.sizes, self.positions)

    def _capacity(self) -> Tensor:
        return torch.tensor([self.granularity.capacity(shape) for shape in self.shapes.values()], dtype=torch.float64)

    def _minimum_counts(self) -> Tensor:
        floors = (self.floor * (1 - self.sparsity) * self.sizes).floor().clamp_min(1)
        fits = float(self._cost(floors).sum()) <= self.max_cost
        return torch.minimum(floors, self._capacity()) if fits else torch.ones_like(floors)

    def _exact_counts(self, rates: Mapping[str, float]) -> Tensor:
        """Return the weights that keep rates require, between floor and capacity, not rounded."""
        exact = torch.tensor([rates[name] for name in self.shapes], dtype=torch.float64) * self.sizes
        return torch.minimum(torch.maximum(exact, self._minimum_counts()), self._capacity())

    def _fill_budget(self, counts: Tensor, rates: Mapping[str, float]) -> dict[str, int]:
        """Spend the remaining budget one weight at a time, on the layers that were rounded down the most."""
        exact_counts, capacity = self._exact_counts(rates), self._capacity()
        changed = True
        while changed:
            changed = False
            for i in (exact_counts - counts).argsort(descending=True, stable=True).tolist():
                larger = counts.clone()
                larger[i] += 1
                cost = float(self._cost(larger).sum())
                if larger[i] <= capacity[i] and cost <= self.max_cost:
                    counts, changed = larger, True
        return dict(zip(self.shapes, (int(count) for count in counts.tolist()), strict=True))

    def _check_scores(self, scores: Scores) -> None:
        for name in scores.keys() ^ self.shapes.keys():
            raise InputError(f"scores and network differ in layer {name}; the scores belong to another architecture")
        for name, score in scores.items():
            if tuple(score.shape) != self.shapes[name]:
                raise InputError(
                    f"layer {name} has weights {self.shapes[name]} and scores {tuple(score.shape)}; give each a score"
                )
            if score.isnan().any():
                raise InputError(f"the scores of layer {name} are NaN; the model has NaN weights or gradients")
