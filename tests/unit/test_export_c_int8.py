"""Ensembles of 8-bit arithmetic as C: the same integers as in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.core.errors import InputError
from sparsemble.export.c.write import write_c
from sparsemble.runtime.format import packed
from sparsemble.runtime.network import (
    Add,
    Affine,
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
from tests import c_program, quantised
from tests.helpers import examples
from tests.unit.test_export_c import check_places, ensemble_of, every_operation, member_logits, random_pixels, weight
from tests.unit.test_runtime_geometry import network as draw_network


def floats(count: int) -> np.ndarray:
    return np.linspace(-1, 1, count).astype(np.float32)


def integers(rng: np.random.Generator, *shape: int) -> Weight:
    return quantised.with_integers(weight(rng, *shape))


def exact_network(seed: int, zero: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Network:
    """A network in which every number is exact or rounded once: steps are those of the reference, bit for bit."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [
        Input(),
        Affine((0,), floats(3) + 2, floats(3)),
        Convolution((1,), integers(rng, 6, 3, *kernel), floats(6), stride, padding, dilation),
        Relu((2,)),
        MaxPool((3,), (2, 2), (1, 1), (1, 0)),
        Convolution((4,), integers(rng, 6, 6, 3, 3), floats(6), padding=(1, 1)),
        Add((5, 4)),
        Relu((6,)),
        Add((7, 4)),
        Flatten((8,)),
    ]
    scales = {1: (2.0**-6, zero), 3: (0.01, 0), 7: (0.0125, 0), 8: (0.03, 7)}
    steps = {i: Steps(float(np.float32(scale)), zero) for i, (scale, zero) in scales.items()}
    features = Network((3, 11, 12), tuple(nodes)).shapes[-1][0]
    nodes.append(Linear((9,), integers(rng, 5, features), floats(5)))
    return Network((3, 11, 12), tuple(nodes), steps)


def found_logits(network: Network, folder: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of C and of numpy."""
    ensemble, pixels = ensemble_of(network), random_pixels(network, 9)
    write_c(ensemble, folder)
    return c_program.run(folder, pixels, **options).logits[:, 0], member_logits(ensemble, pixels)[0]


@pytest.mark.parametrize("target", ["host", "aarch64", "arm"])
def test_integers_are_exact_on_every_processor(target: str, tmp_path: Path) -> None:
    found, expected = found_logits(exact_network(0, 30, (3, 3), (1, 1), (1, 1), (1, 1)), tmp_path, target=target)
    assert np.array_equal(found, expected)


@given(
    seed=st.integers(0, 99),
    zero=st.sampled_from([0, 3, 255]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@examples(24, derandomize=True)
def test_any_convolution(tmp_path_factory: pytest.TempPathFactory, **drawn: Any) -> None:
    network = exact_network(**drawn)
    found, expected = found_logits(network, tmp_path_factory.mktemp("c"), flags=c_program.QUICK)
    assert np.array_equal(found, expected)


@given(data=st.data())
@examples(16, derandomize=True)
def test_any_geometry(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    network = draw_network(data.draw)
    images = np.random.default_rng(0).random((9, *network.image), np.float32)
    network = quantised.in_8_bits(network, images)
    check_places(network)
    found, expected = found_logits(network, tmp_path_factory.mktemp("c"), flags=c_program.QUICK)
    scale = max(1.0, float(np.abs(expected).max()))
    difference = np.abs(found - expected).max(1) / scale
    # A float sum may round to the next step.
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.1


def test_results_in_8_bits_take_a_quarter_of_the_memory(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((9, 3, 13, 11), np.float32)
    ensemble = ensemble_of(quantised.in_8_bits(every_operation(0), images))
    sizes = [check_places(network) for network in (every_operation(0), ensemble.members[0])]
    assert sizes[1] < 0.6 * sizes[0]  # the image is in floats
    packed.save(ensemble, tmp_path / "ensemble.sparsemble", values="int8")
    write_c(ensemble, tmp_path / "made")
    write_c(packed.load(tmp_path / "ensemble.sparsemble"), tmp_path / "loaded")
    assert (tmp_path / "made" / "ensemble.c").read_text() == (tmp_path / "loaded" / "ensemble.c").read_text()


def test_floats_times_steps_give_a_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = (Input(), Relu((0,)), Flatten((1,)), Linear((2,), weight(rng, 5, 12), floats(5)))
    network = Network((3, 2, 2), nodes, {1: Steps(0.5, 0)})
    with pytest.raises(InputError, match="member 1, m1_2 reads 8 bits, but its weights are floats"):
        write_c(ensemble_of(network), tmp_path)
