"""Measure what a calibrated stopping rule loses on images that it was not calibrated on.

python benchmarks/calibration.py runs/seed0 runs/seed1 runs/seed2

Each run stores the members' logits on its calibration images, clean and attacked. Here these images are split into
random halves `SPLITS` times; a rule is calibrated on one half and evaluated on the other; no test image is used. Prints
Markdown: the difference to all members in percentage points, and members run. The stored attacks on a rule are those
on the run's own rule, which therefore faces the strongest attacks. Every calibration in the given folders is used.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from sparsemble.core.interfaces import combiners, stopping_rules
from sparsemble.core.results import HeldOutOutcome
from sparsemble.core.types import seeded
from sparsemble.ensemble import CalibrationLogits, calibrate, evaluate_rule
from sparsemble.ensemble.stopping.never import Never

SPLITS = 6
MAX_ACCURACY_DROP = 0.002
"""As in the recipe."""
RULES = ("agreement", "die", "first_passage", "confidence")


def load(run: Path) -> list[CalibrationLogits]:
    """Return the logits of every calibration in a run's folder."""
    calibrations = []
    for path in sorted(run.glob("calibrate-*/logits.safetensors")):
        attacked = load_file(path)
        y, clean = attacked.pop("labels"), attacked.pop("clean")
        combiner = combiners.build("mean_probability")
        calibrations.append(CalibrationLogits(clean=clean, attacked=attacked, y=y, combiner=combiner))
    return calibrations


def subset(logits: CalibrationLogits, images: torch.Tensor) -> CalibrationLogits:
    """Return the logits on some of the images."""
    attacked = {name: member_logits[:, images] for name, member_logits in logits.attacked.items()}
    return replace(logits, clean=logits.clean[:, images], attacked=attacked, y=logits.y[images])


def main() -> None:
    """Split, calibrate, evaluate, print."""
    calibrations = [logits for run in sys.argv[1:] for logits in load(Path(run))]
    if not calibrations:
        sys.exit(__doc__)
    sizes = ", ".join(str(len(logits.y)) for logits in calibrations)
    print(f"{len(calibrations)} calibrations of {sizes} images, {SPLITS} splits each\n")
    print("| rule | clean | worst case | members run, clean | attacked |\n|---|---:|---:|---:|---:|")
    for name in RULES:
        rng, outcomes = seeded(0), list[tuple[HeldOutOutcome, HeldOutOutcome]]()
        for logits in calibrations * SPLITS:
            order = torch.randperm(len(logits.y), generator=rng)
            first, second = (subset(logits, half) for half in order.chunk(2))
            rule = calibrate(stopping_rules.build(name), first, max_accuracy_drop=MAX_ACCURACY_DROP).rule
            outcomes.append((evaluate_rule(rule, second), evaluate_rule(Never(), second)))
        clean = sum(rule.clean - never.clean for rule, never in outcomes) / len(outcomes)
        worst = sum(rule.worst_case - never.worst_case for rule, never in outcomes) / len(outcomes)
        members = sum(rule.members_run for rule, _ in outcomes) / len(outcomes)
        attacked = sum(rule.attacked_members_run for rule, _ in outcomes) / len(outcomes)
        print(f"| {name} | {100 * clean:+.2f} | {100 * worst:+.2f} | {members:.3f} | {attacked:.3f} |", flush=True)


if __name__ == "__main__":
    main()
