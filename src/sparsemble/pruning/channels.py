"""Masks of whole channels: the rows of the layers that compute them and the columns of the layers that read them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsemble.models.channel_groups import ChannelGroup, channel_groups
from sparsemble.models.graph import Graph
from sparsemble.pruning.layer_rates import KeepRates, LayerRates
from sparsemble.pruning.mask import Mask, keep_top
from sparsemble.pruning.score import Scores

BISECTIONS = 60


class Channels:
    """The channel groups of a network, and masks that remove channels of those that are free; `cost` is (L) to (L)."""

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]], cost: Callable[[Tensor], Tensor]) -> None:
        self.shapes, self.cost = shapes, cost
        self.groups = channel_groups(graph)
        group_of = {name: i for i, group in enumerate(self.groups) for name in group.operations}
        self.written = {name: group_of[name] for name in shapes}
        """Group of the output channels of each layer."""
        self.read = {name: group_of[graph.by_name[name].inputs[0]] for name in shapes}
        """Group of the input channels of each layer."""

    def is_free(self, name: str) -> bool:
        """Return whether output channels of a layer can be removed."""
        return self.groups[self.written[name]].free

    def minimum_counts(self) -> list[int]:
        """Return the fewest channels of each group: one, or all where none can be removed."""
        return [1 if group.free else group.channels for group in self.groups]

    def cost_of(self, counts: list[int]) -> float:
        """Return the cost of keeping `counts` channels of each group."""
        weights = [counts[self.written[name]] * counts[self.read[name]] * self._taps(name) for name in self.shapes]
        return float(self.cost(torch.tensor(weights, dtype=torch.float64)).sum())

    def mask(self, scores: Scores, rates: LayerRates, keep_rates: KeepRates | None, max_cost: float) -> Mask:
        """Return the mask that keeps the best channels, as many that no group can keep one more.

        Args:
            scores: of the weights, by layer.
            rates: divides the channels among groups.
            keep_rates: keep rates of layers by level, in place of `rates`.
            max_cost: upper limit of the cost.
        """
        importance = {i: self._importance(group, scores) for i, group in enumerate(self.groups) if group.free}
        by_group = {str(i): value for i, value in importance.items()}
        levels = self._by_group(keep_rates) if keep_rates else rates.keep_rates(by_group)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fits = self.cost_of(self._rounded_down(levels(middle))) <= max_cost
            low, high = (middle, high) if fits else (low, middle)
        counts = self._fill_budget(self._rounded_down(levels(low)), max_cost)
        stays = [
            keep_top(importance[i], counts[i]) if group.free else torch.ones(group.channels, dtype=torch.bool)
            for i, group in enumerate(self.groups)
        ]
        return Mask({name: self._layer_mask(name, score, stays) for name, score in scores.items()})

    def _importance(self, group: ChannelGroup, scores: Scores) -> Tensor:
        """Return the mean score of each channel over the weights that compute it, with equal weight for each layer."""
        rows = [scores[name].detach().flatten(1).mean(1).double() for name in group.producers]
        return torch.stack(rows).mean(0)

    def _by_group(self, keep_rates: KeepRates) -> KeepRates:
        """Turn keep rates of layers into keep rates of groups: the mean over the layers that compute one."""

        def rates(level: float) -> dict[str, float]:
            by_layer = keep_rates(level)
            return {
                str(i): sum(by_layer[name] for name in group.producers) / len(group.producers)
                for i, group in enumerate(self.groups)
                if group.free
            }

        return rates

    def _rounded_down(self, rates: Mapping[str, float]) -> list[int]:
        return [
            max(int(rates[str(i)] * group.channels), 1) if group.free else group.channels
            for i, group in enumerate(self.groups)
        ]

    def _fill_budget(self, counts: list[int], max_cost: float) -> list[int]:
        """Add channels one at a time, first where the largest fraction is missing, while the budget allows it."""
        changed = True
        while changed:
            changed = False
            missing = [1 - count / group.channels for count, group in zip(counts, self.groups, strict=True)]
            for i in sorted(range(len(counts)), key=lambda i: -missing[i]):
                larger = [count + (i == j) for j, count in enumerate(counts)]
                if missing[i] > 0 and self.cost_of(larger) <= max_cost:
                    counts, changed = larger, True
        return counts

    def _taps(self, name: str) -> int:
        """Return the weights that lead from one input channel to one output channel."""
        shape = self.shapes[name]
        return torch.Size(shape).numel() // shape[0] // self.groups[self.read[name]].channels

    def _layer_mask(self, name: str, score: Tensor, stays: list[Tensor]) -> Tensor:
        """Return the mask of a layer: kept rows times kept columns."""
        rows = stays[self.written[name]].to(score.device)
        columns = stays[self.read[name]].to(score.device)
        table = rows[:, None, None] & columns[None, :, None]
        return table.expand(-1, -1, score[0].numel() // len(columns)).reshape(score.shape).contiguous()
