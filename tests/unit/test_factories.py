"""Networks from Python files: neighbours, arguments, classes, functions on arrays."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.models.adapted import NumpyFunction
from sparsemble.models.code import Code, call_factory

LAYERS = "from torch import nn\ndef layer(width=4): return nn.Linear(width, 3)\n"
MINE = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from torch import nn
import layers

@dataclass
class Config:
    width: int = 4

def make(width: int = Config().width) -> nn.Module:
    from layers import layer
    return layer(width)

def needs(classes, width=2):
    return nn.Linear(width, classes)

class Net(nn.Linear):
    def __init__(self, classes: int, width: int = 4) -> None:
        super().__init__(width, classes)

instance = nn.Linear(4, 3)
number = 3

def predict(x):
    return x.reshape(len(x), -1)[:, :3]

def text():
    return "net"

def stops():
    raise SystemExit(3)
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "layers.py").write_text(LAYERS)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("make", (3, 4)),
        ("make(width=5)", (3, 5)),
        ("make(6)", (3, 6)),
        ("needs(classes=7)", (7, 2)),
        ("Net(2)", (2, 4)),
        ("instance", (3, 4)),
    ],
)
def test_calls(mine: Path, call: str, shape: tuple[int, int]) -> None:
    model = call_factory(mine, call)
    assert isinstance(model, nn.Linear)
    assert tuple(model.weight.shape) == shape


def test_a_function_of_images_is_a_classifier_without_gradients(mine: Path) -> None:
    model = load_target(f"{mine}:predict").model
    assert isinstance(model, NumpyFunction)
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(model(x), x.flatten(1)[:, :3])
    with pytest.raises(InputError, match="is a function on arrays"):
        Code(factory=f"{mine}:predict").build(1, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("needs", r"needs needs the argument classes; write it as in .*mine.py:needs\(classes=...\)"),
        ("Net", "Net needs the argument classes"),
        ("nothing", "has no function nothing"),
        ("number", "has no function number"),
        ("make(width=print)", "plain values as arguments"),
        ("make(", "must end in a name"),
        ("make(height=3)", "failed: TypeError"),
        ("stops", "failed: SystemExit: 3"),
        ("text", "must return a torch.nn.Module, got str"),
    ],
)
def test_other_calls_are_refused(mine: Path, call: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        call_factory(mine, call)


def test_neighbours_are_those_beside_the_file_as_they_are_now(mine: Path, tmp_path: Path) -> None:
    assert call_factory(mine, "make").weight.shape[0] == 3
    other = tmp_path / "other"
    other.mkdir()
    (other / "layers.py").write_text(LAYERS.replace("3)", "5)"))
    (other / "mine.py").write_text(MINE)
    assert call_factory(other / "mine.py", "make").weight.shape[0] == 5
    (tmp_path / "layers.py").write_text(LAYERS.replace("3)", "7)  # edited"))
    assert call_factory(mine, "make").weight.shape[0] == 7


def test_statistics_are_for_files_of_weights(mine: Path) -> None:
    with pytest.raises(InputError, match="normalises its images itself"):
        load_target(f"{mine}:make", mean=(0.5,), std=(0.5,))
