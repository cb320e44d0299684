"""Compare attacks on ensembles that stop early, image by image: what each breaks, what it misses, its passes.

python benchmarks/stopping_attacks.py runs/digits                       # held-out images, on which attacks are chosen
python benchmarks/stopping_attacks.py runs/digits --part test --all     # all test images, once

Most images are broken by any attack or by none. Unless `--all` is given, only images near the boundary are attacked: a
short attack (targeted APGD through the deployed prediction, 15 steps, one target) leaves them at eps and breaks them at
`NEAR` times eps. `--eps` takes several radii in units of the run's own; `--rule` calibrates another stopping rule on
the logits that the run has stored. With `--part test --all`, the attacks that the run stored for its ensemble are in
the comparison, too. Prints Markdown and, with `--out`, writes which images each attack broke.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsemble.attacks.apgd_targeted import APGDTargeted
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.ensemble.deployed import Deployed
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.expectation import Expectation
from sparsemble.attacks.ensemble.hijack import Hijack
from sparsemble.attacks.ensemble.joint_decision import JointDecision
from sparsemble.attacks.ensemble.suite import FOCUSED
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble, StoppingRule, stopping_rules
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Flags, Images, Labels, seeded
from sparsemble.ensemble import CalibrationLogits, calibrate, predict_dynamic
from sparsemble.evaluation.run_models import RunIndex, load_row

NEAR = 1.3
BATCH = 100
ADAPTIVE = PGD(steps=20, step_size=0.1, stop_at_success=False)
"""That of the recipe `digits`."""
SHORT = SurrogateAttack(attack=APGDTargeted(steps=15, targets=1), surrogate=Deployed(), use_deployed_logits=False)
ATTACKS: tuple[EnsembleAttack, ...] = (
    Hijack(),
    SurrogateAttack(attack=ADAPTIVE, surrogate=Deployed(), use_deployed_logits=False),
    SurrogateAttack(attack=ADAPTIVE, surrogate=Expectation()),
    SurrogateAttack(attack=Square(queries=500), surrogate=Deployed(), use_deployed_logits=False),
    SurrogateAttack(attack=APGDTargeted(steps=50, targets=3), surrogate=Deployed(), use_deployed_logits=False),
    SurrogateAttack(attack=APGDTargeted(steps=50, targets=3), surrogate=Expectation()),
    SurrogateAttack(attack=APGDTargeted(steps=50, targets=3), surrogate=JointDecision(), use_deployed_logits=False),
    SurrogateAttack(attack=FOCUSED, surrogate=Deployed(), use_deployed_logits=False),
    SurrogateAttack(attack=FOCUSED, surrogate=JointDecision(), use_deployed_logits=False),
)


class Problem(NamedTuple):
    """Images that are classified correctly, and the radius at which they are attacked."""

    x: Images
    y: Labels
    threat: ThreatModel


def load(run: Path, part: str, rule_name: str | None) -> tuple[Ensemble, StoppingRule, Images, Labels, ThreatModel]:
    """Return the dynamic row of a run, and its images; held-out ones are those of selection and calibration.

    Args:
        run: folder of a run that was calibrated.
        part: held_out or test.
        rule_name: the rule to calibrate in place of the run's own.
    """
    index = RunIndex.load(run)
    row = load_row("ensemble_dynamic", index.artifacts(run, "ensemble_dynamic"), index.combiner, torch.device("cpu"))
    data = index.data.load()
    splits = [data.test] if part == "test" else [data.selection, data.calibration]
    x, y = (torch.cat(tensors) for tensors in zip(*(split.tensors() for split in splits), strict=True))
    rule = row.rule
    if rule_name:
        attacked = load_file(next(run.glob("calibrate-*/logits.safetensors")))
        labels, clean = attacked.pop("labels"), attacked.pop("clean")
        logits = CalibrationLogits(clean=clean, attacked=attacked, y=labels, combiner=index.combiner)
        rule = calibrate(stopping_rules.build(rule_name), logits, max_accuracy_drop=0.002).rule
    return row.ensemble, rule, x, y, index.threat


def run_attack(
    attack: EnsembleAttack, ensemble: Ensemble, rule: StoppingRule, problem: Problem
) -> tuple[Flags, float, float]:
    """Return which images the deployed prediction keeps, and the forward and backward passes of an image."""
    kept, forward, backward = list[Tensor](), 0, 0
    for number, rows in enumerate(torch.arange(len(problem.y)).split(BATCH)):
        x, y = problem.x[rows], problem.y[rows]
        with count_passes(*ensemble.members) as passes:
            x_adv = attack(ensemble, rule, x, y, problem.threat, rng=seeded(number))
        forward, backward = forward + passes.forward, backward + passes.backward
        kept.append(predict_dynamic(ensemble, x_adv, rule).logits.argmax(1) == y)
    return torch.cat(kept), forward / len(problem.y), backward / len(problem.y)


def near_boundary(ensemble: Ensemble, rule: StoppingRule, problem: Problem) -> Problem:
    """Return the images that a short attack leaves at eps and breaks at `NEAR` times eps."""
    left = run_attack(SHORT, ensemble, rule, problem)[0]
    left_problem = Problem(problem.x[left], problem.y[left], problem.threat)
    wider = ThreatModel(norm=problem.threat.norm, eps=NEAR * problem.threat.eps)
    broken = ~run_attack(SHORT, ensemble, rule, left_problem._replace(threat=wider))[0]
    return Problem(left_problem.x[broken], left_problem.y[broken], problem.threat)


def stored(run: Path, ensemble: Ensemble, rule: StoppingRule, y: Labels) -> Iterator[tuple[str, list[int]]]:
    """Yield the label of each attack of a run on its ensemble, and the test images that it breaks under the rule."""
    for meta in sorted(run.glob("attack-*/meta.json")):
        if json.loads(meta.read_text("utf-8"))["spec"]["row"].startswith("ensemble"):
            label = json.loads((meta.parent / "attack.json").read_text("utf-8"))["label"]
            shards = sorted((meta.parent / "outcomes" / label).glob("*.safetensors"))
            x_adv = torch.cat([load_file(shard)["images"] for shard in shards])
            yield label, (predict_dynamic(ensemble, x_adv, rule).logits.argmax(1) != y).nonzero()[:, 0].tolist()


def main() -> None:
    """Select images, run every attack, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--part", choices=("held_out", "test"), default="held_out")
    parser.add_argument("--images", type=int, default=0, help="the first ones; 0: all")
    parser.add_argument("--all", action="store_true", help="attack all images, not only those near the boundary")
    parser.add_argument("--eps", default="0.8,1,1.2", help="in units of the run's own")
    parser.add_argument("--rule", help="calibrate this rule in place of the run's own")
    parser.add_argument("--attacks", default="", help="labels, separated by commas; empty: all")
    parser.add_argument("--out", type=Path, help="JSON file for the outcomes")
    arguments = parser.parse_args()
    ensemble, rule, x, y, threat = load(arguments.run, arguments.part, arguments.rule)
    if arguments.images:
        x, y = x[: arguments.images], y[: arguments.images]
    clean = predict_dynamic(ensemble, x, rule).logits.argmax(1) == y
    problems = []
    for factor in (1.0,) if arguments.all else map(float, arguments.eps.split(",")):
        problem = Problem(x[clean], y[clean], ThreatModel(norm=threat.norm, eps=factor * threat.eps))
        problems.append(problem if arguments.all else near_boundary(ensemble, rule, problem))
    print(f"{rule}; {arguments.part}; images: {', '.join(f'{len(p.y)} at {p.threat}' for p in problems)}\n")
    print("| attack | broken | passes an image, forward + backward |\n|---|---:|---:|")
    chosen = arguments.attacks.split(",") if arguments.attacks else [attack.label for attack in ATTACKS]
    outcomes: dict[str, list[int]] = {}
    for attack in ATTACKS:
        if attack.label not in chosen:
            continue
        runs = [run_attack(attack, ensemble, rule, problem) for problem in problems if len(problem.y)]
        broken, sizes = ~torch.cat([kept for kept, _, _ in runs]), [len(kept) for kept, _, _ in runs]
        forward, backward = (sum(run[i] * n for run, n in zip(runs, sizes, strict=True)) / sum(sizes) for i in (1, 2))
        outcomes[attack.label] = broken.nonzero()[:, 0].tolist()
        print(f"| `{attack.label}` | {int(broken.sum())} | {forward:.0f} + {backward:.0f} |", flush=True)
    if arguments.all and arguments.part == "test" and not arguments.images:
        known = dict(stored(arguments.run, ensemble, rule, y))
        renumber = {int(image): number for number, image in enumerate(clean.nonzero()[:, 0])}
        for label, images in known.items():
            outcomes[f"stored {label}"] = [renumber[image] for image in images if image in renumber]
    if arguments.out:
        arguments.out.write_text(json.dumps(outcomes), "utf-8")
    print("\n| broken by the row, not by the column | " + " | ".join(outcomes) + " |")
    print("|---|" + "---:|" * len(outcomes))
    for label, images in outcomes.items():
        missed = [str(len(set(images) - set(other))) for other in outcomes.values()]
        print(f"| `{label}` | {' | '.join(missed)} |")


if __name__ == "__main__":
    main()
