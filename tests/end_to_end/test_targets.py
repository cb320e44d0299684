"""Each kind of model in the table of docs/evaluation.md: evaluated with gradients, as a black box, pruned, exported."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import sparsemble as sp
from sparsemble.core.errors import InputError
from sparsemble.export.onnx import member_graph
from sparsemble.models.convert import convert_model
from sparsemble.pipeline.evaluate_command import EvaluationOptions, prepare, run
from sparsemble.pipeline.parent import parent_settings
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pipeline.validate_recipe import validate_recipe
from tests.end_to_end.conftest import SMOKE, sparsemble
from tests.helpers import tiny_model

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

SHAPE = (1, 8, 8)
CODE = """
import torch
from torch import nn

class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.answer = nn.Linear(64, 10)
    def forward(self, x):
        return self.answer((x * 255).round().flatten(1) / 255)

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.answer = nn.Linear(144, 10)
    def forward(self, x):
        return self.answer(torch.sigmoid(self.conv(x)).flatten(1))

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))

def predict(x):
    return x.reshape(len(x), -1)[:, :10] * 3
"""


def write_onnx(folder: Path, *, quantised: bool = False) -> Path:
    """Write a small network, with inputs rounded to 8 bits or not."""
    model = member_graph(convert_model(tiny_model(10, SHAPE).eval(), SHAPE))
    if quantised:
        helper, graph = onnx.helper, model.graph
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 / 255), "step"))
        graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(0), "zero"))
        graph.node[0].input[0] = "rounded"
        graph.node.insert(0, helper.make_node("DequantizeLinear", ["bytes", "step", "zero"], ["rounded"], "d"))
        graph.node.insert(0, helper.make_node("QuantizeLinear", ["images", "step", "zero"], ["bytes"], "q"))
    file = folder / ("int8.onnx" if quantised else "float.onnx")
    onnx.save_model(model, file)
    return file


def write_transformers(folder: Path) -> Path:
    from tests.unit.test_packages import made, save

    size = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic", "num_channels": 1}
    torch.manual_seed(0)
    model = made("ResNetForImageClassification")(made("ResNetConfig")(**size, num_labels=10)).eval()
    return save(folder, model, "one channel")


@pytest.fixture(scope="module")
def targets(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is written after `sparsemble evaluate`, by kind of model."""
    folder = tmp_path_factory.mktemp("targets")
    (folder / "mine.py").write_text(CODE, "utf-8")
    (trained,) = finished.glob("train-*")
    return {
        "run": str(finished),
        "artifact": str(trained),
        "weights": str(trained / "model.safetensors"),
        "packed": str(finished / "export" / "ensemble.sparsemble"),
        "network": f"{folder / 'mine.py'}:plain",
        "other layers": f"{folder / 'mine.py'}:Gate",
        "no gradient": f"{folder / 'mine.py'}:Rounded",
        "function": f"{folder / 'mine.py'}:predict",
        "onnx": str(write_onnx(folder)),
        "quantised onnx": str(write_onnx(folder, quantised=True)),
        "transformers": f"hf:{write_transformers(folder / 'hf')}",
    }


@dataclass(frozen=True)
class Supported:
    """A row of the table; a text is what is said where something is not possible."""

    gradients: str = ""
    scores: str = ""
    prune: str = ""


WITHOUT_NORM = "ensemble.loss={name='joint'}"
"""An ensemble loss for networks without BatchNorm, such as exported ones."""
TABLE = {
    "run": Supported(),
    "artifact": Supported(),
    "weights": Supported(),
    "packed": Supported(prune="is a packed ensemble of rounded networks; give the run"),
    "network": Supported(),
    "other layers": Supported(prune="which cannot be pruned"),
    "no gradient": Supported(gradients="gradient of the logits is 0.*--access scores", prune="which cannot be pruned"),
    "function": Supported(gradients="no gradient.*--access scores", prune="is a function on arrays"),
    "onnx": Supported(),
    "quantised onnx": Supported(gradients="QuantizeLinear .*--access scores", prune="QuantizeLinear"),
    "transformers": Supported(prune="decides by its input what it computes"),
}


