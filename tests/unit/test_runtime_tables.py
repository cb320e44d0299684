"""The memory of planning is within the bound that is checked, however large the windows in a small file are."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsemble.runtime.compiler.batched import BatchPlanner
from sparsemble.runtime.compiler.conversions import add_conversions
from sparsemble.runtime.compiler.fused import ConvOp, fuse
from sparsemble.runtime.compiler.im2col import Im2col
from sparsemble.runtime.compiler.integer_stream import HEAD, RECORD, integer_stream
from sparsemble.runtime.compiler.layout import Plane, table_bytes, window_layout
from sparsemble.runtime.compiler.planner import Planner
from sparsemble.runtime.compiler.single_image import SingleImagePlanner
from sparsemble.runtime.compiler.weight_stream import weight_stream
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import (
    AveragePool,
    Convolution,
    Flatten,
    Input,
    Linear,
    MaxPool,
    Network,
    Node,
    Relu,
    Steps,
    Weight,
)

MEBIBYTE = 2**20


def weight(*shape: int, positions: range = range(0)) -> Weight:
    return Weight(shape, np.array(positions, np.uint32), np.ones(len(positions), np.float32))


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.float32)


def network(image: tuple[int, int, int], *nodes: Node, classes: int = 2) -> Network:
    """Some nodes, then a linear layer without weights."""
    before = Network(image, (Input(), *nodes, Flatten((len(nodes),))))
    last = Linear((len(nodes) + 1,), weight(classes, before.classes), zeros(classes))
    return Network(image, (*before.nodes, last))


def diagonal(channels: int, width: int) -> Convolution:
    """A weight for each channel, in blocks of one: as many turns as channels, nearly."""
    places = range(width // 2, channels * channels * width, channels * width + width)
    return Convolution((0,), weight(channels, channels, 1, width, positions=places), zeros(channels), (1, 1), (0, 6))


NETWORKS = {
    "a kernel without weights": network(
        (1, 1, 1), Convolution((0,), weight(2, 1, 1501, 1501), zeros(2), padding=(750, 750))
    ),
    "a linear layer without weights": network((1, 1500, 1500)),
    "many outputs without weights": network((1, 500, 500), classes=200),
    "a pool with padding": network((1, 97, 97), MaxPool((0,), (8, 8), (1, 1), (4, 4))),
    "a pool without": network((1, 97, 97), AveragePool((0,), (8, 8), (1, 1))),
    "a pool as wide as the image": network((1, 1, 2000), MaxPool((0,), (1, 999), (1, 1), (0, 1))),
    "many heads": network((600, 1, 200), diagonal(600, 13)),
    "many tiles": network((1, 700, 700), Convolution((0,), weight(1, 1, 1, 1, positions=range(1)), zeros(1))),
    "many rows": network(
        (1, 60_000, 1), Convolution((0,), weight(1, 1, 3, 3, positions=range(9)), zeros(1), padding=(1, 1))
    ),
}


@pytest.mark.parametrize("kind", [BatchPlanner, SingleImagePlanner])
@pytest.mark.parametrize("name", NETWORKS)
def test_planning_takes_little_more_than_its_tables(
    name: str, kind: type[BatchPlanner] | type[SingleImagePlanner]
) -> None:
    fused = fuse(NETWORKS[name])
    tracemalloc.start()
    try:
        planner: Planner = kind(fused, 8)
        planner.plan({})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tables = table_bytes(fused) + sum(
        buffer.table_bytes for buffer in planner.layout.buffers if isinstance(buffer, Im2col)
    )
    assert peak < 4 * tables + 2 * MEBIBYTE


def in_8_bits(network: Network) -> Network:
    """The same network behind a ReLU whose result is stored in 8 bits, as are all but the logits."""
    nodes: list[Node] = [Input(), Relu((0,))]
    for node in network.nodes[1:]:
        node = replace(node, inputs=tuple(source + 1 for source in node.inputs))
        if isinstance(node, Convolution | Linear):
            found, ones = node.weight, np.ones(node.weight.shape[0], np.float32)
            integers = np.ones(found.nonzeros, np.int8)
            node = replace(node, weight=replace(found, integers=integers, scales=ones))
        nodes.append(node)
    steps = {
        i: Steps(1.0, 0) for i, node in enumerate(nodes[:-1]) if isinstance(node, Relu | Convolution | AveragePool)
    }
    return Network(network.image, tuple(nodes), steps)


@pytest.mark.parametrize("kind", [BatchPlanner, SingleImagePlanner])
@pytest.mark.parametrize("name", NETWORKS)
def test_planning_in_8_bits_takes_little_more_than_its_tables(
    name: str, kind: type[BatchPlanner] | type[SingleImagePlanner]
) -> None:
    fused = add_conversions(fuse(in_8_bits(NETWORKS[name])))
    tracemalloc.start()
    try:
        planner: Planner = kind(fused, 8)
        planner.plan({})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    tables = table_bytes(fused) + sum(
        buffer.table_bytes for buffer in planner.layout.buffers if isinstance(buffer, Im2col)
    )
    assert peak < 4 * tables + 2 * MEBIBYTE


def test_what_planning_takes_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    wide = network((1, 1, 4000), AveragePool((0,), (1, 2000), (1, 1)))
    words = "[0-9]+ bytes, more than max_memory = 2097152"
    with pytest.raises(RuntimeInputError, match=f"a run of one image takes {words}"):
        Engine(wide, max_memory=2 * MEBIBYTE)
    ensemble = PackedEnsemble(
        members=(wide,),
        combiner={"name": "mean_logit"},
        rule={"name": "never"},
        classes=("a", "b"),
        parent_weights=1,
    )
    packed.save(ensemble, tmp_path / "a.sparsemble")
    assert (tmp_path / "a.sparsemble").stat().st_size < 1000
    with pytest.raises(RuntimeInputError, match=f"the tables to run a member take {words}"):
        packed.load(tmp_path / "a.sparsemble", max_memory=2 * MEBIBYTE)
    assert packed.load(tmp_path / "a.sparsemble").classes == ensemble.classes


def test_integer_layers_of_nearly_2_to_the_32_weights_are_planned_rightly() -> None:
    count = 60_000
    places = [5, 1234 * count + 40_000, count * count - 1]
    integers, scales = np.array([1, 2, 3], np.int8), np.ones(count, np.float32)
    weight = Weight((count, count, 1, 1), np.array(places, np.uint32), integers.astype(np.float32), integers, scales)
    product = ConvOp(source=0, out=1, weight=weight, bias=zeros(count))
    plane = Plane(count // 4, 1, 1, (0, 0), 1)
    found = integer_stream(product, window_layout(product, plane), Steps(1.0, 7), (4, 4), block=1)
    records = found.records.view(RECORD)
    assert records["offset"].tolist() == [4 * (5 // 4), 4 * (40_000 // 4), 4 * (count // 4 - 1)]
    assert records["weights"].tolist() == [[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3]]
    heads = found.heads.view(HEAD)
    assert found.head_count == len(heads) == count // 4
    assert heads["runs"]["records"].sum() == 3
    assert heads["runs"]["bias"][1234 // 4, 1234 % 4] == -2 * 7


def test_layers_of_nearly_2_to_the_32_weights_are_planned_rightly() -> None:
    count = 60_000
    places = [5, 1234 * count + 40_000, count * count - 1]
    product = ConvOp(
        source=0,
        out=1,
        weight=Weight((count, count, 1, 1), np.array(places, np.uint32), np.array([1, 2, 3], np.float32)),
        bias=zeros(count),
    )
    plane = Plane(count, 1, 1, (0, 0), 1)
    found = weight_stream(product, window_layout(product, plane), plane, outputs=1, block=1)
    records = found.records.view([("offset", "<u4"), ("value", "<f4")])[:3]
    assert dict(zip(records["value"].tolist(), records["offset"].tolist(), strict=True)) == {
        1.0: 4 * 5,
        2.0: 4 * 40_000,
        3.0: 4 * (count - 1),
    }
    heads = found.heads.view([("offset", "<u4"), ("records", "<u4"), ("flags", "<u4"), ("bias", "<f4")])
    assert found.head_count == len(heads) == count
    assert sorted(heads["offset"][heads["records"] > 0].tolist()) == [0, 4 * 1234, 4 * (count - 1)]
