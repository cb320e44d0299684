"""Permuted channels: the same logits on every network, and blocks that keep more of the score."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sparsemble as sp
from sparsemble.api.results import TrainedModel
from sparsemble.api.training import SCHEDULE
from sparsemble.core.same_outputs import relative_difference
from sparsemble.core.types import Images, Logits, seeded
from sparsemble.models import architectures, build_model
from sparsemble.models.graph import Graph
from sparsemble.pruning import SparsityTarget
from sparsemble.pruning.granularities.block import Block
from sparsemble.pruning.mask import keep_top
from sparsemble.pruning.permutation import best_order, permute_channels
from tests.helpers import examples, magnitudes, random_split, same_state, tiny_model

SHAPE = (3, 32, 32)
ARCHITECTURES = [
    {"name": "tiny", "width": 6},
    {"name": "resnet18", "width": 4},
    {"name": "resnet18", "width": 6, "stem": "imagenet"},
    {"name": "resnet50", "width": 3},
    {"name": "preact_resnet", "width": 4},
    {"name": "vgg16", "width": 4},
    {"name": "wide_resnet", "depth": 10, "widen": 2, "width": 4},
]


def make(spec: dict[str, object]) -> nn.Module:
    """Build a model whose channels all differ, BatchNorms included."""
    rng = seeded(0)
    model = build_model(architectures.build(dict(spec)), SHAPE, 5, (0.5,) * 3, (0.25,) * 3, rng=rng)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):
                nn.init.uniform_(tensor, low, high, generator=rng)
            nn.init.uniform_(module.running_mean, -0.2, 0.2, generator=rng)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=rng)
    return model.eval()


def asked(model: nn.Module, sparsity: float, block: Block, shape: tuple[int, int, int] = SHAPE) -> SparsityTarget:
    return SparsityTarget(graph=Graph(model, shape), sparsity=sparsity, granularity=block)


def kept(target: SparsityTarget, scores: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(scores[name][keep].sum()) for name, keep in target.mask(scores).items()}


@torch.no_grad()
@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=lambda spec: "-".join(map(str, spec.values())))
def test_the_logits_stay_and_the_score_that_blocks_keep_rises(spec: dict[str, object], axis: str) -> None:
    model = make(spec)
    target = asked(model, 0.8, Block(axis=axis, permute=True, size=3 if axis == "out" else 4))  # type: ignore[arg-type]
    scores, images = magnitudes(model), torch.rand(4, *SHAPE, generator=seeded(1))
    before, state = model(images), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permuted, moved = permute_channels(model, scores, target)
    assert relative_difference(before, permuted(images)) <= 1e-5
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(moved[name], score) for name, score in magnitudes(permuted).items())
    assert sum(kept(target, moved).values()) > sum(kept(target, scores).values())
    first, *_, last = scores
    torch.testing.assert_close(scores[first].sum((0, 2, 3)), moved[first].sum((0, 2, 3)))  # the image's channels stay
    torch.testing.assert_close(scores[last].sum(1), moved[last].sum(1))  # so do the classes


def test_nothing_is_moved_unless_it_is_asked_for() -> None:
    model = make(ARCHITECTURES[0])
    scores = magnitudes(model)
    for block in (Block(axis="in"), Block()):
        assert permute_channels(model, scores, asked(model, 0.5, block)) == (model, scores)


def test_a_linear_layer_that_reads_whole_maps_follows_its_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 5)
    ).eval()
    target = asked(model, 0.7, Block(axis="out", permute=True), (3, 8, 8))
    images = torch.rand(4, 3, 8, 8, generator=seeded(1))
    permuted, moved = permute_channels(model, magnitudes(model), target)
    assert not torch.equal(permuted[5].weight, model[5].weight)  # type: ignore[index]
    torch.testing.assert_close(permuted(images), model(images), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(moved[name], score) for name, score in magnitudes(permuted).items())


class Scaled(nn.Module):
    """A network that multiplies each channel by a constant of its own, and adds channels to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.register_buffer("scale", torch.arange(1.0, 9.0).view(1, 8, 1, 1))

    def forward(self, x: Images) -> Logits:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        logits: Logits = self.linear(torch.relu(self.third(x) * self.scale).mean((2, 3)))
        return logits


