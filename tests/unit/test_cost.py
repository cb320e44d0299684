"""Multiply-accumulates, weights, bytes and latency."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.types import Logits, MemberLogits, seeded
from sparsemble.evaluation import latency
from sparsemble.evaluation.cost import Macs, Weights, count_macs, count_weights, packed_bytes
from sparsemble.evaluation.latency import measure_latency
from sparsemble.models import architectures, build_model


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
        none = count_weights(nn.ReLU())
        assert (none.total, none.sparsity) == (0, 0.0)


class Bag(nn.Module):
    """Named tensors and nothing else."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


class TestPackedBytes:
    @pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
    def test_are_the_values_and_one_bit_a_weight(self, sparsity: float) -> None:
        size = 40_000
        weight = torch.ones(200, 200)
        weight.view(-1)[: int(sparsity * size)] = 0
        payload = 4 * size if sparsity == 0 else 4 * size * (1 - sparsity) + size / 8
        assert payload < packed_bytes(Bag(weight=weight)) < payload + 250

    @given(
        st.lists(st.integers(0, 9), min_size=0, max_size=4),
        st.floats(0, 1),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )
    def test_are_never_more_than_those_of_the_dense_file(
        self, shape: list[int], sparsity: float, seed: int, channels_last: bool
    ) -> None:
        rng = seeded(seed)
        tensor = torch.randn(shape, generator=rng) * (torch.rand(shape, generator=rng) >= sparsity)
        if channels_last and tensor.ndim == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        assert packed_bytes(Bag(tensor=tensor)) <= len(save({"tensor": tensor.contiguous()}))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
    def test_of_any_type_of_tensor(self, dtype: torch.dtype) -> None:
        zero, dense, scalar = torch.zeros(30, 40).to(dtype), torch.ones(30, 40).to(dtype), torch.tensor(0).to(dtype)
        assert packed_bytes(Bag(zero=zero)) < zero.nbytes / 2 + 200
        assert packed_bytes(Bag(dense=dense)) > dense.nbytes
        assert packed_bytes(Bag(scalar=scalar, empty=zero[:0])) < 300

    def test_an_ensemble_is_a_file_for_each_member(self) -> None:
        members = [prune_half(tiny(0)), tiny(1)]
        assert packed_bytes(Ensemble(members, Mean())) == sum(packed_bytes(member) for member in members)


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
