"""Networks in 8 bits: integers exactly, logits to rounding, the same bits in every batch."""

from dataclasses import replace
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.core.types import seeded
from sparsemble.models import architectures, build_model
from sparsemble.models.convert import convert_model
from sparsemble.runtime.compiler import autotune
from sparsemble.runtime.compiler.conversions import add_conversions
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.execution_plan import KernelConfig
from sparsemble.runtime.compiler.fused import ConvOp, FusedGraph, fuse
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.kernels.jit import dot_instructions
from sparsemble.runtime.network import (
    Add,
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Network,
    Node,
    Pair,
    Relu,
    Steps,
    Weight,
)
from tests.helpers import covering, examples
from tests.quantised import evaluate, in_8_bits, logits, with_integers
from tests.unit.test_runtime_engine import NETWORKS, pool_of, stir_


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def kernels(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the kernels of a layer once for all tests, and measure nothing."""
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(shared_cache))
    monkeypatch.setattr(autotune, "MIN_SECONDS", 1.0)


def layer(outputs: int, inputs: int, *, sparsity: float = 0.5, seed: int = 0) -> Weight:
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(outputs, inputs, 3, 3)) * (rng.random((outputs, inputs, 3, 3)) >= sparsity)
    return with_integers(Weight.from_dense(dense))


def biases(count: int) -> np.ndarray:
    return np.linspace(-1, 1, count).astype(np.float32)


def chain(steps: dict[int, Steps], weight: Weight | None = None) -> Network:
    nodes = (
        Input(),
        Convolution((0,), layer(5, 2), biases(5), padding=(1, 1)),
        Relu((1,)),
        MaxPool((2,), (2, 2), (2, 2)),
        Convolution((3,), weight or layer(3, 5, seed=1), biases(3), padding=(1, 1)),
        Flatten((4,)),
        Linear((5,), Weight.from_dense(np.ones((2, 27))), biases(2)),
    )
    return Network((2, 6, 6), nodes, steps)


KINDS = [("none", False), ("floats", True), ("steps", False), ("none", True), ("floats", False), ("steps", True)]
"""Of what is added to a layer's result, and whether the sum is rounded."""


class TestSteps:
    @pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-40, 1e40, 0.1])
    def test_a_scale_is_a_positive_normal_float32(self, scale: float) -> None:
        with pytest.raises(RuntimeInputError, match=r"scale = .* must be a positive, normal float32"):
            Steps(scale, 0)

    @pytest.mark.parametrize("zero", [-1, 256])
    def test_the_zero_is_one_of_the_steps(self, zero: int) -> None:
        with pytest.raises(RuntimeInputError, match=r"zero = .* must be a whole number in 0..255"):
            Steps(0.5, zero)

    @pytest.mark.parametrize("index", [0, 6, 7, -1])
    def test_neither_image_nor_logits_have_steps(self, index: int) -> None:
        with pytest.raises(RuntimeInputError, match=f"operation {index} cannot be stored in 8 bits"):
            chain({index: Steps(0.5, 0)})

    def test_maxima_and_flattened_results_keep_those_of_their_input(self) -> None:
        a, b = Steps(0.25, 0), Steps(0.5, 9)
        assert chain({2: a, 4: b}).steps == {2: a, 3: a, 4: b, 5: b}
        with pytest.raises(RuntimeInputError, match="operation 3 keeps the 8-bit steps of its input"):
            chain({2: a, 3: b})

    def test_a_sum_that_may_exceed_32_bits_is_refused(self) -> None:
        count = 2**31 // (127 * 255) + 1
        weight = with_integers(Weight((1, count), np.arange(count, dtype=np.uint32), np.ones(count, np.float32)))
        nodes = (Input(), Relu((0,)), Flatten((1,)), Linear((2,), weight, biases(1)))
        Network((count, 1, 1), nodes)
        with pytest.raises(RuntimeInputError, match="operation 3 adds so many 8-bit products"):
            Network((count, 1, 1), nodes, {1: Steps(0.5, 0)})

    def test_fewer_weights_keep_their_integers(self) -> None:
        weight = layer(3, 4)
        keep = np.arange(weight.nonzeros) % 3 > 0
        kept = weight.kept(keep)
        assert kept.integers is not None
        assert weight.integers is not None
        assert kept.integers.tolist() == weight.integers[keep].tolist()
        assert kept.scales is weight.scales


class TestReference:
    def test_integers_mean_what_the_floats_do(self) -> None:
        """In exact steps, 8 bits and floats give the same."""
        network = chain({2: Steps(2.0**-4, 0), 4: Steps(2.0**-3, 100)})
        x = np.random.default_rng(0).random((3, 2, 6, 6))
        results = evaluate(network, x)
        assert [result.dtype for result in results] == [np.float32] * 2 + [np.uint8] * 4 + [np.float32]
        convolution = network.nodes[4]
        assert isinstance(convolution, Convolution)
        pooled = results[3].astype(np.float32) * 2.0**-4
        floats = evaluate(Network((5, 3, 3), (Input(), Convolution((0,), *_of(convolution)), Flatten((1,)))), pooled)
        expected = np.clip(np.rint(floats[1] / 2.0**-3) + 100, 0, 255)
        assert np.abs(results[4] - expected).max() <= 1  # ties, at most
        assert (results[4] != expected).mean() < 0.02
        assert logits(network, x).shape == (3, 2)


