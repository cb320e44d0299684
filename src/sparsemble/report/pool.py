"""How sub-models were pruned, as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsemble.report.formatting import count, percent
from sparsemble.report.trainings import Column

Pool = Mapping[str, Mapping[str, Any]]
"""What the prune stage wrote of each sub-model, by its label (docs/summary.md)."""

COLUMNS = (
    Column("sparse %", "weights that are 0"),
    Column("MACs saved %", "multiply-accumulates that zeros save"),
    Column("weights", "that stay"),
    Column("dead channels", "that nothing reads or that are always 0"),
    Column("dead weights", "that served only them and were taken out, too"),
    Column("clean before %", "on held-out images, before fine-tuning"),
    Column("robust before %", "on held-out images under attack, before fine-tuning"),
    Column("clean after %", "on held-out images, as kept"),
    Column("robust after %", "on held-out images under attack, as kept"),
)


def pool_rows(pool: Pool, ensemble: Sequence[str]) -> list[tuple[str, bool, list[str]]]:
    """Return label, whether it is in the ensemble, and the cells of `COLUMNS` for each sub-model."""
    return [(label, label in ensemble, _cells(told)) for label, told in pool.items()]


def _cells(told: Mapping[str, Any]) -> list[str]:
    before, after = told["held_out_before"], told["held_out_after"]
    kept = sum(kept for kept, _ in told["layers"].values())
    whole = sum(size for _, size in told["layers"].values())
    return [
        percent(1 - kept / whole),
        percent(1 - told["macs_nonzero"] / told["macs_dense"]),
        count(kept),
        count(told["dead_channels"]),
        count(told["dead_weights"]),
        *(percent(shares[way]) for shares in (before, after) for way in ("held_out_clean", "held_out_robust")),
    ]
