"""Which images each sub-model sees, and how sparse its team makes it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemble.core.errors import InputError
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pruning.folds import data_folds

LABELS = torch.arange(480) % 4


def indices(labels: torch.Tensor, shares: int, seed: int = 0) -> list[set[int]]:
    found = data_folds(labels, shares, np.random.default_rng(seed))
    sets = [set(share.tolist()) for share in found]
    assert [len(share) for share in found] == [len(s) for s in sets]
    return sets


def test_the_papers_twelve_sub_models() -> None:
    """Method.md check 7: each sees half of the images; two of one score share a quarter."""
    scores = [indices(LABELS, 4, seed) for seed in range(4)]
    assert sum(map(len, scores)) == 12
    for shares in scores:
        common = set.intersection(*shares)
        assert len(common) == len(LABELS) // 4
        for i, one in enumerate(shares):
            assert len(one) == len(LABELS) // 2
            assert all(one & other == common for j, other in enumerate(shares) if j != i)
        assert set.union(*shares) == set(range(len(LABELS)))
    assert len({frozenset(share) for shares in scores for share in shares}) == 12


@pytest.mark.parametrize("shares", [1, 2, 3, 4, 5, 6])
def test_numbers_of_sub_models_and_images_follow_from_d(shares: int) -> None:
    found = indices(LABELS, shares)
    assert len(found) == max(shares - 1, 1)
    for share in found:
        assert len(share) == len(LABELS) * min(2, shares) // shares
        assert np.bincount(LABELS[sorted(share)]).tolist() == [len(share) // 4] * 4


@given(st.lists(st.integers(6, 40), min_size=1, max_size=5), st.integers(2, 6), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_every_class_keeps_its_proportion(sizes: list[int], shares: int, seed: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)))
    for share in indices(labels, shares, seed):
        assert abs(len(share) - 2 / shares * len(labels)) <= 2
        for label, count in enumerate(np.bincount(labels[sorted(share)], minlength=len(sizes))):
            assert abs(count - 2 / shares * sizes[label]) <= 2


def test_the_generator_decides() -> None:
    assert indices(LABELS, 4, 1) == indices(LABELS, 4, 1)
    assert indices(LABELS, 4, 1) != indices(LABELS, 4, 2)


@pytest.mark.parametrize("shares", [0, -1, 4])
def test_a_number_of_shares_that_the_data_does_not_allow_gives_a_sentence(shares: int) -> None:
    labels = torch.tensor([0] * 5 + [1] * 3)
    match = rf"shares = {shares} must be between 1 and 3, the number of training images of the rarest class \(1\)"
    with pytest.raises(InputError, match=match):
        data_folds(labels, shares, np.random.default_rng(0))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_members_together_hold_no_more_than_the_team_may(sparsity: float, size: int) -> None:
    """Method.md check 8."""
    _, recipe = load_recipe("digits", (f"sparsity={sparsity}", f"team_size={size}"))
    density = 1 - recipe.member_sparsity
    assert size * density <= 1 - sparsity + 1e-12
    total = 1_000_003
    kept = size * math.floor((1 - recipe.member_sparsity) * total + 0.5)
    assert abs(kept / total - (1 - sparsity)) <= size / total


def test_the_papers_members_are_95_percent_sparse() -> None:
    _, recipe = load_recipe("digits", ("sparsity=0.8", "team_size=4"))
    assert recipe.member_sparsity == pytest.approx(0.95)