def agrees(network: Network, images: np.ndarray, engine: Engine | None = None) -> None:
    """Logits are those of the reference, and have the same bits in every batch."""
    engine = engine or Engine(network)
    expected = logits(network, images)
    single = np.concatenate([engine.run(images[i : i + 1]) for i in range(len(images))])
    together = engine.batch_plan(images[: engine.lanes])
    assert np.array_equal(together, single[: engine.lanes])
    assert np.array_equal(engine.run(images, 2), single)
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


class TestEngine:
    def test_a_chain(self) -> None:
        x = np.random.default_rng(0).random((21, 2, 6, 6), np.float32)
        agrees(chain({2: Steps(2.0**-4, 0), 4: Steps(2.0**-3, 100)}), x)

    @pytest.mark.parametrize(
        ("layout", "shape"),
        [pytest.param(*network, marks=() if i < 2 else pytest.mark.slow) for i, network in enumerate(NETWORKS)],
        ids=str,
    )
    def test_every_architecture(self, layout: dict[str, object], shape: tuple[int, int, int]) -> None:
        model = build_model(architectures.build(layout), shape, 5, (0.5,) * shape[0], (0.3,) * shape[0], rng=seeded(0))
        network = convert_model(stir_(model), shape)
        x = np.random.default_rng(1).random((19, *shape), np.float32)
        agrees(in_8_bits(network, x), x)

    @pytest.mark.parametrize(("lanes", "kinds"), covering([1, 4, 8, 16], KINDS))
    @pytest.mark.filterwarnings("ignore:this processor has no AVX2")
    def test_every_kind_of_residual_and_result_at_every_width(
        self, lanes: int, kinds: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        residual, rounded = kinds
        monkeypatch.setattr("sparsemble.runtime.engine.lanes", lambda: lanes)
        network = residual_network(residual, rounded=rounded)
        agrees(network, np.random.default_rng(3).random((2 * lanes + 1, 2, 7, 6), np.float32))

    @pytest.mark.parametrize(("lanes", "kind"), covering([4, 8, 16], ["maddwd", "plain"]))
    def test_every_kind_of_instruction(self, kind: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        if kind not in ("plain", dot_instructions(4)) and not has_maddwd(lanes):
            pytest.skip("this processor has other instructions")
        monkeypatch.setattr("sparsemble.runtime.engine.lanes", lambda: lanes)
        monkeypatch.setattr("sparsemble.runtime.compiler.integer_steps.dot_instructions", lambda lanes: kind)
        agrees(
            residual_network("steps", rounded=True), np.random.default_rng(3).random((lanes + 1, 2, 7, 6), np.float32)
        )
        # The largest products, which saturate 16 bits where two are added.
        signs = np.random.default_rng(4).choice([-1.0, 1.0], (4, 40, 3, 3))
        signs[0] = 1
        node = Convolution((1,), with_integers(Weight.from_dense(signs)), biases(4))
        affine = Affine((0,), np.full(40, 1e3, np.float32), np.zeros(40, np.float32))
        network = Network((40, 5, 6), (Input(), affine, node, Flatten((2,))), {1: Steps(2.0**-6, 0)})
        x = np.random.default_rng(5).choice([0.5, 1.0], (lanes, 40, 5, 6)).astype(np.float32)
        assert np.array_equal(Engine(network).batch_plan(x), logits(network, x))

    def test_every_config_gives_the_same_bits(self) -> None:
        network = residual_network("steps", rounded=True)
        x = np.random.default_rng(3).random((1, 2, 7, 6), np.float32)
        expected = Engine(network).run(x)
        integer = [i for i, o in enumerate(in_8_bits_graph(network).operations) if i and isinstance(o, ConvOp)]
        assert len(integer) == 3
        for tile, block, chains in [((1, 1), 1, 3), ((2, 3), 1, 1)]:
            config = KernelConfig(tile, block, 1, chains)
            found = Engine(network, batch_configs=dict.fromkeys(integer, config)).batch_plan(np.repeat(x, 3, 0))
            assert np.array_equal(found, np.repeat(expected, 3, 0))
            config = replace(config, tile=(1, min(tile[1], 2)))
            assert np.array_equal(Engine(network, single_configs=dict.fromkeys(integer, config)).run(x), expected)

    @pytest.mark.parametrize("threads", [2, 3])
    @pytest.mark.parametrize("count", [1, 7])
    def test_threads_that_share_a_run_give_the_same_bits(
        self, threads: int, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Four outputs share a plane, so one thread computes them; each has partial sums of its own."""
        thread_pool = pool_of(threads, monkeypatch)
        network = residual_network("steps", rounded=True)
        config = KernelConfig((1, 2), 1, 1, 2)
        engine = Engine(
            network,
            single_configs=dict.fromkeys((1, 2, 3), config),
            batch_configs=dict.fromkeys((1, 2, 3), config),
        )
        x = np.random.default_rng(3).random((count, 2, 7, 6), np.float32)
        plan = engine.single_plan if count == 1 else engine.batch_plan
        expected = plan(x)
        with thread_pool.claimed() as claimed:
            assert claimed
            for _ in range(20):
                assert np.array_equal(plan(x, threads), expected)

    def test_dead_channels_go_and_answers_keep_their_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = chain({2: Steps(2.0**-4, 0), 4: Steps(2.0**-3, 100)}, with_dead_channels())
        x = np.random.default_rng(0).random((17, 2, 6, 6), np.float32)
        found = Engine(network).run(x)
        agrees(network, x)
        monkeypatch.setattr("sparsemble.runtime.engine.remove_dead_channels", lambda fused: fused)
        assert np.array_equal(Engine(network).run(x), found)

    def test_an_integer_layer_is_no_float_layer_in_the_cache_of_configs(self, cache: Path) -> None:
        x = np.random.default_rng(0).random((1, 2, 6, 6), np.float32)
        steps = {2: Steps(2.0**-4, 0), 4: Steps(2.0**-3, 100)}
        for network in (chain({}), chain(steps), chain({2: steps[2]})):
            Engine(network).run(x)
        assert len(list(cache.glob("*.choices"))) == 3

    @given(
        st.integers(1, 9),
        st.integers(1, 9),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.tuples(st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.integers(1, 2), st.integers(1, 2)),
        st.sampled_from([0, 3, 255]),
        st.sampled_from([0.0, 0.6, 1.0]),
        st.integers(0, 99),
    )
    @examples(20, derandomize=True)
    def test_every_convolution(
        self,
        channels: int,
        outputs: int,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        zero: int,
        sparsity: float,
        seed: int,
    ) -> None:
        """Integers are exact, borders of any zero and unequal groups of channels included."""
        rng = np.random.default_rng(seed)
        dense = rng.normal(size=(outputs, channels, *kernel)) * (rng.random((outputs, channels, *kernel)) >= sparsity)
        scale = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        node = Convolution((1,), with_integers(Weight.from_dense(dense)), biases(outputs), stride, padding, dilation)
        nodes = (Input(), Affine((0,), scale, biases(channels)), node, Flatten((2,)))
        network = Network((channels, 6 + seed % 4, 5 + seed % 3), nodes, {1: Steps(2.0**-6, zero)})
        x = rng.random((3, *network.image), np.float32)
        engine = Engine(network)
        assert np.array_equal(engine.run(x), logits(network, x))
        assert np.array_equal(engine.batch_plan(x), logits(network, x))


def with_dead_channels() -> Weight:
    """Weights of a layer of three outputs that read the inputs 0 and 3 of five."""
    weight = layer(3, 5, seed=1)
    channel = weight.positions // 9 % 5
    return weight.kept((channel == 0) | (channel == 3))


def in_8_bits_graph(network: Network) -> FusedGraph:
    return add_conversions(remove_dead_channels(fuse(network)))


def residual_network(residual: str, *, rounded: bool) -> Network:
    """A convolution whose result is added to another one's: floats or steps, of unequal steps, with zeros inside."""
    nodes: list[Node] = [
        Input(),
        Convolution((0,), layer(6, 2), biases(6), padding=(1, 1)),
        Convolution((1,), layer(9, 6, seed=1), biases(9), padding=(1, 1)),
        Convolution((1,), layer(9, 6, seed=2), biases(9), padding=(1, 1)),
    ]
    steps = {1: Steps(2.0**-5, 120), 2: Steps(2.0**-4, 100)}
    last = 3
    if residual != "none":
        nodes.append(Add((3, 2)))
        last = 4
    nodes.append(Relu((last,)))
    if residual == "floats":
        del steps[2]
    if rounded:
        steps[last + 1] = Steps(0.0625, 0)
    nodes += [Convolution((last + 1,), layer(5, 9, seed=4), biases(5)), AveragePool((last + 2,), (5, 4), (1, 1))]
    nodes.append(Flatten((last + 3,)))
    return Network((2, 7, 6), tuple(nodes), steps)


def has_maddwd(lanes: int) -> bool:
    features = llvm.get_host_cpu_features()
    return bool(features.get("avx512bw") if lanes == 16 else features.get("avx2"))


def _of(node: Convolution) -> tuple[Weight, np.ndarray, tuple[int, int], tuple[int, int]]:
    return node.weight, node.bias, node.stride, node.padding
