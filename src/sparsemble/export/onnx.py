"""ONNX graphs of networks and ensembles; needs the extra `export`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.runtime import network as runtime
from sparsemble.runtime.network import Network, Node, Pair

OPSET = 18
IR_VERSION = 10
"""Of the file; newer ones are not read by every ONNX Runtime that knows the opset."""


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


def member_graph(network: Network, name: str = "member") -> Any:
    """Return the model of one network: `images` (B, C, H, W) to `logits` (B, K), B free."""
    graph = _Graph()
    graph.network(network, "images", "logits", prefix="")
    return graph.model(name, network, "logits")


def ensemble_graph(networks: tuple[Network, ...], combiner: Mapping[str, Any], name: str = "ensemble") -> Any:
    """Return the model of an ensemble that never stops early: `images` to log-probabilities, `logits`.

    Raises:
        InputError: a combiner that is not known here.
    """
    graph, logits = _Graph(), []
    for i, network in enumerate(networks, start=1):
        graph.network(network, "images", f"logits{i}", prefix=f"member{i}.")
        logits.append(f"logits{i}")
    graph.combiner(logits, combiner)
    return graph.model(name, networks[0], "logits")


class _Graph:
    """Nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        self.onnx = onnx_package()
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add an operation; returns the name of its result."""
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant; returns its name."""
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def network(self, network: Network, images: str, output: str, prefix: str) -> None:
        """Add the operations of a network."""
        names = {0: images}
        for place, node in enumerate(network.nodes[1:], start=1):
            last = place == len(network.nodes) - 1
            names[place] = output if last else f"{prefix}{type(node).__name__.lower()}{place}"
            self._node(node, [names[given] for given in node.inputs], names[place])

    def _node(self, node: Node, inputs: list[str], output: str) -> None:
        if isinstance(node, runtime.Affine):
            scale = self.constant(f"{output}.scale", node.scale.reshape(1, -1, 1, 1))
            shift = self.constant(f"{output}.shift", node.shift.reshape(1, -1, 1, 1))
            self.add("Add", [self.add("Mul", [*inputs, scale], f"{output}.scaled"), shift], output)
        elif isinstance(node, runtime.Convolution):
            constants = [
                self.constant(f"{output}.weight", node.weight.dense()),
                self.constant(f"{output}.bias", node.bias),
            ]
            self.add(
                "Conv",
                [*inputs, *constants],
                output,
                strides=node.stride,
                pads=_both(node.padding),
                dilations=node.dilation,
            )
        elif isinstance(node, runtime.Linear):
            constants = [
                self.constant(f"{output}.weight", node.weight.dense()),
                self.constant(f"{output}.bias", node.bias),
            ]
            self.add("Gemm", [*inputs, *constants], output, transB=1)
        elif isinstance(node, runtime.MaxPool | runtime.AveragePool):
            largest = isinstance(node, runtime.MaxPool)
            settings = {} if largest else {"count_include_pad": 1}
            self.add(
                "MaxPool" if largest else "AveragePool",
                inputs,
                output,
                kernel_shape=node.kernel,
                strides=node.stride,
                pads=_both(node.padding),
                **settings,
            )
        else:
            kinds = {runtime.Relu: "Relu", runtime.Add: "Add", runtime.Flatten: "Flatten"}
            self.add(kinds[type(node)], inputs, output)

    def combiner(self, logits: list[str], settings: Mapping[str, Any]) -> None:
        """Put the members' logits together, as the combiners in `runtime/combiners.py` do."""
        name = settings["name"]
        axis = self.constant("axis0", np.array([0], np.int64))
        rows = [self.add("Unsqueeze", [one, axis], f"{one}.row") for one in logits]
        stacked = self.add("Concat", rows, "stacked", axis=0)
        if name == "soft_vote":
            warmth = self.constant("temperature", np.float32(settings["temperature"]))
            stacked = self.add("Div", [stacked, warmth], "sharp")
        if name == "mean_logit":
            mean = self.add("ReduceMean", [stacked, axis], "mean", keepdims=0)
            self.add("LogSoftmax", [mean], "logits", axis=-1)
            return
        probabilities = self.add("LogSoftmax", [stacked], "log_probabilities", axis=-1)
        if name == "maximum":
            highest = self.add("ReduceMax", [probabilities, axis], "highest", keepdims=0)
            self.add("LogSoftmax", [highest], "logits", axis=-1)
        elif name in ("mean_probability", "soft_vote"):
            total = self.add("ReduceLogSumExp", [probabilities, axis], "total", keepdims=0)
            self.add("Sub", [total, self.constant("log_members", np.float32(np.log(len(logits))))], "logits")
        else:
            raise InputError(f'combiner "{name}" cannot be written as ONNX')

    def model(self, name: str, network: Network, output: str) -> Any:
        """Return the checked model."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        images = helper.make_tensor_value_info("images", kind, ["batch", *network.image])
        logits = helper.make_tensor_value_info(output, kind, ["batch", network.classes])
        graph = helper.make_graph(self.nodes, name, [images], [logits], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sparsemble")
        model.ir_version = IR_VERSION
        self.onnx.checker.check_model(model, full_check=True)
        return model


def _both(padding: Pair) -> tuple[int, int, int, int]:
    return (*padding, *padding)
