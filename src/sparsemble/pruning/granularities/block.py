"""Blocks of weights of neighbouring outputs or inputs."""

from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.pruning.granularity import Granularity, granularities
from sparsemble.pruning.mask import keep_top

LARGEST = 64
"""Channels of the largest block."""


@final
@granularities.register("block")
@dataclass(frozen=True, kw_only=True)
class Block(Granularity):
    """Weights of `size` neighbouring channels stay or go together, at one kernel position.

    Along `out` they are of neighbouring output channels and read the same input; along `in` they are of one output and
    read neighbouring input channels. Blocks are ranked by their mean score. The last block of a layer is smaller where
    its channels do not fill it, and one block a layer is kept in part where the count requires it.
    """

    size: int = 4
    """Channels of a block, 2 to 64; 4 and 8 run fastest in the engine."""
    axis: Literal["out", "in"] = "out"
    """The channels that are neighbours: out, outputs; in, inputs."""
    permute: bool = False
    """Whether channels are put into another order first, in which blocks keep more of the score; the dense network
    computes the same afterwards (`pruning.permutation`)."""

    def __post_init__(self) -> None:
        if self.axis not in ("out", "in"):
            raise InputError(f'axis = {self.axis!r} must be "out" or "in", the channels that are neighbours in a block')
        if not 2 <= self.size <= LARGEST:
            raise InputError(
                f"size = {self.size} must be 2 to {LARGEST} channels; single weights are the granularity weight"
            )

    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Check that every layer has at least the outputs of one block; a first layer may have fewer inputs."""
        for name, shape in shapes.items():
            if self.axis == "out" and shape[0] < self.size:
                raise InputError(
                    f"layer {name} has {shape[0]} output channels, too few for blocks of {self.size}; "
                    f"set size = {shape[0]} or less, or use the granularity weight"
                )

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the best whole blocks, and of the next one its best weights."""
        if not 0 <= count <= scores.numel() or scores.isnan().any():
            return keep_top(scores, count)  # raises
        if self.axis == "out":
            return self._keep_rows(scores.detach().flatten(1), count).view(scores.shape)
        by_input = scores.detach().transpose(0, 1)
        rows = self._keep_rows(by_input.flatten(1), count)
        return rows.view(by_input.shape).transpose(0, 1).contiguous()

    def _keep_rows(self, flat: Tensor, count: int) -> Tensor:
        """Return which of a table's entries stay, in blocks of neighbouring rows."""
        filled = F.pad(flat, (0, 0, 0, -len(flat) % self.size)).view(-1, self.size, flat.shape[1])
        sizes = torch.full_like(filled[:, 0], self.size, dtype=torch.int64)  # counts of layers of any size are exact
        sizes[-1] = self.size - (-len(flat) % self.size)
        order = (filled.sum(1) / sizes).flatten().argsort(descending=True, stable=True)
        total = sizes.flatten()[order].cumsum(0)
        whole = torch.zeros_like(order, dtype=torch.bool).index_put_(
            (order[total <= count],), torch.tensor(True, device=order.device)
        )
        keep = whole.view_as(sizes)[:, None].expand_as(filled).clone()
        taken = int((total <= count).sum())
        missing = count - (int(total[taken - 1]) if taken else 0)
        if missing:
            row, column = divmod(int(order[taken]), flat.shape[1])
            inside = int(sizes[row, column])
            keep[row, :inside, column] = keep_top(filled[row, :inside, column], missing)
        return keep.reshape(-1, flat.shape[1])[: len(flat)]


granularities.alias("block-in", "block", axis="in")
