"""How much of a network a method shall leave, and the exact mask that does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn

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
    """Sparsity of a network, in pieces, by a budget, divided among its layers.

    Reached exactly: no layer can keep one more piece within the budget (of weights: within half a weight).

    Source: EED main paper, eq. 3. Departs: a fraction of the weights (as printed, a count is bounded by a fraction).
    """

    graph: Graph
    """Of the network that is pruned."""
    sparsity: float
    """Share of the budget to take away, in [0, 1)."""
    granularity: Granularity = Weight()
    budget: Budget = Weights()
    rates: LayerRates = Uniform()
    floor: float = 0.1
    """Least keep rate of a layer, as a share of 1 - sparsity, in [0, 1); at least one piece of a layer stays."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity = {self.sparsity:g} must lie in [0, 1)")
        if not 0 <= self.floor < 1:
            raise InputError(f"floor = {self.floor:g} must lie in [0, 1)")
        self.granularity.check(self.shapes, self.sparsity)
        least = float(self._cost(self._least()).sum())
        if self.granularity.whole_channels:
            least = self.channels.spent(self.channels.fewest())
        if least > self.allowed:
            raise InputError(
                f"sparsity = {self.sparsity:g} would empty one of the {len(self.shapes)} layers: one piece of each is "
                f"{least / self.whole:.2%} of the budget; lower the sparsity"
            )

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the prunable weights, by layer."""
        found: dict[str, tuple[int, ...]] = {}
        for name, layer in self.graph.layers().items():
            assert isinstance(layer.module, nn.Conv2d | nn.Linear)
            found[name] = tuple(layer.module.weight.shape)
        return found

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
        """The channels that stand or fall together."""
        return Channels(self.graph, self.shapes, self._cost)

    @property
    def whole(self) -> float:
        """What the dense network costs."""
        return float(self._cost(self.sizes).sum())

    @property
    def allowed(self) -> float:
        """What may be spent: the budget, rounded to the nearest cheapest weight."""
        cheapest = float(self._cost(torch.ones_like(self.sizes)).min())
        return (1 - self.sparsity) * self.whole + cheapest / 2

    def budget_violation(self, keep_rates: Tensor) -> Tensor:
        """Return by what share keep rates (L) exceed the budget, at least 0; differentiable (method.md 2.2)."""
        sizes, positions = self.sizes.to(keep_rates.device), self.positions.to(keep_rates.device)
        spent = self.budget.cost(keep_rates * sizes, sizes, positions).sum()
        return (spent / ((1 - self.sparsity) * self.whole) - 1).clamp_min(0).to(keep_rates.dtype)

    def keep(self, name: str, scores: Tensor, count: int) -> Tensor:
        """Return which weights of one layer stay while others still change: `count` of them, or what fits best."""
        if self.granularity.whole_channels and not self.channels.free(name):
            return torch.ones_like(scores, dtype=torch.bool)
        return self.granularity.keep(scores, min(count, self.granularity.capacity(tuple(scores.shape))))

    def counts(self, scores: Scores, keep_rates: KeepRates | None = None) -> dict[str, int]:
        """Divide the budget: how many weights each layer keeps.

        Args:
            scores: of the weights.
            family: keep rates by level, if not those of `rates`.
        """
        if self.granularity.whole_channels:
            return {name: int(keep.sum()) for name, keep in self.mask(scores, keep_rates).items()}
        rates = keep_rates or self.rates.keep_rates(scores)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fits = float(self._cost(self._wanted(rates(middle))).sum()) <= self.allowed
            low, high = (middle, high) if fits else (low, middle)
        return self._filled(self._wanted(rates(low)).floor(), rates(high))

    def mask(self, scores: Scores, keep_rates: KeepRates | None = None) -> Mask:
        """Return the exact mask of the highest scores.

        Raises:
            InputError: NaN scores, or scores of another network.
        """
        self._check_scores(scores)
        if self.granularity.whole_channels:
            return self.channels.mask(scores, self.rates, keep_rates, self.allowed)
        counts = self.counts(scores, keep_rates)
        return Mask({name: self.granularity.keep(score, counts[name]) for name, score in scores.items()})

    def _cost(self, kept: Tensor) -> Tensor:
        return self.budget.cost(kept, self.sizes, self.positions)

    def _capacity(self) -> Tensor:
        return torch.tensor([self.granularity.capacity(shape) for shape in self.shapes.values()], dtype=torch.float64)

    def _least(self) -> Tensor:
        floors = (self.floor * (1 - self.sparsity) * self.sizes).floor().clamp_min(1)
        return torch.minimum(floors, self._capacity()) if self._floors_fit(floors) else torch.ones_like(floors)

    def _floors_fit(self, floors: Tensor) -> bool:
        return float(self._cost(floors).sum()) <= self.allowed

    def _wanted(self, rates: Mapping[str, float]) -> Tensor:
        """Return the weights that keep rates ask for, between floor and capacity; not whole yet."""
        exact = torch.tensor([rates[name] for name in self.shapes], dtype=torch.float64) * self.sizes
        return torch.minimum(torch.maximum(exact, self._least()), self._capacity())

    def _filled(self, kept: Tensor, rates: Mapping[str, float]) -> dict[str, int]:
        """Spend what is left one weight at a time, on the layers that were rounded down the most."""
        wanted, capacity = self._wanted(rates), self._capacity()
        going = True
        while going:
            going = False
            for i in (wanted - kept).argsort(descending=True, stable=True).tolist():
                more = kept.clone()
                more[i] += 1
                cost = float(self._cost(more).sum())
                if more[i] <= capacity[i] and cost <= self.allowed:
                    kept, going = more, True
        return dict(zip(self.shapes, (int(count) for count in kept.tolist()), strict=True))

    def _check_scores(self, scores: Scores) -> None:
        for name in scores.keys() ^ self.shapes.keys():
            raise InputError(f"scores and network differ in layer {name}; the scores belong to another architecture")
        for name, score in scores.items():
            if score.isnan().any():
                raise InputError(f"the scores of layer {name} are NaN; the model has NaN weights or gradients")
