"""ONNX graphs of networks and ensembles; needs the extra `export`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.core.artifacts import write_json
from sparsemble.core.errors import InputError
from sparsemble.runtime import network as runtime
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import Network, Node

OPSET = 18
IR_VERSION = 10
"""Version of the file format; newer ones are not read by every ONNX Runtime that supports the opset."""


def onnx_package() -> Any:
    """Return the package onnx.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("ONNX files need the package onnx; pip install 'sparsemble[export]'") from None
    return onnx


def write_graphs(ensemble: PackedEnsemble, folder: Path) -> tuple[list[Path], Path]:
    """Write a graph for each member, one for the ensemble with all members, and `manifest.json`.

    Args:
        ensemble: with rounded weights.
        folder: must not exist.

    Returns:
        The files of the members, and that of the ensemble.
    """
    onnx = onnx_package()
    folder.mkdir()
    files = [folder / f"member{number}.onnx" for number in range(1, len(ensemble.members) + 1)]
    static_ensemble = folder / "ensemble.onnx"
    graphs = [(member_graph(member, file.stem), file) for member, file in zip(ensemble.members, files, strict=True)]
    graphs.append((ensemble_graph(ensemble.members, ensemble.combiner), static_ensemble))
    record = {"preprocessing": ensemble.preprocessing.to_dict()} if ensemble.preprocessing else {}
    for graph, file in graphs:
        onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in record.items()})
        onnx.save_model(graph, file)
    manifest = {
        "opset": OPSET,
        "members": [file.name for file in files],
        "static_ensemble": static_ensemble.name,
        "input": {"name": "images", "shape": ["batch", *ensemble.image], "range": [0, 1]},
        "output": "logits",
        "combine": dict(ensemble.combiner),
        "stop": dict(ensemble.rule),
        "classes": list(ensemble.classes),
        **record,
    }
    write_json(folder / "manifest.json", manifest)
    return files, static_ensemble


def member_graph(network: Network, name: str = "member") -> Any:
    """Return the ONNX model of one network: `images` (B, C, H, W) to `logits` (B, K), for any B."""
    graph = _Graph()
    graph.network(network, "logits")
    return graph.model(name, network)


def ensemble_graph(networks: tuple[Network, ...], combiner: Mapping[str, Any]) -> Any:
    """Return the ONNX model of an ensemble that runs all members: `images` to log-probabilities, `logits`.

    Raises:
        InputError: a combiner that has no ONNX graph.
    """
    graph, logits = _Graph(), [f"logits{number}" for number in range(1, len(networks) + 1)]
    for number, network in enumerate(networks, start=1):
        graph.network(network, logits[number - 1], prefix=f"member{number}.")
    graph.combiner(logits, combiner)
    return graph.model("ensemble", networks[0])


class _Graph:
    """Builds the nodes and constants of a graph."""

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add an operation; return the name of its result."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; return its name."""
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def network(self, network: Network, output: str, prefix: str = "") -> None:
        """Add the operations of a network."""
        names = {0: "images"}
        for i, node in enumerate(network.nodes[1:], start=1):
            last = i == len(network.nodes) - 1
            names[i] = output if last else f"{prefix}{type(node).__name__.lower()}{i}"
            self._node(node, [names[source] for source in node.inputs], names[i])

    def _node(self, node: Node, inputs: list[str], output: str) -> None:
        if isinstance(node, runtime.Affine):
            scale = self.constant(f"{output}.scale", node.scale.reshape(1, -1, 1, 1))
            shift = self.constant(f"{output}.shift", node.shift.reshape(1, -1, 1, 1))
            self.add("Add", [self.add("Mul", [*inputs, scale], f"{output}.scaled"), shift], output)
        elif isinstance(node, runtime.Convolution | runtime.Linear):
            weight = self.constant(f"{output}.weight", node.weight.dense())
            inputs = [*inputs, weight, self.constant(f"{output}.bias", node.bias)]
            if isinstance(node, runtime.Linear):
                self.add("Gemm", inputs, output, transB=1)
            else:
                window = {"strides": node.stride, "pads": node.padding * 2, "dilations": node.dilation}
                self.add("Conv", inputs, output, **window)
        elif isinstance(node, runtime.MaxPool | runtime.AveragePool):
            settings = {} if isinstance(node, runtime.MaxPool) else {"count_include_pad": 1}
            window = {"kernel_shape": node.kernel, "strides": node.stride, "pads": node.padding * 2}
            self.add(type(node).__name__, inputs, output, **window, **settings)
        else:
            self.add(type(node).__name__, inputs, output)  # Relu, Add and Flatten have the same names in ONNX

    def combiner(self, logits: list[str], settings: Mapping[str, Any]) -> None:
        """Add the combiner of the members' logits, as in `runtime/combiners.py`."""
        combiner = settings["name"]
        axis = self.constant("axis0", np.array([0], np.int64))
        rows = [self.add("Unsqueeze", [name, axis], f"{name}.row") for name in logits]
        stacked = self.add("Concat", rows, "stacked", axis=0)
        if combiner == "soft_vote":
            temperature = self.constant("temperature", np.float32(settings["temperature"]))
            stacked = self.add("Div", [stacked, temperature], "sharp")
        if combiner == "mean_logit":
            mean = self.add("ReduceMean", [stacked, axis], "mean", keepdims=0)
            self.add("LogSoftmax", [mean], "logits", axis=-1)
            return
        probabilities = self.add("LogSoftmax", [stacked], "log_probabilities", axis=-1)
        if combiner == "maximum":
            highest = self.add("ReduceMax", [probabilities, axis], "highest", keepdims=0)
            self.add("LogSoftmax", [highest], "logits", axis=-1)
        elif combiner in ("mean_probability", "soft_vote"):
            total = self.add("ReduceLogSumExp", [probabilities, axis], "total", keepdims=0)
            self.add("Sub", [total, self.constant("log_members", np.float32(np.log(len(logits))))], "logits")
        else:
            raise InputError(f'combiner "{combiner}" cannot be written as ONNX')

    def model(self, name: str, network: Network) -> Any:
        """Return the checked model."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        images = helper.make_tensor_value_info("images", kind, ["batch", *network.image])
        logits = helper.make_tensor_value_info("logits", kind, ["batch", network.classes])
        graph = helper.make_graph(self.nodes, name, [images], [logits], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sparsemble")
        model.ir_version = IR_VERSION
        self.onnx.checker.check_model(model, full_check=True)
        return model
