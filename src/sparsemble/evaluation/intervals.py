"""How sure a measured accuracy is."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev


def wilson(successes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval of a proportion.

    Source: Wilson 1927; keeps its coverage near 0 and 1, where the usual normal interval fails.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(a: Sequence[bool], b: Sequence[bool], level: float = 0.95) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, a minus b, with a confidence interval.

    The interval is the normal one of the mean of the per-image differences, which are -1, 0 or 1; images of several
    seeds may be joined.
    """
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    mean = fmean(differences)
    half = NormalDist().inv_cdf((1 + level) / 2) * stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half
