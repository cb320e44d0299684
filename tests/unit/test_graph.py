"""Networks as operations: ours whatever the modules are called, and a sentence for all others."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.models import architectures, build_model
from sparsemble.models.channel_groups import channel_groups
from sparsemble.models.graph import Graph

SHAPE = (3, 16, 16)


class Odd(nn.Module):
    """Other names, functions in place of modules, a layer in a list, a flattened map larger than a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stuff = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)])
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stuff[0](x * 2 - 1))
        x = torch.add(x, self.bn(self.stuff[1](x)))
        x = F.avg_pool2d(F.max_pool2d(x.relu(), 2), kernel_size=2)
        logits: Tensor = self.head(x.view(x.size(0), -1))
        return logits


class Named(nn.Module):
    """A convolution, and then something else."""

    def __init__(self, then: Any, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.layer = layer or nn.Identity()
        self.then = then
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.then(self, self.layer(self.conv(x)))


def test_follows_any_names_and_functions() -> None:
    graph = Graph(Odd(), SHAPE)
    kinds = [operation.kind for operation in graph.operations]
    assert kinds == [
        *("input", "affine", "affine", "conv", "relu", "conv", "norm", "add", "relu", "pool", "pool"),
        *("flatten", "linear"),
    ]
    assert list(graph.layers()) == ["stuff.0", "stuff.1", "head"]
    assert [layer.positions for layer in graph.layers().values()] == [256, 256, 1]
    assert graph.by_name["stuff.1"].shape == (6, 16, 16)
    tied = [space for space in channel_groups(graph) if space.free]
    assert len(tied) == 1
    assert tied[0].producers == ("stuff.0", "stuff.1")
    assert sorted(tied[0].consumers) == ["head", "stuff.1"]


@pytest.mark.parametrize("name", sorted({"tiny", "resnet18", "resnet50", "vgg16", "wide_resnet"}))
def test_residual_streams_are_one_space(name: str) -> None:
    spec: Any = {"name": name, "width": 4} if name in ("tiny", "resnet18", "resnet50") else name
    shape = (3, 32, 32)
    model = build_model(architectures.build(spec), shape, 10, (0.5,) * 3, (0.5,) * 3, rng=seeded(0))
    graph = Graph(model, shape)
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert graph.layers().keys() == layers
    found = channel_groups(graph)
    assert sorted(producer for space in found for producer in space.producers) == sorted(layers)
    streams = sum(len(space.producers) > 1 for space in found)
    assert streams == {"tiny": 2, "resnet18": 4, "resnet50": 4, "vgg16": 0, "wide_resnet": 3}[name]


def test_leaves_the_model_as_found() -> None:
    model = Odd().train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Graph(model, SHAPE)
    assert model.training
    assert model.stuff[0].training
    assert not model.bn.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Named(None, nn.Sigmoid()), "layer layer is Sigmoid()"),
        (Named(None, nn.Conv2d(4, 4, 3, groups=2)), "layer layer is Conv2d(4, 4"),
        (Named(lambda own, x: F.gelu(x)), "layer (gelu) is gelu"),
        (Named(lambda own, x: torch.cat([x, x], 1)), "layer (cat) is cat"),
        (Named(lambda own, x: own.conv(x[:, :3])), "layer (getitem) is getitem"),
        (Named(lambda own, x: x + 1), "adds something that is not a feature map"),
        (Named(lambda own, x: x * x), "combines feature maps by mul"),
        (Named(lambda own, x: own.head(x.mean((2, 3))) if x.sum() > 0 else x), "decides by its input what it computes"),
        (Named(lambda own, x: (x, x)), "must return the result of its last operation"),
        (
            Named(lambda own, x: own.head(F.avg_pool2d(x, 3)).sum(1)),
            "layer head is a Linear on feature maps",
        ),
        (Named(lambda own, x: x.mean(1).flatten(1)), "mean over axes (1,) of (1, 4, 14, 14)"),
        (Named(lambda own, x: x.mean((0, 2))), "mean over axes (0, 2)"),
        (Named(lambda own, x: x.mean(dim=-3).flatten(1)), "mean over axes (1,)"),
        (Named(lambda own, x: own.missing(x)), "cannot be traced as a graph of operations: AttributeError"),
        (Named(lambda own, x: own.head(x.mean((2, 3)).view(-1, 3))), "cannot take an image of 3x16x16"),
        (Named(lambda own, x: own.head(x.mean((2, 3))) + own.head(x.mean((2, 3)))), "runs twice in a pass"),
    ],
)
def test_the_first_unsupported_operation_is_named(model: Named, message: str) -> None:
    if model.then is None:
        model.then = lambda own, x: own.head(x.mean((2, 3)))
    with pytest.raises(InputError, match=re.escape(message)):
        Graph(model, SHAPE)


class Switching(nn.Module):
    """Returns auxiliary logits while it is trained, and computes some in vain when it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.extra = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        z = self.conv(x).mean((2, 3))
        extra = self.extra(z).sigmoid()
        return (self.head(z), extra) if self.training else self.head(z)


@pytest.mark.parametrize("training", [True, False])
def test_is_that_of_eval_mode_and_of_what_the_logits_depend_on(training: bool) -> None:
    model = Switching().train(training)
    graph = Graph(model, SHAPE)
    assert [operation.name for operation in graph.operations][1:] == ["conv", "(mean)", "head"]
    assert model.training == training


def test_a_tensor_that_is_overwritten_is_what_overwrote_it() -> None:
    model = Named(lambda own, x: own.head((F.relu(x, inplace=True) + x).mean((2, 3))))
    graph = Graph(model, SHAPE)
    assert graph.by_name["(add)"].inputs == ("(relu)", "(relu)")
    assert [operation.kind for operation in graph.operations] == [
        "input",
        "conv",
        "same",
        "relu",
        "add",
        "pool",
        "linear",
    ]


class Renamed(nn.Conv2d):
    """A convolution under another name."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)


class Scaled(nn.Conv2d):
    """No convolution with its weight."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


def test_a_subclass_is_a_layer_where_it_computes_as_its_base_does() -> None:
    model = Named(lambda own, x: own.head(torch.mean(x, (2, 3))), Renamed(4, 4, 3, bias=False))
    assert list(Graph(model, SHAPE).layers()) == ["conv", "layer", "head"]
    model.layer = Scaled(4, 4, 3)
    with pytest.raises(InputError, match=r"operation .mul. combines feature maps"):
        Graph(model, SHAPE)
