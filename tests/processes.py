"""Processes of their own that start at once: forked from a server that has imported torch and the package already."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = get_context("forkserver")
PRELOADED = [
    "sparsemble.pipeline.run",
    "sparsemble.pipeline.engines.worker",
    "sparsemble.cli",
    "torch._dynamo",
    "pytest",
]
FORKS.set_forkserver_preload(PRELOADED)
ROOT = Path(__file__).parents[1]


def start_python(
    code: str, *arguments: object, out: Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `python -c code arguments`, except that modules may be imported already.

    Args:
        code: of the program.
        arguments: its words.
        out: a folder; standard output and error go to the files `stdout` and `stderr` there.
        cwd: where it runs.
        env: variables beyond those of this process.
    """
    for name in ("stdout", "stderr"):
        (out / name).write_bytes(b"")
    words = ["-c", *map(str, arguments)]
    settings = (code, words, out, cwd, {**os.environ, **(env or {})})
    process = FORKS.Process(target=_run, args=settings, daemon=True)
    process.start()
    return process


def run_python(code: str, *arguments: object, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run a program as `start_python` does, and return what `subprocess.run` would."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        status = wait_for(start_python(code, *arguments, out=out, **more))
        texts = [(out / name).read_text("utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(["-c", *arguments], status, *texts)


def run_together(code: str, *arguments: object, processes: int) -> list["subprocess.CompletedProcess[str]"]:
    """Run a program in several processes that find each other, as those that torchrun started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(rank) for rank in range(processes)]
        running = []
        for rank, out in enumerate(outs):
            out.mkdir()
            env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(start_python(code, *arguments, out=out, env=env))
        statuses = [wait_for(process) for process in running]
        return [
            subprocess.CompletedProcess(
                ["-c", *arguments], status, *((out / n).read_text() for n in ("stdout", "stderr"))
            )
            for status, out in zip(statuses, outs, strict=True)
        ]


def wait_for(process: BaseProcess, timeout: float = 300) -> int:
    """Wait for a process and return its exit status; one that takes too long is killed."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(process.name, timeout)
    return process.exitcode


def wait_for_line(process: BaseProcess, out: Path, line: str) -> None:
    """Wait until a process has printed its first line."""
    while not (out / "stdout").read_text("utf-8").startswith(f"{line}\n"):
        assert process.is_alive(), (out / "stderr").read_text("utf-8")
        time.sleep(0.005)


def _run(code: str, words: Sequence[str], out: Path, cwd: Path, env: Mapping[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(words)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        with (out / name).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
