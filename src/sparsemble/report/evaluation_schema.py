"""The schema of `evaluation.json` (docs/evaluation_json.md), and what its numbers must say about each other."""

from fractions import Fraction
from typing import Any

from sparsemble.core.errors import InputError
from sparsemble.report.schema import (
    AMOUNT,
    COUNT,
    INTERVAL,
    NUMBER_OR_NULL,
    POSITIVE_COUNT,
    SHARE,
    STATUS,
    TABLE,
    TEXT,
    TEXT_OR_NULL,
    TRUTH,
    WHOLE,
    WHOLE_OR_NULL,
    Each,
    IfThere,
    OrNull,
    keep,
    one_of,
)

SCHEMA_VERSION = 1
CHECKS = 50
"""Checks of an evaluation, each in every result."""

BIT = one_of(0, 1)
PASSES = {"forward": COUNT, "backward": COUNT}
TIMES = {"median_ms": AMOUNT, "spread_ms": AMOUNT}
ATTACK = {
    "settings": TABLE,
    "kind": one_of("attack", "ensemble attack"),
    "mode": one_of("fast", "exact", None),
    "robust_accuracy": SHARE,
    "interval": INTERVAL,
    "outcomes": [BIT],
    "distances": [AMOUNT],
    "members_run": [COUNT],
    "passes": PASSES,
    "passes_by_image": IfThere(Each([AMOUNT])),
    "seconds": AMOUNT,
    "median_distance": IfThere(NUMBER_OR_NULL),
    "minimum_distances": IfThere([NUMBER_OR_NULL]),
    "parts": IfThere(Each(COUNT)),
}
ROBUSTBENCH = {
    "link": TEXT_OR_NULL,
    "authors": TEXT_OR_NULL,
    "additional_data": TRUTH,
    "number_forward_passes": TEXT,
    "dataset": TEXT,
    "venue": TEXT_OR_NULL,
    "architecture": TEXT,
    "eps": TEXT,
    "clean_acc": TEXT,
    "reported": TEXT_OR_NULL,
    "autoattack_acc": TEXT_OR_NULL,
    "unreliable": TRUTH,
    "external": TEXT_OR_NULL,
}
"""What RobustBench keeps of a model, under its names."""
EVALUATION = {
    "schema": one_of(SCHEMA_VERSION),
    "kind": one_of("evaluation"),
    "name": TEXT,
    "command": TEXT,
    "target": {
        "kind": TEXT,
        "path": TEXT,
        "sha256": TEXT,
        "parameters": COUNT,
        "nonzeros": COUNT,
        "sparsity": SHARE,
        "members": POSITIVE_COUNT,
        "stopping": TEXT_OR_NULL,
        "selected_on": one_of("held-out", "test", None),
    },
    "data": {
        "name": TEXT,
        "sha256": TEXT,
        "split": one_of("test"),
        "images": POSITIVE_COUNT,
        "subset_seed": WHOLE_OR_NULL,
        "classes": POSITIVE_COUNT,
        "indices": [COUNT],
    },
    "threat": {"norm": one_of("linf", "l2"), "eps": AMOUNT, "eps_text": TEXT, "knowledge": one_of("white-box")},
    "clean_accuracy": SHARE,
    "clean_interval": INTERVAL,
    "clean_outcomes": [BIT],
    "attacks": Each(ATTACK),
    "worst_case": {"accuracy": SHARE, "interval": INTERVAL, "outcomes": [BIT]},
    "checks": [{"number": POSITIVE_COUNT, "name": TEXT, "status": STATUS, "detail": TEXT}],
    "security_curve": OrNull({"attack": TEXT, "images": POSITIVE_COUNT, "eps": [AMOUNT], "accuracy": [SHARE]}),
    "members": OrNull({"names": [TEXT], "clean": [SHARE], "robust": [SHARE], "transfer": [[SHARE]]}),
    "members_run": {"clean": AMOUNT, "attacked": AMOUNT, "slowdown": NUMBER_OR_NULL},
    "size": {"bytes": COUNT, "peak_memory": COUNT, "nonzeros": COUNT, "macs_dense": COUNT, "macs_nonzero": AMOUNT},
    "latency": OrNull({"batch_1": TIMES, "batch_64": TIMES}),
    "machine": TABLE,
    "versions": Each(TEXT),
    "source": TEXT,
    "device": TEXT,
    "dtype": one_of("float32"),
    "search": one_of("float32", "bfloat16"),
    "seeds": {"attacks": WHOLE},
    "seconds": AMOUNT,
    "passes": PASSES,
    **ROBUSTBENCH,
}
"""Fields beyond these are kept and not looked at."""


def validate_evaluation(result: dict[str, Any]) -> None:
    """Check a result against the schema.

    Raises:
        InputError: naming the first field that is missing, wrong or contradictory.
    """
    keep(result, EVALUATION, "evaluation")
    _threat(result["threat"])
    _images(result)
    _worst_case(result)
    _checks(result["checks"])
    _plots(result)
    for name in PASSES:
        total = sum(attack["passes"][name] for attack in result["attacks"].values())
        _equal(result["passes"][name], total, f"evaluation.passes.{name}", "the sum over the attacks")
    _equal(result["size"]["nonzeros"], result["target"]["nonzeros"], "evaluation.size.nonzeros", "target.nonzeros")
    _equal(result["eps"], result["threat"]["eps_text"], "evaluation.eps", "threat.eps_text")


