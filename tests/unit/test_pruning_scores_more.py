"""Scores from gradients against a linear model, where they are known."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.types import seeded
from sparsemble.pruning.scores.random import Random
from sparsemble.pruning.scores.snip import SNIP
from sparsemble.pruning.scores.taylor import Taylor


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()


BATCHES = [(torch.rand(5, 3, 2, 2, generator=seeded(i)), torch.arange(5) % 3) for i in range(3)]


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean cross-entropy of a linear model: (p - onehot)^T x / B."""
    share = model(x).softmax(1) - F.one_hot(y, 3)
    found: Tensor = share.T @ x.flatten(1) / len(x)
    return found.detach()


def test_snip_is_the_weight_times_the_summed_gradient() -> None:
    model = linear()
    total = sum(gradient(model, x, y) for x, y in BATCHES)
    found = SNIP()(model, lambda: iter(BATCHES))
    torch.testing.assert_close(found["1"], (model[1].weight.detach() * total).abs())


def test_taylor_sums_squares_so_that_gradients_do_not_cancel() -> None:
    model = linear()
    weight = model[1].weight.detach()
    wanted = sum((gradient(model, x, y) * weight).square() for x, y in BATCHES)
    torch.testing.assert_close(Taylor()(model, lambda: iter(BATCHES))["1"], wanted)


def test_both_leave_gradients_and_what_wants_one_alone() -> None:
    model = linear().requires_grad_(False)
    for score in (SNIP(), Taylor()):
        score(model, lambda: iter(BATCHES))
        assert all(not p.requires_grad and p.grad is None for p in model.parameters())


def test_drawn_scores_depend_on_their_seed_only() -> None:
    model = linear()
    first, again, other = (Random(seed=seed)(model, lambda: iter(()))["1"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < float(first.max()) < 1
