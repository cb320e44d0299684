"""`sparsemble bench`: the time of a sparse network in our engine and in dense engines."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from sparsemble.bench.engines import Floats, engine_versions, excluded_engines, installed_engines
from sparsemble.bench.models import BenchModel, BenchSettings, load_bench_model
from sparsemble.bench.verify_outputs import verify_engines, verify_ensemble
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.results import BenchResult, BenchRow, FirstUse
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.evaluation.latency import measure_latency
from sparsemble.models.folded import to_torch_ensemble
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.kernels.jit import lanes
from sparsemble.runtime.network import Network
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.stopping import Never, StoppingRule

ENGINE, STATIC, EARLY = "sparsemble", "sparsemble, all members", "sparsemble, stopping early, {}"


def bench(settings: BenchSettings, command: str, report: Callable[[str], None]) -> BenchResult:
    """Time a network or ensemble in all engines that are installed, in interleaved rounds.

    The ratio is that of the fastest dense engine's time to ours.

    Args:
        settings: network, mask and configurations.
        command: that reproduces the result.
        report: receives a sentence before each configuration, and for each engine that is not timed.

    Raises:
        InputError: a file that does not exist, or an impossible network.
        RunError: an engine that computes other logits than torch.
    """
    model = load_bench_model(settings, report)
    reference = to_torch_ensemble(model.ensemble) if model.ensemble else None
    for sentence in excluded_engines():
        report(sentence)
    rows: list[BenchRow] = []
    for threads, batch in itertools.product(settings.threads, settings.batches):
        report(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
        rows += _rows(model, reference, settings, threads, batch)
    if settings.first_use:
        report("first predictions, with empty cache folders")
    headline = EARLY.format(next(iter(model.image_sets))) if model.ensemble else ENGINE
    return BenchResult(
        ratio=next(row.ratio for row in rows if row.engine == headline),
        command=command,
        settings=asdict(settings),
        network=model.properties,
        machine=machine(torch.device("cpu")),
        versions=versions() | engine_versions(),
        source=source_revision() or None,
        rows=tuple(rows),
        first_use=tuple(first_use(model.network)) if settings.first_use else (),
    )


def _rows(
    model: BenchModel, reference: Ensemble | None, settings: BenchSettings, threads: int, batch: int
) -> list[BenchRow]:
    """Time every engine in one configuration, after its outputs are verified."""
    x = np.random.default_rng(settings.seed).random((batch, *model.network.image), dtype=np.float32)
    engines = installed_engines(model.network, batch, threads)
    verify_engines(engines, x)
    calls: dict[str, Callable[[], object]] = {engine.name: partial(engine.call, x) for engine in engines}
    members_run: dict[str, float] = {}
    if model.ensemble and reference:
        whole, early = (Predictor(model.ensemble, threads=threads, rule=rule) for rule in (Never(), model.rule))
        runs: dict[str, tuple[Predictor, Floats, StoppingRule | None]] = {STATIC: (whole, x, Never())}
        runs |= {EARLY.format(kind): (early, images[:batch], model.rule) for kind, images in model.image_sets.items()}
        for name, (predictor, images, rule) in runs.items():
            calls[name] = partial(predictor.predict, images)
            members_run[name] = float(verify_ensemble(name, predictor, reference, images, rule).members_run.mean())
    times = measure_latency(calls, settings.rounds, warmup=2)
    dense = {engine.name for engine in engines if engine.dense}
    fastest = min(times[name].median_ms for name in dense)
    return [
        BenchRow(
            engine=name,
            dense=name in dense,
            batch=batch,
            threads=threads,
            **asdict(time),
            images_per_second=1000 * batch / time.median_ms,
            ratio=fastest / time.median_ms,
            members_run=members_run.get(name),
        )
        for name, time in times.items()
    ]


def first_use(network: Network) -> list[FirstUse]:
    """Time first predictions on one thread: of a full vector of images, of one image, and of one more than a vector.

    Each in a new engine, with an empty cache folder and with the one that this filled; the user's cache is left alone.
    """
    rng, times = np.random.default_rng(0), []
    for batch in dict.fromkeys((lanes(), 1, lanes() + 1)):
        x = rng.random((batch, *network.image), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            empty, filled = (_seconds(network, x, Path(folder)) for _ in range(2))
        times.append(FirstUse(batch=batch, empty_cache_s=empty, filled_cache_s=filled))
    return times


def _seconds(network: Network, x: np.ndarray, folder: Path) -> float:
    started = perf_counter()
    Engine(network, folder=folder).run(x)
    return perf_counter() - started
