"""Masks of whole channels: rows of the layers that make them, columns of those that read them."""

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
    """The channels of a network that can be taken out.

    Args:
        graph: of the network.
        shapes: of its weights, by layer.
        cost: of the weights that layers keep, (L) to (L).
    """

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]], cost: Callable[[Tensor], Tensor]) -> None:
        self.shapes, self.cost = shapes, cost
        found = channel_groups(graph)
        place = {name: i for i, space in enumerate(found) for name in space.operations}
        self.channel_groups = found
        self.written = {name: place[name] for name in shapes}
        self.read = {name: place[graph.by_name[name].inputs[0]] for name in shapes}

    def free(self, name: str) -> bool:
        """Say whether output channels of a layer can be taken out."""
        return self.channel_groups[self.written[name]].free

    def fewest(self) -> list[int]:
        """Return one channel for each space, all where none can be taken out."""
        return [1 if space.free else space.channels for space in self.channel_groups]

    def spent(self, kept: list[int]) -> float:
        """Return the cost of keeping so many channels of each space."""
        weights = [kept[self.written[name]] * kept[self.read[name]] * self._taps(name) for name in self.shapes]
        return float(self.cost(torch.tensor(weights, dtype=torch.float64)).sum())

    def mask(self, scores: Scores, rates: LayerRates, keep_rates: KeepRates | None, allowed: float) -> Mask:
        """Return the mask that keeps the best channels, so many that no space can keep one more.

        Args:
            scores: of the weights.
            rates: divides the channels among spaces.
            family: keep rates of layers by level, in place of `rates`.
            allowed: what may be spent.
        """
        worth = {i: self._worth(space, scores) for i, space in enumerate(self.channel_groups) if space.free}
        levels = (
            self._by_space(keep_rates)
            if keep_rates
            else rates.keep_rates({str(i): value for i, value in worth.items()})
        )
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            fits = self.spent(self._kept(levels(middle))) <= allowed
            low, high = (middle, high) if fits else (low, middle)
        kept = self._filled(self._kept(levels(low)), allowed)
        stays = [
            keep_top(worth[i], kept[i]) if space.free else torch.ones(space.channels, dtype=torch.bool)
            for i, space in enumerate(self.channel_groups)
        ]
        return Mask({name: self._crossed(name, score, stays) for name, score in scores.items()})

    def _worth(self, space: ChannelGroup, scores: Scores) -> Tensor:
        """Return the mean score of each channel over the weights that make it, layers weighing alike."""
        rows = [scores[name].detach().flatten(1).mean(1).double() for name in space.producers]
        return torch.stack(rows).mean(0)

    def _by_space(self, keep_rates: KeepRates) -> KeepRates:
        """Turn rates of layers into rates of spaces: the mean over the layers that make one."""

        def rates(level: float) -> dict[str, float]:
            own = keep_rates(level)
            return {
                str(i): sum(own[name] for name in space.producers) / len(space.producers)
                for i, space in enumerate(self.channel_groups)
                if space.free
            }

        return rates

    def _kept(self, rates: Mapping[str, float]) -> list[int]:
        return [
            max(int(rates[str(i)] * space.channels), 1) if space.free else space.channels
            for i, space in enumerate(self.channel_groups)
        ]

    def _filled(self, kept: list[int], allowed: float) -> list[int]:
        """Put channels back one at a time, first where the largest share is missing, while the budget allows it."""
        going = True
        while going:
            going = False
            missing = [1 - count / space.channels for count, space in zip(kept, self.channel_groups, strict=True)]
            for i in sorted(range(len(kept)), key=lambda i: -missing[i]):
                more = [count + (i == j) for j, count in enumerate(kept)]
                if missing[i] > 0 and self.spent(more) <= allowed:
                    kept, going = more, True
        return kept

    def _taps(self, name: str) -> int:
        """Return the weights that lead from one input channel to one output channel."""
        shape = self.shapes[name]
        return torch.Size(shape).numel() // shape[0] // self.channel_groups[self.read[name]].channels

    def _crossed(self, name: str, score: Tensor, stays: list[Tensor]) -> Tensor:
        rows = stays[self.written[name]].to(score.device)
        columns = stays[self.read[name]].to(score.device)
        table = rows[:, None, None] & columns[None, :, None]
        return table.expand(-1, -1, score[0].numel() // len(columns)).reshape(score.shape).contiguous()
