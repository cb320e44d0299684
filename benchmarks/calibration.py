"""What a calibrated stopping rule loses on images that it was not set on.

python benchmarks/calibration.py runs/seed0 runs/seed1 runs/seed2

Each run keeps what the members said to its calibration images, clean and attacked. Here they are halved at random, a
rule is set on one half and judged on the other, `SPLITS` times; no test image is seen. Prints Markdown: the difference
to all members in points, and members run. The stored attacks on a rule are those on the run's own, so that rule has
the hardest time. Give it folders with one calibration each: all that lie there are used.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from sparsemble.core import seeded
from sparsemble.core.interfaces import combiners, stopping_rules
from sparsemble.core.results import HeldOutOutcome
from sparsemble.ensemble import CalibrationLogits, calibrate, evaluate_rule
from sparsemble.ensemble.stopping.never import Never

SPLITS = 6
DROP = 0.002
"""`max_accuracy_drop` of the recipe."""
RULES = ("agreement", "die", "first_passage", "confidence")


def stored(run: Path) -> list[CalibrationLogits]:
    """Return what the calibrations in a run's folder saw."""
    found = []
    for path in sorted(run.glob("calibrate-*/logits.safetensors")):
        tensors = load_file(path)
        y, clean = tensors.pop("labels"), tensors.pop("clean")
        found.append(
            CalibrationLogits(clean=clean, attacked=tensors, y=y, combiner=combiners.build("mean_probability"))
        )
    return found


def part(held_out: CalibrationLogits, chosen: torch.Tensor) -> CalibrationLogits:
    """Return the same for some of the images."""
    attacked = {name: logits[:, chosen] for name, logits in held_out.attacked.items()}
    return replace(held_out, clean=held_out.clean[:, chosen], attacked=attacked, y=held_out.y[chosen])


def main() -> None:
    """Halve, set, judge."""
    sets = [one for run in sys.argv[1:] for one in stored(Path(run))]
    if not sets:
        sys.exit(__doc__)
    print(f"{len(sets)} calibrations of {', '.join(str(len(one.y)) for one in sets)} images, {SPLITS} splits each\n")
    print("| rule | clean | worst case | members run, clean | attacked |\n|---|---:|---:|---:|---:|")
    for name in RULES:
        rng, seen = seeded(0), list[tuple[HeldOutOutcome, HeldOutOutcome]]()
        for one in sets * SPLITS:
            mixed = torch.randperm(len(one.y), generator=rng)
            first, second = (part(one, half) for half in mixed.chunk(2))
            rule = calibrate(stopping_rules.build(name), first, max_accuracy_drop=DROP).rule
            seen.append((evaluate_rule(rule, second), evaluate_rule(Never(), second)))
        clean = sum(rule.clean - never.clean for rule, never in seen) / len(seen)
        worst = sum(rule.worst_case - never.worst_case for rule, never in seen) / len(seen)
        members = sum(rule.members_run for rule, _ in seen) / len(seen)
        attacked = sum(rule.attacked_members_run for rule, _ in seen) / len(seen)
        print(f"| {name} | {100 * clean:+.2f} | {100 * worst:+.2f} | {members:.3f} | {attacked:.3f} |", flush=True)


if __name__ == "__main__":
    main()
