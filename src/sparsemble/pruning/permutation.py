"""Channels permuted before masking, so that blocks of neighbours keep more of the score; free at run time."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sparsemble.core.module_state import copy_network
from sparsemble.core.same_outputs import assert_same_outputs
from sparsemble.models.channel_groups import channel_groups
from sparsemble.models.graph import Graph
from sparsemble.pruning.granularities.block import Block
from sparsemble.pruning.mask import keep_top
from sparsemble.pruning.score import Scores
from sparsemble.pruning.shrink import select_channels_
from sparsemble.pruning.target import SparsityTarget

ROUNDS = 8
"""Most times that all channels are tried for an exchange, each time at the threshold of the blocks before."""
SAMPLE = 512
"""About as many weights of a channel choose the likeliest partners of an exchange, among which all weights decide."""
PARTNERS = 16
LEAST_GAIN = 1e-6
"""Share of two blocks' worth that an exchange must gain, above the rounding of sums."""


@torch.no_grad()
def permute_channels(model: nn.Module, scores: Scores, target: SparsityTarget) -> tuple[nn.Module, Scores]:
    """Return a network that computes the same with its channels in another order, and its scores, if the target asks.

    Channels that are added to each other move together, with their BatchNorms and all layers that read them; those of
    the images and of the logits stay where they are. An order is taken only where blocks keep more of the score.

    Args:
        model: dense; left as found.
        scores: of its weights, by layer.
        target: its granularity says whether channels are permuted, and for which blocks.

    Returns:
        A copy of the network with the scores of its weights; both as given where no permutation is asked for.

    Raises:
        InputError: the network gives other logits in the new order, so that its operations were misread.
    """
    block = target.granularity
    if not isinstance(block, Block) or not block.permute:
        return model, scores
    counts, permuted, moved = target.counts(scores), copy_network(model), dict(scores)
    graph = Graph(permuted, target.graph.shape)
    for group in channel_groups(graph):
        constants = [graph.by_name[name].constant for name in group.operations]
        if not group.free or any(isinstance(value, Tensor) and value.numel() > 1 for value in constants):
            continue  # also where the network itself multiplies each channel by its own constant
        axis, layers = (0, group.producers) if block.axis == "out" else (1, group.consumers)
        # A Linear that reads each channel at several positions has its blocks within channels, in any order of these.
        names = [name for name in layers if moved[name].shape[axis] == group.channels]
        tables = {name: moved[name].detach().transpose(0, axis).flatten(1) for name in names}
        if not tables:
            continue
        order = best_order(tables, counts, block.size)
        select_channels_(graph, group, order)
        for name in group.producers:
            moved[name] = moved[name].index_select(0, order)
        for name in group.consumers:
            by_channel = moved[name].reshape(len(moved[name]), group.channels, -1)
            moved[name] = by_channel.index_select(1, order).view(moved[name].shape)
    assert_same_outputs(model, permuted, target.graph.shape, "with its channels in another order")
    return permuted, moved


def best_order(tables: Mapping[str, Tensor], counts: Mapping[str, int], size: int) -> Tensor:
    """Return an order of channels in which blocks of neighbours keep more of the score; the present one if none does.

    Channels are exchanged between blocks, each time with the partner that gains most, while the score of the blocks
    above the threshold rises. A layer counts by its kept weights times the share of the score that they hold, of what
    as many single weights would hold. Source: ours; Pool and Yu 2021 exchange channels for N:M sparsity.

    Args:
        tables: scores of each layer that has these channels along its blocks, (channels, weights of a channel).
        counts: weights that each layer keeps.
        size: channels of a block.

    Returns:
        The present number of each channel, in the new order (channels).
    """
    first = next(iter(tables.values()))
    best = torch.arange(len(first), device=first.device)
    layers = []
    for name, table in tables.items():
        possible = float(table[keep_top(table, counts[name])].sum())
        if possible > 0 and counts[name] < table.numel():
            layers.append((table * (counts[name] / possible), counts[name]))
    if not layers or len(best) <= size:
        return best
    order, most = best, _kept(layers, best, size)
    for _ in range(ROUNDS):
        order = _exchanged(layers, order, size)
        if (kept := _kept(layers, order, size)) <= most:
            break
        best, most = order, kept
    return best


def _kept(layers: Sequence[tuple[Tensor, int]], order: Tensor, size: int) -> float:
    """Return the score that blocks of channels in this order keep, over tables and counts of several layers."""
    block = Block(size=size)
    tables = ((table[order], count) for table, count in layers)
    return sum(float(table[block.keep(table, count)].sum()) for table, count in tables)


def _exchanged(layers: Sequence[tuple[Tensor, int]], order: Tensor, size: int) -> Tensor:
    """Try every channel once for an exchange; return the new order."""
    # With the threshold taken from every weight, what a block is worth is its sum, if positive.
    worth = torch.cat([table - _threshold(table[order], count, size) for table, count in layers], 1)
    blocks = [part.tolist() for part in order.split(size)]
    block_of = {channel: i for i, block in enumerate(blocks) for channel in block}
    stride = 2 ** int(math.log2(max(worth.shape[1] / SAMPLE, 1)))
    sampled = worth[:, ::stride].contiguous()
    others, others_sampled, present = torch.empty_like(worth), torch.empty_like(sampled), torch.empty_like(worth[:, 0])

    def refresh(block: list[int]) -> None:
        """Set what the other channels of its block are worth beside each channel, and the block with it."""
        total = worth[block].sum(0)
        beside = total - worth[block]
        others[block], others_sampled[block], present[block] = beside, beside[:, ::stride], total.clamp_min(0).sum()

    for block in blocks:
        refresh(block)
    for channel in range(len(worth)):
        here = blocks[block_of[channel]]
        rough = _after_exchange(sampled, others_sampled, sampled[channel], others_sampled[channel]) * stride - present
        rough[here] = -torch.inf
        likely = rough.topk(min(PARTNERS, len(worth) - len(here))).indices
        after = _after_exchange(worth[likely], others[likely], worth[channel], others[channel])
        gains = after - present[likely] - present[channel]
        partner = int(likely[gains.argmax()])
        if gains.max() <= LEAST_GAIN * (present[partner] + present[channel]):
            continue
        there = blocks[block_of[partner]]
        here[here.index(channel)], there[there.index(partner)] = partner, channel
        block_of[channel], block_of[partner] = block_of[partner], block_of[channel]
        refresh(here)
        refresh(there)
    return torch.tensor([channel for block in blocks for channel in block], device=order.device)


def _after_exchange(worth: Tensor, others: Tensor, own: Tensor, beside: Tensor) -> Tensor:
    """Return what two blocks are worth after a channel (its worth, and that beside it) was exchanged for each other."""
    return (worth + beside).clamp_min_(0).sum(1) + (others + own).clamp_min_(0).sum(1)


def _threshold(table: Tensor, count: int, size: int) -> Tensor:
    """Return the lowest mean score of the blocks that stay."""
    means = torch.stack([block.mean(0) for block in table.split(size)]).flatten()
    blocks = min(max(count // size, 1), len(means))
    return means.kthvalue(len(means) - blocks + 1).values
