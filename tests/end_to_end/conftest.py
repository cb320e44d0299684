import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMOKE = Path(__file__).with_name("smoke.toml")
VARIABLE = {"latency", "seconds", "training_seconds"}


def sparsemble(*words: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]


def command(*words: object) -> list[str]:
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
        return int(ended.value.code or 0), capsys.readouterr().err

    return call
