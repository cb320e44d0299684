"""Multiply-accumulates, weights, packed files and latency."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from sparsemble.evaluation.packed import load_packed, save_packed
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.types import Logits, MemberLogits, seeded
from sparsemble.evaluation import latency
from sparsemble.evaluation.cost import Macs, Weights, count_macs, count_weights
from sparsemble.evaluation.latency import measure_latency
from sparsemble.models import architectures, build_model
from tests.helpers import examples


def tiny(seed: int = 0, width: int = 4) -> nn.Module:
    spec = {"name": "tiny", "width": width}
    return build_model(architectures.build(spec), (1, 8, 8), 10, [0.5], [0.5], rng=seeded(seed))


def prune_half(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.flatten()[::2] = 0
    return model


class Mean(Combiner):
    def __call__(self, member_logits: MemberLogits) -> Logits:
        return member_logits.mean(0)


class TestMacs:
    @pytest.mark.parametrize(
        ("layer", "shape", "macs"),
        [
            (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 6), 10 * 6 * 8 * 3 * 9),
            (nn.Conv2d(3, 8, 3, stride=2), (3, 9, 9), 4 * 4 * 8 * 3 * 9),
            (nn.Conv2d(8, 12, (1, 5), groups=4), (8, 4, 8), 4 * 4 * 12 * 2 * 5),
            (nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 4, 4), 4 * 4 * 8 * 9),
            (nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2), 12 * 7),
            (nn.Linear(5, 7), (2, 3, 5), 2 * 3 * 5 * 7),
        ],
        ids=str,
    )
    def test_one_layer_by_hand(self, layer: nn.Module, shape: tuple[int, int, int], macs: int) -> None:
        assert count_macs(layer, shape) == Macs(macs, macs)

    def test_only_weights_that_are_not_zero(self) -> None:
        conv = nn.Conv2d(2, 4, 3, padding=1)
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[0, 0, 1] = 1.0
            conv.weight[3, 1, 0, 0] = -0.0
        assert count_macs(conv, (2, 5, 5)) == Macs(25 * 72, 25 * 3)

    @pytest.mark.parametrize(
        ("name", "giga", "shape"),
        [
            ("resnet18", 0.555, (3, 32, 32)),
            ("vgg16", 0.313, (3, 32, 32)),
            ({"name": "resnet50", "stem": "imagenet"}, 4.089, (3, 224, 224)),
        ],
        ids=str,
    )
    def test_known_networks(self, name: str | dict[str, object], giga: float, shape: tuple[int, int, int]) -> None:
        with torch.device("meta"):
            network = architectures.build(name).build(3, 1000 if "50" in str(name) else 10)
        found = _meta_macs(network, shape)
        assert found / 1e9 == pytest.approx(giga, abs=1.5e-3)

    def test_an_ensemble_costs_the_sum_of_its_members(self) -> None:
        members = [prune_half(tiny(0)), tiny(1), tiny(2, width=3)]
        costs = [count_macs(member, (1, 8, 8)) for member in members]
        ensemble = Ensemble(members, Mean())
        assert count_macs(ensemble, (1, 8, 8)) == Macs(sum(c.dense for c in costs), sum(c.nonzero for c in costs))

    def test_the_model_is_left_as_found(self) -> None:
        model = tiny().train()
        frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        count_macs(model, (1, 8, 8))
        assert all(module.training != (module is frozen) for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def test_the_model_is_left_as_found_after_a_fault(self) -> None:
        model = tiny().train()
        with pytest.raises(RuntimeError):
            count_macs(model, (2, 8, 8))
        assert all(module.training and not module._forward_hooks for module in model.modules())


def _meta_macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count without computing: a meta tensor has no values, so every weight is taken as not 0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "count_nonzero", lambda tensor: tensor.numel())
        return count_macs(network, shape).dense


class TestWeights:
    def test_convolutions_and_linear_layers_only(self) -> None:
        layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
        with torch.no_grad():
            layers[0].weight[0] = 0
        found = count_weights(layers)
        assert found == Weights(54 + 12, 36 + 12)
        assert found.sparsity == pytest.approx(18 / 66)

    def test_limits(self) -> None:
        layer = nn.Linear(4, 4)
        assert count_weights(layer).sparsity == 0
        nn.init.zeros_(layer.weight)
        assert count_weights(layer).sparsity == 1
        with pytest.raises(InputError, match="ReLU has no Conv2d or Linear layer"):
            count_weights(nn.ReLU())


class Bag(nn.Module):
    """Named tensors and nothing else."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def round_trip(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    save_packed(model, path)
    empty = Bag(**{name: torch.full_like(tensor, 7) for name, tensor in model.state_dict().items()})
    load_packed(path, empty)
    return empty.state_dict()


