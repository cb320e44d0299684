"""At most n of every m neighbouring weights."""

from dataclasses import dataclass
from math import prod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.pruning.granularity import Granularity, granularities
from sparsemble.pruning.mask import keep_top

CLOSE = 1e-9
"""Difference of sparsities that counts as equal."""


@final
@granularities.register("n_m")
@dataclass(frozen=True, kw_only=True)
class NM(Granularity):
    """Of every m weights next to each other along the input channels at most n stay: 2:4, 4:8.

    Source: Mishra et al. 2021, section 3. Where the channels do not fill the last group, it keeps at most n of them.
    """

    n: int = 2
    """Weights that stay in a group, 1 to m - 1."""
    m: int = 4
    """Weights of a group, >= 2."""

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise InputError(f"n = {self.n} must be between 1 and m - 1 = {self.m - 1}")

    def check(self, shapes: dict[str, tuple[int, ...]], sparsity: float) -> None:
        """Check that the sparsity is 1 - n / m."""
        own = 1 - self.n / self.m
        if abs(sparsity - own) > CLOSE:
            raise InputError(f"{self.n}:{self.m} is sparsity {own:g} exactly; it cannot reach {sparsity:g}")

    def capacity(self, shape: tuple[int, ...]) -> int:
        """Return the number of weights that may stay, over all groups."""
        full, remainder = divmod(shape[1], self.m)
        return (full * self.n + min(remainder, self.n)) * prod(shape) // shape[1]

    def keep(self, scores: Tensor, count: int) -> Tensor:
        """Keep the highest scores among those that are in the best n of their group."""
        inputs = scores.shape[1]
        padding = -inputs % self.m
        padded = F.pad(scores.detach().reshape(len(scores), inputs, -1), (0, 0, 0, padding), value=-torch.inf)
        groups = padded.reshape(len(scores), -1, self.m, padded.shape[2])
        best = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(self.n, dim=2).indices, True)
        allowed = best.view_as(padded)[:, :inputs].view(scores.shape)
        return keep_top(scores.masked_fill(~allowed, -torch.inf), count)
