"""Ensembles in 8 bits: the network in torch adds the integers that its arithmetic means."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.types import seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.evaluation.search_copy import SearchCopy
from sparsemble.export.quantize import quantize, stored_in_8_bits, whole_range
from sparsemble.models import architectures, build_model
from sparsemble.models.convert import convert_model
from sparsemble.models.folded import FoldedNetwork, run_nodes
from sparsemble.models.folded_members import have_one_layout
from sparsemble.runtime.compiler import autotune
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import (
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Floats,
    Input,
    Linear,
    Network,
    Node,
    Relu,
    Shape,
    Steps,
    Weight,
)
from sparsemble.runtime.predictor import Predictor
from tests.quantised import evaluate, logits, with_integers
from tests.unit.test_runtime_engine import Everything, Sums, stir_

SHAPE = (3, 16, 16)
LAYOUTS = ("tiny", "resnet", "preact_resnet", "vgg")
SIXTEENTH = 2.0**-4


def exact(values: Floats) -> Floats:
    """Round to 64ths: sums of products with images of sixteenths are exact in float32, in any order."""
    return np.rint(values * 64).astype(np.float32) / 64


def network_of(layout: str) -> Network:
    """A network whose layer on the image is exact, so that every implementation gives the same bits."""
    body = architectures.build({"name": layout, "width": 4})
    shape = (3, 32, 32) if layout == "vgg" else SHAPE
    model = build_model(body, shape, 4, (0.5,) * 3, (0.25,) * 3, rng=seeded(0))
    network = convert_model(stir_(model), shape)
    nodes = list(network.nodes)
    first = next(i for i, node in enumerate(nodes) if isinstance(node, Convolution))
    node = nodes[first]
    assert isinstance(node, Convolution)
    nodes[first] = replace(node, weight=Weight.from_dense(exact(node.weight.dense())), bias=exact(node.bias))
    return Network(shape, tuple(nodes))


def packed_of(*members: Network) -> PackedEnsemble:
    return PackedEnsemble(
        members=members,
        combiner={"name": "mean_probability"},
        rule={"name": "never"},
        classes=tuple(map(str, range(members[0].classes))),
        parent_weights=1000,
    )


def images(shape: tuple[int, int, int] = SHAPE, count: int = 6, seed: int = 1) -> Tensor:
    return torch.randint(0, 17, (count, *shape), generator=seeded(seed)) * SIXTEENTH


def in_8_bits(network: Network) -> Network:
    x = images(network.image)
    return quantize(packed_of(network), x, x.flip(3)).members[0]


def results_in_torch(network: Network, x: Tensor) -> list[Tensor]:
    folded, results = FoldedNetwork(network), [x]

    def run(index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        results.append(folded.run(index, node, inputs).clone())
        return results[-1].clone()

    run_nodes(folded.nodes, folded.free, x, run)
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_stored_integer_is_that_of_the_arithmetic(layout: str) -> None:
    network = in_8_bits(network_of(layout))
    x = images(network.image, seed=2)
    compared = set()
    for i, (found, wanted) in enumerate(zip(results_in_torch(network, x), evaluate(network, x.numpy()), strict=True)):
        if i in network.steps:
            compared |= set(np.unique(wanted).tolist())
            np.testing.assert_array_equal(found.numpy() + network.steps[i].zero, wanted)
    assert len(compared) > 200
    assert {type(network.nodes[i]) for i in network.steps} > {Relu}
    found_logits = FoldedNetwork(network)(x).numpy()
    np.testing.assert_allclose(found_logits, logits(network, x.numpy()), rtol=1e-5, atol=1e-5)
    in_float32 = FoldedNetwork(Network(network.image, network.nodes))(x).numpy()
    assert 0 < np.abs(found_logits - in_float32).max() < 0.1 * np.abs(in_float32).max()


@pytest.mark.parametrize("layout", ["tiny", pytest.param("preact_resnet", marks=pytest.mark.slow)])
def test_the_runtime_predicts_from_the_file_as_the_network_in_torch(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "MIN_SECONDS", 1.0)  # nothing is measured
    network = in_8_bits(network_of(layout))
    packed.save(packed_of(network), tmp_path / "a.sparsemble", values="int8")
    x = images(count=18, seed=3)
    found = Predictor(packed.load(tmp_path / "a.sparsemble")).member_logits(x.numpy())[0]
    np.testing.assert_allclose(found, FoldedNetwork(network)(x), rtol=1e-5, atol=1e-5)


def test_sums_beyond_the_whole_numbers_of_float32_are_exact() -> None:
    """2^24 + 1 is not a float32; the sum is rounded once, at its end."""
    count = 700
    integers = np.full(count, 127, np.float32)
    integers[-1] = 1
    weight = with_integers(Weight.from_dense(np.stack([integers, -integers])))
    nodes = (Input(), Relu((0,)), Flatten((1,)), Linear((2,), weight, np.zeros(2, np.float32)))
    network = Network((count, 1, 1), nodes, {1: Steps(1.0, 0)})
    assert weight.largest_sum() * 255 > 2**24
    x = torch.full((1, count, 1, 1), 255.0)
    x[0, -1] = 2
    total = (count - 1) * 127 * 255 + 2
    assert total > 2**24
    assert total % 2
    assert FoldedNetwork(network)(x)[0].tolist() == [np.float32(total), -np.float32(total)]


def test_gradients_pass_the_rounding_and_end_beyond_the_range() -> None:
    weight = with_integers(Weight.from_dense(np.float32([[127.0]])))
    nodes = (Input(), Relu((0,)), Flatten((1,)), Linear((2,), weight, np.zeros(1, np.float32)))
    folded = FoldedNetwork(Network((1, 1, 1), nodes, {1: Steps(2.0**-8, 0)}))
    x = torch.tensor([0.3, 0.9999, 0.2001]).view(-1, 1, 1, 1).requires_grad_()
    folded(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [127, 0, 127]
    assert (folded(x).detach().flatten() * 2**8 / 127).tolist() == [77, 255, 51]


def test_what_attacks_search_on_is_the_network_in_8_bits_itself() -> None:
    network = in_8_bits(network_of("tiny"))
    ensemble = Ensemble([FoldedNetwork(network)] * 2, MeanProbability()).eval()
    assert SearchCopy().of(ensemble, images()) is ensemble
    assert not have_one_layout([network] * 2)


class TestWhatIsStored:
    def test_the_last_of_each_group_except_image_logits_and_the_last_mean(self) -> None:
        network = network_of("resnet")
        stored = stored_in_8_bits(network)
        readers = {
            i: [j for j, node in enumerate(network.nodes) if i in node.inputs] for i in range(len(network.nodes))
        }
        for i, node in enumerate(network.nodes):
            if isinstance(node, Relu):
                assert i in stored
            elif isinstance(node, Input | Affine | AveragePool | Flatten | Linear):
                assert i not in stored
            elif isinstance(node, Convolution):  # alone only on the shorter way of a block
                assert (i in stored) == (not isinstance(network.nodes[readers[i][0]], Relu) and i + 1 not in readers[i])

    def test_the_layer_on_the_image_computes_in_float32(self) -> None:
        network = in_8_bits(network_of("tiny"))
        reading_floats = [
            i
            for i, node in enumerate(network.nodes)
            if isinstance(node, Convolution | Linear) and node.inputs[0] not in network.steps
        ]
        assert reading_floats == [3, len(network.nodes) - 1]

    @pytest.mark.parametrize("make", [Everything, Sums])
    def test_every_operation_runs(self, make: type) -> None:
        shape = (3, 9, 10) if make is Sums else (3, 12, 12)
        torch.manual_seed(0)
        float32 = convert_model(stir_(make()), shape)
        network = in_8_bits(float32)
        x = images(shape, seed=2)
        found, wanted = (FoldedNetwork(each)(x) for each in (network, float32))
        assert float((found - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
        np.testing.assert_allclose(found, logits(network, x.numpy()), atol=0.03)  # a tie may fall either way


class TestRanges:
    def test_relu_begins_at_zero_and_the_largest_value_is_the_last_step(self) -> None:
        assert whole_range(torch.tensor([0.0, 1.5, 0.3]), "") == Steps(float(np.float32(1.5 / 255)), 0)
        steps = whole_range(torch.tensor([-1.0, 3.0]), "")
        assert steps.zero == 64
        assert steps.scale == pytest.approx(4 / 255)
        assert whole_range(torch.tensor([-1.0, -3.0]), "").zero == 255

    def test_adversarial_images_widen_them(self) -> None:
        network, x = network_of("tiny"), images() * 0.5
        clean, wider = (quantize(packed_of(network), x, other).members[0] for other in (x, x * 2))
        scales = {i: (clean.steps[i].scale, wider.steps[i].scale) for i in clean.steps}
        assert any(a < b for a, b in scales.values())
        assert not any(a > b for i, (a, b) in scales.items() if i < 6)

    def test_without_held_out_images_they_were_never_calibrated(self) -> None:
        none = images(count=0)
        with pytest.raises(InputError, match=r"calibrated on held-out images.*there are 0 and 0, so they never were"):
            quantize(packed_of(network_of("tiny")), none, none)

    def test_one_of_zero_width_is_named(self) -> None:
        network = network_of("tiny")
        nodes = list(network.nodes)
        index = next(i for i in sorted(stored_in_8_bits(network)) if isinstance(nodes[i - 1], Convolution))
        layer = nodes[index - 1]
        assert isinstance(layer, Convolution)
        nodes[index - 1] = replace(layer, bias=np.full(len(layer.bias), -1e6, np.float32))
        message = (
            rf"member 2 cannot compute in 8 bits: operation {index} gives 0 for every held-out image, so its range has "
            "no width; use float32 arithmetic"
        )
        with pytest.raises(InputError, match=message):
            quantize(packed_of(network, Network(SHAPE, tuple(nodes))), images(), images())

    def test_values_that_are_no_numbers_are_refused(self) -> None:
        with pytest.raises(InputError, match="operation 3 gives values that are not finite"):
            whole_range(torch.tensor([1.0, torch.inf]), "operation 3")


@dataclass(frozen=True, eq=False)
class Swish(Node):
    """An operation that nothing knows in 8 bits."""

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0]


def test_an_operation_without_8_bit_arithmetic_is_named() -> None:
    nodes = (Input(), Swish((0,)), Flatten((1,)), Linear((2,), Weight.from_dense(np.eye(2)), np.zeros(2, np.float32)))
    x = torch.rand(2, 2, 1, 1)
    with pytest.raises(InputError, match="operation 1 is Swish, which has no 8-bit arithmetic; use float32 arithmetic"):
        quantize(packed_of(Network((2, 1, 1), nodes)), x, x)


def test_a_network_of_one_layer_has_nothing_to_quantize() -> None:
    nodes = (Input(), Flatten((0,)), Linear((1,), Weight.from_dense(np.eye(2)), np.zeros(2, np.float32)))
    x = torch.rand(2, 2, 1, 1)
    with pytest.raises(InputError, match="all its layers are the first or the last, which compute in float32"):
        quantize(packed_of(Network((2, 1, 1), nodes)), x, x)
