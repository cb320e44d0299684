"""The cells of a study, seeds put together."""

import math
from collections.abc import Sequence
from typing import Any

from sparsemble.evaluation.statistics import wilson

T_975 = (math.inf, 12.707, 4.303, 3.183, 2.777, 2.571, 2.447, 2.365, 2.307, 2.263)
"""97.5 % points of Student's t with 0 to 9 degrees of freedom, rounded up; the last one holds, too wide, beyond."""


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one line for each combination of values and row, its seeds together."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in result["cells"]:
        key = (*(cell["values"].get(axis, "") for axis in result["axes"]), cell["row"])
        groups.setdefault(key, []).append(cell)
    return [_line(result, found) for found in groups.values()]


def _line(result: dict[str, Any], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    good = [cell for cell in found if "failed" not in cell]
    line: dict[str, Any] = {
        "values": found[0]["values"],
        "row": found[0]["row"],
        "seeds": len(good),
        "failed": [f"seed {cell['seed']}: {cell['failed']}" for cell in found if "failed" in cell],
        "worst_case": None,
    }
    if not good:
        return line
    for name in ("clean", "worst_case", "sparsity", "nonzeros", "macs_nonzero", "training_passes", "seconds"):
        line[name] = sum(cell[name] for cell in good) / len(good)
    line["attacks"] = {k: sum(cell["attacks"][k] for cell in good) / len(good) for k in good[0]["attacks"]}
    line["members_run"] = {k: sum(cell["members_run"][k] for cell in good) / len(good) for k in ("clean", "attacked")}
    line["interval"] = interval([cell["worst_case"] for cell in good], good[0]["images"])
    line["each"] = [cell["worst_case"] for cell in good]
    return line


def interval(shares: Sequence[float], images: int) -> tuple[float, float]:
    """Return a 95 % interval of mean accuracy, for other images and, with several seeds, other seeds.

    One seed: Wilson's, over the images. Several seeds saw the same images, so images do not average out: Wilson's of
    the mean at one seed's number of images, widened (in squares) by Student's t over the seeds.
    """
    mean = sum(shares) / len(shares)
    low, high = wilson(round(mean * images), images)
    if len(shares) == 1:
        return low, high
    variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
    t = T_975[min(len(shares), len(T_975)) - 1]
    spread = t * math.sqrt(variance / len(shares))
    return max(mean - math.hypot(mean - low, spread), 0.0), min(mean + math.hypot(high - mean, spread), 1.0)
