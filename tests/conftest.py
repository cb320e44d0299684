"""Every function of the package is checked against its shapes and types while the tests run (in its first calls)."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests import jaxtyping_first_calls

jaxtyping_first_calls.install()

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def first_calls() -> None:
    """Let this test check the first calls of every function."""
    jaxtyping_first_calls.calls.clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what the runtime compiles."""
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
