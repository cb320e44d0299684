"""Compare runs of one recipe over seeds: means, spread, and paired intervals on the same test images.

python benchmarks/compare_seeds.py runs/seed0 runs/seed1 runs/seed2
python benchmarks/compare_seeds.py runs/seed0 runs/seed1 --against runs/eed0 runs/eed1

Prints Markdown. `--against` adds each row minus that of another recipe, seed by seed in the order given. A run is
its folder or, where one folder holds several runs, a copy of its report inside it. A paired difference joins all
seeds and images (`evaluation.intervals.paired_mean_difference`).
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from sparsemble.evaluation.statistics import paired_mean_difference
from sparsemble.report.summary import NAMES

PAIRS = (
    ("ensemble_static", "harp"),
    ("ensemble_dynamic", "harp"),
    ("ensemble_static", "dense"),
    ("ensemble_dynamic", "dense"),
    ("ensemble_dynamic", "best_member"),
    ("ensemble_static", "small_dense"),
)


class Run(NamedTuple):
    """What a run found."""

    summary: dict[str, Any]
    worst_case: dict[str, np.ndarray]
    """For each row, which test images are right under every attack made for it."""


def read(path: Path) -> Run:
    """Return what the report of a run, and the evaluation that it is made from, say."""
    report = path / "report" if (path / "report").is_dir() else path
    if not (report / "meta.json").is_file():
        sys.exit(f"{path} is neither a finished run nor a copy of its report")
    evaluation = json.loads((report / "meta.json").read_text("utf-8"))["inputs"]["evaluate"]
    outcomes = load_file(report.parent / evaluation / "outcomes.safetensors")
    rows = {name.split(".")[0] for name in outcomes}
    # Clean images count: an adversary may leave an image as it is.
    worst = {row: np.all([v for k, v in outcomes.items() if k.split(".")[0] == row], axis=0) for row in rows}
    return Run(json.loads((report / "summary.json").read_text("utf-8")), worst)


def difference(title: str, first: list[np.ndarray], second: list[np.ndarray]) -> str:
    """Return a line of a table: the paired difference of two rows, in points."""
    differences = np.stack([a.astype(np.float64) - b.astype(np.float64) for a, b in zip(first, second, strict=True)])
    mean, low, high = (100 * value for value in paired_mean_difference(differences))
    return f"| {title} | {mean:+.1f} | {low:+.1f} to {high:+.1f} |"


def main() -> None:
    words = sys.argv[1:]
    cut = words.index("--against") if "--against" in words else len(words)
    runs, others = ([read(Path(word)) for word in part] for part in (words[:cut], words[cut + 1 :]))
    if not runs or (cut < len(words) and len(others) != len(runs)):
        sys.exit(__doc__)
    print("| row | clean % | worst case % (each seed) | members run, clean / attacked | training |")
    print("|---|---:|---:|---:|---:|")
    for name, title in NAMES.items():
        rows = [next(row for row in run.summary["rows"] if row["name"] == name) for run in runs]
        clean, worst = (np.array([100 * row[key] for row in rows]) for key in ("clean", "worst_case"))
        asked, hit = (np.mean([row["members_run"][key] for row in rows]) for key in ("clean", "attacked"))
        seconds = np.mean([row["seconds"] for row in rows])
        each = ", ".join(f"{value:.1f}" for value in worst)
        members = f"{asked:.2f} / {hit:.2f}"
        print(f"| {title} | {clean.mean():.1f} | {worst.mean():.1f} ({each}) | {members} | {seconds:.0f} s |")
    count = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    print(f"\n| worst case, {count} x {len(runs[0].worst_case['dense'])} images | points | 95 % interval |")
    print("|---|---:|---:|")
    for a, b in PAIRS:
        first, second = ([run.worst_case[row] for run in runs] for row in (a, b))
        print(difference(f"{NAMES[a]} minus {NAMES[b]}", first, second))
    for row, title in NAMES.items() if others else ():
        ours, theirs = ([run.worst_case[row] for run in part] for part in (runs, others))
        print(difference(f"{title}, minus that of the other recipe", ours, theirs))


if __name__ == "__main__":
    main()
