"""`sparsemble bench`: the time of a sparse network in our engine and in dense engines."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsemble.bench.cold_start import first_use
from sparsemble.bench.engines import TimedEngine, engine_versions, excluded_engines, installed_engines
from sparsemble.bench.models import BenchModel, BenchSettings, load_bench_model
from sparsemble.bench.verify_outputs import TorchEnsemble, verify_engines
from sparsemble.core.results import BenchResult, BenchRow
from sparsemble.evaluation.environment import machine, versions
from sparsemble.evaluation.latency import measure_latency
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.stopping import Never

ENGINE, STATIC, EARLY = "sparsemble", "sparsemble, all members", "sparsemble, stopping early, {}"


def bench(settings: BenchSettings, command: str, report: Callable[[str], None]) -> BenchResult:
    """Time a network or ensemble in all engines that are installed, in interleaved rounds.

    Args:
        settings: network, mask and configurations.
        command: that reproduces the result.
        report: receives a sentence before each configuration, and for each engine that is not timed.

    Returns:
        Every engine in every configuration, and the ratio of the fastest dense engine's time to ours.

    Raises:
        InputError: a file that does not exist, or an impossible network or mask.
        RunError: an engine that computes other logits than torch.
    """
    model = load_bench_model(settings, report)
    for sentence in excluded_engines():
        report(sentence)
    rows = _rows(model, settings, report)
    if settings.first_use:
        report("first predictions, with empty cache folders")
    return BenchResult(
        ratio=next(row.ratio for row in rows if row.engine == _headline(model)),
        command=command,
        settings=asdict(settings),
        network=model.properties,
        machine=machine(torch.device("cpu")),
        versions=versions() | engine_versions(),
        rows=tuple(rows),
        first_use=tuple(first_use(model.network)) if settings.first_use else (),
    )


def _rows(model: BenchModel, settings: BenchSettings, report: Callable[[str], None]) -> list[BenchRow]:
    """Return every engine in every configuration, with the ratio to the fastest dense one."""
    torch_ensemble = TorchEnsemble(model.ensemble) if model.ensemble else None
    rows: list[BenchRow] = []
    for threads in settings.threads:
        for batch in settings.batches:
            report(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
            times = _configuration(model, torch_ensemble, batch, threads, settings)
            dense = min(row["median_ms"] for row in times if row["dense"])
            rows += [BenchRow(**row, ratio=dense / row["median_ms"]) for row in times]
    return rows


def _headline(model: BenchModel) -> str:
    """Return the name of the row whose ratio is the headline."""
    return EARLY.format(next(iter(model.image_sets))) if model.ensemble else ENGINE


def _configuration(
    model: BenchModel, torch_ensemble: TorchEnsemble | None, batch: int, threads: int, settings: BenchSettings
) -> list[dict[str, Any]]:
    """Return the fields of a row for every engine, its ratio excepted.

    Args:
        model: what is timed.
        torch_ensemble: the reference of an ensemble.
        batch: images.
        threads: of each engine.
        settings: seed and rounds.
    """
    x = np.random.default_rng(settings.seed).random((batch, *model.network.image), dtype=np.float32)
    engines = installed_engines(model.network, batch, threads)
    verify_engines(engines, x)
    calls = {engine.name: _call(engine, x) for engine in engines}
    members_run: dict[str, float] = {}
    if model.ensemble and torch_ensemble:
        whole = Predictor(model.ensemble, threads=threads, rule=Never())
        early = Predictor(model.ensemble, threads=threads, rule=model.rule)
        calls[STATIC] = _predict(whole, x)
        members_run[STATIC] = float(torch_ensemble.verify(STATIC, whole, x, Never()).members_run.mean())
        for description, images in model.image_sets.items():
            name = EARLY.format(description)
            calls[name] = _predict(early, images[:batch])
            prediction = torch_ensemble.verify(name, early, images[:batch], model.rule)
            members_run[name] = float(prediction.members_run.mean())
    times = measure_latency(calls, settings.rounds, warmup=2)
    dense = {engine.name for engine in engines if engine.dense}
    return [
        {
            "engine": name,
            "dense": name in dense,
            "batch": batch,
            "threads": threads,
            **asdict(time),
            "images_per_second": 1000 * batch / time.median_ms,
            **({"members_run": members_run[name]} if name in members_run else {}),
        }
        for name, time in times.items()
    ]


def _predict(predictor: Predictor, x: NDArray[np.float32]) -> Callable[[], object]:
    return lambda: predictor.predict(x)


def _call(engine: TimedEngine, x: np.ndarray) -> Any:
    return lambda: engine.call(x)
