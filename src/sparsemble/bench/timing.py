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

from sparsemble.bench.engines import FLOAT32, OURS, Engines, engine_versions, skipped_engines
from sparsemble.bench.models import ATTACKED, BenchSettings, load_bench_model
from sparsemble.bench.verify_outputs import (
    Quality,
    measure_ensemble,
    measure_quality,
    verify_engines,
    verify_ensemble,
)
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.results import BenchResult, BenchRow, FirstUse
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.evaluation.latency import measure_latency
from sparsemble.models.folded import to_torch_ensemble
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.kernels.jit import lanes
from sparsemble.runtime.network import Floats, Network
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.stopping import Never, StoppingRule

STATIC, EARLY = f"{OURS}, all members", f"{OURS}, stopping early, {{}}"


def bench(settings: BenchSettings, command: str, report: Callable[[str], None]) -> BenchResult:
    """Time a network or ensemble in all engines that are installed, in interleaved rounds.

    The ratio is the time of the fastest dense engine in float32 over ours; `ratio_any_precision` that of the fastest in
    any arithmetic.

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
    engines, skipped, qualities = Engines(model), skipped_engines(model), dict[str, Quality]()
    rows: list[BenchRow] = []
    for threads, batch in itertools.product(settings.threads, settings.batches):
        report(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
        rows += _rows(engines, reference, qualities, settings, threads, batch)
    if settings.first_use:
        report("first predictions, with empty cache folders")
    headline = EARLY.format(next(iter(model.image_sets))) if model.ensemble else OURS
    ours = next(row for row in rows if row.engine == headline)
    return BenchResult(
        headline=headline,
        ratio=ours.ratio,
        ratio_any_precision=ours.ratio_any_precision,
        command=command,
        settings=asdict(settings),
        network=model.properties,
        machine=machine(torch.device("cpu")),
        versions=versions() | engine_versions(),
        source=source_revision() or None,
        rows=tuple(rows),
        skipped=skipped,
        first_use=tuple(first_use(model.ours)) if settings.first_use else (),
    )


def _rows(
    engines: Engines,
    reference: Ensemble | None,
    qualities: dict[str, Quality],
    settings: BenchSettings,
    threads: int,
    batch: int,
) -> list[BenchRow]:
    """Time every engine in one configuration, after its outputs are verified; labels are compared in the first one."""
    model = engines.model
    x = np.random.default_rng(settings.seed).random((batch, *model.network.image), dtype=np.float32)
    loaded = engines.load(batch, threads)
    verify_engines(loaded, x)
    new = [engine for engine in loaded if engine.name not in qualities]
    if new:
        qualities |= measure_quality([loaded[0], *new], model, batch)
    calls: dict[str, Callable[[], object]] = {engine.name: partial(engine.call, x) for engine in loaded}
    members_run: dict[str, float] = {}
    if model.ensemble and reference:
        whole, early = (Predictor(model.ensemble, threads=threads, rule=rule) for rule in (Never(), model.rule))
        runs: dict[str, tuple[Predictor, Floats, StoppingRule | None]] = {STATIC: (whole, x, Never())}
        runs |= {EARLY.format(kind): (early, images[:batch], model.rule) for kind, images in model.image_sets.items()}
        for name, (predictor, images, rule) in runs.items():
            calls[name] = partial(predictor.predict, images)
            members_run[name] = float(verify_ensemble(name, predictor, reference, images, rule).members_run.mean())
            if name not in qualities and name != EARLY.format(ATTACKED):
                qualities[name] = measure_ensemble(model, predictor, rule)
    times = measure_latency(calls, settings.rounds, warmup=2)
    dense = {engine.name: engine.arithmetic for engine in loaded if engine.dense}
    arithmetics = {engine.name: engine.arithmetic for engine in loaded}
    fastest = min(times[name].median_ms for name in dense if dense[name] == FLOAT32)
    fastest_of_all = min(times[name].median_ms for name in dense)
    return [
        BenchRow(
            engine=name,
            dense=name in dense,
            arithmetic=arithmetics.get(name, arithmetics.get(OURS, FLOAT32)),
            batch=batch,
            threads=threads,
            **asdict(time),
            images_per_second=1000 * batch / time.median_ms,
            ratio=fastest / time.median_ms,
            ratio_any_precision=fastest_of_all / time.median_ms,
            members_run=members_run.get(name),
            **asdict(qualities.get(name, Quality(None))),
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
