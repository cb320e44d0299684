"""Threads that go through one network side by side."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import final


@final
class ThreadPool:
    """Threads that wait for work; they meet after each step of a network, so all must run at the same time."""

    def __init__(self) -> None:
        self.most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        """Processors that we may use: more threads would wait for one that is not running."""
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[bool]:
        """Have the threads while the context is open, unless another run has them or none can be started."""
        if not self._lock.acquire(blocking=False):
            yield False
            return
        try:
            yield self._there()
        finally:
            self._lock.release()

    def run(self, threads: int, work: Callable[[int], object]) -> None:
        """Call work(0) .. work(threads - 1) at the same time; whose threads these are must have claimed them."""
        assert self._pool is not None
        others = [self._pool.submit(work, thread) for thread in range(1, threads)]
        work(0)
        for other in others:
            other.result()

    def _there(self) -> bool:
        if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
            try:
                self._pool, self._process = _started(self.most - 1), os.getpid()
            except RuntimeError:
                self.most = 1
                return False
        return True


def _started(count: int) -> ThreadPoolExecutor:
    """Return so many threads that are there already: one that cannot start later would be waited for without end."""
    pool, all_there = ThreadPoolExecutor(count, "sparsemble"), threading.Barrier(count + 1)
    try:
        for _ in range(count):
            pool.submit(all_there.wait)
        all_there.wait()
    except BaseException:
        all_there.abort()
        pool.shutdown(wait=False)
        raise
    return pool


THREAD_POOL = ThreadPool()
