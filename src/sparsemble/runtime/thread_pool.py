"""Threads that share the run of one network."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import final


@final
class ThreadPool:
    """Threads that are started once and wait for work.

    The threads of a run wait for each other after every step of the network, so all of them must run at the same time.
    """

    def __init__(self) -> None:
        self.size = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        """Processors that this process may use; with more threads some would wait for one that is not running."""
        self._lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[bool]:
        """Reserve the threads while the context is open; yield False if another run has them or none can be started."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            yield self._start()
        finally:
            self._lock.release()

    def run(self, threads: int, work: Callable[[int], object]) -> None:
        """Call work(0) .. work(threads - 1) at the same time; the caller must have claimed the threads."""
        assert self.executor is not None
        futures = [self.executor.submit(work, thread) for thread in range(1, threads)]
        work(0)
        for future in futures:
            future.result()

    def _start(self) -> bool:
        """Start the threads if they do not run yet; return whether they run."""
        if self.executor is None or self._process != os.getpid():  # threads do not survive a fork
            try:
                self.executor, self._process = _started_executor(self.size - 1), os.getpid()
            except RuntimeError:
                self.size = 1
                return False
        return True


def _started_executor(count: int) -> ThreadPoolExecutor:
    """Return an executor whose threads all run: the others would wait for ever for one that cannot start later."""
    executor, all_started = ThreadPoolExecutor(count, "sparsemble"), threading.Barrier(count + 1)
    try:
        for _ in range(count):
            executor.submit(all_started.wait)
        all_started.wait()
    except BaseException:
        all_started.abort()
        executor.shutdown(wait=False)
        raise
    return executor


THREAD_POOL = ThreadPool()
