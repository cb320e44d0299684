"""The schema of `summary.json` (docs/summary.md) and the names its values have for people."""

from typing import Any

from sparsemble.core.errors import InputError

SCHEMA_VERSION = 1

NAMES = {
    "dense": "Dense parent",
    "small_dense": "Small dense network, the team's MACs",
    "harp": "One HARP model, the team's sparsity",
    "best_member": "Best single sub-model",
    "team_static": "Team, all members",
    "team_dynamic": "Team, dynamic",
}
SHORT_NAMES = {
    "dense": "dense parent",
    "small_dense": "small dense",
    "harp": "one HARP model",
    "best_member": "best sub-model",
    "team_static": "team, static",
    "team_dynamic": "team, dynamic",
    "team": "team",
}

NUMBER = (int, float)
ROW: dict[str, Any] = {
    "name": str,
    "clean": NUMBER,
    "attacks": dict,
    "worst_case": NUMBER,
    "worst_case_interval": list,
    "images": int,
    "sparsity": NUMBER,
    "nonzeros": int,
    "macs_dense": int,
    "macs_nonzero": int,
    "members_run": dict,
    "bytes": int,
    "latency_ms": dict,
    "training_passes": int,
    "seconds": NUMBER,
}
SUMMARY: dict[str, Any] = {
    "schema": int,
    "name": str,
    "threat": dict,
    "seed": int,
    "command": str,
    "rows": list,
    "checks": list,
    "selection": dict,
    "stopping": dict,
    "machine": dict,
    "recipe": dict,
    "versions": dict,
    "source": str,
}
CHECK: dict[str, Any] = {"number": int, "name": str, "status": str, "detail": str}
STATUSES = ("pass", "fail", "waived")


def validate(summary: dict[str, Any]) -> None:
    """Check a summary against the schema.

    Raises:
        InputError: naming the field that is missing, wrong or contradictory.
    """
    _fields(summary, SUMMARY, "summary")
    if summary["schema"] != SCHEMA_VERSION:
        raise InputError(
            f"summary.schema = {summary['schema']} is not the version {SCHEMA_VERSION} that this code reads"
        )
    names = [row.get("name") for row in summary["rows"]]
    if sorted(map(str, names)) != sorted(NAMES):
        raise InputError(f"summary.rows must be {', '.join(NAMES)}, got {names}")
    for row in summary["rows"]:
        where = f"summary.rows[{row['name']}]"
        _fields(row, ROW, where)
        shares = {"clean": row["clean"], "worst_case": row["worst_case"], "sparsity": row["sparsity"], **row["attacks"]}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{where}.{name} = {share} must lie in [0, 1]")
        if not row["attacks"] or row["worst_case"] > min(row["attacks"].values()) + 1e-9:
            raise InputError(f"{where}.worst_case = {row['worst_case']} must not exceed its attacks: {row['attacks']}")
    for i, check in enumerate(summary["checks"]):
        _fields(check, CHECK, f"summary.checks[{i}]")
        if check["status"] not in STATUSES:
            raise InputError(f"summary.checks[{i}].status = {check['status']!r} must be one of {', '.join(STATUSES)}")


def row_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a row by its name."""
    return next(row for row in summary["rows"] if row["name"] == name)


def _fields(value: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    for name, kind in schema.items():
        if name not in value:
            raise InputError(f"{where}.{name} is missing")
        if not isinstance(value[name], kind):
            wanted = getattr(kind, "__name__", "a number")
            raise InputError(f"{where}.{name} = {value[name]!r} must be {wanted}")
