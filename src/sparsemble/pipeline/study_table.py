"""The cells of a study, seeds put together."""

import math
from collections.abc import Iterable, Sequence

from sparsemble.core.results import MembersRun, StudyCell, StudyLine, StudyNumbers
from sparsemble.evaluation.statistics import wilson

T_975 = (math.inf, 12.707, 4.303, 3.183, 2.777, 2.571, 2.447, 2.365, 2.307, 2.263)
"""97.5 % points of Student's t with 0 to 9 degrees of freedom, rounded up; the last one holds, too wide, beyond."""


def lines(cells: Sequence[StudyCell], axes: Sequence[str]) -> tuple[StudyLine, ...]:
    """Return one line for each combination of values and row, its seeds together."""
    groups: dict[tuple[str, ...], list[StudyCell]] = {}
    for cell in cells:
        groups.setdefault((*(cell.values.get(axis, "") for axis in axes), cell.row), []).append(cell)
    return tuple(_line(group) for group in groups.values())


def _line(cells: Sequence[StudyCell]) -> StudyLine:
    """Return the seeds of one combination together."""
    seeds = [(cell.numbers, len(cell.correct)) for cell in cells if cell.numbers]
    failed = tuple(f"seed {cell.seed}: {cell.failed}" for cell in cells if cell.failed)
    if not seeds:
        return StudyLine(values=cells[0].values, row=cells[0].row, seeds=0, failed=failed)
    numbers = [each for each, _ in seeds]
    worst = tuple(each.worst_case for each in numbers)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(numbers)

    return StudyLine(
        values=cells[0].values,
        row=cells[0].row,
        seeds=len(numbers),
        failed=failed,
        numbers=StudyNumbers(
            **{name: mean(getattr(each, name) for each in numbers) for name in NUMBERS},
            attacks={label: mean(each.attacks[label] for each in numbers) for label in numbers[0].attacks},
            members_run=MembersRun(
                clean=mean(each.members_run.clean for each in numbers),
                attacked=mean(each.members_run.attacked for each in numbers),
            ),
        ),
        interval=interval(worst, seeds[0][1]),
        each=worst,
    )


NUMBERS = (
    *("clean_accuracy", "worst_case", "sparsity", "nonzeros"),
    *("macs_nonzero", "training_passes", "training_seconds"),
)
"""Fields of `StudyNumbers` that are plain numbers."""


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
