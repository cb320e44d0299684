"""The engine on networks of any geometry: as torch in double precision, and the same bits for every configuration."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsemble.models.folded import FoldedNetwork
from sparsemble.runtime import engine as engine_module
from sparsemble.runtime.compiler import workspace
from sparsemble.runtime.compiler.batched import BatchPlanner
from sparsemble.runtime.compiler.dead_channels import remove_dead_channels
from sparsemble.runtime.compiler.execution_plan import KernelConfig
from sparsemble.runtime.compiler.fused import ConvOp, fuse
from sparsemble.runtime.compiler.planner import Planner
from sparsemble.runtime.compiler.single_image import SingleImagePlanner
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.kernels.jit import lanes as lanes_here
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
    Weight,
)
from sparsemble.runtime.thread_pool import ThreadPool
from tests.helpers import examples
from tests.unit.guarded import guarded, posix

LARGEST = 3000
"""Numbers in a result."""
Draw = Callable[[st.SearchStrategy[Any]], Any]
LANES = [1, 4, 8, lanes_here()]
pytestmark = pytest.mark.filterwarnings("ignore:this processor has no AVX2")


class Drawn:
    """A network that is drawn node by node; what does not fit is left out."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.image = (self.whole(1, 9), self.whole(1, 17), self.whole(1, 13))
        self.rng = np.random.default_rng(self.whole(0, 2**16))
        self.nodes: list[Node] = [Input()]
        self.shapes: list[tuple[int, ...]] = [self.image]

    def whole(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def pair(self, low: int, *high: int) -> Pair:
        return self.whole(low, high[0]), self.whole(low, high[-1])

    def weight(self, *shape: int) -> Weight:
        kept = 1 - self.draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
        size = 1 / np.sqrt(max(1.0, kept * np.prod(shape[1:])))
        return Weight.from_dense(size * self.rng.standard_normal(shape) * (self.rng.random(shape) < kept))

    def floats(self, count: int) -> np.ndarray:
        return self.rng.standard_normal(count).astype(np.float32)

    def add(self, node: Node) -> bool:
        try:
            shape = node.shape(*(self.shapes[place] for place in node.inputs))
        except RuntimeInputError:
            return False
        if np.prod(shape) <= LARGEST:
            self.nodes.append(node)
            self.shapes.append(shape)
        return np.prod(shape) <= LARGEST

    def convolution(self, source: int) -> None:
        kernel = self.pair(1, 7)
        self.add(
            Convolution(
                (source,),
                self.weight(outputs := self.whole(1, 9), self.shapes[source][0], *kernel),
                self.floats(outputs),
                stride=self.pair(1, max(4, kernel[0] + 1), max(4, kernel[1] + 1)),
                padding=self.pair(0, kernel[0] + 1, kernel[1] + 1),
                dilation=self.pair(1, 3),
            )
        )

    def residual(self, source: int) -> None:
        """A convolution that keeps the shape, added to what it read."""
        channels, half, dilation = self.shapes[source][0], self.pair(0, 2), self.pair(1, 2)
        weight = self.weight(channels, channels, 2 * half[0] + 1, 2 * half[1] + 1)
        padding = half[0] * dilation[0], half[1] * dilation[1]
        if self.add(Convolution((source,), weight, self.floats(channels), padding=padding, dilation=dilation)):
            made = len(self.nodes) - 1
            self.add(Add((made, source) if self.whole(0, 1) else (source, made)))

    def pool(self, source: int) -> None:
        kind = self.draw(st.sampled_from([MaxPool, AveragePool]))
        _, height, width = self.shapes[source]
        kernel = self.pair(1, height, width)
        self.add(kind((source,), kernel, self.pair(1, 4), self.pair(0, kernel[0] // 2, kernel[1] // 2)))

    def affine(self, source: int) -> None:
        channels = self.shapes[source][0]
        self.add(Affine((source,), self.floats(channels), self.floats(channels)))

    def linear(self) -> None:
        self.add(
            Linear(
                (len(self.nodes) - 1,), self.weight(outputs := self.whole(1, 9), *self.shapes[-1]), self.floats(outputs)
            )
        )


def network(draw: Draw) -> Network:
    """Draw a network; within a test, as the type checker draws random numbers that strategies must not."""
    found = Drawn(draw)
    kinds = [found.convolution, found.pool, found.residual, found.convolution, found.affine, found.pool]
    for _ in range(found.whole(1, 4)):
        source = found.whole(max(0, len(found.nodes) - 2), len(found.nodes) - 1)
        draw(st.sampled_from(kinds))(source)
        if found.whole(0, 1):
            found.add(Relu((len(found.nodes) - 1,)))
    found.add(Flatten((len(found.nodes) - 1,)))
    for layer in range(found.whole(0, 2)):
        if layer:
            found.add(Relu((len(found.nodes) - 1,)))
        found.linear()
    return Network(found.image, tuple(found.nodes))


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """Two threads share every run, however short."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("SPARSEMBLE_CACHE", folder)
        thread_pool = ThreadPool()
        thread_pool.size = 2
        patch.setattr(engine_module, "THREAD_POOL", thread_pool)
        patch.setattr(engine_module, "MIN_SHARED_SECONDS", 0.0)
        yield


def nth_configs(planner: Planner, nth: int) -> dict[int, KernelConfig]:
    """Return the nth candidate configuration of every convolution."""
    convs = {i: operation for i, operation in enumerate(planner.fused.operations) if isinstance(operation, ConvOp)}
    candidates = {i: planner.candidate_configs(i, operation) for i, operation in convs.items()}
    return {i: configs[nth % len(configs)] for i, configs in candidates.items()}


def all_logits(network: Network, images: np.ndarray, lanes: int, nth: int) -> np.ndarray:
    """Return the logits of a vector of images and one more: the same in other batches and on two threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "lanes", lambda: lanes)
        if os.name == "posix":
            patch.setattr(workspace, "zero_bytes", lambda size: guarded(size, front=bool(nth % 2)))
        fused = remove_dead_channels(fuse(network))
        engine = Engine(
            network,
            batch_configs=nth_configs(BatchPlanner(fused, lanes), nth),
            single_configs=nth_configs(SingleImagePlanner(fused, lanes), nth),
        )
        found = engine.run(images)
        for count in (1, lanes, lanes + 1):
            for threads in (1, 2):
                assert np.array_equal(engine.run(images[:count], threads), found[:count])
    return found


def agrees(network: Network, lanes: list[int], nth: int) -> None:
    batch = max(lanes) + 1
    size = batch * int(np.prod(network.image))
    images = np.random.default_rng(nth).random(size, dtype=np.float32)
    if os.name == "posix":
        kept = guarded(4 * size, front=bool(nth % 2)).view(np.float32)
        kept[:] = images
        images = kept
    images = images.reshape(batch, *network.image)
    with torch.no_grad():
        expected = FoldedNetwork(network).double()(torch.from_numpy(images.astype(np.float64))).numpy()
    found = [all_logits(network, images[-one - 1 :], one, nth) for one in lanes]
    for few in found:
        right = expected[-len(few) :]
        np.testing.assert_allclose(few, right, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
        assert np.array_equal(few[-2:], found[0][-2:])


@given(st.data(), st.sampled_from(LANES), st.integers(0, 11))
@examples(40, derandomize=True)
def test_any_geometry(data: st.DataObject, lanes: int, nth: int) -> None:
    agrees(network(data.draw), [lanes], nth)


@pytest.mark.slow
@given(st.data(), st.integers(0, 11))
@settings(deadline=None, max_examples=400, derandomize=True)
def test_any_geometry_with_vectors_of_any_length(data: st.DataObject, nth: int) -> None:
    agrees(network(data.draw), LANES, nth)


@pytest.mark.parametrize("kind", [MaxPool, AveragePool])
def test_windows_that_are_gone_through_in_a_loop(kind: type[MaxPool] | type[AveragePool]) -> None:
    nodes = (Input(), kind((0,), (1, 300), (1, 3), (0, 150)), kind((1,), (2, 7), (1, 7)), Flatten((2,)))
    agrees(Network((2, 2, 317), nodes), [1, lanes_here()], 0)


@posix
@pytest.mark.parametrize("front", [True, False])
def test_what_leaves_guarded_memory_ends_the_process(front: bool) -> None:
    place = "-1" if front else "100"
    code = (
        "import ctypes; from tests.unit.guarded import guarded; "
        f"found = guarded(100, front={front}); found[:] = 1; print(found.sum(), flush=True); "
        f"ctypes.string_at(found.ctypes.data + {place}, 1)"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=root, check=False)
    assert ended.stdout == b"100\n"
    assert ended.returncode in (-signal.SIGSEGV, -signal.SIGBUS)
