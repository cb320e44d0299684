"""The only driver: goes through the graph of tasks and gives each to an executor, as two strings.

An executor has the shape of `concurrent.futures.Executor`: it runs `run_stage(folder, hash)` somewhere that sees the
folder of the run. What a stage is lies in the folder, and what it reports is appended to a file there.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import final

from sparsemble.core.artifacts import write_json
from sparsemble.pipeline.engines.local import LocalExecutor
from sparsemble.pipeline.engines.torchrun import TorchrunExecutor
from sparsemble.pipeline.engines.worker import TASKS, message_file, run_stage, task_file
from sparsemble.pipeline.makespan import longest_chains
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.stage import Task
from sparsemble.training import distributed

SECONDS_BETWEEN_LOOKS = 0.1
"""Between looks at the messages of running stages."""


def run_tasks(
    tasks: Sequence[Task],
    folder: Path,
    device: str,
    workers: int,
    progress: Progress,
    *,
    keep_going: bool = False,
    before: Callable[[Task], None] = lambda task: None,
) -> dict[str, str]:
    """Run tasks whose inputs are finished or among them, in worker processes or in those that torchrun started.

    Args:
        tasks: in any order.
        folder: of the run.
        device: where stages compute.
        workers: processes.
        progress: shows what happens.
        keep_going: whether a failed task fails only those that need it.
        before: called with each task before it starts; what it raises ends the run.

    Returns:
        Error messages of the tasks that failed, by hash.
    """
    executor: Executor
    if distributed.world_size() > 1:
        by_hash, slots = {task.hash: task for task in tasks}, 1
        executor = TorchrunExecutor(lambda stage_hash, message: progress.receive(by_hash[stage_hash], message))
    else:
        slots = min(workers, len(tasks))
        executor = LocalExecutor(slots)
    with executor:
        driver = Driver(
            folder=folder,
            executor=executor,
            slots=slots,
            device=device,
            progress=progress,
            keep_going=keep_going,
            before=before,
        )
        driver.run(tasks)
    return driver.failures


@final
@dataclass(kw_only=True)
class Driver:
    """Starts each task when its inputs are finished, the one with the most work behind it first."""

    folder: Path
    """Of the run."""
    executor: Executor
    slots: int
    """Tasks that run at the same time, at most."""
    device: str
    progress: Progress
    keep_going: bool = False
    """Whether a failed task fails only those that need it."""
    before: Callable[[Task], None] = lambda task: None
    """Called with each task before it starts."""
    failures: dict[str, str] = field(default_factory=dict)
    """Error messages, by hash, of the tasks that failed or needed one that did."""
    running: dict[Future[float], Task] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    """Bytes of each message file that were read, by hash."""

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks whose inputs are finished or among them; what is finished is kept when one fails."""
        by_hash = {task.hash: task for task in tasks}
        graph = {t.hash: [i.hash for i in t.inputs.values() if i.hash in by_hash] for t in tasks}
        priority = longest_chains(graph, {task.hash: task.cost for task in tasks})
        sorter = TopologicalSorter(graph)
        sorter.prepare()
        (self.folder / TASKS).mkdir(parents=True, exist_ok=True)
        ready: list[Task] = []
        try:
            while sorter.is_active():
                ready += [by_hash[name] for name in sorter.get_ready()]
                ready.sort(key=lambda task: -priority[task.hash])
                ended = self._fail_dependents(ready)
                if not ended:
                    self._start(ready)
                    ended = self._wait()
                sorter.done(*(task.hash for task in ended))
        finally:
            if distributed.rank() == 0:
                shutil.rmtree(self.folder / TASKS, ignore_errors=True)

    def _fail_dependents(self, ready: list[Task]) -> list[Task]:
        """Remove the tasks that need a failed one, and return them."""
        lost = []
        for task in list(ready):
            reasons = [self.failures[i.hash] for i in task.inputs.values() if i.hash in self.failures]
            if reasons:
                ready.remove(task)
                self._fail(task, reasons[0])
                lost.append(task)
        return lost

    def _start(self, ready: list[Task]) -> None:
        """Submit what can run now."""
        for task in list(ready):
            alone = task.alone or any(other.alone for other in self.running.values())
            if len(self.running) >= self.slots or (alone and self.running):
                continue
            self.before(task)
            ready.remove(task)
            if distributed.rank() == 0:  # of the processes of torchrun, which all go through the same graph
                write_json(task_file(self.folder, task.hash), task.to_json() | {"device": self.device})
                message_file(self.folder, task.hash).unlink(missing_ok=True)
            self.read[task.hash] = 0
            self.progress.started(task)
            self.running[self.executor.submit(run_stage, str(self.folder), task.hash)] = task

    def _wait(self) -> list[Task]:
        """Wait for a moment, pass on the messages of running tasks, and return those that ended."""
        ended, _ = wait(self.running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED)
        for task in self.running.values():
            self._receive(task)
        self.progress.tick()
        return [self._end(future, self.running.pop(future)) for future in ended]

    def _receive(self, task: Task) -> None:
        """Pass on the messages of a task that have come since the last look."""
        try:
            with message_file(self.folder, task.hash).open("rb") as stream:
                stream.seek(self.read[task.hash])
                lines = stream.read().rpartition(b"\n")[0]  # the last line may be half written
        except FileNotFoundError:
            return
        self.read[task.hash] += len(lines) + bool(lines)
        for line in lines.splitlines():
            self.progress.receive(task, json.loads(line))

    def _end(self, future: Future[float], task: Task) -> Task:
        """Record what became of a task; returns it."""
        error = future.exception()
        if error is None:
            self.progress.finished(task, future.result())
            return task
        if not self.keep_going:
            raise error
        self.progress.print(str(error))
        self._fail(task, str(error))
        return task

    def _fail(self, task: Task, message: str) -> None:
        self.failures[task.hash] = message
        self.progress.failed(task)
