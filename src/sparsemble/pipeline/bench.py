"""`sparsemble bench`: how long a sparse network takes in our engine and in the fastest dense ones."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from sparsemble.core.errors import RunError
from sparsemble.evaluation.latency import measure_latency
from sparsemble.pipeline.bench_engines import Timed, engine_versions, engines
from sparsemble.pipeline.bench_subject import Asked, Subject, subject
from sparsemble.pipeline.machine import machine, versions
from sparsemble.runtime.predictor import Predictor

TOLERANCE = 1e-3
"""Largest difference of an engine's logits from torch's, relative to the largest logit."""
SCHEMA_VERSION = 2
ENGINE, STATIC, EARLY = "sparsemble", "sparsemble, all members", "sparsemble, stopping early, {}"


def bench(asked: Asked, command: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Time a network with drawn weights; interleaved rounds, medians and quartiles.

    Args:
        asked: network, mask and configurations.
        command: what reproduces it.
        tell: called with a sentence before each configuration.

    Returns:
        `ratio`: time of the fastest dense engine over ours, for the first batch size and number of threads, of a team
        while it stops early; `rows`: every engine in every configuration.

    Raises:
        InputError: a network or mask that cannot be.
        RunError: an engine that answers something else.
    """
    timed = subject(asked, tell)
    rows: list[dict[str, Any]] = []
    ratios = []
    for threads in asked.threads:
        for batch in asked.batches:
            tell(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
            found = _configuration(timed, batch, threads, asked)
            dense = min(row["median_ms"] for row in found if row["dense"])
            for row in found:
                row["ratio"] = dense / row["median_ms"]
            ratios.append(next(row["ratio"] for row in found if row["engine"] == _ours(timed)))
            rows += found
    return {
        "schema": SCHEMA_VERSION,
        "ratio": ratios[0],
        "command": command,
        "asked": asdict(asked),
        "network": timed.facts,
        "machine": machine(torch.device("cpu")),
        "versions": versions() | engine_versions(),
        "rows": rows,
    }


def _ours(timed: Subject) -> str:
    """Return the row that the ratio is of."""
    return EARLY.format(next(iter(timed.views))) if timed.team else ENGINE


def _configuration(timed: Subject, batch: int, threads: int, asked: Asked) -> list[dict[str, Any]]:
    image = timed.network.image
    x = np.random.default_rng(asked.seed).random((batch, *image), dtype=np.float32)
    every = engines(timed.network, batch, threads)
    _agree(every, x)
    calls = {one.name: _call(one, x) for one in every}
    run: dict[str, float] = {}
    if timed.team:
        whole = Predictor(replace(timed.team, stop={"name": "never"}), threads=threads)
        early = Predictor(timed.team, threads=threads, stop=timed.stop)
        calls[STATIC] = _predict(whole, x)
        run[STATIC] = len(timed.team.members)
        for what, images in timed.views.items():
            name = EARLY.format(what)
            calls[name] = _predict(early, images[:batch])
            run[name] = float(early.predict(images[:batch]).members_run.mean())
    times = measure_latency(calls, asked.rounds, warm_up=2)
    dense = {one.name for one in every if one.dense}
    return [
        {
            "engine": name,
            "dense": name in dense,
            "batch": batch,
            "threads": threads,
            **asdict(time),
            "images_per_second": 1000 * batch / time.median_ms,
            **({"members_run": run[name]} if name in run else {}),
        }
        for name, time in times.items()
    ]


def _predict(predictor: Predictor, x: NDArray[np.float32]) -> Callable[[], object]:
    return lambda: predictor.predict(x)


def _call(one: Timed, x: np.ndarray) -> Any:
    return lambda: one.call(x)


def _agree(timed: Sequence[Timed], x: np.ndarray) -> None:
    """Refuse to time an engine that answers something else."""
    expected = timed[0].call(x)
    scale = max(float(np.abs(expected).max()), 1e-12)
    for one in timed[1:]:
        difference = float(np.abs(one.call(x) - expected).max()) / scale
        if not difference <= TOLERANCE:
            raise RunError(f"{one.name} differs from torch by {difference:.2g} of the largest logit; it was not timed")


def bench_table(found: dict[str, Any]) -> Table:
    """Return what was measured, for the terminal."""
    columns = ("engine", "batch", "threads", "members run", "ms", "quartiles", "images/s", "ratio")
    table = Table(*columns, box=None, header_style="bold")
    for row in found["rows"]:
        table.add_row(
            row["engine"],
            str(row["batch"]),
            str(row["threads"]),
            f"{row['members_run']:.2f}" if "members_run" in row else "",
            f"{row['median_ms']:.2f}",
            f"{row['low_quartile_ms']:.2f} to {row['high_quartile_ms']:.2f}",
            f"{row['images_per_second']:.0f}",
            f"{row['ratio']:.2f}",
        )
    return table
