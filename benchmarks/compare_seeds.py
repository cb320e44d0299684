"""Compare runs of one recipe over seeds: means, spread, and paired intervals on the same test images.

python benchmarks/compare_seeds.py runs/seed0 runs/seed1 runs/seed2
python benchmarks/compare_seeds.py runs/seed0 runs/seed1 --against runs/eed0 runs/eed1

Prints Markdown. `--against` adds each row minus that of another recipe, seed by seed in the order given. A run is
its folder, or a copy of its report. A paired difference joins all seeds and images
(`paired_mean_difference`).
"""

import argparse
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from sparsemble.core.errors import InputError
from sparsemble.core.results import ROW_NAMES, RunSummary

PAIRS = (
    ("ensemble_static", "harp"),
    ("ensemble_dynamic", "harp"),
    ("ensemble_static", "dense"),
    ("ensemble_dynamic", "dense"),
    ("ensemble_dynamic", "best_member"),
    ("ensemble_static", "small_dense"),
)


def load(run: Path) -> RunSummary:
    """Return the summary in a run's folder or in a copy of its report."""
    report = run / "report" if (run / "report").is_dir() else run
    return RunSummary.load(report / "summary.json")


def row_line(runs: list[RunSummary], name: str) -> str:
    """Return a line of the first table: accuracies and costs of a row, averaged over seeds."""
    rows = [run.row(name) for run in runs]
    clean = 100 * np.mean([row.clean_accuracy for row in rows])
    worst = [100 * row.robust_accuracy for row in rows]
    each = ", ".join(f"{accuracy:.1f}" for accuracy in worst)
    members, attacked = (np.mean([getattr(row.members_run, kind) for row in rows]) for kind in ("clean", "attacked"))
    seconds = np.mean([row.cost.training_seconds or np.nan for row in rows])
    return (
        f"| {ROW_NAMES[name]} | {clean:.1f} | {np.mean(worst):.1f} ({each}) | {members:.2f} / {attacked:.2f} "
        f"| {seconds:.0f} s |"
    )


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
    if not 0 < level < 1:
        raise InputError(f"level must lie in (0, 1), as in 0.95, got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    seeds, n = differences.shape
    if seeds < 1 or n < 2:
        raise InputError(f"differences must hold at least one seed and two images, got {seeds} and {n}")
    exact = differences.astype(np.float64)
    variance = exact.mean(0).var(ddof=1) / n
    if seeds > 1:
        variance += exact.mean(1).var(ddof=1) / seeds
    mean, half = float(exact.mean()), z * math.sqrt(variance)
    return mean, mean - half, mean + half


def difference_line(title: str, first: list[np.ndarray], second: list[np.ndarray]) -> str:
    """Return a line of the second table: the paired difference of two rows, in percentage points."""
    mean, low, high = (100 * value for value in paired_mean_difference(np.stack(first) - np.stack(second)))
    return f"| {title} | {mean:+.1f} | {low:+.1f} to {high:+.1f} |"


def correct(runs: list[RunSummary], name: str) -> list[np.ndarray]:
    """Return for each seed which test images a row classifies correctly in the worst case, as 0 or 1."""
    return [np.asarray(run.row(name).worst_case.correct, dtype=np.float64) for run in runs]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--against", type=Path, nargs="+", default=[], help="runs of another recipe, one a seed")
    options = parser.parse_args()
    if options.against and len(options.against) != len(options.runs):
        parser.error(f"--against needs {len(options.runs)} runs, one a seed; got {len(options.against)}")
    runs, others = ([load(path) for path in paths] for paths in (options.runs, options.against))
    print("| row | clean % | worst case % (each seed) | members run, clean / attacked | training |")
    print("|---|---:|---:|---:|---:|")
    for name in ROW_NAMES:
        print(row_line(runs, name))
    images = len(runs[0].row("dense").worst_case.correct)
    print(f"\n| worst case, {len(runs)} seed{'s' * (len(runs) > 1)} x {images} images | points | 95 % interval |")
    print("|---|---:|---:|")
    for a, b in PAIRS:
        print(difference_line(f"{ROW_NAMES[a]} minus {ROW_NAMES[b]}", correct(runs, a), correct(runs, b)))
    for name, title in ROW_NAMES.items() if others else ():
        print(difference_line(f"{title}, minus that of the other recipe", correct(runs, name), correct(others, name)))


if __name__ == "__main__":
    main()
