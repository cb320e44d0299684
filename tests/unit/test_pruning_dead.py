"""What is called dead changes no answer, and what is shrunk away either."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

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
