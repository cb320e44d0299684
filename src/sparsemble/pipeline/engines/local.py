"""An executor: worker processes of this machine, one thread each, that end with their parent."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, final

from sparsemble.core.artifacts import read_json
from sparsemble.core.errors import RunError
from sparsemble.pipeline.engines.worker import task_file


class _Job(NamedTuple):
    folder: str
    stage_hash: str
    future: Future[float]


@final
class LocalExecutor(Executor):
    """A pool of worker processes; each runs one stage at a time."""

    def __init__(self, workers: int) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._workers = [_Worker(self._jobs) for _ in range(workers)]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker run `run_stage` with a folder and the hash of a stage.

        Args:
            fn: `run_stage`; the workers know no other function.
            args: folder and hash.
            kwargs: none.
        """
        future: Future[float] = Future()
        folder, stage_hash = args
        self._jobs.put(_Job(folder, stage_hash, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers at once: artifacts are renamed into place, so nothing half-written remains."""
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.kill()


@final
class _Worker:
    """One worker process, and the thread that gives it stages."""

    def __init__(self, jobs: "SimpleQueue[_Job | None]") -> None:
        self.jobs = jobs
        self.lock = threading.Lock()
        self.closed = False
        self.process = self._start()
        threading.Thread(target=self._serve, daemon=True).start()

    def kill(self) -> None:
        """End the process and start no other."""
        with self.lock:
            self.closed = True
            self._stop()

    def _start(self) -> "subprocess.Popen[str]":
        # A session of its own: Ctrl-C in the terminal reaches the parent only, which then ends its workers.
        return subprocess.Popen(
            [sys.executable, "-m", "sparsemble.pipeline.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )

    def _stop(self) -> int:
        """End the process and return its exit status."""
        self.process.kill()
        status = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return status

    def _serve(self) -> None:
        ready = self._reply() is not None
        while (job := self.jobs.get()) is not None:
            reply = self._ask(job) if ready else None
            if reply is None:
                ready = self._replace(job, began=ready)
            elif "error" in reply:
                job.future.set_exception(RunError(reply["error"]))
            else:
                job.future.set_result(reply["seconds"])

    def _ask(self, job: _Job) -> dict[str, Any] | None:
        """Have the process run a stage and return its reply; None where it ended instead."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([job.folder, job.stage_hash]) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            return None
        return self._reply()

    def _reply(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
        except ValueError:  # closed by `kill`
            return None
        reply: dict[str, Any] | None = json.loads(line) if line else None
        return reply

    def _replace(self, job: _Job, *, began: bool) -> bool:
        """Fail a job whose process ended, and start another process; return whether that one is ready."""
        with self.lock:
            if self.closed:
                return False
            status = self._stop()
            self.process = self._start()
        title = read_json(task_file(Path(job.folder), job.stage_hash))["title"]
        when = f'while it ran "{title}"' if began else "before it began"
        job.future.set_exception(
            RunError(
                f"a worker process ended {when} (exit status {status}; a negative number is a signal, -9 often means "
                "out of memory); run the same command to go on"
            )
        )
        return self._reply() is not None
