"""Weights of other projects are loaded by name, without running code, or refused with what does not fit."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.models.architecture import Architecture, build_model
from sparsemble.models.model_io import load_weights_
from sparsemble.models.preact_resnet import PreActResNet
from sparsemble.models.resnet import ResNet
from sparsemble.models.vgg import VGG
from sparsemble.models.wide_resnet import WideResNet

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def network(architecture: Architecture, seed: int = 0) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    model = build_model(architecture, (3, 32, 32), 10, MEAN, STD, rng=rng)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5, generator=rng)
    return model.eval()


def renamed(tensors: dict[str, Tensor], rules: dict[str, str]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        for pattern, theirs in rules.items():
            name = re.sub(pattern, theirs, name)
        result[name] = tensor
    return result


CIFAR = {
    r"^conv\.": "conv1.",
    r"^norm\.": "bn1.",
    r"^stage(\d)": r"layer\1",
    r"\.norm(\d)": r".bn\1",
}
TORCHVISION = {**CIFAR, r"shortcut": "downsample", r"^linear": "fc"}
PREACT = {**CIFAR, r"^norm\.|^bn1\.": "bn.", r"shortcut\.": "shortcut.0."}
WIDE = {**CIFAR, r"^layer(\d)\.": r"block\1.layer.", r"shortcut": "convShortcut", r"^linear": "fc"}


def of_vgg(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Number the layers as `nn.Sequential` of convolution, norm, ReLU and pooling does."""
    result, numbers, number = {}, {}, 0
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer == "linear":
            result[f"classifier.{kind}"] = tensor
            continue
        if layer not in numbers:
            numbers[layer] = number
            number += 1 if "conv" in layer else 3
        result[f"features.{numbers[layer]}.{kind}"] = tensor
    return result


LAYOUTS = {
    "cifar resnet": (ResNet(width=4), lambda tensors: renamed(tensors, CIFAR)),
    "torchvision resnet50": (ResNet(width=2, depth=50), lambda tensors: renamed(tensors, TORCHVISION)),
    "preact resnet": (PreActResNet(width=4), lambda tensors: renamed(tensors, PREACT)),
    "preact resnet without last norm": (
        PreActResNet(width=4, last_norm=False),
        lambda tensors: renamed(tensors, PREACT),
    ),
    "wide resnet": (
        WideResNet(depth=10, widen=1, width=4),
        lambda tensors: renamed(tensors, WIDE) | {"sub_block1.layer.0.bn1.weight": torch.ones(4)},
    ),
    "vgg": (VGG(width=2), of_vgg),
}
WRAPPED = {
    "plain": lambda tensors: tensors,
    "data parallel": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
    "checkpoint": lambda tensors: {"epoch": 3, "state_dict": tensors, "optimizer": {"lr": 0.1}},
    "both": lambda tensors: {"net": {f"module.model.{name}": tensor for name, tensor in tensors.items()}, "acc": 0.9},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_the_field_are_translated(tmp_path: Path, layout: str) -> None:
    architecture, theirs = LAYOUTS[layout]
    trained, path = network(architecture, seed=1), tmp_path / "model.pt"
    for i, wrap in enumerate(WRAPPED.values()):
        torch.save(wrap(theirs(trained.body.state_dict())), path)
        model = network(architecture, seed=2 + i)
        note = load_weights_(model, path, mean=MEAN, std=STD)
        assert "another project" in note
        x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
        assert torch.equal(model(x), trained(x))


def test_normalisation_is_that_of_the_file_or_as_given_or_none(tmp_path: Path) -> None:
    trained, path = network(ResNet(width=4)), tmp_path / "model.safetensors"
    theirs = renamed(trained.body.state_dict(), CIFAR)
    statistics = {"0.mean": torch.tensor(STD).view(1, 3, 1, 1), "0.std": torch.tensor(MEAN).view(1, 3, 1, 1)}
    for tensors, given, expected in (
        (theirs, {}, ((0, 0, 0), (1, 1, 1))),
        (theirs, {"mean": STD, "std": MEAN}, (STD, MEAN)),
        ({f"1.{name}": tensor for name, tensor in theirs.items()} | statistics, {}, (STD, MEAN)),
        (trained.body.state_dict(), {}, (MEAN, STD)),
        (trained.state_dict(), {}, (MEAN, STD)),
    ):
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
        model = network(ResNet(width=4), seed=1)
        load_weights_(model, path, **given)
        for buffer, values in zip((model.mean, model.std), expected, strict=True):
            torch.testing.assert_close(buffer.flatten(), torch.tensor(values, dtype=torch.float32))


class Code:
    def __reduce__(self):
        return (print, ("ran",))


def test_what_cannot_be_loaded_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, path = network(ResNet(width=4)).body.state_dict(), tmp_path / "model.pth"
    without = {name: tensor for name, tensor in tensors.items() if "stage4" not in name}
    wider = network(ResNet(width=8)).body.state_dict()
    for content, sentence in (
        ({"state_dict": tensors, "best": Code()}, "needs code to be unpickled"),
        (nn.Linear(2, 2), "needs code to be unpickled"),
        (without, r"the file lacks stage4.0.conv1.weight, .* and \d+ more"),
        (tensors | {"extra.weight": torch.ones(2)}, "the network has no extra.weight"),
        (wider, r"shapes differ: conv.weight is \(8, 3, 3, 3\) where \(4, 3, 3, 3\) is needed"),
        ({"epoch": 3}, "holds no tensors"),
        ([1, 2], "holds a list, not a state dict"),
    ):
        torch.save(content, path)
        before = {name: tensor.clone() for name, tensor in network(ResNet(width=4)).state_dict().items()}
        model = network(ResNet(width=4))
        with pytest.raises(InputError, match=sentence):
            load_weights_(model, path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    path.write_bytes(b"nothing of this kind")
    with pytest.raises(InputError, match=r"model.pth (is no file of torch.save|needs code)"):
        load_weights_(model, path)
    with pytest.raises(InputError, match="does not exist"):
        load_weights_(model, tmp_path / "no.pt")
    torch.save(tensors, path)
    with pytest.raises(InputError, match="need a value for each of 3 channels"):
        load_weights_(model, path, mean=(0.5,), std=(0.5,))
    assert "ran" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is not installed")
def test_the_network_of_the_reference_implementation() -> None:
    spec = importlib.util.find_spec("pyautoattack")
    assert spec is not None
    assert spec.origin is not None
    model = network(ResNet())
    note = load_weights_(model, Path(spec.origin).parent / "examples" / "model_test.pt")
    assert "mean 0, 0, 0" in note
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
