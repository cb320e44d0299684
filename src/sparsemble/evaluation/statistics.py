"""How sure a measured accuracy is."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float

from sparsemble.core.errors import InputError


def wilson(successes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval of a proportion.

    Args:
        successes: how many, in 0..total.
        total: out of how many, >= 1.
        level: probability that the interval holds the true proportion, in (0, 1).

    Returns:
        Its ends, in [0, 1].

    Raises:
        InputError: counts that cannot be, or a level outside (0, 1).

    Source: Wilson 1927; keeps its coverage near 0 and 1, where the usual normal interval fails.
    """
    if not 0 <= successes <= total or total == 0:
        raise InputError(f"successes must lie in 0..total and total be at least 1, got {successes} of {total}")
    z = _quantile(level)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    a: Bool[np.ndarray, "n"], b: Bool[np.ndarray, "n"], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, a minus b, with a confidence interval.

    The interval holds 0 exactly when McNemar's test finds no difference, and lies within [-1, 1] without cutting.

    Args:
        a: which images the first classifier gets right.
        b: the same for the second one, in the same order.
        level: probability that the interval holds the true difference, in (0, 1).

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
        """Say whether the squared score is at most z^2; `share` is the likeliest P(b alone is right) given delta."""
        linear = (2 * n - only_a + only_b) * delta - only_a - only_b
        share = (math.sqrt(max(0.0, linear**2 + 8 * n * only_b * delta * (1 - delta))) - linear) / (4 * n)
        return n * (difference - delta) ** 2 <= z**2 * (2 * share + delta * (1 - delta))

    return difference, _last(accepted, difference, -1.0), _last(accepted, difference, 1.0)


def paired_mean_difference(
    differences: Float[np.ndarray, "seeds n"], level: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of paired differences over seeds and images, with a normal confidence interval.

    An image that every seed saw is one image: the variance is that of the images' means plus, with several seeds, that
    of the seeds' means. The sum counts the interaction twice, so the interval is rather too wide than too narrow; with
    fewer than about five seeds their part is itself a rough guess.

    Args:
        differences: first minus second result on each image, one row a seed.
        level: probability that the interval holds the true mean, in (0, 1).

    Returns:
        The mean and the ends of its interval.

    Raises:
        InputError: no seed, fewer than two images, or a level outside (0, 1).
    """
    z = _quantile(level)
    seeds, n = differences.shape
    if seeds < 1 or n < 2:
        raise InputError(f"differences must hold at least one seed and two images, got {seeds} and {n}")
    exact = differences.astype(np.float64)
    variance = exact.mean(0).var(ddof=1) / n
    if seeds > 1:
        variance += exact.mean(1).var(ddof=1) / seeds
    mean, half = float(exact.mean()), z * math.sqrt(variance)
    return mean, mean - half, mean + half


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