def options(target: str, kind: str, access: str, out: Path) -> EvaluationOptions:
    words = {"model": "{name = 'tiny', width = 4}"} if kind == "weights" else {}
    attacks = "pgd" if access == "gradients" else "[{name = 'square', queries = 20}]"
    how = {
        "data": "" if kind == "run" else "digits",
        "images": 12,
        "eps": "0.1",
        "norm": "linf",
        "attacks": attacks,
        "adaptive": False,
    }
    return EvaluationOptions(target=target, access=access, out=out, device="cpu", **how, **words)


@pytest.mark.parametrize("access", ["gradients", "scores"])
@pytest.mark.parametrize("kind", TABLE)
def test_is_evaluated_or_refused_before_work(kind: str, access: str, targets: dict[str, str], tmp_path: Path) -> None:
    refused = getattr(TABLE[kind], access)
    if refused:
        with pytest.raises(InputError, match=refused):
            prepare(options(targets[kind], kind, access, tmp_path))
        return
    plan = prepare(options(targets[kind], kind, access, tmp_path))
    logits = plan.job.model(plan.job.split.images(torch.arange(3)))
    assert logits.shape == (3, 10)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "access"), [("onnx", "gradients"), ("quantised onnx", "scores"), ("transformers", "gradients")]
)
def test_an_evaluation_runs_to_its_end(kind: str, access: str, targets: dict[str, str], tmp_path: Path) -> None:
    plan = prepare(options(targets[kind], kind, access, tmp_path / "out"))
    result = run(plan, "command", Console(quiet=True))
    assert len(result.clean_correct) == 12
    assert [check.number for check in result.checks] == list(range(1, 51))
    again = run(prepare(options(targets[kind], kind, access, tmp_path / "out")), "command", Console(quiet=True))
    assert again.worst_case == result.worst_case
    page = (tmp_path / "out" / "evaluation.md").read_text("utf-8")
    assert {"onnx": "converted to torch", "quantised onnx": "ONNX Runtime computes", "transformers": "processor"}[
        kind
    ] in page


@pytest.mark.parametrize("kind", TABLE)
def test_is_a_parent_or_refused_before_work(kind: str, targets: dict[str, str]) -> None:
    def check() -> None:
        _, recipe = load_recipe(str(SMOKE), (*parent_settings(targets[kind]), WITHOUT_NORM))
        validate_recipe(recipe)

    if TABLE[kind].prune:
        with pytest.raises(InputError, match=TABLE[kind].prune):
            check()
    else:
        check()


@pytest.mark.slow
def test_a_parent_from_the_command_line(targets: dict[str, str], tmp_path: Path) -> None:
    words = ("--set", "prune.scores=['nis', 'erm']", "--set", "prune.method={name='one_shot'}")
    words += ("--set", "ensemble.loss={name='joint'}")  # an ONNX file has no BatchNorm, whose features dverge takes
    few = (*words, "--set", "prune.finetune_epochs=1", "--quiet", "--workers", 1, "--force")
    result = sparsemble("prune", SMOKE, "--parent", targets["onnx"], "--out", tmp_path / "run", *few)
    assert result.returncode == 0, result.stderr
    pruned = sorted((tmp_path / "run").glob("prune-*"))
    assert len(pruned) == 2
    assert not list((tmp_path / "run").glob("train-*"))
    assert sp.load(pruned[0])(torch.rand(2, *SHAPE)).shape == (2, 10)


@pytest.mark.parametrize(
    ("target", "words"), [("nowhere.onnx", "does not exist"), ("hf:nowhere", "no such folder"), ("mine.py", "mine.py")]
)
def test_a_parent_that_is_not_there(target: str, words: str, tmp_path: Path, in_process) -> None:
    status, errors = in_process("run", SMOKE, "--parent", target, "--out", tmp_path / "run")
    assert status == 2
    assert words in errors
    assert len(errors.strip().splitlines()) == 1


def test_an_onnx_network_is_pruned_and_exported_from_python(targets: dict[str, str], tmp_path: Path) -> None:
    parent = sp.load(targets["onnx"])
    data, linf = sp.data.load("digits"), sp.Linf(0.1)
    pruned = sp.prune(parent, data, linf, sparsity=0.5, method=sp.pruning.OneShot(), finetune_epochs=0)
    assert pruned.mask is not None
    assert pruned.mask.sparsity == pytest.approx(0.5, abs=0.01)
    assert isinstance(parent.model, nn.Module)
