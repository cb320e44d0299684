"""A trained classifier of one's own goes through the whole method; what cannot be pruned is named before any work."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsemble.api.context import Context
from sparsemble.api.results import TrainedModel
from sparsemble.evaluation.cost import count_weights
from sparsemble.models.code import call_factory
from sparsemble.pipeline.graph import parent_task
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pipeline.validate_recipe import validate_recipe
from tests.end_to_end.conftest import SMOKE, sparsemble

NETWORK = """
import torch
import torch.nn.functional as F
from torch import nn


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.rest = nn.ModuleDict({"a": nn.Conv2d(6, 6, 3, padding=1, bias=False), "n": nn.BatchNorm2d(6)})
        self.pool = nn.AdaptiveAvgPool2d((8, 8))
        self.answer = nn.Linear(6 * PLACES, 10)
        ACTIVATION

    def forward(self, x):
        x = self.pool(F.relu(self.first(x)))
        x = self.act(x + self.rest["n"](self.rest["a"](x)))
        return self.answer(torch.flatten(F.adaptive_avg_pool2d(x, SIZE), 1))


def make():
    torch.manual_seed(5)
    return Mine()
"""


def own(folder: Path, activation: str = "self.act = nn.ReLU(inplace=True)", size: int = 2) -> str:
    """Write a network whose last pool leaves `size` rows and columns of the 8."""
    file = folder / "mine.py"
    text = NETWORK.replace("ACTIVATION", activation).replace("PLACES", str(size * size)).replace("SIZE", str(size))
    file.write_text(text, "utf-8")
    return f"{file}:make"


@pytest.mark.slow
def test_goes_through_the_whole_method(tmp_path: Path) -> None:
    factory = own(tmp_path)
    weights = tmp_path / "mine.safetensors"
    trained = call_factory(tmp_path / "mine.py", "make")
    with torch.no_grad():
        trained.answer.weight.mul_(3)  # what training did
    save_file(trained.state_dict(), weights)
    settings = [f'model={{name="code", factory="{factory}"}}', f'parent={{weights="{weights}"}}']
    # The network brought along also teaches the ensemble.
    taught = 'base={name="distillation", attack={name="pgd", steps=2}}'
    settings.append(f'ensemble.loss={{name="joint", {taught}}}')
    words = [word for setting in settings for word in ("--set", setting)]
    result = sparsemble("run", SMOKE, "--out", tmp_path / "run", *words, "--workers", 2, "--force")
    assert result.returncode == 0, result.stderr
    assert "load the dense parent" in result.stderr
    assert "the given parent does not know the classes" in result.stderr
    assert "the run goes on, as --force asks" in result.stderr
    assert not list((tmp_path / "run").glob("train-*"))
    (adopted,) = (tmp_path / "run").glob("load_parent-*")
    stored = load_file(adopted / "model.safetensors")
    assert all(torch.equal(stored[f"body.{name}"], tensor) for name, tensor in trained.state_dict().items())
    told = [json.loads(file.read_text("utf-8")) for file in (tmp_path / "run").glob("prune-*/pruned.json")]
    total = count_weights(trained).total
    # Half of the weights in all: the single HARP model keeps them, and each of two members a half of that.
    assert {one["nonzeros"] for one in told} == {total // 2, int(total / 4 + 0.5)}
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text("utf-8"))
    assert {row["name"] for row in summary["rows"]} >= {"dense", "small_dense", "harp", "ensemble_dynamic"}
    exported = json.loads((tmp_path / "run" / "export" / "export.json").read_text("utf-8"))
    assert exported["formats"]["packed"]["logits"] < 1e-4


@pytest.mark.parametrize(("rate", "moves"), [("1e-9", False), ("0.05", True)])
def test_a_parent_may_be_trained_further_before_it_is_pruned(rate: str, moves: bool, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    save_file(call_factory(Path(own(tmp_path).split(":")[0]), "make").state_dict(), weights)
    settings = (
        f'model={{name="code", factory="{tmp_path / "mine.py"}:make"}}',
        f'parent={{weights="{weights}", finetune_epochs=1}}',
        f"train.schedule.learning_rate={rate}",
    )
    _, recipe = load_recipe(str(SMOKE), settings)
    task = parent_task(recipe)
    folder = tmp_path / "parent"
    folder.mkdir()
    task.stage.run(Context(folder=folder, device=torch.device("cpu"), seed=3, stream="parent"), {})
    tuned = TrainedModel.load(folder, torch.device("cpu"))
    assert len(tuned.history) == 1
    before, after = load_file(weights)["answer.weight"], tuned.model.state_dict()["body.answer.weight"]
    assert torch.allclose(before, after, atol=1e-6) != moves


def test_the_first_layer_that_is_not_ours_is_named(tmp_path: Path, in_process) -> None:
    model = f'model={{name="code", factory="{own(tmp_path, "self.act = nn.GELU()")}"}}'
    status, errors = in_process("prune", SMOKE, "--out", tmp_path / "run", "--set", model, "--set", "parent={}")
    assert status == 2
    assert "layer body.act is GELU" in errors
    assert not list((tmp_path / "run").glob("*-*"))


def test_what_the_runtime_does_not_run_is_named_before_any_work_that_ends_there(tmp_path: Path, in_process) -> None:
    model = f'model={{name="code", factory="{own(tmp_path, size=3)}"}}'
    for command in ("run", "report"):
        status, errors = in_process(command, SMOKE, "--out", tmp_path / "run", "--set", model, "--set", "parent={}")
        assert status == 2
        assert "operation (adaptive_avg_pool2d) pools (8, 8) to (3, 3)" in errors
        assert len(errors.strip().splitlines()) == 1
        assert not list((tmp_path / "run").glob("*-*"))
    _, recipe = load_recipe(str(SMOKE), (model,))
    validate_recipe(recipe, deploys=False)  # what only trains, prunes and attacks it may


UNUSUAL = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.head, self.extra = nn.Linear(6, 10), nn.Linear(6, 10)

    def forward(self, x):
        z = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return (self.head(z), self.extra(z)) if self.training else self.head(z)


def pruned():
    net = Mine()
    prune.l1_unstructured(net.conv, "weight", 0.5)
    return net


def standardised():
    net = Mine()

    def standardise(conv, x):
        conv.weight.data = conv.weight.data / conv.weight.data.norm()

    net.conv.register_forward_pre_hook(standardise)
    return net


class Detached(Mine):
    def forward(self, x):
        z = super().forward(x)
        return z[0].detach() if self.training else z


def hooked():
    net = Mine()
    net.head.register_forward_hook(lambda head, x, logits: logits * 2)
    return net
"""