def test_channels_with_constants_of_the_network_stay_where_they_are() -> None:
    torch.manual_seed(0)
    model = Scaled().eval()
    scores = magnitudes(model)
    permuted, moved = permute_channels(model, scores, asked(model, 0.7, Block(axis="in", permute=True), (3, 8, 8)))
    assert torch.equal(moved["linear"], scores["linear"])
    assert not torch.equal(moved["second"], scores["second"])
    images = torch.rand(4, 3, 8, 8, generator=seeded(1))
    torch.testing.assert_close(permuted(images), model(images), rtol=1e-5, atol=1e-6)


class TestBestOrder:
    @given(st.integers(1, 13), st.integers(2, 5), st.integers(1, 3), st.data())
    @examples(60)
    def test_is_a_permutation_that_loses_nothing(
        self, channels: int, size: int, layers: int, data: st.DataObject
    ) -> None:
        rng = seeded(data.draw(st.integers(0, 99)))
        tables = {str(i): torch.rand(channels, 7 + i, generator=rng) for i in range(layers)}
        counts = {name: data.draw(st.integers(0, table.numel())) for name, table in tables.items()}
        order = best_order(tables, counts, size)
        assert sorted(order.tolist()) == list(range(channels))
        shares = []
        for rows in (torch.arange(channels), order):
            share = 0.0
            for name, table in tables.items():
                ordered, possible = table[rows], float(table[keep_top(table, counts[name])].sum())
                held = float(ordered[Block(size=size).keep(ordered, counts[name])].sum())
                share += counts[name] * held / possible if possible else 0.0
            shares.append(share)
        assert shares[1] >= shares[0] * (1 - 1e-5)

    @pytest.mark.parametrize("layers", [1, 3])
    @pytest.mark.parametrize("channels", [16, 64])
    def test_finds_blocks_that_were_shuffled(self, channels: int, layers: int) -> None:
        rng = seeded(0)
        shuffle = torch.randperm(channels, generator=rng)
        tables, counts = {}, {}
        for i in range(layers):
            planted = (torch.rand(channels // 4, 40, generator=rng) < 0.2).repeat_interleave(4, 0)
            noise = 0.1 * torch.rand(channels, 40, generator=rng)
            tables[str(i)], counts[str(i)] = (planted + noise)[shuffle], int(planted.sum())
        order = best_order(tables, counts, 4)
        for name, table in tables.items():
            keep = Block().keep(table[order], counts[name])
            assert torch.equal(keep, keep_top(table[order], counts[name]))
        blocks = {tuple(sorted(part)) for part in (shuffle[order] // 4).view(-1, 4).tolist()}
        assert blocks == {(block,) * 4 for block in range(channels // 4)}

    def test_scores_of_0_change_nothing(self) -> None:
        order = best_order({"a": torch.zeros(8, 9)}, {"a": 9}, 4)
        assert order.tolist() == list(range(8))


def test_prune_permutes_channels_before_the_method() -> None:
    parent, x = tiny_model(width=4).eval(), torch.rand(8, 1, 8, 8, generator=seeded(3))

    def prune(sparsity: float, *, permute: bool) -> TrainedModel:
        return sp.prune(
            parent,
            random_split(60, (1, 8, 8)),
            sp.Linf(0.1),
            sparsity=sparsity,
            score=sp.scores.Magnitude(),
            method=sp.pruning.OneShot(),
            granularity=sp.pruning.Block(axis="in", permute=permute),
            finetune_epochs=0,
            schedule=replace(SCHEDULE, batch_size=20),
            held_out_attack=sp.attacks.FGSM(),
        )

    torch.testing.assert_close(prune(0.0, permute=True)(x), parent(x), rtol=1e-5, atol=1e-5)
    without, permuted = prune(0.8, permute=False), prune(0.8, permute=True)
    assert without.record is not None
    assert permuted.record is not None
    assert without.record.nonzeros == permuted.record.nonzeros
    held = [sum(float(score.sum()) for score in magnitudes(model.model).values()) for model in (without, permuted)]
    assert held[1] > held[0]
    assert same_state(parent, tiny_model(width=4))
