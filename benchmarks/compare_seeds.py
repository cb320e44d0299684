"""Compare runs of one recipe over seeds: means, spread, and paired intervals on the same test images.

python benchmarks/compare_seeds.py runs/seed0 runs/seed1 runs/seed2

Prints Markdown. A paired difference joins all seeds and images (`evaluation.intervals.paired_mean_difference`).
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sparsemble.evaluation.intervals import paired_mean_difference
from sparsemble.report.summary import NAMES

PAIRS = (
    ("team_static", "harp"),
    ("team_dynamic", "harp"),
    ("team_static", "dense"),
    ("team_dynamic", "dense"),
    ("team_dynamic", "best_member"),
    ("team_static", "small_dense"),
)


def worst_case(run: Path) -> dict[str, np.ndarray]:
    """Return, for each row, which test images are right under every attack made for it."""
    outcomes = load_file(only(run, "evaluate-*") / "outcomes.safetensors")
    rows = {name.split(".")[0] for name in outcomes}
    # Clean images count: an adversary may leave an image as it is.
    return {row: np.all([v for k, v in outcomes.items() if k.split(".")[0] == row], axis=0) for row in rows}


def only(run: Path, pattern: str) -> Path:
    """Return the one path that fits."""
    found = list(run.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{run} holds {len(found)} of {pattern}, expected one")
    return found[0]


def main() -> None:
    runs = [Path(word) for word in sys.argv[1:]]
    if not runs:
        sys.exit(__doc__)
    summaries = [json.loads((run / "report" / "summary.json").read_text("utf-8")) for run in runs]
    print("| row | clean % | worst case % (each seed) | members run, clean / attacked | training |")
    print("|---|---:|---:|---:|---:|")
    for name, title in NAMES.items():
        rows = [next(row for row in summary["rows"] if row["name"] == name) for summary in summaries]
        clean, worst = (np.array([100 * row[key] for row in rows]) for key in ("clean", "worst_case"))
        run, hit = (np.mean([row["members_run"][key] for row in rows]) for key in ("clean", "attacked"))
        seconds = np.mean([row["seconds"] for row in rows])
        each = ", ".join(f"{value:.1f}" for value in worst)
        print(
            f"| {title} | {clean.mean():.1f} | {worst.mean():.1f} ({each}) | {run:.2f} / {hit:.2f} | {seconds:.0f} s |"
        )
    outcomes = [worst_case(run) for run in runs]
    images = len(outcomes[0]["dense"])
    print(f"\n| worst case, {len(runs)} seeds x {images} images | difference in points | 95 % interval |")
    print("|---|---:|---:|")
    for first, second in PAIRS:
        differences = np.stack([one[first].astype(np.float64) - one[second].astype(np.float64) for one in outcomes])
        mean, low, high = (100 * value for value in paired_mean_difference(differences))
        print(f"| {NAMES[first]} minus {NAMES[second]} | {mean:+.1f} | {low:+.1f} to {high:+.1f} |")


if __name__ == "__main__":
    main()
