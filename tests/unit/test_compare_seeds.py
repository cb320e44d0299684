"""The interval that benchmarks/compare_seeds.py puts around differences over seeds and images."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from sparsemble.core.errors import InputError

SPEC = importlib.util.spec_from_file_location(
    "compare_seeds", Path(__file__).parents[2] / "benchmarks" / "compare_seeds.py"
)
assert SPEC
assert SPEC.loader
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)
paired_mean_difference = MODULE.paired_mean_difference
Z2 = 1.959963984540054**2


class TestPairedMeanDifference:
    def test_one_seed_is_the_textbook_interval(self) -> None:
        """Mean 2, standard deviation 1, three images: 2 -+ 1.96 / sqrt(3)."""
        half = math.sqrt(Z2 / 3)
        assert paired_mean_difference(np.array([[1.0, 2.0, 3.0]])) == pytest.approx((2, 2 - half, 2 + half))

    def test_a_copied_seed_adds_no_certainty(self) -> None:
        row = np.random.default_rng(0).normal(size=(1, 50))
        assert paired_mean_difference(np.repeat(row, 4, 0)) == pytest.approx(paired_mean_difference(row))

    def test_seeds_that_disagree_widen_the_interval(self) -> None:
        rows = np.array([[0.0, 0.0], [2.0, 2.0]])  # no spread over images; seeds have variance 2
        assert paired_mean_difference(rows) == pytest.approx((1, 1 - math.sqrt(Z2), 1 + math.sqrt(Z2)))

    def test_equal_results_give_zero(self) -> None:
        assert paired_mean_difference(np.zeros((3, 10))) == (0, 0, 0)

    def test_coverage_over_new_images_and_new_seeds(self) -> None:
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(1000):
            effects = rng.normal(size=(8, 1)) * 0.05 + rng.normal(size=(1, 200)) * 0.5 + rng.normal(size=(8, 200))
            _, low, high = paired_mean_difference(0.3 + effects)
            covered += low <= 0.3 <= high
        assert 0.93 <= covered / 1000 <= 0.99

    @pytest.mark.parametrize("shape", [(0, 5), (2, 1)])
    def test_refuses_too_little(self, shape: tuple[int, int]) -> None:
        with pytest.raises(InputError, match="at least one seed and two images"):
            paired_mean_difference(np.zeros(shape))
