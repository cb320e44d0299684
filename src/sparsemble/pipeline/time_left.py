"""How much time a run and its tasks have left: expected costs, corrected by what finished and running tasks took."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from sparsemble.pipeline.makespan import makespan
from sparsemble.pipeline.stage import Task

EVIDENCE = 0.03
"""Share of the run's cost that must be seen of a kind of stage before that counts as much as what all of them show."""
LEAST_SHARE = 0.02
"""Share of a task from which on it tells how long the task takes."""
LATE = 0.15
"""What is left of a task that has taken longer than expected and reports nothing, as a share of its time so far."""
SECONDS_BETWEEN_ESTIMATES = 1.0
UNKNOWN: tuple[float, float | None] = (-math.inf, None)
"""When the time left was estimated, and the estimate."""


@final
@dataclass
class Running:
    """A task that has started; what was left of an interrupted try counts as done in its time."""

    began: float
    share: float = 0.0
    """Of its work that is done."""
    earlier_seconds: float = 0.0
    earlier_share: float = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds that it has taken, interrupted tries included."""
        return time.perf_counter() - self.began + self.earlier_seconds


@final
class TimeLeft:
    """Estimates the time left of a run.

    Args:
        tasks: what will run.
        workers: tasks that run at the same time.
        in_seconds: whether costs are seconds; else only their ratios count, and nothing is known before a task ends.
    """

    def __init__(self, tasks: Sequence[Task], workers: int = 1, *, in_seconds: bool = False) -> None:
        self.tasks = {task.hash: task for task in tasks}
        self.needs = {h: [i.hash for i in t.inputs.values() if i.hash in self.tasks] for h, t in self.tasks.items()}
        self.workers, self.in_seconds = workers, in_seconds
        self.total = float(sum(task.cost for task in tasks))
        self.running: dict[str, Running] = {}
        self.took: dict[str, float] = {}
        """Seconds of each finished task."""
        self.began = time.perf_counter()
        self._last = UNKNOWN

    def started(self, task: Task) -> None:
        """Record that a task has started."""
        self.running[task.hash] = Running(time.perf_counter())

    def resumed(self, task: Task, seconds: float, share: float) -> None:
        """Record what an interrupted try of a running task took and reached.

        Args:
            task: it runs again.
            seconds: of the earlier try.
            share: of the work that was done then, in [0, 1].
        """
        running = self.running[task.hash]
        running.earlier_seconds, running.earlier_share, running.share = seconds, share, share
        self._last = UNKNOWN

    def moved(self, task: Task, share: float) -> None:
        """Record the share of a running task's work that is done."""
        running = self.running[task.hash]
        if share < running.earlier_share:  # the earlier try was of no use
            running.earlier_seconds = running.earlier_share = 0.0
        running.share = share

    def finished(self, task: Task) -> None:
        """Record that a task has finished."""
        running = self.running.pop(task.hash)
        self.took[task.hash] = running.elapsed
        self.needs = {h: [i for i in needed if i != task.hash] for h, needed in self.needs.items() if h != task.hash}
        self._last = UNKNOWN

    def failed(self, task: Task) -> None:
        """Record that a task failed or will never start."""
        self.running.pop(task.hash, None)
        self.needs = {h: [i for i in needed if i != task.hash] for h, needed in self.needs.items() if h != task.hash}
        self.total -= task.cost
        self._last = UNKNOWN

    def of(self, task: Task) -> float | None:
        """Return the seconds left of a running task; None while they are not known."""
        return self._of_running(task, self._ratios())

    def seconds(self) -> float | None:
        """Return the seconds left of the run; None while they are not known."""
        now = time.perf_counter()
        if now - self._last[0] >= SECONDS_BETWEEN_ESTIMATES:
            self._last = (now, self._estimate())
        return self._last[1]

    @property
    def elapsed(self) -> float:
        """Seconds since the run began; those of tries that were interrupted together count once."""
        earlier = max((running.earlier_seconds for running in self.running.values()), default=0.0)
        return time.perf_counter() - self.began + earlier

    def _estimate(self) -> float | None:
        if not self.needs:
            return 0.0
        ratios = self._ratios()
        if ratios is None:
            return None
        left = {}
        for name in self.needs:
            task = self.tasks[name]
            own = self._of_running(task, ratios) if name in self.running else None
            left[name] = task.cost * ratios[task.stage.name] if own is None else own
        alone = {name for name in self.needs if self.tasks[name].alone}
        workers = max(self.workers, len(self.running))
        return makespan(self.needs, workers, left, alone=alone, running=list(self.running))

    def _of_running(self, task: Task, ratios: dict[str, float] | None) -> float | None:
        running = self.running[task.hash]
        share = running.share
        if ratios is None:
            return None
        expected = task.cost * ratios[task.stage.name]
        if share < LEAST_SHARE:
            return max(expected - running.elapsed, LATE * running.elapsed)
        # The more of a task is done, the more its own pace counts.
        return (1 - share) * (running.elapsed + (1 - share) * expected)

    def _ratios(self) -> dict[str, float] | None:
        """Return the seconds of a unit of cost, by stage; None while nothing is known."""
        seen: dict[str, list[tuple[float, float]]] = {}
        for name, seconds in self.took.items():
            seen.setdefault(self.tasks[name].stage.name, []).append((seconds, self.tasks[name].cost))
        for name, running in self.running.items():
            if running.share >= LEAST_SHARE:
                cost = self.tasks[name].cost * running.share
                seen.setdefault(self.tasks[name].stage.name, []).append((running.elapsed, cost))
        weight = EVIDENCE * self.total
        pairs = [pair for pairs in seen.values() for pair in pairs]
        seconds, cost = (sum(pair[i] for pair in pairs) for i in (0, 1))
        if self.in_seconds:
            seconds, cost = seconds + weight, cost + weight
        if not cost:
            return None
        overall = seconds / cost
        ratios = {}
        for kind in {task.stage.name for task in self.tasks.values()}:
            seconds, cost = (sum(pair[i] for pair in seen.get(kind, ())) for i in (0, 1))
            ratios[kind] = (seconds + weight * overall) / (cost + weight) if cost + weight else overall
        return ratios
