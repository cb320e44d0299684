"""Blocks of weights of neighbouring outputs."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.pruning.granularity import Granularity, granularities
from sparsemble.pruning.mask import keep_top


@final
@granularities.register("block")
@dataclass(frozen=True, kw_only=True)
class Block(Granularity):
    """Weights of `outputs` neighbouring output channels that read the same input stay or go together.

    Blocks are ranked by their mean score. The last block of a layer is smaller where its outputs do not fill it, and
    one block a layer is kept in part where the count requires it.
    """

    outputs: int = 4
    """Output channels of a block, >= 2; 4 and 8 run fastest in the engine."""

    def __post_init__(self) -> None:
        if self.outputs < 2:
            raise InputError(f"outputs = {self.outputs} must be 2 or more; single weights are the granularity weight")

    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Check that every layer has at least the outputs of one block."""
        for name, shape in shapes.items():
            if shape[0] < self.outputs:
                raise InputError(
                    f"layer {name} has {shape[0]} output channels, too few for blocks of {self.outputs}; "
                    f"set outputs = {shape[0]} or less, or use the granularity weight"
                )

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the best whole blocks, and of the next one its best weights."""
        if not 0 <= count <= scores.numel() or scores.isnan().any():
            return keep_top(scores, count)  # raises
        flat = scores.detach().reshape(len(scores), -1)
        filled = F.pad(flat, (0, 0, 0, -len(flat) % self.outputs)).view(-1, self.outputs, flat.shape[1])
        sizes = torch.full_like(filled[:, 0], self.outputs)
        sizes[-1] = self.outputs - (-len(flat) % self.outputs)
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
        return keep.reshape(-1, flat.shape[1])[: len(flat)].reshape(scores.shape)
