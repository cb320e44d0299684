"""What every pruning method promises, with every granularity, score and objective."""

import copy
import math
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.pruning import (
    Mask,
    PruningMethod,
    PruningResult,
    SparsityTarget,
    prunable_layers,
    pruning_methods,
    pruning_scores,
)
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.loss import training_losses
from tests.helpers import Interrupt, covering, magnitudes, pruning_context, tiny_model
from tests.helpers import sparsity_target as target


def held_out(model: nn.Module) -> dict[str, float]:
    return {"held_out_clean": 0.5, "held_out_robust": 0.4}


context = partial(pruning_context, classes=4, held_out=held_out)

SHAPE = (1, 8, 8)
METHODS = sorted(pruning_methods.components)
GRANULARITIES = {"weight": 0.7, "n_m": 0.5, "block": 0.7, "block-in": 0.7, "channel": 0.6}
"""Each with a sparsity that it reaches."""
LOSSES = ["standard", "pgd_at", "trades", "mart", "n_fgsm", "fgsm_rs", "awp", "distillation"]


def quick(name: str, **more: Any) -> PruningMethod:
    """Build a method with two epochs wherever it has epochs."""
    method = pruning_methods.build(name)
    known = {field.name for field in fields(method)}  # type: ignore[arg-type]
    settings = {"epochs": 2, "every": 1, "prune_at": 1} | more
    return replace(method, **{key: value for key, value in settings.items() if key in known})  # type: ignore[type-var]


def make() -> nn.Module:
    model = tiny_model(4, SHAPE, width=4)
    model.train()(torch.rand(8, *SHAPE, generator=seeded(7)))
    return model.eval()


def check(model: nn.Module, before: dict[str, Tensor], asked: SparsityTarget, pruned: PruningResult) -> None:
    """Check everything that holds for any method."""
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    counted = sum(asked.counts(magnitudes(model)).values())
    if not asked.granularity.whole_channels:
        assert pruned.mask.nonzeros == counted == math.floor((1 - asked.sparsity) * pruned.mask.total + 0.5)
    else:
        assert pruned.mask.nonzeros <= asked.max_cost
    assert all(keep.any() for keep in pruned.mask.values())
    assert pruned.model.state_dict().keys() == before.keys()
    assert all(parameter.requires_grad for parameter in pruned.model.parameters())
    for name, layer in prunable_layers(pruned.model).items():
        assert type(layer) in (nn.Conv2d, nn.Linear)
        assert not layer.weight[~pruned.mask[name]].any()
    assert not any(isinstance(module, nn.ParameterList | nn.ParameterDict) for module in pruned.model.modules())
    assert all(tensor.isfinite().all() for tensor in pruned.model.state_dict().values())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", METHODS)
def test_prunes_exactly_in_pieces(name: str, granularity: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    asked = target(model, GRANULARITIES[granularity], granularity=granularity)
    pruned = quick(name)(model, magnitudes(model), asked, context())
    check(model, before, asked, pruned)
    for layer, keep in pruned.mask.items():
        if granularity == "channel":
            rows, columns = keep.flatten(1).any(1), keep.flatten(2).any(2).any(0) if keep.ndim > 2 else keep.any(0)
            table = rows[:, None] & columns[None]
            assert torch.equal(keep, table.view(*table.shape, *[1] * (keep.ndim - 2)).expand_as(keep)), layer
        if granularity.startswith("block"):
            by_channel = keep if granularity == "block" else keep.transpose(0, 1)
            parts = [part.flatten(1) for part in by_channel.split(4)]
            assert sum(int((part.any(0) & ~part.all(0)).sum()) for part in parts) <= 1
        if granularity == "n_m":
            columns = keep.flatten(2) if keep.ndim > 2 else keep[:, :, None]
            assert all(int(columns[:, at : at + 4].sum(1).max()) <= 2 for at in range(0, columns.shape[1], 4))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.95])
@pytest.mark.parametrize("name", METHODS)
def test_prunes_exactly_at_every_sparsity(name: str, sparsity: float) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    asked = target(model, sparsity)
    check(model, before, asked, quick(name)(model, magnitudes(model), asked, context()))


