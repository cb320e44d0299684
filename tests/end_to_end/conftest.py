import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, run_python

SMOKE = Path(__file__).with_name("smoke.toml")
VARIABLE = {"latency", "seconds", "training_seconds"}


COMMAND_LINE = "from sparsemble.cli import main; main()"


def sparsemble(*words: object, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    return run_python(COMMAND_LINE, *words, cwd=cwd)


def command(*words: object) -> list[str]:
    """Return the command line as it is typed; a process that begins with Python takes seconds to import torch."""
    return [sys.executable, "-m", "sparsemble.cli", *map(str, words)]


def without_timings(value: object) -> object:
    """Drop what two equal runs may differ in."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in VARIABLE}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smoke recipe; the first of the test processes makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = shared / "finished" / "run"
    with (shared / "finished.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "report" / "summary.json").exists():
            result = sparsemble("run", SMOKE, "--out", folder, "--workers", 2)
            assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Run the command line in this process: faster, where no work is begun."""

    def call(*words: object) -> tuple[int, str]:
        from sparsemble.cli import main

        monkeypatch.setattr(sys, "argv", ["sparsemble", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        logging.getLogger("sparsemble").setLevel(logging.NOTSET)  # --quiet raises it
        return int(ended.value.code or 0), capsys.readouterr().err

    return call
