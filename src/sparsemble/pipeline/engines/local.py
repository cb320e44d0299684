"""Run independent stages side by side in worker processes of this machine, one thread each."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, final

from sparsemble.core.errors import RunError
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.stage import Task


@final
class LocalEngine:
    """A few workers; a task starts when its inputs are finished, the one with the longest way to go first."""

    def __init__(
        self, folder: Path, workers: int, device: str, progress: Progress, *, keep_going: bool = False
    ) -> None:
        self.keep_going = keep_going
        self.failures: dict[str, str] = {}
        """Sentences of the stages that failed, by hash, where others go on without them (`keep_going`)."""
        self.folder = folder
        self.device = device
        self.progress = progress
        self.news: queue.SimpleQueue[tuple[_Worker, dict[str, Any]]] = queue.SimpleQueue()
        self.count = workers

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks whose inputs are finished or among them.

        Raises:
            RunError: a stage failed; stages that were running beside it are stopped, and all that was finished is kept.
        """
        waiting = list(tasks)
        pending = {task.hash for task in tasks}
        ahead = _work_ahead(tasks)
        workers = [_Worker(self.folder, self.device, self.news) for _ in range(min(self.count, len(waiting)))]
        try:
            while pending:
                self._give_up(waiting, pending)
                if not pending:
                    break
                self._start(workers, waiting, pending, ahead)
                try:
                    worker, message = self.news.get(timeout=0.2)
                except queue.Empty:
                    self.progress.tick()
                    continue
                self._hear(worker, message, pending)
        finally:
            for worker in workers:
                worker.kill()

    def _give_up(self, waiting: list[Task], pending: set[str]) -> None:
        """Strike what failed off the list, and all that waits for it, however far behind."""
        while lost := [task for task in waiting if any(i.hash in self.failures for i in task.inputs.values())]:
            for task in lost:
                waiting.remove(task)
                self._fail(task, next(self.failures[i.hash] for i in task.inputs.values() if i.hash in self.failures))
        pending.difference_update(self.failures)

    def _fail(self, task: Task, sentence: str) -> None:
        self.failures[task.hash] = sentence
        self.progress.failed(task)

    def _start(
        self, workers: "Sequence[_Worker]", waiting: list[Task], pending: set[str], ahead: Mapping[str, float]
    ) -> None:
        """Hand out what can run now."""
        for worker in workers:
            running = [other.task for other in workers if other.task]
            if not worker.ready or worker.task or any(task.alone for task in running):
                continue
            ready = [t for t in waiting if not any(i.hash in pending for i in t.inputs.values())]
            chosen = max(ready, key=lambda task: ahead[task.hash], default=None)
            if chosen is None:
                continue
            if chosen.alone and running:
                ready = [t for t in ready if not t.alone]
                if not ready:
                    continue
                chosen = max(ready, key=lambda task: ahead[task.hash])
            waiting.remove(chosen)
            worker.start(chosen)
            self.progress.started(chosen)

    def _hear(self, worker: "_Worker", message: Mapping[str, Any], pending: set[str]) -> None:
        """Take one message from a worker."""
        task = worker.task
        kind = message["kind"]
        if kind == "ready":
            worker.ready = True
        elif kind == "gone":
            what = f'while it ran "{task.title}"' if task else "before it began"
            sentence = (
                f"a worker process ended {what} (exit status {worker.process.wait()}; a negative number is a signal, "
                "-9 often means out of memory); run the same command to go on"
            )
            if not (self.keep_going and task):
                raise RunError(sentence)
            self.progress.print(sentence)
            self._fail(task, sentence)
            worker.kill()
            worker.begin()
        elif task and kind == "done":
            pending.discard(task.hash)
            worker.task = None
            self.progress.finished(task, message["seconds"])
        elif task and kind == "failed":
            if message.get("details"):
                self.progress.print(message["details"])
            sentence = f'the stage "{task.title}" failed: {message["sentence"]}'
            if not self.keep_going:
                raise RunError(sentence)
            self.progress.print(sentence)
            self._fail(task, sentence)
            worker.task = None
        elif task:
            self.progress.hear(task, message)


@final
class _Worker:
    """One worker process and the task it is at."""

    def __init__(self, folder: Path, device: str, news: "queue.SimpleQueue[tuple[_Worker, dict[str, Any]]]") -> None:
        self.folder = folder
        self.device = device
        self.news = news
        self.begin()

    def begin(self) -> None:
        """Start the process; after it died, a new one."""
        self.task: Task | None = None
        self.ready = False
        # A session of its own: Ctrl-C in the terminal reaches the parent only, which then ends its workers.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sparsemble.pipeline.engines.worker", str(self.folder), self.device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True).start()

    def start(self, task: Task) -> None:
        """Hand over a task."""
        self.task = task
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task.to_json()) + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End the process at once; artifacts are renamed into place, so nothing half-written remains."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def _listen(self, stream: IO[str]) -> None:
        try:
            for line in stream:
                self.news.put((self, json.loads(line)))
        except ValueError:  # the stream was closed by `kill`
            return
        self.news.put((self, {"kind": "gone"}))


def _work_ahead(tasks: Sequence[Task]) -> dict[str, float]:
    """Return, for each task, its cost plus that of the longest chain of tasks that wait for it."""
    followers: dict[str, list[Task]] = {task.hash: [] for task in tasks}
    for task in tasks:
        for given in task.inputs.values():
            followers.setdefault(given.hash, []).append(task)
    ahead: dict[str, float] = {}

    def longest(task: Task) -> float:
        if task.hash not in ahead:
            ahead[task.hash] = task.cost + max((longest(follower) for follower in followers[task.hash]), default=0.0)
        return ahead[task.hash]

    for task in tasks:
        longest(task)
    return ahead
