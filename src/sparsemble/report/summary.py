"""The schema of `summary.json` (docs/summary.md) and the names its rows have for people."""

from typing import Any

from sparsemble.core.errors import InputError
from sparsemble.report.schema import (
    AMOUNT,
    COUNT,
    INTERVAL,
    NUMBER,
    NUMBER_OR_NULL,
    POSITIVE_COUNT,
    SHARE,
    STATUS,
    TABLE,
    TEXT,
    WHOLE,
    WHOLE_OR_NULL,
    Each,
    Rule,
    keep,
)

SCHEMA_VERSION = 2

NAMES = {
    "dense": "Dense parent",
    "small_dense": "Small dense network (the ensemble's MACs)",
    "harp": "One HARP model (same sparsity)",
    "best_member": "Best single sub-model",
    "ensemble_static": "Ensemble, all members",
    "ensemble_dynamic": "Ensemble, dynamic",
}
SHORT_NAMES = {
    "dense": "dense parent",
    "small_dense": "small dense",
    "harp": "one HARP model",
    "best_member": "best sub-model",
    "ensemble_static": "ensemble, all members",
    "ensemble_dynamic": "ensemble, dynamic",
    "ensemble": "ensemble",
}
"""For plots and terminals; `ensemble` is the ensemble while it is trained."""

VERSION = Rule(f"the version {SCHEMA_VERSION} that this code reads", lambda value: value == SCHEMA_VERSION)
ROW_NAME = Rule(f"one of {', '.join(NAMES)}", lambda value: value in tuple(NAMES))

ROW = {
    "name": ROW_NAME,
    "clean": SHARE,
    "attacks": Each(SHARE),
    "worst_case": SHARE,
    "worst_case_interval": INTERVAL,
    "images": POSITIVE_COUNT,
    "sparsity": SHARE,
    "nonzeros": COUNT,
    "macs_dense": COUNT,
    "macs_nonzero": AMOUNT,
    "members_run": {"clean": AMOUNT, "attacked": AMOUNT},
    "bytes": COUNT,
    "latency_ms": {"batch_1": AMOUNT, "batch_64": AMOUNT},
    "engine_ms": {"batch_1": AMOUNT, "batch_64": AMOUNT},
    "training_passes": COUNT,
    "seconds": AMOUNT,
}
CHECK = {"number": WHOLE_OR_NULL, "name": TEXT, "status": STATUS, "detail": TEXT}
OUTCOME = {"clean": SHARE, "worst_case": SHARE, "members_run": AMOUNT, "attacked_members_run": AMOUNT}
SUMMARY = {
    "schema": VERSION,
    "name": TEXT,
    "threat": {"norm": TEXT, "eps": AMOUNT},
    "seed": WHOLE,
    "command": TEXT,
    "rows": [ROW],
    "checks": [CHECK],
    "selection": {"ensemble": [TEXT], "robust_diversity": NUMBER, "threshold": NUMBER_OR_NULL, "rule": TEXT},
    "stopping": {
        "rule": TEXT,
        "settings": TABLE,
        "order": [TEXT],
        "held_out": {"images": COUNT, "allowed": COUNT, "tried": COUNT, "outcome": OUTCOME, "static": OUTCOME},
        "sensitivity": [{"setting": TEXT, "factor": AMOUNT, "outcome": OUTCOME}],
    },
    "machine": TABLE,
    "recipe": TABLE,
    "versions": Each(TEXT),
    "source": TEXT,
}
"""Fields beyond these are kept and not looked at."""


def validate(summary: dict[str, Any]) -> None:
    """Check a summary against the schema.

    Raises:
        InputError: naming the first field that is missing, wrong or contradictory.
    """
    keep(summary, SUMMARY, "summary", NAMES)
    if not isinstance(summary.get("complete", True), bool):
        raise InputError(f"summary.complete = {summary['complete']!r} must be true or false")
    names = [row["name"] for row in summary["rows"]]
    if sorted(names) != sorted(NAMES):
        raise InputError(f"summary.rows must be {', '.join(NAMES)}, each once; got {', '.join(names) or 'none'}")
    if not summary["selection"]["ensemble"]:
        raise InputError("summary.selection.ensemble is empty; it must name the members")
    for row in summary["rows"]:
        _agree(row, f"summary.rows[{row['name']}]")


def row_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a row by its name."""
    return next(row for row in summary["rows"] if row["name"] == name)


def _agree(row: dict[str, Any], where: str) -> None:
    """Check what the numbers of a row say about each other."""
    worst, (low, high) = row["worst_case"], row["worst_case_interval"]
    if not row["attacks"]:
        raise InputError(f"{where}.attacks is empty; a worst case needs at least one attack")
    strongest = min(row["attacks"], key=row["attacks"].__getitem__)
    if worst > row["attacks"][strongest] + 1e-9:
        accuracy = row["attacks"][strongest]
        raise InputError(f"{where}.worst_case = {worst} must not exceed the accuracy {accuracy} under {strongest}")
    if not low - 1e-9 <= worst <= high + 1e-9:
        raise InputError(f"{where}.worst_case_interval = {[low, high]} must hold worst_case = {worst}")
