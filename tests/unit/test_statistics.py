"""Intervals against published values, closed forms and simulated coverage."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.core.errors import InputError
from sparsemble.evaluation.statistics import chance_level, mcnemar, paired_difference, wilson

Z2 = 1.959963984540054**2


def pair(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


class TestWilson:
    @pytest.mark.parametrize(
        ("successes", "total", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_published_values(self, successes: int, total: int, low: float, high: float) -> None:
        """Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3."""
        assert wilson(successes, total) == pytest.approx((low, high), abs=6e-5)

    @given(st.integers(1, 20_000), st.data())
    def test_ends_are_where_the_score_test_turns(self, total: int, data: st.DataObject) -> None:
        successes = data.draw(st.integers(0, total))
        for end in wilson(successes, total):
            assert (successes - total * end) ** 2 == pytest.approx(Z2 * total * end * (1 - end), abs=1e-6 * total)

    def test_none_and_all_right(self) -> None:
        assert wilson(0, 50) == pytest.approx((0, Z2 / (50 + Z2)))
        assert wilson(50, 50) == pytest.approx((50 / (50 + Z2), 1))

    @given(st.integers(1, 20_000))
    def test_the_ends_are_exact_and_never_leave_0_1(self, total: int) -> None:
        assert wilson(0, total)[0] == 0.0
        assert wilson(total, total)[1] == 1.0
        low, high = wilson(total // 2, total)
        assert 0 <= low <= (total // 2) / total <= high <= 1

    @pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 5), (6, 5)])
    def test_refuses_impossible_counts(self, successes: int, total: int) -> None:
        with pytest.raises(InputError, match=f"got {successes} of {total}"):
            wilson(successes, total)

    @pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
    def test_coverage(self, p: float) -> None:
        draws = np.random.default_rng(0).binomial(200, p, 2000)
        ends = {int(k): wilson(int(k), 200) for k in np.unique(draws)}
        covered = np.mean([ends[int(k)][0] <= p <= ends[int(k)][1] for k in draws])
        assert 0.92 <= covered <= 0.975


class TestPairedDifference:
    def test_published_value(self) -> None:
        """Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33, 2850-2875, tables II and V."""
        difference, low, high = paired_difference(*pair(1, 1, 7, 12))
        assert (difference, low, high) == pytest.approx((-6 / 21, -0.517, -0.026), abs=6e-4)

    def test_equal_answers_give_zero_and_a_known_width(self) -> None:
        a = np.array([True, False] * 20)
        limit = Z2 / (40 + Z2)
        assert paired_difference(a, a) == pytest.approx((0, -limit, limit), abs=1e-9)

    def test_always_and_never_right(self) -> None:
        difference, low, high = paired_difference(np.full(30, True), np.full(30, False))
        assert (difference, high) == (1, 1)
        assert 0.75 < low < 1

    counts = st.tuples(*[st.integers(0, 60)] * 4).filter(any)

    @given(counts)
    def test_swapping_turns_the_sign(self, counts: tuple[int, int, int, int]) -> None:
        a, b = pair(*counts)
        difference, low, high = paired_difference(a, b)
        assert paired_difference(b, a) == pytest.approx((-difference, -high, -low), abs=1e-9)
        assert -1 <= low <= difference <= high <= 1

    @given(counts)
    def test_holds_zero_exactly_when_mcnemar_finds_nothing(self, counts: tuple[int, int, int, int]) -> None:
        _, only_a, only_b, _ = counts
        _, low, high = paired_difference(*pair(*counts))
        assert (low <= 0 <= high) == ((only_a - only_b) ** 2 <= Z2 * (only_a + only_b))

    @given(counts)
    def test_ends_are_where_the_score_test_turns(self, counts: tuple[int, int, int, int]) -> None:
        """The likelihood under a given difference is maximised by brute force, not by Tango's formula."""
        _, only_a, only_b, _ = counts
        n = sum(counts)
        difference, *ends = paired_difference(*pair(*counts))
        for end in ends:
            if abs(end) > 0.999:
                continue
            b_alone = np.linspace(max(0, -end), (1 - end) / 2, 20_001)[1:-1]
            rest = n - only_a - only_b
            likelihood = only_a * np.log(b_alone + end) + only_b * np.log(b_alone) + rest * np.log1p(-2 * b_alone - end)
            share = b_alone[likelihood.argmax()]
            score = n * (difference - end) ** 2 / (2 * share + end - end**2)
            assert score == pytest.approx(Z2, rel=5e-3)

    def test_near_the_normal_interval_when_n_is_large(self) -> None:
        a, b = pair(5000, 700, 500, 3800)
        difference, low, high = paired_difference(a, b)
        half = math.sqrt(Z2 * (1200 / 10_000 - difference**2) / 10_000)
        assert (low, high) == pytest.approx((difference - half, difference + half), abs=5e-5)

    def test_coverage(self) -> None:
        chances = [0.5, 0.15, 0.08, 0.27]
        draws = np.random.default_rng(0).multinomial(100, chances, 600)
        intervals = [paired_difference(*pair(*map(int, counts))) for counts in draws]
        covered = np.mean([low <= 0.07 <= high for _, low, high in intervals])
        assert 0.925 <= covered <= 0.975

    def test_refuses_no_images(self) -> None:
        with pytest.raises(InputError, match="at least one image"):
            paired_difference(*pair(0, 0, 0, 0))