@pytest.mark.parametrize(
    ("factory", "parent", "words"),
    [
        ("pruned", False, "the weight of layer body.conv (torch.nn.utils.prune) is computed from other tensors"),
        ("standardised", True, "layer body.conv computes with another tensor than its weight"),
        ("Detached", False, "no weight has a gradient in training mode"),
        ("hooked", True, "Mine computes something else in the runtime"),
    ],
)
def test_what_a_mask_or_training_would_miss_is_said_before_any_stage(
    factory: str, parent: bool, words: str, tmp_path: Path, in_process
) -> None:
    (tmp_path / "unusual.py").write_text(UNUSUAL, "utf-8")
    model = f'model={{name="code", factory="{tmp_path / "unusual.py"}:{factory}"}}'
    given = ["--set", model, *(["--set", "parent={}"] if parent else [])]
    status, errors = in_process("run", SMOKE, "--out", tmp_path / "run", *given)
    assert status == 2
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert not list((tmp_path / "run").glob("*-*"))


@pytest.mark.parametrize("factory", ["Mine", "pruned"])
def test_unusual_parents_that_can_be_made_plain_are_let_through(factory: str, tmp_path: Path) -> None:
    (tmp_path / "unusual.py").write_text(UNUSUAL, "utf-8")
    model = f'model={{name="code", factory="{tmp_path / "unusual.py"}:{factory}"}}'
    _, recipe = load_recipe(str(SMOKE), (model, "parent={}"))
    validate_recipe(recipe, deploys=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['train.loss={name="distillation"}'], "train.loss: distillation needs a teacher"),
        (['model={name="code", factory="nowhere.py:make"}'], "nowhere.py does not exist"),
        (['model={name="code", factory="make"}'], "must name a file and a function"),
        (['model={name="timm", model="resnet18"}', "parent={}"], "needs the package timm"),
        (['model={name="robustbench", model="Standard"}', "parent={}"], "needs the package robustbench"),
        (['model={name="torchvision", model="resnet18"}', "parent={}", "data={name='digits'}"], "3 channels"),
        (['parent={weights="nowhere.safetensors"}'], "nowhere.safetensors does not exist"),
        ([f'parent={{weights="{SMOKE}"}}'], "no safetensors file"),
    ],
)
def test_what_cannot_be_taken_over_gives_a_sentence(
    settings: list[str], words: str, tmp_path: Path, in_process
) -> None:
    given = [word for setting in settings for word in ("--set", setting)]
    status, errors = in_process("run", SMOKE, "--out", tmp_path / "run", *given)
    assert status == 2
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