def _threat(threat: dict[str, Any]) -> None:
    """Check that the radius is the one its text says."""
    try:
        said = float(Fraction(threat["eps_text"]))
    except (ValueError, ZeroDivisionError):
        raise InputError(f"evaluation.threat.eps_text = {threat['eps_text']!r} must be a number, as in 8/255") from None
    if abs(said - threat["eps"]) > 1e-5 * max(said, threat["eps"]):
        raise InputError(f"evaluation.threat.eps = {threat['eps']} must be what eps_text = {threat['eps_text']!r} says")


def _images(result: dict[str, Any]) -> None:
    """Check that every list by images has one entry for each, and that accuracies are what their outcomes say."""
    images = result["data"]["images"]
    _length(result["data"]["indices"], images, "evaluation.data.indices", "data.images")
    if len(set(result["data"]["indices"])) < images:
        raise InputError("evaluation.data.indices names an image twice")
    _length(result["clean_outcomes"], images, "evaluation.clean_outcomes", "data.images")
    _share(result["clean_accuracy"], result["clean_outcomes"], result["clean_interval"], "evaluation.clean_accuracy")
    if not result["attacks"]:
        raise InputError("evaluation.attacks is empty; a worst case needs at least one attack")
    for label, attack in result["attacks"].items():
        where = f"evaluation.attacks.{label}"
        for field in ("outcomes", "distances", "members_run", "minimum_distances"):
            _length(attack.get(field, [0] * images), images, f"{where}.{field}", "data.images")
        _share(attack["robust_accuracy"], attack["outcomes"], attack["interval"], f"{where}.robust_accuracy")
        if ("median_distance" in attack) != ("minimum_distances" in attack):
            raise InputError(f"{where} must have both median_distance and minimum_distances, or neither")


def _worst_case(result: dict[str, Any]) -> None:
    """Check that the worst case is the image-by-image one over the clean image and all attacks."""
    worst, images = result["worst_case"], result["data"]["images"]
    _length(worst["outcomes"], images, "evaluation.worst_case.outcomes", "data.images")
    _share(worst["accuracy"], worst["outcomes"], worst["interval"], "evaluation.worst_case.accuracy")
    answers = [result["clean_outcomes"], *(attack["outcomes"] for attack in result["attacks"].values())]
    for i, found in enumerate(zip(*answers, strict=True)):
        if worst["outcomes"][i] != min(found):
            raise InputError(
                f"evaluation.worst_case.outcomes[{i}] = {worst['outcomes'][i]} must be {min(found)}: an image is right "
                "in the worst case if it is right when clean and under every attack"
            )


def _checks(checks: list[dict[str, Any]]) -> None:
    """Check that all checks are there."""
    numbers = sorted(check["number"] for check in checks)
    if numbers != list(range(1, CHECKS + 1)):
        missing = sorted(set(range(1, CHECKS + 1)) - set(numbers))
        said = f"missing: {', '.join(map(str, missing))}" if missing else f"got the numbers {numbers}"
        raise InputError(f"evaluation.checks must be the checks 1 to {CHECKS}, each once; {said}")


def _plots(result: dict[str, Any]) -> None:
    """Check that what is drawn against each other goes together."""
    curve, members = result["security_curve"], result["members"]
    if curve:
        _length(curve["accuracy"], len(curve["eps"]), "evaluation.security_curve.accuracy", "security_curve.eps")
        if not curve["eps"] or curve["eps"] != sorted(set(curve["eps"])):
            raise InputError(f"evaluation.security_curve.eps = {curve['eps']} must hold growing radii")
    if members:
        count = result["target"]["members"]
        for field in ("names", "clean", "robust", "transfer"):
            _length(members[field], count, f"evaluation.members.{field}", "target.members")
        for i, row in enumerate(members["transfer"]):
            _length(row, count, f"evaluation.members.transfer[{i}]", "target.members")


def _length(values: list[Any], wanted: int, where: str, what: str) -> None:
    if len(values) != wanted:
        raise InputError(f"{where} has {len(values)} entries but {what} says {wanted}")


def _share(accuracy: float, outcomes: list[int], interval: list[float], where: str) -> None:
    """Check an accuracy against the outcomes it is the share of, and against its interval."""
    if abs(accuracy - sum(outcomes) / len(outcomes)) > 1e-6:
        raise InputError(f"{where} = {accuracy} must be the share of its outcomes, {sum(outcomes)} of {len(outcomes)}")
    if not interval[0] - 1e-9 <= accuracy <= interval[1] + 1e-9:
        raise InputError(f"{where} = {accuracy} must lie in its interval {list(interval)}")


def _equal(found: Any, wanted: Any, where: str, what: str) -> None:
    if found != wanted:
        raise InputError(f"{where} = {found!r} must be {what}, {wanted!r}")
