"""An executor: worker processes of this machine, one thread each, that end with their parent."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, final

from sparsemble.core.artifacts import read_json
from sparsemble.core.errors import RunError
from sparsemble.pipeline.engines.worker import task_file


@final
class LocalExecutor(Executor):
    """A pool of worker processes; each runs one stage at a time."""

    def __init__(self, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a worker run `run_stage`, the only function that it knows, with a folder and the hash of a stage."""
        return self._threads.submit(self._run, *args)

    def _run(self, folder: str, stage_hash: str) -> float:
        worker = self._idle.get()
        try:
            return worker.run(folder, stage_hash)
        finally:
            self._idle.put(worker)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers at once: artifacts are renamed into place, so nothing half-written remains."""
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)


@final
class _Worker:
    """One worker process; another takes its place when it ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closed = self.ready = False
        self.process = self._start()

    def run(self, folder: str, stage_hash: str) -> float:
        """Have the process run a stage, and return its seconds."""
        self.ready = self.ready or self._reply() is not None
        reply = self._request(folder, stage_hash) if self.ready else None
        if reply is None:
            raise RunError(self._replace(task_file(Path(folder), stage_hash)))
        if "error" in reply:
            raise RunError(reply["error"])
        seconds: float = reply["seconds"]
        return seconds

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

    def _request(self, folder: str, stage_hash: str) -> dict[str, Any] | None:
        """Have the process run a stage and return its reply; None where it ended instead."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([folder, stage_hash]) + "\n")
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

    def _replace(self, task: Path) -> str:
        """Start another process in place of one that ended, and return what became of its task."""
        with self.lock:
            if self.closed:
                return "the run was stopped"
            began, status = self.ready, self._stop()
            self.process, self.ready = self._start(), False
        when = f'while it ran "{read_json(task)["title"]}"' if began else "before it began"
        return (
            f"a worker process ended {when} (exit status {status}; a negative number is a signal, -9 often means out "
            "of memory); run the same command to go on"
        )
