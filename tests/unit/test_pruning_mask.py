"""Exact counts, masks on disk and on models, and weights that stay 0."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.pruning import KeepZero, Mask, jaccard, prunable_layers
from sparsemble.pruning.granularities.weight import Weight
from sparsemble.pruning.mask import keep_top
from tests.helpers import examples

few = examples(60)


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def random_mask(model: nn.Module, keep: float = 0.5) -> Mask:
    return Mask({name: torch.rand_like(layer.weight) < keep for name, layer in prunable_layers(model).items()})


class TestKeepTop:
    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
    @few
    def test_equals_a_stable_sort_with_exact_count(self, values: list[int], data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(values)))
        keep = keep_top(torch.tensor(values, dtype=torch.float32), count)
        order = sorted(range(len(values)), key=lambda i: (-values[i], i))
        assert keep.nonzero().flatten().tolist() == sorted(order[:count])

    @given(st.integers(0, 24), st.booleans())
    @few
    def test_layout_in_memory_does_not_matter(self, count: int, tied: bool) -> None:
        scores = torch.arange(24.0).reshape(2, 3, 2, 2) // (5 if tied else 1)
        reordered = scores.contiguous(memory_format=torch.channels_last)
        assert torch.equal(keep_top(reordered, count), keep_top(scores, count))
        assert keep_top(scores, count).shape == scores.shape

    def test_does_not_look_at_gradients(self) -> None:
        scores = nn.Parameter(torch.tensor([3.0, 1.0, 2.0]))
        assert keep_top(scores, 2).tolist() == [True, False, True]

    def test_infinite_scores_are_the_best_and_the_worst(self) -> None:
        scores = torch.tensor([0.0, float("inf"), -float("inf"), 1.0])
        assert keep_top(scores, 3).tolist() == [True, True, False, True]

    def test_nan_gives_a_sentence(self) -> None:
        with pytest.raises(InputError, match="scores are NaN; the model they come from has NaN weights"):
            keep_top(torch.tensor([1.0, float("nan")]), 1)

    @pytest.mark.parametrize("count", [-1, 4])
    def test_a_count_out_of_range_gives_a_sentence(self, count: int) -> None:
        with pytest.raises(InputError, match=f"cannot keep {count} of 3 weights"):
            keep_top(torch.ones(3), count)

    def test_single_weights_are_kept_by_score(self) -> None:
        scores = torch.rand(3, 2, 3, 3)
        assert torch.equal(Weight().keep(scores, 7), keep_top(scores, 7))


class TestMask:
    def test_counts_what_it_keeps(self) -> None:
        mask = Mask({"a": torch.tensor([True, False, False]), "b": torch.tensor([[True, False]])})
        assert (mask.total, mask.nonzeros, mask.sparsity) == (5, 2, 0.6)

    def test_comes_back_from_disk(self, tmp_path: Path) -> None:
        mask = random_mask(net())
        mask.save(tmp_path / "mask.safetensors")
        again = Mask.load(tmp_path / "mask.safetensors")
        assert set(again) == set(mask)
        assert all(again[name].dtype == torch.bool and torch.equal(again[name], mask[name]) for name in mask)

    def test_a_mask_that_is_not_contiguous_comes_back_too(self, tmp_path: Path) -> None:
        keep = torch.rand(4, 3, 2, 2).contiguous(memory_format=torch.channels_last) < 0.5
        Mask({"conv": keep}).save(tmp_path / "mask.safetensors")
        assert torch.equal(Mask.load(tmp_path / "mask.safetensors")["conv"], keep)

    def test_removes_exactly_its_weights(self) -> None:
        model = net()
        dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        mask = random_mask(model)
        mask.apply_(model)
        for name, tensor in model.state_dict().items():
            layer = name.removesuffix(".weight")
            expected = torch.where(mask[layer], dense[name], 0.0) if layer in mask else dense[name]
            assert torch.equal(tensor, expected)
        found = Mask.of(model)
        assert all(torch.equal(found[name], mask[name]) for name in mask)
        assert found.sparsity == mask.sparsity

    def test_leaves_biases_and_batchnorm_alone(self) -> None:
        assert set(prunable_layers(net())) == {"0", "4"}

    def test_of_another_architecture_gives_a_sentence(self) -> None:
        model = net()
        with pytest.raises(InputError, match=r"differ in layer \w+; it belongs to another architecture"):
            Mask({"0": torch.ones(3, 1, 3, 3, dtype=torch.bool)}).apply_(model)
        wrong = Mask({"0": torch.ones(3, 1, 3, 3, dtype=torch.bool), "4": torch.ones(12, 3, dtype=torch.bool)})
        with pytest.raises(InputError, match=r"layer 4 has weights \(3, 12\), its mask \(12, 3\)"):
            wrong.apply_(model)


class TestKeepZero:
    @pytest.mark.parametrize("nesterov", [False, True])
    def test_kept_weights_move_as_if_the_others_did_not_exist(self, nesterov: bool) -> None:
        """The reference holds only the kept weights as parameters and puts them into a zero tensor."""
        weight, keep = torch.randn(4, 6), torch.rand(4, 6) < 0.4
        model = nn.Linear(6, 4)
        model.weight.data.copy_(weight * keep)
        bias = model.bias.detach().clone().requires_grad_()
        kept = weight[keep].requires_grad_()
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": nesterov}
        ours, reference = torch.optim.SGD(model.parameters(), **settings), torch.optim.SGD([kept, bias], **settings)
        hold = KeepZero({"": Mask({"": keep})})
        for _ in range(12):
            x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
            ours.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            ours.step()
            hold.after_step(model)
            reference.zero_grad()
            nn.functional.cross_entropy(x @ scattered(kept, keep).T + bias, y).backward()
            reference.step()
            assert (model.weight[~keep] == 0).all()
            torch.testing.assert_close(model.weight[keep], kept)
        assert not torch.allclose(model.weight[keep], weight[keep])

    def test_holds_each_named_part_to_its_own_mask(self) -> None:
        ensemble = nn.ModuleDict({"a": net(), "b": net()})
        masks = {"a": random_mask(ensemble["a"], 0.3), "b": random_mask(ensemble["b"], 0.7)}
        hold = KeepZero(masks)
        for _ in range(2):
            for parameter in ensemble.parameters():
                parameter.data.add_(1.0)
            hold.after_step(ensemble)
        for name, mask in masks.items():
            assert Mask.of(ensemble[name]).nonzeros == mask.nonzeros
            assert jaccard(Mask.of(ensemble[name]), mask) == 1


def scattered(kept: Tensor, keep: Tensor) -> Tensor:
    return torch.zeros(keep.shape).masked_scatter(keep, kept)


class TestJaccard:
    def test_is_the_share_of_common_weights(self) -> None:
        a = Mask({"x": torch.tensor([True, True, False]), "y": torch.tensor([False])})
        b = Mask({"x": torch.tensor([True, False, True]), "y": torch.tensor([True])})
        assert jaccard(a, b) == jaccard(b, a) == 1 / 4
        assert jaccard(a, a) == 1

    def test_of_nothing_and_nothing_is_1_and_of_disjoint_masks_0(self) -> None:
        none, first = Mask({"x": torch.tensor([False, False])}), Mask({"x": torch.tensor([True, False])})
        assert jaccard(none, none) == 1
        assert jaccard(none, first) == 0
        assert jaccard(first, Mask({"x": torch.tensor([False, True])})) == 0
