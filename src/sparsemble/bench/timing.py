"""`sparsemble bench`: how long a sparse network takes in our engine and in the fastest dense ones."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemble.bench.cold_start import first_use
from sparsemble.bench.engines import Timed, engine_versions, engines, left_out
from sparsemble.bench.models import Asked, Subject, subject
from sparsemble.bench.verify_outputs import TorchEnsemble, agree
from sparsemble.core.results import BenchResult, BenchRow
from sparsemble.evaluation.environment import machine, versions
from sparsemble.evaluation.latency import measure_latency
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.stopping import Never

ENGINE, STATIC, EARLY = "sparsemble", "sparsemble, all members", "sparsemble, stopping early, {}"


def bench(asked: Asked, command: str, tell: Callable[[str], None]) -> BenchResult:
    """Time a network with drawn weights; interleaved rounds, medians and quartiles.

    Args:
        asked: network, mask and configurations.
        command: what reproduces it.
        tell: called with a sentence before each configuration, and on engines that are left out.

    Returns:
        Every engine in every configuration, and the ratio of the fastest dense engine's time to ours.

    Raises:
        InputError: a network or mask that cannot be.
        RunError: an engine that answers something else.
    """
    timed = subject(asked, tell)
    for sentence in left_out():
        tell(sentence)
    rows = _rows(timed, asked, tell)
    if asked.first_use:
        tell("first answers, into empty cache folders")
    return BenchResult(
        ratio=next(row.ratio for row in rows if row.engine == _ours(timed)),
        command=command,
        settings=asdict(asked),
        network=timed.facts,
        machine=machine(torch.device("cpu")),
        versions=versions() | engine_versions(),
        rows=tuple(rows),
        first_use=tuple(first_use(timed.network)) if asked.first_use else (),
    )


def _rows(timed: Subject, asked: Asked, tell: Callable[[str], None]) -> list[BenchRow]:
    """Return every engine in every configuration, with the ratio to the fastest dense one beside it."""
    torch_ensemble = TorchEnsemble(timed.ensemble) if timed.ensemble else None
    rows: list[BenchRow] = []
    for threads in asked.threads:
        for batch in asked.batches:
            tell(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
            found = _configuration(timed, torch_ensemble, batch, threads, asked)
            dense = min(row["median_ms"] for row in found if row["dense"])
            rows += [BenchRow(**row, ratio=dense / row["median_ms"]) for row in found]
    return rows


def _ours(timed: Subject) -> str:
    """Return the row that the ratio is of."""
    return EARLY.format(next(iter(timed.views))) if timed.ensemble else ENGINE


def _configuration(
    timed: Subject, torch_ensemble: TorchEnsemble | None, batch: int, threads: int, asked: Asked
) -> list[dict[str, Any]]:
    image = timed.network.image
    x = np.random.default_rng(asked.seed).random((batch, *image), dtype=np.float32)
    every = engines(timed.network, batch, threads)
    agree(every, x)
    calls = {one.name: _call(one, x) for one in every}
    run: dict[str, float] = {}
    if timed.ensemble and torch_ensemble:
        whole = Predictor(timed.ensemble, threads=threads, rule=Never())
        early = Predictor(timed.ensemble, threads=threads, rule=timed.rule)
        calls[STATIC] = _predict(whole, x)
        run[STATIC] = float(torch_ensemble.agrees(STATIC, whole, x, Never()).members_run.mean())
        for what, images in timed.views.items():
            name = EARLY.format(what)
            calls[name] = _predict(early, images[:batch])
            run[name] = float(torch_ensemble.agrees(name, early, images[:batch], timed.rule).members_run.mean())
    times = measure_latency(calls, asked.rounds, warmup=2)
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
