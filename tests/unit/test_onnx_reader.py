"""ONNX files become torch networks that agree with ONNX Runtime, or are refused with the operator's name."""

import copy
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.evaluation.run_attacks import weights_hash
from sparsemble.export.onnx import ensemble_graph, member_graph
from sparsemble.models import architectures, onnx_operators
from sparsemble.models.convert import convert_model
from sparsemble.models.graph import Graph
from sparsemble.models.onnx_file import OnnxSession, open_onnx
from sparsemble.models.onnx_reader import convert_onnx
from tests.helpers import tiny_model
from tests.unit.test_runtime_engine import Everything, Sums, stir_

onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
pytest.importorskip("onnxruntime", reason="the extra export is not installed")

SHAPE = (4, 6, 6)
Nodes = Sequence[tuple[str, str, str, dict[str, Any]]]
"""Operators: kind, names of inputs, names of results, settings."""
draws = np.random.default_rng(3)


def numbers(*shape: int) -> np.ndarray:
    return draws.normal(size=shape).astype(np.float32) / 2


CONSTANTS = {
    "w": numbers(6, 4, 3, 3),
    "deep": numbers(4, 1, 3, 3),
    "b": numbers(6),
    "four": numbers(4),
    "positive": np.abs(numbers(4)) + 0.5,
    "matrix": numbers(6, 6),
    "classes": numbers(4, 3),
    "three": numbers(3),
    "channel": numbers(4, 1, 1),
    "scalar": np.float32(0.7),
    "low": np.float32(0.2),
    "high": np.float32(6),
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "plane": np.array([2, 3]),
    "axis1": np.array([1]),
    "axis0": np.array([0]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
    "flat": np.array([0, -1]),
    "picked": np.array([2, -1]),
    "first": np.array(1),
    "begin": np.array([1, 0]),
    "end": np.array([5, 100]),
    "step": np.array([2, 1]),
    "sizes": np.array([1, 3]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "wide": np.array([1, 4, 6, 6]),
    "none": np.float32([]),
    "mask": np.array([True, False, True, True]).reshape(4, 1, 1),
}


def save(
    path: Path,
    nodes: Nodes,
    *,
    batch: int | str = "n",
    image: Sequence[int | str] = SHAPE,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    dtype: int = 1,
    inputs: Sequence[str] = ("x",),
    constants: dict[str, np.ndarray] = CONSTANTS,
) -> Path:
    """Write a file with these operators."""
    helper = onnx.helper
    used = {name for _, names, _, _ in nodes for name in names.split()}
    graph = helper.make_graph(
        [
            helper.make_node(kind, [n if n != "-" else "" for n in names.split()], results.split(), f"at {i}", **more)
            for i, (kind, names, results, more) in enumerate(nodes)
        ],
        "classifier",
        [helper.make_tensor_value_info(name, dtype, [batch, *image]) for name in inputs],
        [onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(dtype, ["b", "k"])) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(constants[name]), name) for name in used & constants.keys()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    onnx.save_model(model, path)
    return path


def images(count: int = 5, shape: Sequence[int] = SHAPE) -> torch.Tensor:
    return torch.rand(count, *shape, generator=seeded(1))


def one(kind: str, names: str = "x", **settings: Any) -> Nodes:
    """One operator, flattened."""
    return [(kind, names, "z", settings), ("Flatten", "z", "y", {})]


OPERATORS: dict[str, Nodes] = {
    "conv": one("Conv", "x w b", pads=[1, 2, 0, 1], strides=[2, 1]),
    "conv dilated": one("Conv", "x w", pads=[2, 2, 2, 2], dilations=[2, 2]),
    "conv grouped": one("Conv", "x deep", group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": one("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2]),
    "gemm": [
        ("GlobalAveragePool", "x", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Gemm", "f classes three", "y", {"alpha": 2.0, "beta": 0.5}),
    ],
    "matmul and bias": [
        ("ReduceMean", "x plane", "f", {"keepdims": 0}),
        ("MatMul", "f classes", "m", {}),
        ("Add", "three m", "y", {}),
    ],
    "matmul of the plane": one("MatMul", "x matrix"),
    "product of two": [("Transpose", "x", "t", {"perm": [0, 1, 3, 2]}), *one("MatMul", "x t")],
    "batchnorm": one("BatchNormalization", "x four four four positive", epsilon=1e-3),
    "layer norm": [("Transpose", "x", "t", {"perm": [0, 2, 3, 1]}), *one("LayerNormalization", "t four four")],
    "instance norm": one("InstanceNormalization", "x four positive"),
    "local norm": one("LRN", "x", size=3),
    "max pool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, asymmetric": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    "max pool, dilated": one("MaxPool", kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1, strides=[3, 3]),
    "average pool": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool, counted": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average pool, asymmetric": one("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 0]),
    "global pools": [("GlobalMaxPool", "x", "p", {}), *one("Mul", "p channel")],
    "mean over the plane": one("ReduceMean", "x plane", keepdims=1),
    "length": one("ReduceL2", "x axis1"),
    "sum, kept": one("ReduceSum", "x axis1", keepdims=0),
    "largest": one("ReduceMax", "x plane"),
    "clip to 6": one("Clip", "x - high"),
    "relu6": [("Mul", "x high", "s", {}), ("Sub", "s half", "t", {}), *one("Clip", "t zero high")],
    "relu, leaky, elu": [
        ("Sub", "x half", "a", {}),
        ("Relu", "a", "b1", {}),
        ("Elu", "a", "c", {}),
        *one("Add", "b1 c"),
    ],
    "leaky": [("Sub", "x half", "a", {}), *one("LeakyRelu", "a", alpha=0.2)],
    "prelu": [("Sub", "x half", "a", {}), *one("PRelu", "a channel")],
    "sigmoid": one("Sigmoid"),
    "hard sigmoid": [("Mul", "x high", "a", {}), *one("HardSigmoid", "a", alpha=0.2, beta=0.1)],
    "hard sigmoid of torch": one("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hard swish": [("Sub", "x half", "a", {}), *one("HardSwish", "a")],
    "gelu by hand": [("Erf", "x", "e", {}), ("Add", "e scalar", "p", {}), *one("Mul", "x p")],
    "softplus, tanh": [("Softplus", "x", "a", {}), *one("Tanh", "a")],
    "constant less image": one("Sub", "scalar x"),
    "divided, powered": [("Div", "x scalar", "a", {}), ("Add", "a half", "b1", {}), *one("Pow", "b1 scalar")],
    "constant over image": [("Add", "x half", "a", {}), *one("Div", "channel a")],
    "larger of two": one("Max", "x scalar"),
    "sum and mean of several": [("Sum", "x channel x", "s", {}), *one("Mean", "s x")],
    "softmax over channels": one("Softmax", axis=1),
    "log softmax": [("Flatten", "x", "f", {}), ("LogSoftmax", "f", "y", {})],
    "concat": [("Relu", "x", "a", {}), *one("Concat", "x a", axis=1)],
    "concat of members": [
        ("GlobalAveragePool", "x", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Unsqueeze", "f axis0", "r", {}),
        ("Concat", "r r r", "s", {"axis": 0}),
        ("ReduceLogSumExp", "s axis0", "y", {"keepdims": 0}),
    ],
    "reshape": [("Reshape", "x flat", "y", {})],
    "reshape by a computed shape": [
        ("Shape", "x", "shape", {}),
        ("Gather", "shape axis0", "count", {"axis": 0}),
        ("Concat", "count minus", "target", {"axis": 0}),
        ("Constant", "", "unused", {"value_float": 1.0}),
        ("Reshape", "x target", "y", {}),
    ],
    "squeeze": [("GlobalAveragePool", "x", "p", {}), ("Squeeze", "p plane", "y", {})],
    "unsqueeze": one("Unsqueeze", "x axis1"),
    "pad": one("Pad", "x pads scalar"),
    "pad by reflection": one("Pad", "x pads", mode="reflect"),
    "slice": one("Slice", "x begin end plane step"),
    "gather": one("Gather", "x picked", axis=2),
    "gather one": one("Gather", "x first", axis=1),
    "split": [("Split", "x sizes", "l r", {"axis": 1}), *one("Mul", "l r")],
    "expand": [("GlobalAveragePool", "x", "p", {}), *one("Expand", "p wide")],
    "einsum": one("Einsum", "x x", equation="bchw,bdhw->bcd"),
    "chosen by a constant": one("Where", "mask x scalar"),
    "guarded": [("IsNaN", "x", "n", {}), *one("Where", "n zero x")],
    "resize": one(
        "Resize", "x - scales", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
    "resize smoothly": one("Resize", "x - scales", mode="linear"),
    "nothing": [
        ("Identity", "x", "a", {}),
        ("Dropout", "a", "d", {}),
        ("Cast", "d", "c", {"to": 1}),
        *one("Transpose", "c", perm=[0, 1, 2, 3]),
    ],
}
CONSTANTS["minus"] = np.array([-1])


FIXED = ("conv", "gemm", "reshape", "reshape by a computed shape", "concat of members", "expand")
"""Operators that are also tried quickly in files that fix the size of the batch."""


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        pytest.param(name, batch, marks=() if batch == "n" or name in FIXED else pytest.mark.slow)
        for name in OPERATORS
        for batch in ("n", 1, 2)
    ],
)
def test_an_operator_computes_what_onnx_runtime_computes(name: str, batch: int | str, tmp_path: Path) -> None:
    file = open_onnx(save(tmp_path / "model.onnx", OPERATORS[name], batch=batch))
    network, _ = convert_onnx(file)
    session = OnnxSession(file)
    for count in (1, 5):
        x = images(count).requires_grad_()
        logits = network(x)
        np.testing.assert_allclose(logits.detach().numpy(), session(x.detach().numpy()), rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())


def test_a_network_of_ours_comes_back_as_it_was(tmp_path: Path) -> None:
    original = tiny_model(std=0.3).eval()
    onnx.save_model(member_graph(convert_model(original, (1, 8, 8))), tmp_path / "tiny.onnx")
    network, notes = convert_onnx(open_onnx(tmp_path / "tiny.onnx"))
    x = images(4, (1, 8, 8)).requires_grad_()
    torch.testing.assert_close(network(x), original(x), rtol=1e-4, atol=1e-5)
    wanted, found = (torch.autograd.grad(model(x)[:, 0].sum(), x)[0] for model in (original, network))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    layers = Graph(network, (1, 8, 8)).layers()
    assert len(layers) == len(Graph(original, (1, 8, 8)).layers())
    assert "agree" in notes[0] or "same" in notes[0]
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("make", "shape"), [(Everything, (3, 12, 12)), (Sums, (3, 9, 10))])
def test_every_operation_of_the_runtime_is_known(make: type, shape: tuple[int, int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = stir_(make())
    onnx.save_model(member_graph(convert_model(original, shape)), tmp_path / "model.onnx")
    network, _ = convert_onnx(open_onnx(tmp_path / "model.onnx"))
    x = images(4, shape)
    with torch.no_grad():
        torch.testing.assert_close(network(x), original(x), rtol=1e-3, atol=1e-4)
    convert_model(network, shape)  # can be exported again


@pytest.mark.parametrize("combiner", ["mean_probability", "maximum", "mean_logit"])
def test_an_exported_ensemble_is_converted(combiner: str, tmp_path: Path) -> None:
    members = tuple(convert_model(tiny_model(seed=seed).eval(), (1, 8, 8)) for seed in range(2))
    onnx.save_model(ensemble_graph(members, {"name": combiner}), tmp_path / "ensemble.onnx")
    file = open_onnx(tmp_path / "ensemble.onnx")
    network, _ = convert_onnx(file)
    x = images(3, (1, 8, 8))
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), OnnxSession(file)(x.numpy()), rtol=1e-4, atol=1e-5)


LINEAR: Nodes = [("ReduceMean", "x plane", "f", {"keepdims": 0}), ("Gemm", "f classes three", "y", {})]


def test_the_gradient_is_that_of_the_network(tmp_path: Path) -> None:
    network, _ = convert_onnx(open_onnx(save(tmp_path / "model.onnx", LINEAR)))
    x = images(2).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[:, 1].sum(), x)
    expected = torch.from_numpy(CONSTANTS["classes"][:, 1] / 36)[:, None, None].expand(SHAPE)
    torch.testing.assert_close(gradient, expected.expand(2, *SHAPE))


def test_layers_are_named_after_their_weights_where_these_have_names(tmp_path: Path) -> None:
    constants = {**CONSTANTS, "layer1.0.conv.weight": CONSTANTS["w"], "Conv_7": CONSTANTS["w"][:, :1].repeat(6, 1)}
    nodes = [("Conv", "x layer1.0.conv.weight", "a", {}), ("Conv", "a Conv_7", "c", {}), ("Flatten", "c", "y", {})]
    network, _ = convert_onnx(open_onnx(save(tmp_path / "model.onnx", nodes, constants=constants)))
    assert list(Graph(network, SHAPE).layers()) == ["network.layer1.0.conv", "network.conv1"]


@pytest.mark.parametrize(("end", "note"), [("Softmax", "softmax"), ("Sigmoid", "sigmoid")])
def test_the_end_that_makes_probabilities_is_left_off(end: str, note: str, tmp_path: Path) -> None:
    plain, _ = convert_onnx(open_onnx(save(tmp_path / "plain.onnx", LINEAR)))
    nodes = [*LINEAR[:1], ("Gemm", "f classes three", "l", {}), (end, "l", "y", {})]
    network, notes = convert_onnx(open_onnx(save(tmp_path / "model.onnx", nodes)))
    torch.testing.assert_close(network(images()), plain(images()))
    assert note in notes[-1]


def test_channels_may_come_last(tmp_path: Path) -> None:
    nodes = [("Transpose", "x", "t", {"perm": [0, 3, 1, 2]}), ("Conv", "t w b", "c", {}), ("Flatten", "c", "y", {})]
    file = open_onnx(save(tmp_path / "model.onnx", nodes, image=(6, 6, 4)), SHAPE)
    assert file.channels_last
    network, _ = convert_onnx(file)
    expected = nn.functional.conv2d(images(), *(torch.from_numpy(CONSTANTS[name]) for name in "wb")).flatten(1)
    torch.testing.assert_close(network(images()), expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_mixes_images_of_a_fixed_batch_is_run_in_groups(tmp_path: Path) -> None:
    nodes = [("ReduceMean", "x axis0", "m", {}), ("Sub", "x m", "d", {}), ("Flatten", "d", "y", {})]
    file = open_onnx(save(tmp_path / "model.onnx", nodes, batch=2))
    network, notes = convert_onnx(file)
    assert network.batch == 2
    assert "groups of 2" in notes[-1]
    np.testing.assert_allclose(network(images(3)).numpy(), OnnxSession(file)(images(3).numpy()), atol=1e-6)


BAKED: dict[str, Nodes] = {
    "a constant shape": [("Reshape", "x baked", "r", {}), ("Gemm", "r wide_classes three", "y", {})],
    "a constant first image": [
        ("ReduceMean", "x plane", "f", {"keepdims": 0}),
        ("Gather", "f axis0", "g", {"axis": 0}),
        ("Gemm", "g classes three", "y", {}),
    ],
}
CONSTANTS["baked"] = np.array([1, 144])
CONSTANTS["wide_classes"] = numbers(144, 3)


@pytest.mark.parametrize("name", BAKED)
def test_a_file_that_only_claims_to_take_any_batch(name: str, tmp_path: Path) -> None:
    file = open_onnx(save(tmp_path / "model.onnx", BAKED[name]))
    assert file.batch == 1
    network, _ = convert_onnx(file)
    expected = np.concatenate([OnnxSession(file)(images(5)[i : i + 1].numpy()) for i in range(5)])
    np.testing.assert_allclose(network(images(5)).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_weights_may_be_in_a_file_beside_it(tmp_path: Path) -> None:
    hashes = set()
    for factor in (1.0, 2.0):
        model = onnx.load(
            save(tmp_path / "whole.onnx", LINEAR, constants={**CONSTANTS, "three": CONSTANTS["three"] * factor})
        )
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save_model(
            model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
        )
        file = open_onnx(tmp_path / "model.onnx")
        assert convert_onnx(file)[0](images()).shape == (5, 3)
        hashes.add(file.sha256)
    assert len(hashes) == 2
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"cannot be read as an ONNX file.*weights\.bin"):
        open_onnx(tmp_path / "model.onnx")


def test_what_was_exported_in_training_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    constants = {**CONSTANTS, "on": np.array(True)}
    for nodes in (
        one("Dropout", "x half on"),
        [("BatchNormalization", "x four four four positive", "z m v", {"training_mode": 1}), ("Flatten", "z", "y", {})],
    ):
        with pytest.raises(InputError, match="training mode; export the network in eval mode"):
            convert_onnx(open_onnx(save(tmp_path / "model.onnx", nodes, constants=constants)))


def test_labels_among_the_outputs_are_passed_over(tmp_path: Path) -> None:
    nodes = [
        *LINEAR[:1],
        ("Gemm", "f classes three", "scores", {}),
        ("ArgMax", "scores", "label", {"axis": 1, "keepdims": 0}),
    ]
    path = save(tmp_path / "model.onnx", nodes, outputs=("label", "scores"))
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    del model.graph.output[0].type.tensor_type.shape.dim[1]
    onnx.save_model(model, path)
    assert open_onnx(path).output == "scores"
    assert convert_onnx(open_onnx(path))[0](images()).shape == (5, 3)


def test_half_precision(tmp_path: Path) -> None:
    constants = {name: value.astype(np.float16) for name, value in CONSTANTS.items() if value.dtype == np.float32}
    file = open_onnx(save(tmp_path / "model.onnx", one("Conv", "x w b"), dtype=10, constants=constants))
    network, _ = convert_onnx(file)
    assert network(images().half()).dtype == torch.float16


def test_of_several_outputs_the_logits_are_read(tmp_path: Path) -> None:
    nodes = [*LINEAR[:1], ("Gemm", "f classes three", "logits", {}), ("Relu", "f", "features", {})]
    network, _ = convert_onnx(open_onnx(save(tmp_path / "model.onnx", nodes, outputs=("features", "logits"))))
    assert network(images()).shape == (5, 3)


NOT_CONVERTED: dict[str, tuple[Nodes, str]] = {
    "unknown": (one("DepthToSpace", blocksize=2), r"the operator DepthToSpace \(at 0\) is not among"),
    "a step": (one("Hardmax"), r"the operator Hardmax \(at 0\) rounds or decides"),
    "a quantised layer": (
        [("QuantizeLinear", "x high", "q", {}), ("DequantizeLinear", "q high", "d", {}), ("Flatten", "d", "y", {})],
        r"QuantizeLinear \(at 0\) rounds or decides",
    ),
    "a decision": (
        [("Greater", "x half", "g", {}), *one("Where", "g x half")],
        r"Greater \(at 0\) rounds or decides",
    ),
    "rounding": ([("Cast", "x", "i", {"to": 7}), *one("Cast", "i", to=1)], r"Cast \(at 0\) turns numbers into int64"),
    "weights from the image": (
        [("Slice", "x axis0 axis1 axis0", "k", {}), *one("Conv", "x k")],
        "depends on the image",
    ),
}


@pytest.mark.parametrize("name", NOT_CONVERTED)
def test_what_cannot_be_converted_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    nodes, words = NOT_CONVERTED[name]
    file = open_onnx(save(tmp_path / "model.onnx", nodes, batch=1 if "weights" in name else "n"))
    with pytest.raises(InputError, match=words) as error:
        convert_onnx(file)
    assert "install onnx2torch" in str(error.value)
    assert "--access scores" in str(error.value)


def test_a_wrong_conversion_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    monkeypatch.setitem(onnx_operators.MAPS, "Tanh", torch.sigmoid)
    with pytest.raises(InputError, match="differs from ONNX Runtime by"):
        convert_onnx(open_onnx(save(tmp_path / "model.onnx", one("Tanh"))))


@pytest.mark.parametrize("correct", [True, False])
def test_onnx2torch_helps_where_it_is_installed(correct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Converted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hard = nn.functional.one_hot(x.argmax(3), x.shape[3]).float()
            return (hard if correct else x).flatten(1)

    package = types.SimpleNamespace(convert=lambda model: Converted())
    monkeypatch.setitem(sys.modules, "onnx2torch", package)
    file = open_onnx(save(tmp_path / "model.onnx", one("Hardmax", axis=-1)))
    if correct:
        assert isinstance(convert_onnx(file)[0].network, Converted)
    else:
        with pytest.raises(InputError, match="onnx2torch fails"):
            convert_onnx(file)


def test_without_a_conversion_onnx_runtime_gives_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    nodes = [("Hardmax", "x", "h", {"axis": 1}), ("ReduceMean", "h plane", "f", {"keepdims": 0}), LINEAR[1]]
    path = save(tmp_path / "model.onnx", nodes)
    with pytest.raises(InputError, match="Hardmax"):
        load_target(str(path))
    target = load_target(str(path), access="scores")
    split = TensorSplit(images(6), torch.arange(6) % 3)
    probed = target.probed(split, 3, "scores")
    assert probed.model(images()).shape == (5, 3)
    assert any("Hardmax" in note for note in probed.notes)
    assert weights_hash(copy.deepcopy(target.model)) == weights_hash(target.model)


def test_two_files_with_equal_weights_are_told_apart(tmp_path: Path) -> None:
    files = [one("Conv", "x w"), [("Conv", "x w", "c", {}), ("Neg", "c", "n", {}), ("Flatten", "n", "y", {})]]
    hashes = set()
    for nodes in files:
        path = save(tmp_path / "model.onnx", nodes)
        hashes.add(weights_hash(convert_onnx(open_onnx(path))[0]))
        hashes.add(weights_hash(load_target(str(path), access="scores").model))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ({"image": (3, 8, 8)}, (1, 8, 8), "takes images of 3x8x8, the data has 1x8x8"),
        ({"image": (3, "h", "w")}, None, "leaves the size of its images open"),
        ({"image": (48,)}, None, "takes a tensor of 2 axes"),
        ({"dtype": 2}, None, "takes images of uint8"),
        ({"inputs": ("x", "mask")}, None, r"takes 2 inputs \(x, mask\)"),
    ],
)
def test_files_that_classify_no_such_images(
    settings: dict[str, Any], shape: tuple[int, int, int] | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        open_onnx(save(tmp_path / "model.onnx", [("Flatten", "x", "y", {})], **settings), shape)


def test_the_size_of_images_may_come_from_the_data(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", LINEAR, image=("c", "h", "w"))
    assert convert_onnx(open_onnx(path, SHAPE))[0](images()).shape == (5, 3)


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model", "utf-8")
    with pytest.raises(InputError, match="cannot be read as an ONNX file"):
        open_onnx(tmp_path / "text.onnx")
    with pytest.raises(InputError, match="ONNX Runtime cannot load"):
        convert_onnx(open_onnx(save(tmp_path / "unknown.onnx", one("NoSuchOperator"))))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_an_absent_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.onnx", LINEAR)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'sparsemble\[export\]'"):
        open_onnx(path)


def test_an_architecture_is_a_file(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", LINEAR)
    network = architectures.build({"name": "onnx", "file": str(path)}).build(4, 3)
    assert network(images()).shape == (5, 3)
    with pytest.raises(InputError, match="4 channels, the data has 3"):
        architectures.build({"name": "onnx", "file": str(path)}).build(3, 3)
    with pytest.raises(InputError, match="does not exist"):
        architectures.build({"name": "onnx", "file": "nowhere.onnx"}).build(3, 3)
    with pytest.raises(InputError, match="was changed"):
        architectures.build({"name": "onnx", "file": str(path), "file_hash": "0"})
