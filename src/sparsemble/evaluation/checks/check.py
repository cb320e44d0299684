"""One verdict on an evaluation, the names of all fifty, and how they are put together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, final

from sparsemble.core.errors import InputError

Status = Literal["pass", "fail", "waived"]
WORST_FIRST: tuple[Status, ...] = ("fail", "waived", "pass")
NOISE = 0.01
"""Accuracy by which two attacks with random starts may differ in the wrong direction."""

NAMES = {
    # Threat model and inputs
    1: "threat model and access are recorded",
    2: "images and adversarial images lie inside the threat model",
    3: "eval mode; outputs do not depend on neighbours in the batch",
    4: "all test images, or a subset with its seed and an interval",
    5: "the checkpoint was not selected on test images",
    6: "one eps, never 0.031 beside 8/255",
    # Gradient health
    7: "logits reach the attacks",
    8: "no randomness in the forward pass",
    9: "gradients are neither zero nor NaN",
    10: "gradients agree with finite differences",
    11: "no undeclared detours in the forward pass",
    12: "the loss is smooth around the images",
    # Attack sanity
    13: "more steps break more images",
    14: "accuracy falls with eps down to chance",
    15: "twice the steps change next to nothing",
    16: "the loss has converged along the attack's path",
    17: "attacks return the best point of their path",
    18: "a black-box attack (Square) finds nothing more",
    19: "hard-label attack and random noise are weaker",
    20: "transferred images are weaker than white-box ones",
    21: "targeted and untargeted attacks, classes read from the model",
    22: "the headline is a union image by image",
    23: "stored adversarial images reproduce",
    24: "success is decided in float32",
    25: "attacks break a standard model and meet a published value",
    26: "attacks agree with the reference implementation",
    27: "minimum-norm attacks say distance, norm and eps",
    # Ensembles
    28: "the deployed combiner and the others were attacked",
    29: "members were attacked one by one, in turn and re-weighted",
    30: "each member's own accuracy and transfer are reported",
    31: "compared with single models of equal cost",
    32: "ablations are reported",
    # Dynamic inference
    33: "every view of the stopping rule was attacked",
    34: "the rule was pushed to stop early on a wrong label",
    35: "members run under an attack on cost are reported",
    36: "speed claims stand beside their cost under attack",
    37: "stopping thresholds are from held-out images, and no knife's edge",
    38: "decisions do not depend on the batch",
    # Sparsity, size and speed
    39: "sparsity recounted from the weights",
    40: "pruned weights stayed 0",
    41: "bytes, memory, operations and latency are separate fields",
    42: "masked, packed and exported versions agree",
    43: "speed-up is over the dense parent in the same runtime",
    # Reporting
    44: "the result file is complete",
    45: "three seeds stand behind a claim",
    46: "extra training data is declared",
    47: "the security curve reaches zero",
    48: "quoted numbers name their source",
    49: "wider tests were made",
    50: "failed and waived checks stand beside the headline",
}
"""What each check establishes when it passes, by number."""


@final
@dataclass(frozen=True)
class Check:
    """One verdict."""

    number: int
    """In the list of evaluation checks."""
    name: str
    status: Status
    detail: str


def verdict(number: int, good: bool, detail: str) -> Check:
    """Make a check that passes or fails."""
    return Check(number, NAMES[number], "pass" if good else "fail", detail)


def waived(number: int, reason: str) -> Check:
    """Make a check that could not be made, with a sentence that says why."""
    return Check(number, NAMES[number], "waived", reason)


def merged(checks: Iterable[Check]) -> list[Check]:
    """Fold checks of the same number into one: the worst status wins (fail, waived, pass), details are joined."""
    by_number: dict[int, list[Check]] = {}
    for check in checks:
        by_number.setdefault(check.number, []).append(check)
    return [_fold(by_number[number]) for number in sorted(by_number)]


def complete(checks: Iterable[Check], reasons: Mapping[int, str] | str = "not run in this evaluation") -> list[Check]:
    """Return exactly one check for each of the fifty numbers, in order; those not given are waived.

    Args:
        checks: what was found, each number once; see `merged`.
        reasons: why the others were not made, one sentence for all or one for each number (those not named were "not
            run in this evaluation").

    Raises:
        InputError: a number outside 1 to 50, or one that is there twice.
    """
    found: dict[int, Check] = {}
    for check in checks:
        if check.number not in NAMES:
            raise InputError(f"check {check.number} is not in the list; numbers go from 1 to {len(NAMES)}")
        if check.number in found:
            raise InputError(f"check {check.number} is there twice; put both together with merged() first")
        found[check.number] = check
    named = {} if isinstance(reasons, str) else reasons
    default = reasons if isinstance(reasons, str) else "not run in this evaluation"
    return [found.get(number) or waived(number, named.get(number, default)) for number in NAMES]


def _fold(checks: list[Check]) -> Check:
    """Put checks of one number together, the worst first."""
    ordered = sorted(checks, key=lambda check: WORST_FIRST.index(check.status))
    details = dict.fromkeys(check.detail for check in ordered)
    return Check(ordered[0].number, ordered[0].name, ordered[0].status, "; ".join(details))
