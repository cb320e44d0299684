"""Was the stopping rule attacked, and does it decide for each image alone (checks 33 to 38)."""

import contextlib
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import StoppingRule
from sparsemble.core.results import CheckResult, EvaluationResult
from sparsemble.core.types import Images, Labels
from sparsemble.evaluation.checks import skipped, verdict
from sparsemble.evaluation.checks.settings import is_whole, members_alone, named, settings_of, stops_early, uses
from sparsemble.evaluation.job import Decide

ALWAYS_ALL = "all members always run"
BLACK_BOX = ("square", "noise", "rays", "hop_skip_jump", "transfer")
NUDGE = 0.1
"""Fraction by which thresholds are moved."""
EDGE = 0.02
"""Accuracy that moved thresholds may cost."""


def stopping_attacked(result: EvaluationResult) -> CheckResult:
    """Check 33: the relaxed rule, every prefix, the whole ensemble and the deployed rule were attacked; no passes."""
    if not stops_early(result):
        return skipped(33, ALWAYS_ALL)
    settings = settings_of(result)
    # Member 1 is the prefix of length 1.
    prefixes = {prefix["length"] for prefix in named(settings, "prefix")} | members_alone(settings) & {1}
    lacking = [f"prefix {length}" for length in range(1, result.model.members) if length not in prefixes]
    lacking += [] if uses(settings, "expectation") else ["the expected answer over all stopping times"]
    lacking += [] if any(is_whole(attack) for attack in settings) else ["the whole ensemble"]
    blind = [attack for attack in settings if uses(attack, *BLACK_BOX)]
    if not any(attack.get("surrogate", {}).get("name") == "deployed" for attack in blind):
        lacking.append("a black-box attack on the deployed decision")
    return verdict(33, not lacking, f"not attacked: {', '.join(lacking) or 'nothing'}")


def hijack_counted(result: EvaluationResult) -> CheckResult:
    """Check 34: an attack on label and stop together ran, and the worst case counts its successes; no passes."""
    if not stops_early(result):
        return skipped(34, ALWAYS_ALL)
    ran = [attack for attack in result.attacks if uses(attack.settings, "joint_decision", "hijack")]
    if not ran:
        return verdict(34, False, "no attack aimed at an early stop on a wrong label (joint_decision, hijack)")
    worst = result.worst_case.correct
    lost = {i for attack in ran for i, correct in enumerate(attack.correct) if not correct}
    missed = sum(worst[i] for i in lost)
    labels = ", ".join(attack.label for attack in ran)
    detail = f"{labels} leaves {len(worst) - len(lost)} of {len(worst)} images correct"
    return verdict(34, missed == 0, detail + (f", but {missed} misclassified ones count as correct" if missed else ""))


def cost_under_attack(result: EvaluationResult) -> CheckResult:
    """Check 35: members run on clean images, under attacks on the answer and under attacks on cost; no passes.

    Attacks on cost ran with and without keeping the label, and cost no less than clean images do.
    """
    if not stops_early(result):
        return skipped(35, ALWAYS_ALL)
    runs, most = result.members_run, result.model.members
    slow = list(named(settings_of(result), "slowdown"))
    faults = [
        f"no attack on cost that {kind}"
        for kind, keep in (("keeps the label", True), ("is free", False))
        if not any(attack.get("keep_label") is keep for attack in slow)
    ]
    if runs.slowdown is None:
        faults.append("members run slowdown is not given")
    elif not faults and not 1 <= runs.clean <= runs.slowdown + 1e-6 <= most + 1e-5:
        faults.append("an attack on cost must not make the ensemble faster, nor run more than all members")
    numbers = {"clean": runs.clean, "attacked": runs.attacked, "slowdown": runs.slowdown}
    detail = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)
    return verdict(35, not faults, "; ".join([*faults, f"members run of {most}: {detail}"]))


def speed_beside_cost(result: EvaluationResult) -> CheckResult:
    """Check 36: speed of an ensemble that stops early stands beside members run under attack on cost; no passes."""
    if not stops_early(result):
        return skipped(36, ALWAYS_ALL)
    slow = result.members_run.slowdown
    claim = "latency and multiply-adds" if result.cost.latency else "multiply-adds"
    detail = f"{claim} on clean images, " + ("alone" if slow is None else f"up to {slow:.2f} members under attack")
    return verdict(36, slow is not None, detail)


@torch.no_grad()
def no_knifes_edge(
    decide_with: Callable[[StoppingRule], Decide], rule: StoppingRule, x: Images, y: Labels, tuned_on: str | None
) -> CheckResult:
    """Check 37: thresholds come from held-out images, and moving each by a tenth costs at most two points.

    Costs a decision an image for the rule itself and two for each of its numbers.

    Args:
        decide_with: the deployed decision under another rule.
        rule: the deployed rule.
        x: images.
        y: their classes.
        tuned_on: `held-out`, `test`, or None where that is not known.
    """

    def measure(candidate: StoppingRule) -> tuple[float, float]:
        output = decide_with(candidate)(x)
        return float((output.logits.argmax(1) == y).float().mean()), float(output.members_run.float().mean())

    accuracy, runs = measure(rule)
    others = {change: measure(other) for change, other in nudged(rule).items()}
    worst = max(others, key=lambda change: accuracy - others[change][0], default="")
    lost = accuracy - others[worst][0] if worst else 0.0
    detail = f"tuned on {tuned_on or 'unknown'} images; accuracy {accuracy:.3f}, members {runs:.2f}"
    detail += f"; {worst}: {others[worst][0]:.3f}, {others[worst][1]:.2f}" if worst else "; the rule has no numbers"
    if tuned_on is None and lost <= EDGE:
        return skipped(37, f"it is not known which images tuned the rule; {detail}")
    return verdict(37, tuned_on != "test" and lost <= EDGE, detail)


def nudged(rule: StoppingRule) -> dict[str, StoppingRule]:
    """Return the rule with each of its numbers a tenth lower and higher, keyed by the change, as in `tau_c x 0.9`."""
    numbers = {name: value for name, value in vars(rule).items() if isinstance(value, float) and value}
    rules: dict[str, StoppingRule] = {}
    for (name, value), factor in itertools.product(numbers.items(), (1 - NUDGE, 1 + NUDGE)):
        # A number at the end of its range has no neighbour beyond it.
        with contextlib.suppress(InputError):
            rules[f"{name} x {factor:g}"] = type(rule)(**{**vars(rule), name: value * factor})
    return rules


@torch.no_grad()
def independent_of_batch(decide: Decide, x: Images) -> CheckResult:
    """Check 38: predictions and members run are the same one by one, in a batch, and in reversed order.

    Costs 3 decisions an image.
    """

    def answers(images: Images) -> Tensor:
        output = decide(images)
        return torch.stack([output.logits.argmax(1), output.members_run])

    whole, turned = answers(x), answers(x.flip(0)).flip(1)
    single = torch.cat([answers(one) for one in x.split(1)], 1)
    differ = ((whole != turned) | (whole != single)).any(0)
    detail = f"{int(differ.sum())} of {len(x)} images decided differently alone, in a batch or in reversed order"
    return verdict(38, not differ.any(), detail)
