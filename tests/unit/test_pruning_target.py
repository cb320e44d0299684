"""Budgets are met to the last weight, whatever divides them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.evaluation.cost import count_macs
from sparsemble.models import architectures, build_model
from sparsemble.models.graph import Graph
from sparsemble.pruning import Mask, SparsityTarget, prunable_layers
from sparsemble.pruning.budget import budgets
from sparsemble.pruning.granularities.block import Block
from sparsemble.pruning.granularity import granularities
from sparsemble.pruning.layer_rates import layer_rates
from tests.helpers import examples

SHAPE = (3, 8, 8)


def make(name: str = "tiny") -> nn.Module:
    spec = {"name": name, "width": 8} if name in ("tiny", "resnet18", "resnet50") else name
    return build_model(architectures.build(spec), SHAPE, 5, (0.5,) * 3, (0.3,) * 3, rng=seeded(0)).eval()


def drawn(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    rng = seeded(seed)
    return {name: torch.rand(layer.weight.shape, generator=rng) for name, layer in prunable_layers(model).items()}


def target(model: nn.Module, sparsity: float, **more: object) -> SparsityTarget:
    built = {
        key: {"granularity": granularities, "budget": budgets, "rates": layer_rates}[key].build(value)  # type: ignore[attr-defined]
        for key, value in more.items()
        if key != "floor"
    }
    return SparsityTarget(
        graph=Graph(model, SHAPE), sparsity=sparsity, **built, **{k: v for k, v in more.items() if k == "floor"}
    )  # type: ignore[arg-type]


def spent(asked: SparsityTarget, mask: Mask) -> float:
    kept = torch.tensor([float(mask[name].sum()) for name in asked.shapes], dtype=torch.float64)
    return float(asked.budget.cost(kept, asked.sizes, asked.positions).sum())


@pytest.mark.parametrize("rates", layer_rates.names())
@pytest.mark.parametrize("budget", budgets.names())
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.97])
def test_the_budget_is_met_and_no_layer_can_keep_one_more(rates: str, budget: str, sparsity: float) -> None:
    model = make()
    asked = target(model, sparsity, rates=rates, budget=budget)
    mask = asked.mask(drawn(model))
    assert spent(asked, mask) <= asked.max_cost
    kept = torch.tensor([float(mask[name].sum()) for name in asked.shapes], dtype=torch.float64)
    for i, (count, size) in enumerate(zip(kept.tolist(), asked.sizes.tolist(), strict=True)):
        assert 1 <= count <= size
        if count < size:
            more = kept + (torch.arange(len(kept)) == i)
            assert float(asked.budget.cost(more, asked.sizes, asked.positions).sum()) > asked.max_cost


@given(st.floats(0, 0.97), st.integers(0, 99))
@examples(25)
def test_by_weights_the_count_is_the_nearest_whole_number(sparsity: float, seed: int) -> None:
    model = make()
    mask = target(model, sparsity, rates="global").mask(drawn(model, seed))
    assert abs(mask.nonzeros - (1 - sparsity) * mask.total) <= 0.5 + 1e-6


def test_a_budget_of_macs_is_one_of_the_work_that_is_left() -> None:
    model = make()
    macs = count_macs(model, SHAPE).dense
    for rates in ("uniform", "erk", "global"):
        copy = make()
        target(model, 0.9, rates=rates, budget="macs").mask(drawn(model)).apply_(copy)
        assert count_macs(copy, SHAPE).nonzero == pytest.approx(0.1 * macs, rel=0.01)


def test_a_budget_of_bytes_keeps_fewer_weights_than_one_of_weights() -> None:
    """Positions cost something too."""
    model = make()
    by_bytes, by_weights = (
        target(model, 0.8, budget=name).mask(drawn(model)).nonzeros for name in ("bytes", "weights")
    )
    assert 0.75 * by_weights < by_bytes < 0.95 * by_weights


def test_global_rates_keep_the_highest_scores_of_all() -> None:
    model = make()
    scores = drawn(model)
    mask = target(model, 0.7, rates="global", floor=0.0).mask(scores)
    kept = torch.cat([scores[name][mask[name]] for name in scores])
    gone = torch.cat([scores[name][~mask[name]] for name in scores])
    assert kept.min() >= gone.max() - 0.02  # a few last weights go to the layers that were rounded down the most


def test_erk_keeps_more_of_small_layers() -> None:
    model = make()
    asked = target(model, 0.9, rates="erk", floor=0.0)
    mask = asked.mask(drawn(model))
    rate = {name: float(keep.float().mean()) for name, keep in mask.items()}
    density = {name: sum(shape) / torch.Size(shape).numel() for name, shape in asked.shapes.items()}
    for a, b in itertools.pairwise(sorted(density, key=density.__getitem__)):
        assert rate[a] <= rate[b] + 2 / torch.Size(asked.shapes[b]).numel()
    free = [name for name in rate if rate[name] < 1]
    ratios = [rate[name] / density[name] for name in free]
    assert max(ratios) / min(ratios) < 1.2


def test_floors_keep_layers_alive() -> None:
    model = make()
    scores = drawn(model)
    victim = next(iter(scores))
    scores[victim] *= 1e-6
    mask = target(model, 0.8, rates="global", floor=0.5).mask(scores)
    assert float(mask[victim].float().mean()) >= 0.1 - 1 / mask[victim].numel()


class TestNM:
    @pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
    def test_no_group_keeps_more_than_n(self, n: int, m: int) -> None:
        model = make()
        mask = target(model, 1 - n / m, granularity={"name": "n_m", "n": n, "m": m}).mask(drawn(model))
        assert abs(mask.nonzeros - n / m * mask.total) <= 0.5
        for keep in mask.values():
            columns = keep.reshape(*keep.shape[:2], -1)
            for start in range(0, columns.shape[1], m):
                assert int(columns[:, start : start + m].sum(1).max()) <= n

    def test_full_groups_keep_their_best(self) -> None:
        scores = torch.rand(6, 8, 3, 3, generator=seeded(1))
        keep = granularities.build({"name": "n_m"}).keep(scores, scores.numel() // 2)
        groups = scores.view(6, 2, 4, 9)
        assert torch.equal(keep.view(6, 2, 4, 9), groups >= groups.topk(2, dim=2).values[:, :, 1:])

    def test_other_sparsities_give_a_sentence(self) -> None:
        with pytest.raises(InputError, match=r"2:4 is sparsity 0.5 exactly; it cannot reach 0.7"):
            target(make(), 0.7, granularity="n_m")


class TestBlock:
    @given(st.integers(4, 21), st.integers(1, 5), st.integers(2, 4), st.data())
    @examples(60)
    def test_keeps_exactly_and_all_but_one_block_whole(
        self, rows: int, columns: int, outputs: int, data: st.DataObject
    ) -> None:
        scores = torch.rand(rows, columns, 3, 3, generator=seeded(data.draw(st.integers(0, 99))))
        count = data.draw(st.integers(0, scores.numel()))
        keep = granularities.build({"name": "block", "size": outputs}).keep(scores, count)
        assert int(keep.sum()) == count
        split = [part.flatten(1) for part in keep.split(outputs)]
        assert sum(int((part.any(0) & ~part.all(0)).sum()) for part in split) <= 1

    def test_keeps_the_best_blocks(self) -> None:
        scores = torch.rand(8, 3, 1, 1, generator=seeded(3))
        keep = granularities.build({"name": "block"}).keep(scores, 12)
        means = scores.view(2, 4, 3).mean(1)
        assert torch.equal(keep.view(2, 4, 3).all(1), means >= means.flatten().topk(3).values[-1])

    @given(st.integers(1, 9), st.integers(1, 21), st.integers(2, 5), st.data())
    @examples(60)
    def test_blocks_of_inputs_are_blocks_of_the_outputs_of_the_transposed_layer(
        self, rows: int, columns: int, size: int, data: st.DataObject
    ) -> None:
        scores = torch.rand(rows, columns, 2, 2, generator=seeded(data.draw(st.integers(0, 99))))
        count = data.draw(st.integers(0, scores.numel()))
        along_in, along_out = Block(size=size, axis="in"), Block(size=size)
        keep = along_in.keep(scores, count)
        assert int(keep.sum()) == count
        assert keep.is_contiguous()
        assert torch.equal(keep.transpose(0, 1), along_out.keep(scores.transpose(0, 1), count))

    def test_the_last_block_of_inputs_is_smaller(self) -> None:
        scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 3.0, 2.0]])
        assert Block(axis="in").keep(scores, 2).tolist() == [[False] * 4 + [True] * 2]
        assert Block(axis="in").keep(scores, 6).all()
        image = torch.rand(4, 3, 3, 3, generator=seeded(0))
        keep = Block(axis="in").keep(image, 27)
        assert torch.equal(keep.any(1), keep.all(1))  # the three channels of an image are one block

    @pytest.mark.parametrize("size", [-4, 0, 1, 65])
    def test_sizes_that_are_none_give_a_sentence(self, size: int) -> None:
        with pytest.raises(InputError, match=rf"size = {size} must be 2 to 64 channels"):
            Block(size=size)

    def test_an_unknown_axis_gives_a_sentence(self) -> None:
        with pytest.raises(InputError, match=r"axis = 'rows' must be one of 'out', 'in'"):
            granularities.build({"name": "block", "axis": "rows"})
        block = object.__new__(Block)  # as from Python, where nothing checks types
        object.__setattr__(block, "axis", "rows")
        with pytest.raises(InputError, match=r"axis = 'rows' must be \"out\" or \"in\""):
            block.__post_init__()

    def test_layers_too_small_give_a_sentence(self) -> None:
        with pytest.raises(InputError, match=r"layer body.linear has 5 output channels, too few for blocks of 8"):
            target(make(), 0.5, granularity={"name": "block", "size": 8})


class TestChannel:
    @pytest.mark.parametrize("name", ["tiny", "resnet18", "resnet50"])
    @pytest.mark.parametrize("rates", ["uniform", "global"])
    @pytest.mark.parametrize("budget", ["weights", "macs"])
    def test_the_budget_is_met_and_no_channels_can_be_put_back(self, name: str, rates: str, budget: str) -> None:
        model = make(name)
        asked = target(model, 0.7, granularity="channel", rates=rates, budget=budget)
        mask = asked.mask(drawn(model))
        assert 0.8 * asked.max_cost < spent(asked, mask) <= asked.max_cost

    def test_erk_gives_a_sentence(self) -> None:
        with pytest.raises(InputError, match="erk needs layers with inputs and outputs"):
            target(make(), 0.5, granularity="channel", rates="erk").mask(drawn(make()))


class TestBadInput:
    def test_nan_scores(self) -> None:
        model = make()
        scores = drawn(model)
        scores["body.linear"][0, 0] = torch.nan
        with pytest.raises(InputError, match=r"scores of layer body.linear are NaN"):
            target(model, 0.5).mask(scores)

    def test_scores_of_another_network(self) -> None:
        with pytest.raises(InputError, match="differ in layer"):
            target(make(), 0.5).mask({"conv": torch.rand(3)})

    @pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90.0])
    def test_a_share_that_is_none(self, sparsity: float) -> None:
        with pytest.raises(InputError, match="must lie in"):
            target(make(), sparsity)

    def test_a_sparsity_that_leaves_too_little(self) -> None:
        with pytest.raises(InputError, match="would empty one of the 8 layers"):
            target(make(), 0.99995)