class TestPacked:
    def test_a_network_comes_back_and_answers_the_same(self, tmp_path: Path) -> None:
        model, other, x = prune_half(tiny(0)), tiny(1), torch.rand(3, 1, 8, 8)
        model(x)  # moves BatchNorm away from its start
        save_packed(model, tmp_path / "m")
        load_packed(tmp_path / "m", other)
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(model.eval()(x), other.eval()(x))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
    def test_all_zero_and_fully_dense_tensors(self, tmp_path: Path, dtype: torch.dtype) -> None:
        zero, dense, scalar = torch.zeros(30, 40).to(dtype), torch.ones(30, 40).to(dtype), torch.tensor(0).to(dtype)
        found = round_trip(Bag(zero=zero, dense=dense, scalar=scalar, empty=zero[:0]), tmp_path / "m")
        assert torch.equal(found["zero"], zero)
        assert torch.equal(found["dense"], dense)
        assert torch.equal(found["scalar"], scalar)
        assert found["empty"].shape == (0, 40)
        assert "dense" in load_file(tmp_path / "m")

    @examples(60)
    @given(
        st.lists(st.integers(0, 9), min_size=0, max_size=4),
        st.floats(0, 1),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )
    def test_any_shape_and_sparsity(
        self, tmp_path_factory: pytest.TempPathFactory, shape: list[int], sparsity: float, seed: int, last: bool
    ) -> None:
        rng = seeded(seed)
        tensor = torch.randn(shape, generator=rng) * (torch.rand(shape, generator=rng) >= sparsity)
        if last and tensor.ndim == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        path = tmp_path_factory.mktemp("packed") / "m"
        assert torch.equal(round_trip(Bag(tensor=tensor), path)["tensor"], tensor)
        assert path.stat().st_size <= len(save({"tensor": tensor.contiguous()}))

    @pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
    def test_size_is_the_values_and_one_bit_a_weight(self, tmp_path: Path, sparsity: float) -> None:
        size = 40_000
        weight = torch.ones(200, 200)
        weight.view(-1)[: int(sparsity * size)] = 0
        save_packed(Bag(weight=weight), tmp_path / "m")
        payload = 4 * size if sparsity == 0 else 4 * size * (1 - sparsity) + size / 8
        assert payload < (tmp_path / "m").stat().st_size < payload + 250

    def test_tied_tensors_and_negative_zero(self, tmp_path: Path) -> None:
        shared = torch.tensor([[-0.0, 1.0, torch.inf, torch.nan]])
        found = round_trip(Bag(a=shared, b=shared), tmp_path / "m")
        torch.testing.assert_close(found["a"], shared, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(found["b"], shared, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(
        ("stored", "sentence"),
        [
            (Bag(a=torch.ones(2)), "needs, but the file lacks, tensor b"),
            (Bag(a=torch.ones(2), b=torch.zeros(2000), c=torch.ones(1)), "has no place for tensor c"),
            (Bag(a=torch.ones(2), b=torch.ones(200, 10)), r"tensor b is \(200, 10\) .*needs \(2000,\)"),
            (Bag(a=torch.ones(2), b=torch.zeros(200)), "bitmap of b does not fit its 2000 entries"),
            (Bag(a=torch.ones(2), b=torch.zeros(2000).double()), r"float64, the model needs .*float32"),
            (Bag(a=torch.ones(2).double(), b=torch.zeros(2000)), "tensor a is .*float64"),
        ],
        ids=["missing", "unexpected", "shape", "packed shape", "packed type", "type"],
    )
    def test_refuses_another_architecture(self, tmp_path: Path, stored: nn.Module, sentence: str) -> None:
        save_packed(stored, tmp_path / "m")
        model = Bag(a=torch.full((2,), 3.0), b=torch.zeros(2000))
        with pytest.raises(InputError, match=sentence):
            load_packed(tmp_path / "m", model)
        assert torch.equal(model.state_dict()["a"], torch.full((2,), 3.0))

    def test_refuses_damage(self, tmp_path: Path) -> None:
        model = Bag(b=torch.zeros(2000))
        path = tmp_path / "m"
        with pytest.raises(InputError, match="cannot be read as a packed model"):
            load_packed(path, model)
        path.write_bytes(b"{")
        with pytest.raises(InputError, match="cannot be read as a packed model"):
            load_packed(path, model)
        bits = torch.from_numpy(np.packbits(np.arange(2000) < 3))
        save_file({"b|values": torch.ones(2), "b|bits": bits}, path)
        with pytest.raises(InputError, match="b has 2 values for 3 positions"):
            load_packed(path, model)
        save_file({"b|values": torch.ones(3)}, path)
        with pytest.raises(InputError, match="needs, but the file lacks, tensor b"):
            load_packed(path, model)


class TestLatency:
    def test_calls_take_turns_and_only_timed_rounds_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        clock = 0.0

        def spend(name: str, seconds: list[float]) -> None:
            nonlocal clock
            order.append(name)
            clock += seconds.pop(0)

        monkeypatch.setattr(latency, "perf_counter", lambda: clock)
        # 9 seconds are never counted: the round before the timed ones, and the first call of each round.
        first, second = [9.0], [9.0]
        for seconds in (1.0, 2.0, 3.0, 4.0, 5.0):
            first += [9.0, seconds]
            second += [9.0, 2.0]
        calls = {"first": lambda: spend("first", first), "second": lambda: spend("second", second)}
        found = measure_latency(calls, rounds=5, warmup=1)
        assert order == ["first", "second"] + ["first", "first", "second", "second"] * 5
        values = found["first"]
        assert (values.low_quartile_ms, values.median_ms, values.high_quartile_ms) == pytest.approx((2000, 3000, 4000))
        assert found["second"].low_quartile_ms == found["second"].high_quartile_ms == pytest.approx(2000)

    def test_a_short_call_is_repeated_until_a_round_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, calls = 0.0, 0

        def call() -> None:
            nonlocal clock, calls
            calls += 1
            clock += 0.25

        monkeypatch.setattr(latency, "ROUND", 1.0)
        monkeypatch.setattr(latency, "perf_counter", lambda: clock)
        found = measure_latency({"short": call}, rounds=2, warmup=0)
        assert calls == 2 * (1 + 4)
        assert found["short"].median_ms == pytest.approx(250)

    @pytest.mark.parametrize(("rounds", "warmup"), [(1, 0), (2, -1)])
    def test_refuses_too_few_rounds(self, rounds: int, warmup: int) -> None:
        with pytest.raises(InputError, match=f"got {rounds} and {warmup}"):
            measure_latency({}, rounds=rounds, warmup=warmup)