def brute_force_p_value(only_a: int, only_b: int) -> float:
    """Count, of all ways in which the images that differ could fall, those at least as uneven."""
    n = only_a + only_b
    uneven = [abs(2 * sum(split) - n) >= abs(only_a - only_b) for split in itertools.product((0, 1), repeat=n)]
    return sum(uneven) / len(uneven)


class TestMcNemar:
    @pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (5, 1), (0, 8), (7, 4), (2, 11)])
    def test_is_the_fraction_of_all_splits(self, only_a: int, only_b: int) -> None:
        assert mcnemar(only_a, only_b) == pytest.approx(brute_force_p_value(only_a, only_b), abs=1e-12)

    def test_of_many_images(self) -> None:
        assert mcnemar(5000, 5000) == 1
        assert mcnemar(0, 60) == pytest.approx(2.0**-59, rel=1e-9)
        assert mcnemar(4000, 6000) == pytest.approx(mcnemar(6000, 4000), rel=1e-9)
        assert mcnemar(4000, 6000) < 1e-80
        # Normal limit with a continuity correction: |480 - 520| - 1 over sqrt(1000) is 1.233, two-sided 0.2175.
        assert mcnemar(480, 520) == pytest.approx(0.2175, abs=0.001)


class TestChanceLevel:
    @given(st.integers(1, 80), st.data())
    def test_is_where_the_exact_binomial_tail_falls_to_one_percent(self, n: int, data: st.DataObject) -> None:
        """The tail is summed in fractions: P(X >= k) of n images that are correct with the largest class's share."""
        largest = data.draw(st.integers(1, n))
        found = chance_level(np.r_[np.zeros(largest, int), np.arange(1, n - largest + 1)])
        p = Fraction(largest, n)
        mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        least = min(k for k in range(n + 2) if sum(mass[k:]) <= Fraction(1, 100))
        assert (found.images, found.largest_class, found.least) == (n, largest, least)

    @pytest.mark.parametrize(("images", "least"), [(4, 5), (6, 7), (8, 8), (10, 10), (12, 11)])
    def test_of_two_equal_classes_it_counts_throws_of_a_coin(self, images: int, least: int) -> None:
        """All of 6 have probability 1/64, more than 1 %: nothing is enough; 11 or 12 of 12 have 13/4096."""
        level = chance_level(np.arange(images) % 2)
        assert level.least == least
        assert level.is_beaten(1.0) == (least <= images)

    @given(st.integers(1, 5000), st.integers(2, 100))
    def test_one_class_for_every_image_never_passes(self, n: int, classes: int) -> None:
        labels = np.arange(n) % classes
        level = chance_level(labels)
        assert not level.is_beaten(float((labels == 0).astype(np.float32).mean()))
        assert level.least > level.largest_class

    def test_refuses_no_images(self) -> None:
        with pytest.raises(InputError, match="at least one image"):
            chance_level(np.zeros(0, int))
