"""Networks in 8 bits: what their arithmetic means, in plain numpy, and how to make one for a test."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.format.quantization import dequantize, quantize
from sparsemble.runtime.network import (
    Add,
    Affine,
    AveragePool,
    Convolution,
    Flatten,
    Linear,
    MaxPool,
    Network,
    Node,
    Pair,
    Relu,
    Steps,
    Weight,
)

Array = NDArray[Any]


def evaluate(network: Network, images: Array) -> list[Array]:
    """Return the result of every node, (B, ...): uint8 steps of those that are stored in 8 bits, else float32."""
    results: list[Array] = [images.astype(np.float32)]
    for i, node in list(enumerate(network.nodes))[1:]:
        inputs = [results[source] for source in node.inputs]
        steps = [network.steps.get(source) for source in node.inputs]
        if isinstance(node, Flatten):
            results.append(inputs[0].reshape(len(images), -1))
        elif isinstance(node, MaxPool) and steps[0]:
            results.append(_windows(inputs[0], node.kernel, node.stride, node.padding, (1, 1), 0).max((-2, -1)))
        elif isinstance(node, Convolution | Linear) and steps[0] and node.weight.integers is not None:
            results.append(_stored(_from_integers(node, inputs[0], steps[0]), network.steps.get(i)))
        else:
            floats = [_floats(result, found) for result, found in zip(inputs, steps, strict=True)]
            results.append(_stored(_in_floats(node, floats), network.steps.get(i)))
    return results


def logits(network: Network, images: Array) -> Array:
    """Return (B, K), float32."""
    return _floats(evaluate(network, images)[-1], network.steps.get(len(network.nodes) - 1))


def sums(node: Convolution | Linear, q: Array, steps: Steps) -> Array:
    """Return the integer sums of products of a layer, (B, outputs, ...), from the steps that it reads."""
    weight = node.weight
    assert weight.integers is not None
    dense = np.zeros(weight.size, np.int64)
    dense[weight.positions] = weight.integers
    dense = dense.reshape(weight.shape)
    shifted = q.astype(np.int64) - steps.zero
    return _products(node, shifted, dense)


def _products(node: Convolution | Linear, x: Array, dense: Array) -> Array:
    if isinstance(node, Linear):
        return x @ dense.T
    windows = _windows(x, dense.shape[2:], node.stride, node.padding, node.dilation, 0)
    return np.einsum("bchwyx,ocyx->bohw", windows, dense, optimize=True)


def _from_integers(node: Convolution | Linear, q: Array, steps: Steps) -> Array:
    """Return a layer's result in float32; every operation rounds once."""
    total, scales = sums(node, q, steps), node.weight.scales
    assert scales is not None
    assert np.abs(total).max(initial=0) < 2**31
    scale = scales * np.float32(steps.scale)
    across = (slice(None),) + (None,) * (total.ndim - 2)
    return total.astype(np.float32) * scale[across] + node.bias[across]


def _in_floats(node: Node, inputs: list[Array]) -> Array:
    x = inputs[0]
    if isinstance(node, Convolution | Linear):
        bias = node.bias[(slice(None),) + (None,) * (x.ndim - 2)]
        return (_products(node, x.astype(np.float64), node.weight.dense()) + bias).astype(np.float32)
    if isinstance(node, Relu):
        return np.maximum(x, 0)
    if isinstance(node, Add):
        return x + inputs[1]
    if isinstance(node, Affine):
        return x * node.scale[:, None, None] + node.shift[:, None, None]
    if isinstance(node, MaxPool):
        return _windows(x, node.kernel, node.stride, node.padding, (1, 1), -np.inf).max((-2, -1))
    assert isinstance(node, AveragePool)
    return _windows(x, node.kernel, node.stride, node.padding, (1, 1), 0).mean((-2, -1), dtype=np.float32)


def _stored(y: Array, steps: Steps | None) -> Array:
    if steps is None:
        return y
    return np.clip(np.rint(y / np.float32(steps.scale)) + steps.zero, 0, 255).astype(np.uint8)


def _floats(result: Array, steps: Steps | None) -> Array:
    if steps is None:
        return result
    return np.float32(steps.scale) * (result.astype(np.float32) - np.float32(steps.zero))


def _windows(x: Array, kernel: Any, stride: Pair, padding: Pair, dilation: Pair, fill: float) -> Array:
    """Return (B, C, height, width, rows, columns) the pixels of every window."""
    pads = [(0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2]
    padded = np.pad(x, pads, constant_values=fill)
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(2, 3))
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def with_integers(weight: Weight) -> Weight:
    """Return the weights rounded to 8 bits."""
    scales, integers = quantize(weight)
    values = dequantize(integers, weight.positions, weight.shape, scales)
    return replace(weight, values=values, integers=integers, scales=scales).kept(integers != 0)


def in_8_bits(network: Network, images: Array, *, keep: Mapping[int, Steps] | None = None) -> Network:
    """Return a network with 8-bit weights and results, ranges taken from some images.

    The last node of every fused group gets steps, except where its result is the logits. `keep` gives the steps of
    some nodes.
    """
    nodes = tuple(
        replace(node, weight=with_integers(node.weight)) if isinstance(node, Convolution | Linear) else node
        for node in network.nodes
    )
    rounded = Network(network.image, nodes)
    results = evaluate(rounded, images)
    of_image = {0}
    """Nodes that only scale the image."""
    for i, node in enumerate(nodes):
        if isinstance(node, Affine) and node.inputs[0] in of_image:
            of_image.add(i)
    readers = [[j for j, node in enumerate(nodes) if i in node.inputs] for i in range(len(nodes))]
    steps: dict[int, Steps] = {}
    for i, node in enumerate(nodes):
        alone = readers[i][0] if len(readers[i]) == 1 else None
        inside = alone is not None and isinstance(nodes[alone], Relu | Add) and not isinstance(node, Relu)
        source = node.inputs[0] if node.inputs else 0
        if i and alone != len(nodes) - 1 and readers[i] and not inside and not isinstance(node, Flatten):
            if isinstance(node, MaxPool) and source in steps:
                steps[i] = steps[source]
            elif i not in of_image:
                low, high = min(0.0, float(results[i].min())), max(0.01, float(results[i].max()))
                scale = float(np.float32((high - low) / 255))
                steps[i] = Steps(scale, int(np.clip(np.rint(-low / scale), 0, 255)))
    return Network(network.image, nodes, {**steps, **(keep or {})})
