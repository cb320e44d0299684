"""How long calls take, measured side by side."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over several rounds."""

    median_ms: float
    low_quartile_ms: float
    high_quartile_ms: float


def measure_latency(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int) -> dict[str, Latency]:
    """Time each call once a round, in turn, so that a slow moment of the machine hits all of them.

    Args:
        calls: what to time, by name; each returns when its result is ready.
        rounds: timed rounds, >= 2.
        warm_up: rounds before, not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number >= warm_up:
                times[name].append(1000 * (time.perf_counter() - started))
    found = {}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        found[name] = Latency(statistics.median(values), low, high)
    return found