@pytest.mark.parametrize(("name", "loss_name"), covering(METHODS, LOSSES))
def test_works_with_every_loss(name: str, loss_name: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    asked = target(model, 0.8)
    loss = training_losses.build(loss_name).with_teacher(copy.deepcopy(model))
    check(model, before, asked, quick(name)(model, magnitudes(model), asked, context(loss)))


@pytest.mark.parametrize("name", METHODS)
def test_is_the_same_each_time(name: str) -> None:
    model = make()
    one, other = (quick(name)(model, magnitudes(model), target(model, 0.8), context()) for _ in range(2))
    assert all(torch.equal(one.mask[layer], other.mask[layer]) for layer in one.mask)
    state = other.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in one.model.state_dict().items())


@pytest.mark.parametrize(("name", "epoch"), covering(METHODS, [1, 2, 3, 4]))
def test_goes_on_where_it_was_interrupted(name: str, epoch: int, tmp_path: Any) -> None:
    model = make()
    method = quick(name, epochs=4, prune_at=2)
    whole = method(model, magnitudes(model), target(model, 0.8), context())
    if not whole.history:
        return  # it trains nothing
    checkpoint = Checkpoint(tmp_path)
    stopped = context(callbacks=[Interrupt(epoch)], checkpoint=checkpoint)
    with pytest.raises(KeyboardInterrupt):
        method(model, magnitudes(model), target(model, 0.8), stopped)
    going_on = context(callbacks=[Callback()], checkpoint=checkpoint)
    again = method(model, magnitudes(model), target(model, 0.8), going_on)
    assert all(torch.equal(whole.mask[layer], again.mask[layer]) for layer in whole.mask)
    state = again.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in whole.model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_bad_input_gives_a_sentence(name: str) -> None:
    model = make()
    if name == "one_shot":  # the only one that can do without
        quick(name)(model, magnitudes(model), target(model, 0.5), context(batches=None))
        return
    with pytest.raises(InputError, match=f'method "{name}".*needs training images'):
        quick(name)(model, magnitudes(model), target(model, 0.5), context(batches=None))


@pytest.mark.parametrize(("name", "score"), covering(METHODS, sorted(pruning_scores.components)))
def test_takes_every_score(name: str, score: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    x, y = torch.rand(12, *SHAPE, generator=seeded(5)), torch.arange(12) % 4
    scores = pruning_scores.build(score)(model, lambda: iter([(x, y)]))
    asked = target(model, 0.8)
    check(model, before, asked, quick(name)(model, scores, asked, context()))


@pytest.mark.parametrize("score", sorted(pruning_scores.components))
@pytest.mark.parametrize("name", ["harp", "hydra", "one_shot"])
def test_takes_every_score_in_blocks_of_inputs(name: str, score: str) -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    x, y = torch.rand(12, *SHAPE, generator=seeded(5)), torch.arange(12) % 4
    scores = pruning_scores.build(score)(model, lambda: iter([(x, y)]))
    asked = target(model, 0.8, granularity="block-in")
    pruned = quick(name, epochs=1)(model, scores, asked, context())
    check(model, before, asked, pruned)
    for keep in pruned.mask.values():
        parts = [part.flatten(1) for part in keep.transpose(0, 1).split(4)]
        assert sum(int((part.any(0) & ~part.all(0)).sum()) for part in parts) <= 1


def test_a_mask_for_another_architecture_gives_a_sentence() -> None:
    mask = Mask({name: layer.weight != 0 for name, layer in prunable_layers(make()).items()})
    wider = tiny_model(4, SHAPE, width=6)
    with pytest.raises(InputError, match="belongs to another architecture"):
        mask.apply_(wider)


def test_a_mask_file_that_was_changed_is_refused(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "mask.safetensors"
    mask = Mask({"conv": torch.rand(4, 3, 3, 3, generator=seeded(0)) < 0.5})
    mask.save(path)
    assert Mask.load(path).nonzeros == mask.nonzeros
    tensors = load_file(path)
    first = mask["conv"].nonzero()[0]
    tensors["conv"][tuple(first)] = False
    save_file(tensors, path, metadata={"weights": "108", "nonzeros": str(mask.nonzeros)})
    with pytest.raises(InputError, match=f"claims to keep {mask.nonzeros} of 108 weights, but keeps"):
        Mask.load(path)
    save_file(tensors, path)
    with pytest.raises(InputError, match="was changed"):
        Mask.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read as a mask"):
        Mask.load(path)
