"""How long calls take, measured side by side."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

from sparsemble.core.errors import InputError
from sparsemble.core.results import Timing

ROUND = 0.02
"""Seconds that a call is timed for in each round, at least."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call over several rounds."""

    median_ms: float
    low_quartile_ms: float
    high_quartile_ms: float

    def timing(self, calls: int = 1) -> Timing:
        """Return the time of one of several calls that were timed together."""
        spread = self.high_quartile_ms - self.low_quartile_ms
        return Timing(median_ms=self.median_ms / calls, spread_ms=spread / calls)


def measure_latency(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int) -> dict[str, Latency]:
    """Time each call every round, in turn, so that a slow moment of the machine affects all of them.

    A round of a call is one that is not timed, since the caches hold the data of the call before, and then as many as
    fill ROUND seconds: the state of a device that processes image after image.

    Args:
        calls: what to time, by name; each returns when its result is ready.
        rounds: timed rounds, >= 2.
        warmup: rounds before, not timed, >= 0.

    Raises:
        InputError: too few rounds.
    """
    if rounds < 2 or warmup < 0:
        raise InputError(f"rounds must be at least 2 and warmup at least 0, got {rounds} and {warmup}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            call()
            if number < warmup:
                continue
            done, started, elapsed = 0, perf_counter(), 0.0
            while elapsed < ROUND:
                call()
                done += 1
                elapsed = perf_counter() - started
            times[name].append(1000 * elapsed / done)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Latency:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(median, low, high)
