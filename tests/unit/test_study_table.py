"""The intervals of a study's table."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.evaluation.statistics import wilson
from sparsemble.pipeline.study_command import study_interval


def quantile(freedom: int) -> float:
    """Return the 97.5 % point: with t = sqrt(freedom) tan(a), the density is proportional to cos(a)^(freedom - 1)."""
    steps = 200_000
    weights = np.cos((np.arange(steps) + 0.5) / steps * math.pi / 2) ** (freedom - 1)
    share = 0.5 + 0.5 * weights.cumsum() / weights.sum()
    angle = (np.searchsorted(share, 0.975) + 1) / steps * math.pi / 2
    return float(math.sqrt(freedom) * math.tan(angle))


def test_one_seed_has_wilsons_interval() -> None:
    assert study_interval([0.8], 50) == wilson(40, 50)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(10, 500))
def test_several_seeds_never_narrow_it_below_one_seeds_images(shares: list[float], images: int) -> None:
    low, high = study_interval(shares, images)
    mean = sum(shares) / len(shares)
    one = wilson(round(mean * images), images)
    assert 0 <= low <= one[0] + 1e-9
    assert one[1] - 1e-9 <= high <= 1


def test_seeds_that_differ_widen_it() -> None:
    """Two seeds 20 points apart: t = 12.7 at one degree of freedom makes it as good as no information."""
    same, apart = study_interval([0.5, 0.5], 400), study_interval([0.4, 0.6], 400)
    assert apart[1] - apart[0] > 0.9 > 0.2 > same[1] - same[0]
    three = study_interval([0.48, 0.5, 0.52], 400)
    spread = 4.30 * 0.02 / 3**0.5
    low, high = wilson(200, 400)
    assert three[0] == pytest.approx(0.5 - ((0.5 - low) ** 2 + spread**2) ** 0.5, abs=1e-3)
    assert three[1] == pytest.approx(0.5 + ((high - 0.5) ** 2 + spread**2) ** 0.5, abs=1e-3)


def test_many_seeds_are_held_to_students_t_too() -> None:
    """97.5 % points of Student's t by quadrature: the table's are at most a thousandth wider; none is narrower."""
    for seeds in range(2, 31):
        shares = [0.49 if i % 2 else 0.51 for i in range(seeds)]
        mean = sum(shares) / seeds
        deviation = (sum((share - mean) ** 2 for share in shares) / (seeds - 1)) ** 0.5
        low, _ = study_interval(shares, 10**9)
        used = (mean - low) / (deviation / seeds**0.5)
        exact = quantile(seeds - 1)
        assert exact <= used <= (exact * 1.001 if seeds <= 10 else 2.27)
