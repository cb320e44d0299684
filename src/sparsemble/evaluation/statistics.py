"""How certain a measured accuracy, or a difference of two, is."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Int

from sparsemble.core.errors import InputError
from sparsemble.core.results import ChanceLevel

LEVEL = 0.95
"""Probability that an interval contains the true value."""
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Standard deviations of the normal distribution on either side that hold so much."""
CHANCE = 0.01
"""Probability with which predictions without skill are taken for more than chance."""


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a proportion.

    Returns:
        Its ends, in [0, 1]; exactly 0 where there is no success, exactly 1 where there are only successes.

    Raises:
        InputError: impossible counts.

    Source: Wilson 1927; keeps its coverage near 0 and 1, where the usual normal interval fails.
    """
    if not 0 <= successes <= total or total == 0:
        raise InputError(f"successes must lie in 0..total and total be at least 1, got {successes} of {total}")
    z2 = NORMAL**2
    centre = (successes + z2 / 2) / (total + z2)
    half = NORMAL / (total + z2) * math.sqrt(successes * (total - successes) / total + z2 / 4)
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == total else centre + half


def chance_level(labels: Int[np.ndarray, "n"]) -> ChanceLevel:
    """Return what predicting one class for every image gives, and what a classifier needs to be above chance.

    It is above chance where the one-sided exact binomial test, at `CHANCE`, rejects that each image is correct with the
    probability of the largest class.

    Args:
        labels: true classes of n images.

    Raises:
        InputError: no images.
    """
    if not len(labels):
        raise InputError("chance needs at least one image")
    from scipy.special import bdtrc

    largest = int(np.unique(labels, return_counts=True)[1].max())
    n, share = len(labels), largest / len(labels)
    more = bdtrc(np.arange(n), n, share)  # P(X > k) = P(X >= k + 1) for k = 0..n-1
    unlikely = np.flatnonzero(more <= CHANCE)
    return ChanceLevel(images=n, largest_class=largest, least=int(unlikely[0]) + 1 if len(unlikely) else n + 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, from the images that only one of two classifies correctly.

    It is the probability of a split at least as uneven if either classifier were as likely to win an image on which
    they differ; 1 where they differ on none.

    Source: McNemar 1947, with the binomial distribution in place of its normal limit.
    """
    from scipy.special import bdtr  # scipy.stats takes half a second to import

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def paired_difference(a: Bool[np.ndarray, "n"], b: Bool[np.ndarray, "n"]) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, a minus b, and the ends of its 95 % interval.

    The interval contains 0 exactly when McNemar's test finds no difference, and lies within [-1, 1] without cutting.

    Args:
        a: which images the first classifier classifies correctly.
        b: the same for the second one, in the same order.

    Raises:
        InputError: no images.

    Source: Tango 1998, Statistics in Medicine 17, 891-908: the differences that the score test does not reject.
    """
    n = len(a)
    if n == 0:
        raise InputError("a paired difference needs at least one image")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    difference = (only_a - only_b) / n

    def accepted(delta: float) -> bool:
        """Return whether the squared score is at most z^2; `q` is the likeliest P(only b is correct) given delta."""
        linear = (2 * n - only_a + only_b) * delta - only_a - only_b
        q = (math.sqrt(max(0.0, linear**2 + 8 * n * only_b * delta * (1 - delta))) - linear) / (4 * n)
        return n * (difference - delta) ** 2 <= NORMAL**2 * (2 * q + delta * (1 - delta))

    return difference, _last(accepted, difference, -1.0), _last(accepted, difference, 1.0)


def _last(accepted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the last accepted value between two, by bisection down to the precision of a float."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
    return inside
