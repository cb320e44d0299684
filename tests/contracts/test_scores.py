"""What every pruning score promises, on every architecture."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from sparsemble.core.types import Images, Labels, seeded
from sparsemble.models import architectures, build_model
from sparsemble.pruning import prunable_layers, pruning_scores

ARCHITECTURES = [
    {"name": "tiny", "width": 4},
    {"name": "resnet18", "width": 4},
    {"name": "resnet18", "width": 4, "stem": "imagenet"},
    {"name": "resnet50", "width": 2},
    {"name": "resnet50", "width": 2, "stem": "imagenet"},
    {"name": "vgg16", "width": 4},
    {"name": "wide_resnet", "depth": 10, "widen": 2, "width": 4},
]


def make(spec: dict[str, object]) -> nn.Module:
    """Build a model whose BatchNorms look trained."""
    rng = seeded(0)
    model = build_model(architectures.build(dict(spec)), (3, 32, 32), 5, (0.5,) * 3, (0.25,) * 3, rng=rng)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5, generator=rng)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=rng)
            nn.init.uniform_(module.running_var, 0.2, 3.0, generator=rng)
    return model.eval()


def batches() -> Iterator[tuple[Images, Labels]]:
    rng = seeded(1)
    for _ in range(2):
        yield torch.rand(4, 3, 32, 32, generator=rng), torch.randint(0, 5, (4,), generator=rng)


@pytest.mark.parametrize("name", sorted(pruning_scores.components))
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda spec: "-".join(map(str, spec.values())))
class TestEveryScore:
    def test_ranks_every_weight_and_leaves_the_model_as_found(self, name: str, spec: dict[str, object]) -> None:
        model = make(spec)
        before = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        scores = pruning_scores.build(name)(model, batches)
        layers = prunable_layers(model)
        assert list(scores) == list(layers)
        for key, layer in layers.items():
            score = scores[key]
            assert score.shape == layer.weight.shape
            assert score.dtype == layer.weight.dtype
            assert score.isfinite().all()
            assert (score >= 0).all()
            assert not score.requires_grad
        assert sum(score.max() > 0 for score in scores.values()) > len(scores) / 2  # a dead unit has no data to score
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not any(module.training for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(random_state, torch.get_rng_state())

    def test_is_the_same_twice(self, name: str, spec: dict[str, object]) -> None:
        model, score = make(spec), pruning_scores.build(name)
        first, second = score(model, batches), score(model, batches)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", sorted(pruning_scores.components))
def test_weights_of_0_matter_least(name: str) -> None:
    model = make(ARCHITECTURES[0])
    for layer in prunable_layers(model).values():
        layer.weight.data.reshape(-1)[::3] = 0
    for key, score in pruning_scores.build(name)(model, batches).items():
        assert (score[prunable_layers(model)[key].weight == 0] == 0).all()
