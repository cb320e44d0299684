"""Whether to believe a robustness number: fifty checks, numbered as in docs/checks.md."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

from sparsemble.core.errors import InputError
from sparsemble.core.results import STATUSES, CheckResult

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
    27: "minimum-norm attacks report distance, norm and eps",
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
    50: "failed and skipped checks stand beside the headline",
}
"""What each check establishes when it passes, by number."""
NOT_RUN = "not run in this evaluation"
REASONS = {
    25: "needs a standard model and one with a published AutoAttack value; neither was attacked here",
    26: "agreement with the reference is measured by benchmarks/attacks.py, not in every evaluation",
    31: "no single model of equal cost was evaluated beside this one; a run or `sparsemble compare` does",
    32: "one model was evaluated; ablations are rows of a study",
    43: "no speed-up is claimed",
    45: "one training was evaluated; nothing is claimed to be better",
    50: "the result was not shown yet",
}
"""Why checks are skipped for which one evaluation of one model has no evidence; `NOT_RUN` for the others."""


def verdict(number: int, good: bool, detail: str) -> CheckResult:
    """Return a check that passed or failed.

    Args:
        number: 1 to 50.
        good: whether it passed.
        detail: what was measured.
    """
    return CheckResult(number=number, name=NAMES[number], status="passed" if good else "failed", detail=detail)


def skipped(number: int, reason: str) -> CheckResult:
    """Return a check for which there is no evidence, with a sentence that gives the reason."""
    return CheckResult(number=number, name=NAMES[number], status="skipped", detail=reason)


def merged(checks: Iterable[CheckResult]) -> list[CheckResult]:
    """Fold checks of the same number into one: failed wins over skipped over passed, details are joined."""
    ordered = sorted(checks, key=lambda check: (check.number, STATUSES.index(check.status)))
    folded = []
    for _, group in itertools.groupby(ordered, key=lambda check: check.number):
        worst, *others = group
        details = dict.fromkeys(check.detail for check in (worst, *others))
        folded.append(replace(worst, detail="; ".join(details)))
    return folded


def complete(checks: Iterable[CheckResult]) -> tuple[CheckResult, ...]:
    """Return exactly one check for each of the fifty numbers, in order; those not given are skipped.

    Raises:
        InputError: a number outside 1 to 50, or one that is there twice (see `merged`).
    """
    by_number: dict[int, CheckResult] = {}
    for check in checks:
        if check.number not in NAMES:
            raise InputError(f"check {check.number} is not in the list; numbers go from 1 to {len(NAMES)}")
        if check.number in by_number:
            raise InputError(f"check {check.number} is there twice; put both together with merged() first")
        by_number[check.number] = check
    return tuple(by_number.get(number) or skipped(number, REASONS.get(number, NOT_RUN)) for number in NAMES)
