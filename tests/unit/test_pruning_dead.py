"""What is called dead changes no answer, and what is shrunk away either."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.evaluation.cost import count_macs, count_weights
from sparsemble.models import architectures, build_model
from sparsemble.models.graph import Graph
from sparsemble.pruning import Mask, SparsityTarget, prunable_layers
from sparsemble.pruning.dead_channels import find_dead_channels
from sparsemble.pruning.granularities.channel import Channel
from sparsemble.pruning.shrink import shrink
from tests.helpers import examples

NETWORKS: dict[str, tuple[object, tuple[int, int, int]]] = {
    "tiny": ({"name": "tiny", "width": 6}, (1, 8, 8)),
    "resnet18": ({"name": "resnet18", "width": 4}, (3, 16, 16)),
    "resnet50": ({"name": "resnet50", "width": 4}, (3, 16, 16)),
    "imagenet stem": ({"name": "resnet18", "width": 4, "stem": "imagenet"}, (3, 48, 48)),
    "vgg16": ("vgg16", (3, 32, 32)),
    "wide_resnet": ("wide_resnet", (3, 8, 8)),
}


def trained(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, int, int], Tensor]:
    """Return a network with BatchNorms as after training."""
    spec, shape = NETWORKS[name]
    rng = seeded(seed)
    model = build_model(
        architectures.build(spec),
        shape,
        10,
        (0.5,) * shape[0],
        (0.3,) * shape[0],
        rng=rng,  # type: ignore[arg-type]
    )
    x = torch.rand(4, *shape, generator=rng)
    model.train()(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.rand(module.weight.shape, generator=rng) + 0.5
            module.bias.data = 0.3 * torch.randn(module.bias.shape, generator=rng)
    return model.eval(), shape, x


def thinned(model: nn.Module, keep: float, seed: int) -> Mask:
    rng = seeded(seed)
    mask = Mask(
        {n: torch.rand(layer.weight.shape, generator=rng) < keep for n, layer in prunable_layers(model).items()}
    )
    mask.apply_(model)
    return mask


@pytest.mark.parametrize("name", NETWORKS)
def test_removing_the_dead_changes_no_answer(name: str) -> None:
    model, shape, x = trained(name)
    mask = thinned(model, 0.02, 1)
    with torch.no_grad():
        before = model(x)
        dead = find_dead_channels(mask, Graph(model, shape))
        assert dead.channels > 0
        assert dead.weights == mask.nonzeros - dead.mask.nonzeros > 0
        dead.mask.apply_(model)
        assert torch.equal(model(x), before)
    again = find_dead_channels(dead.mask, Graph(model, shape))
    assert again.weights == 0
    assert again.channels == dead.channels


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shrunk_network_is_smaller_and_gives_the_same_answers(name: str) -> None:
    model, shape, x = trained(name)
    thinned(model, 0.02, 2)
    small = shrink(model, shape)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)
    assert count_macs(small, shape).dense < count_macs(model, shape).dense
    assert count_macs(small, shape).nonzero <= count_macs(model, shape).nonzero
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_whole_channels_leave_a_dense_network(name: str, sparsity: float) -> None:
    model, shape, x = trained(name)
    asked = SparsityTarget(graph=Graph(model, shape), sparsity=sparsity, granularity=Channel())
    scores = {layer: module.weight.detach().abs() for layer, module in prunable_layers(model).items()}
    mask = asked.mask(scores)
    mask.apply_(model)
    small = shrink(model, shape)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), atol=1e-4, rtol=1e-4)
    weights = count_weights(small)
    assert weights.nonzeros == weights.total == mask.nonzeros
    assert (1 - sparsity) * mask.total >= weights.total - 0.5


@given(st.floats(0.005, 0.3), st.integers(0, 999))
@examples(30)
def test_on_any_mask_of_a_small_network(keep: float, seed: int) -> None:
    model, shape, x = trained("tiny", seed)
    thinned(model, keep, seed)
    with torch.no_grad():
        torch.testing.assert_close(shrink(model, shape)(x), model(x), atol=1e-5, rtol=1e-5)


def test_the_given_network_is_left_as_found() -> None:
    model, shape, _ = trained("tiny")
    thinned(model, 0.05, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shrink(model, shape)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_constant_that_is_not_0_stays() -> None:
    """Padding makes its use differ at the border, so that no bias can stand for it."""
    model, shape, _ = trained("tiny")
    mask = Mask(
        {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable_layers(model).items()}
    )
    mask["body.conv"][0] = False
    norm = model.get_submodule("body.norm")
    norm.bias.data[0], norm.weight.data[0] = 1.0, 0.0
    assert find_dead_channels(mask, Graph(model, shape)).channels == 0
    norm.bias.data[0] = -1.0  # ReLU makes it 0
    assert find_dead_channels(mask, Graph(model, shape)).alive["body.conv"].tolist().count(False) == 1


class Other(nn.Module):
    """A convolution and a layer that reads it in a way of its own."""

    def __init__(self, size: int, read: Callable[["Other", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.mix, self.head, self.read = nn.Conv2d(1, 8, 3), nn.Linear(6, 6), nn.Linear(size, 3), read

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.read(self, torch.relu(self.conv(x))))
        return logits


@pytest.mark.parametrize(
    ("size", "read", "message"),
    [
        (288, lambda own, x: x.reshape(-1, 288), "Other cannot run when its dead channels are removed: "),
        (36, lambda own, x: x.mean(1).flatten(1), "mean over axes"),
        (288, lambda own, x: own.mix(x).flatten(1), "layer mix is a Linear on feature maps"),
        (8, lambda own, x: x.mean((2, 3))[:, [0, 1, 2, 3, 4, 5, 6, 7]], "getitem"),
    ],
)
def test_a_network_that_cannot_be_smaller_is_refused(
    size: int, read: Callable[[Other, Tensor], Tensor], message: str
) -> None:
    model = Other(size, read).eval()
    with torch.no_grad():
        model.conv.weight[:5] = 0
        model.conv.bias[:5] = 0
    with pytest.raises(InputError, match=message):
        shrink(model, (1, 8, 8))


def test_channels_that_only_seem_to_be_dead_are_not_removed() -> None:
    """A hook makes something of a channel that the mask leaves without weights."""
    model = Other(8, lambda own, x: x.mean((2, 3))).eval()
    mask = Mask(
        {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable_layers(model).items()}
    )
    mask["conv"][2] = False
    with torch.no_grad():
        model.conv.bias.zero_()
    model.conv.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(InputError, match="Other computes something else without the channels that seem to be dead"):
        find_dead_channels(mask, Graph(model, (1, 8, 8)))
    mask.apply_(model)
    with pytest.raises(InputError, match="Other computes something else"):
        shrink(model, (1, 8, 8))


def test_a_batchnorm_without_statistics_has_no_constants() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1], model[1].bias[1] = 0, 0, 1
    assert find_dead_channels(Mask.of(model), Graph(model, (1, 8, 8))).channels == 0
    shrink(model, (1, 8, 8))


def test_layers_that_are_not_used_are_no_channels_of_the_graph() -> None:
    model = Other(8, lambda own, x: x.mean((2, 3))).eval()
    thinned(model, 0.1, 4)
    small = shrink(model, (1, 8, 8))
    assert small.get_submodule("mix").weight.shape == (6, 6)
