"""Which images each sub-model sees, and how sparse its ensemble makes it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.core.errors import InputError
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pruning.folds import data_folds
from tests.helpers import examples

LABELS = torch.arange(480) % 4


def indices(labels: torch.Tensor, folds: int, seed: int = 0) -> list[set[int]]:
    found = data_folds(labels, folds, np.random.default_rng(seed))
    sets = [set(fold.tolist()) for fold in found]
    assert [len(fold) for fold in found] == [len(s) for s in sets]
    return sets


def test_the_papers_twelve_sub_models() -> None:
    """Each sees half of the images; two of one score share a quarter."""
    scores = [indices(LABELS, 4, seed) for seed in range(4)]
    assert sum(map(len, scores)) == 12
    for folds in scores:
        common = set.intersection(*folds)
        assert len(common) == len(LABELS) // 4
        for i, one in enumerate(folds):
            assert len(one) == len(LABELS) // 2
            assert all(one & other == common for j, other in enumerate(folds) if j != i)
        assert set.union(*folds) == set(range(len(LABELS)))
    assert len({frozenset(fold) for folds in scores for fold in folds}) == 12


@pytest.mark.parametrize("folds", [1, 2, 3, 4, 5, 6])
def test_numbers_of_sub_models_and_images_follow_from_d(folds: int) -> None:
    found = indices(LABELS, folds)
    assert len(found) == max(folds - 1, 1)
    for fold in found:
        assert len(fold) == len(LABELS) * min(2, folds) // folds
        assert np.bincount(LABELS[sorted(fold)]).tolist() == [len(fold) // 4] * 4


@given(st.lists(st.integers(6, 40), min_size=1, max_size=5), st.integers(2, 6), st.integers(0, 99))
@examples(40)
def test_every_class_keeps_its_proportion(sizes: list[int], folds: int, seed: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)))
    for fold in indices(labels, folds, seed):
        assert abs(len(fold) - 2 / folds * len(labels)) <= 2
        for label, count in enumerate(np.bincount(labels[sorted(fold)], minlength=len(sizes))):
            assert abs(count - 2 / folds * sizes[label]) <= 2


def test_the_generator_decides() -> None:
    assert indices(LABELS, 4, 1) == indices(LABELS, 4, 1)
    assert indices(LABELS, 4, 1) != indices(LABELS, 4, 2)


@pytest.mark.parametrize("folds", [0, -1, 4])
def test_a_number_of_shares_that_the_data_does_not_allow_gives_a_sentence(folds: int) -> None:
    labels = torch.tensor([0] * 5 + [1] * 3)
    match = rf"folds = {folds} must be between 1 and 3, the number of training images of the rarest class \(1\)"
    with pytest.raises(InputError, match=match):
        data_folds(labels, folds, np.random.default_rng(0))


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_members_together_hold_no_more_than_the_ensemble_may(sparsity: float, size: int) -> None:
    """M members of sparsity 1 - (1 - s) / M together keep at most a share 1 - s of the weights."""
    _, recipe = load_recipe("digits", (f"sparsity={sparsity}", f"members={size}"))
    density = 1 - recipe.member_sparsity
    assert size * density <= 1 - sparsity + 1e-12
    total = 1_000_003
    kept = size * math.floor((1 - recipe.member_sparsity) * total + 0.5)
    assert abs(kept / total - (1 - sparsity)) <= size / total


def test_the_papers_members_are_95_percent_sparse() -> None:
    _, recipe = load_recipe("digits", ("sparsity=0.8", "members=4"))
    assert recipe.member_sparsity == pytest.approx(0.95)
