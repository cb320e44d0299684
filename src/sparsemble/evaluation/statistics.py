"""How certain a measured accuracy, or a difference of two, is."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool

from sparsemble.core.errors import InputError


def wilson(successes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's confidence interval of a proportion.

    Args:
        successes: in 0..total.
        total: number of trials, >= 1.
        level: probability that the interval contains the true proportion, in (0, 1).

    Returns:
        Its ends, in [0, 1]; exactly 0 where there is no success, exactly 1 where there are only successes.

    Raises:
        InputError: impossible counts, or a level outside (0, 1).

    Source: Wilson 1927; keeps its coverage near 0 and 1, where the usual normal interval fails.
    """
    if not 0 <= successes <= total or total == 0:
        raise InputError(f"successes must lie in 0..total and total be at least 1, got {successes} of {total}")
    _quantile(level)
    from scipy.stats import binomtest  # takes half a second to import

    low, high = binomtest(successes, total).proportion_ci(level, method="wilson")
    return 0.0 if successes == 0 else max(0.0, float(low)), 1.0 if successes == total else min(1.0, float(high))


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_a: images that only the first classifier classifies correctly.
        only_b: images that only the second one classifies correctly.

    Returns:
        The probability of a split at least as uneven if either classifier were as likely to win an image on which
        they differ; 1 where they differ on none.

    Source: McNemar 1947, with the binomial distribution in place of its normal limit.
    """
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_difference(
    a: Bool[np.ndarray, "n"], b: Bool[np.ndarray, "n"], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, a minus b, with a confidence interval.

    The interval contains 0 exactly when McNemar's test finds no difference, and lies within [-1, 1] without cutting.

    Args:
        a: which images the first classifier classifies correctly.
        b: the same for the second one, in the same order.
        level: probability that the interval contains the true difference, in (0, 1).

    Returns:
        The difference and the ends of its interval.

    Raises:
        InputError: no images, or a level outside (0, 1).

    Source: Tango 1998, Statistics in Medicine 17, 891-908: the differences that the score test does not reject.
    """
    z = _quantile(level)
    n = len(a)
    if n == 0:
        raise InputError("a paired difference needs at least one image")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    difference = (only_a - only_b) / n

    def accepted(delta: float) -> bool:
        """Return whether the squared score is at most z^2; `q` is the likeliest P(only b is correct) given delta."""
        linear = (2 * n - only_a + only_b) * delta - only_a - only_b
        q = (math.sqrt(max(0.0, linear**2 + 8 * n * only_b * delta * (1 - delta))) - linear) / (4 * n)
        return n * (difference - delta) ** 2 <= z**2 * (2 * q + delta * (1 - delta))

    return difference, _last(accepted, difference, -1.0), _last(accepted, difference, 1.0)


def _quantile(level: float) -> float:
    """Return the z that leaves (1 - level) / 2 on either side of a standard normal."""
    if not 0 < level < 1:
        raise InputError(f"level must lie in (0, 1), as in 0.95, got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _last(accepted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the last accepted value between two, by bisection down to the precision of a float."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
    return inside
