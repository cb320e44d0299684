"""Every function of the package is checked against its shapes and types while the tests run."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 (the hook looks it up by name)

install_import_hook("sparsemble", "tests.typechecker.check")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what the runtime compiles."""
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
