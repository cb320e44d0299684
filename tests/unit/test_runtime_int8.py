"""Networks in 8 bits: integers exactly, logits to rounding, the same bits in every batch."""

import numpy as np
import pytest

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.network import Convolution, Flatten, Input, Linear, MaxPool, Network, Relu, Steps, Weight
from tests.quantised import evaluate, logits, with_integers


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


def _of(node: Convolution) -> tuple[Weight, np.ndarray, tuple[int, int], tuple[int, int]]:
    return node.weight, node.bias, node.stride, node.padding
