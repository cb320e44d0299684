"""Operators of ONNX in torch: each adds the nodes of one operator to a traced graph."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemble.core.errors import InputError
from sparsemble.models.onnx_graph import Builder, Call

Add = Callable[[Builder, Call], fx.Node]
STEPS = (
    *("ArgMax", "ArgMin", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax"),
    *("Less", "LessOrEqual", "Not", "OneHot", "QLinearConv", "QuantizeLinear", "Round", "Sign", "TopK"),
)
"""Operators that round or decide, whose gradient is 0 or does not exist."""
SMALL = 1e-6
"""Relative error of a slope that an exporter has written in float32."""
MAPS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
"""Functions of each number without settings."""
PAIRS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Div": operator.truediv,
    "MatMul": torch.matmul,
    "Mul": operator.mul,
    "Pow": torch.pow,
    "Sub": operator.sub,
}
MANY: dict[str, Callable[..., Any]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": operator.add}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
}


def add_operator(builder: Builder, call: Call) -> None:
    """Add one operator to the graph, with a node for each of its results.

    Raises:
        InputError: an operator, or settings of one, that this reader does not have.
    """
    if call.kind == "Split":
        _split(builder, call)
        return
    if call.kind in STEPS:
        raise InputError(f"{call} rounds or decides, so it has no gradient that an attack could follow")
    if call.domain not in ("", "ai.onnx") or call.kind not in OPERATORS:
        raise InputError(f"{call} is not among the {len(OPERATORS) + 1} operators that are converted")
    if any(builder.consumers.get(name) for name in call.outputs[1:]):
        raise InputError(f"{call} has a second result, {call.outputs[1]}, which is not converted")
    builder.nodes[call.outputs[0]] = OPERATORS[call.kind](builder, call)


def _tensor(builder: Builder, call: Call, position: int) -> Tensor | None:
    """Return a copy of a constant input; None where it is left out."""
    if position >= len(call.inputs) or not call.inputs[position]:
        return None
    return torch.from_numpy(np.array(builder.constant(call.inputs[position])))


def _convolution(builder: Builder, call: Call) -> fx.Node:
    weight, bias = _tensor(builder, call, 1), _tensor(builder, call, 2)
    assert weight is not None
    if weight.ndim != 4:
        raise InputError(f"{call} convolves over {weight.ndim - 2} axes; images have two")
    strides, dilations = call.get("strides", [1, 1]), call.get("dilations", [1, 1])
    pads = _pads(builder, call, list(weight.shape[2:]), strides, dilations)
    x = builder.tensor(call.inputs[0])
    if pads[:2] != pads[2:]:
        x, pads = builder.function(F.pad, x, [pads[1], pads[3], pads[0], pads[2]]), [0, 0, 0, 0]
    groups = call.get("group", 1)
    outputs, inputs, height, width = weight.shape
    window = ((height, width), (strides[0], strides[1]), (pads[0], pads[1]), (dilations[0], dilations[1]))
    layer = nn.Conv2d(inputs * groups, outputs, *window, groups, device="meta")
    return builder.layer(call, _with_weights(layer, weight, bias), x)


def _linear(builder: Builder, call: Call) -> fx.Node:
    """Add a Gemm: alpha * A B + beta * C."""
    if builder.varies(call.inputs[1]) or call.get("transA", 0):
        raise InputError(f"{call} multiplies by a matrix that depends on the image")
    weight, bias = _tensor(builder, call, 1), _tensor(builder, call, 2)
    assert weight is not None
    weight = call.get("alpha", 1.0) * (weight if call.get("transB", 0) else weight.T)
    if bias is not None:
        bias = (call.get("beta", 1.0) * bias.reshape(-1)).expand(len(weight))
    return builder.layer(call, _linear_layer(weight, bias), builder.tensor(call.inputs[0]))


def _linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return _with_weights(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _with_weights(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.contiguous())
    layer.bias = None if bias is None else nn.Parameter(bias.contiguous())
    return layer


def _pair(builder: Builder, call: Call) -> fx.Node:
    """Add an operation of two tensors; a constant is kept second where that changes nothing, so that it is a scale."""
    first, second = call.inputs
    if call.kind == "MatMul" and not builder.varies(second) and builder.constant(second).ndim == 2:
        weight = _tensor(builder, call, 1)
        assert weight is not None
        bias = builder.take_bias(call.outputs[0], weight.shape[1])
        layer = _linear_layer(weight.T, None if bias is None else torch.from_numpy(bias.copy()))
        return builder.layer(call, layer, builder.tensor(first))
    if call.kind in ("Add", "Mul") and not builder.varies(first):
        first, second = second, first
    if call.kind == "Add" and first in builder.biased:
        return builder.nodes[first]  # the bias is in the layer
    if call.kind == "Add" and not builder.varies(second) and not builder.grows(second):
        # The same number, and known to pruning as a shift.
        return builder.function(
            operator.sub, builder.tensor(first), builder.buffer(np.negative(builder.constant(second)))
        )
    return builder.function(PAIRS[call.kind], builder.tensor(first), builder.tensor(second))


def _many(builder: Builder, call: Call) -> fx.Node:
    result = builder.tensor(call.inputs[0])
    for name in call.inputs[1:]:
        result = builder.function(MANY[call.kind], result, builder.tensor(name))
    return result


def _average(builder: Builder, call: Call) -> fx.Node:
    total = _many(builder, Call("Sum", call.name, call.inputs, call.outputs, {}, call.opset))
    return builder.function(operator.truediv, total, float(len(call.inputs)))


def _norm(builder: Builder, call: Call) -> fx.Node:
    if call.get("training_mode", 0):
        raise InputError(f"{call} is in training mode; export the network in eval mode")
    scale, shift, mean, variance = (_tensor(builder, call, i) for i in range(1, 5))
    assert scale is not None
    assert shift is not None
    kinds: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    rank = len(builder.shape(call.inputs[0]))
    if rank not in kinds:
        raise InputError(f"{call} normalises a tensor of {rank} axes")
    # The share of the old statistics in ONNX, of the new ones in torch.
    norm = kinds[rank](len(scale), call.get("epsilon", 1e-5), 1 - call.get("momentum", 0.9), dtype=scale.dtype)
    norm.weight, norm.bias = nn.Parameter(scale), nn.Parameter(shift)
    norm.running_mean, norm.running_var = mean, variance
    return builder.layer(call, norm, builder.tensor(call.inputs[0]))


def _layer_norm(builder: Builder, call: Call) -> fx.Node:
    shape = builder.shape(call.inputs[0])
    normalised = list(shape[call.get("axis", -1) % len(shape) :])
    scale, shift = builder.tensor(call.inputs[1]), builder.tensor(call.inputs[2]) if len(call.inputs) > 2 else None
    x = builder.tensor(call.inputs[0])
    return builder.function(F.layer_norm, x, normalised, scale, shift, call.get("epsilon", 1e-5))


def _instance_norm(builder: Builder, call: Call) -> fx.Node:
    x, scale, shift = (builder.tensor(name) for name in call.inputs)
    return builder.function(F.instance_norm, x, None, None, scale, shift, True, 0.1, call.get("epsilon", 1e-5))


def _local_norm(builder: Builder, call: Call) -> fx.Node:
    settings = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    return builder.layer(call, nn.LocalResponseNorm(call.get("size", 1), *settings), builder.tensor(call.inputs[0]))


def _activation(make: Callable[[Call], nn.Module]) -> Add:
    return lambda builder, call: builder.layer(call, make(call), builder.tensor(call.inputs[0]))


def _dropout(builder: Builder, call: Call) -> fx.Node:
    if len(call.inputs) > 2 and call.inputs[2] and bool(builder.constant(call.inputs[2])):
        raise InputError(f"{call} is in training mode; export the network in eval mode")
    return builder.tensor(call.inputs[0])


def _clip(builder: Builder, call: Call) -> fx.Node:
    ends: list[float | None] = []
    for position, name in enumerate(("min", "max"), start=1):
        value = call.get(name, None)
        if value is None and len(call.inputs) > position and call.inputs[position]:
            value = float(builder.constant(call.inputs[position]).reshape(()))
        ends.append(None if value is None or abs(value) > 1e38 else value)
    x = builder.tensor(call.inputs[0])
    if ends == [0, None]:
        return builder.layer(call, nn.ReLU(), x)
    if ends == [0, 6]:
        return builder.layer(call, nn.ReLU6(), x)
    return x if ends == [None, None] else builder.function(torch.clamp, x, *ends)


def _hard_sigmoid(builder: Builder, call: Call) -> fx.Node:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=SMALL) and beta == 0.5:
        return builder.layer(call, nn.Hardsigmoid(), builder.tensor(call.inputs[0]))
    scaled = builder.function(operator.mul, builder.tensor(call.inputs[0]), alpha)
    return builder.function(torch.clamp, builder.function(operator.add, scaled, beta), 0.0, 1.0)


def _prelu(builder: Builder, call: Call) -> fx.Node:
    slope = builder.constant(call.inputs[1])
    x = builder.tensor(call.inputs[0])
    return builder.function(torch.where, builder.function(operator.gt, x, 0), x, _scaled(builder, x, slope))


def _scaled(builder: Builder, x: fx.Node, factor: np.ndarray) -> fx.Node:
    return builder.function(operator.mul, x, builder.buffer(factor))


def _pool(builder: Builder, call: Call) -> fx.Node:
    kernel = call.get("kernel_shape", [])
    strides, dilations = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    if len(kernel) != 2:
        raise InputError(f"{call} pools over {len(kernel)} axes; images have two")
    pads = _pads(builder, call, kernel, strides, dilations)
    is_max, counted = call.kind == "MaxPool", bool(call.get("count_include_pad", 0))
    if not is_max and dilations != [1, 1]:
        raise InputError(f"{call} averages with dilations {dilations}")
    x = builder.tensor(call.inputs[0])
    symmetric = pads[:2] == pads[2:] and all(2 * pad <= size for pad, size in zip(pads[:2], kernel, strict=True))
    around = [pads[1], pads[3], pads[0], pads[2]]
    ceil, (height, width) = bool(call.get("ceil_mode", 0)), pads[:2] if symmetric else [0, 0]
    window = (tuple(kernel), tuple(strides), (height, width))
    if is_max:
        x = x if symmetric else builder.function(F.pad, x, around, "constant", -torch.inf)
        return builder.layer(call, nn.MaxPool2d(*window, dilation=tuple(dilations), ceil_mode=ceil), x)
    if symmetric:
        counted = counted or not any(pads)
        return builder.layer(call, nn.AvgPool2d(*window, ceil_mode=ceil, count_include_pad=counted), x)
    mean = builder.layer(call, nn.AvgPool2d(*window, ceil_mode=ceil), builder.function(F.pad, x, around))
    if counted:
        return mean
    ones = torch.ones(1, 1, *builder.shape(call.inputs[0])[2:])
    share = F.avg_pool2d(F.pad(ones, around), *window, ceil_mode=ceil)
    return builder.function(operator.truediv, mean, builder.buffer(share.numpy()))


def _global_pool(builder: Builder, call: Call) -> fx.Node:
    x, rank, is_max = builder.tensor(call.inputs[0]), len(builder.shape(call.inputs[0])), call.kind == "GlobalMaxPool"
    if rank == 4:
        return builder.layer(call, nn.AdaptiveMaxPool2d(1) if is_max else nn.AdaptiveAvgPool2d(1), x)
    return builder.function(torch.amax if is_max else torch.mean, x, tuple(range(2, rank)), True)


def _pads(
    builder: Builder, call: Call, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return the padding: top, left, bottom, right."""
    how = call.get("auto_pad", "NOTSET")
    if how in ("NOTSET", "VALID"):
        return list(call.get("pads", [0, 0, 0, 0])) if how == "NOTSET" else [0, 0, 0, 0]
    before, after = [], []
    for size, k, stride, dilation in zip(builder.shape(call.inputs[0])[2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        before.append(less if how == "SAME_UPPER" else more)
        after.append(more if how == "SAME_UPPER" else less)
    return [*before, *after]


def _axes(builder: Builder, call: Call) -> list[int] | None:
    """Return the axes in the settings or, in newer files, in the second input."""
    axes: list[int] | None = call.get("axes", None)
    if axes is None and len(call.inputs) > 1 and call.inputs[1]:
        axes = builder.constant(call.inputs[1]).tolist()
    return axes


def _reduction(builder: Builder, call: Call) -> fx.Node:
    axes = _axes(builder, call)
    x, rank = builder.tensor(call.inputs[0]), len(builder.shape(call.inputs[0]))
    if not axes and call.get("noop_with_empty_axes", 0):
        return x
    axes = sorted(axis % rank for axis in axes or range(rank))
    keep = bool(call.get("keepdims", 1))
    if call.kind == "ReduceMean":
        return builder.method("mean", x, tuple(axes), keep)
    if call.kind == "ReduceL2":
        return builder.function(torch.linalg.vector_norm, x, 2, tuple(axes), keep)
    return builder.function(REDUCTIONS[call.kind], x, tuple(axes), keep)


def _reshape(builder: Builder, call: Call) -> fx.Node:
    """Add a change of shape to the one that was observed, whatever computed it."""
    before, after = builder.shape(call.inputs[0]), builder.shape(call.outputs[0])
    x = builder.tensor(call.inputs[0])
    if before == after:
        return x
    axis = builder.batch_axis(call.outputs[0])
    if len(after) == 2 and axis == 0 and before[0] == after[0] and len(before) > 2:
        return builder.function(torch.flatten, x, 1)
    if call.kind == "Unsqueeze":
        for new in sorted(axis % len(after) for axis in _axes(builder, call) or []):
            x = builder.method("unsqueeze", x, new)
        return x
    return builder.method("reshape", x, tuple(-1 if i == axis else size for i, size in enumerate(after)))


def _expand(builder: Builder, call: Call) -> fx.Node:
    axis = builder.batch_axis(call.outputs[0])
    sizes = tuple(-1 if i == axis else size for i, size in enumerate(builder.shape(call.outputs[0])))
    return builder.method("expand", builder.tensor(call.inputs[0]), sizes)


def _transpose(builder: Builder, call: Call) -> fx.Node:
    axes = call.get("perm", list(range(len(builder.shape(call.inputs[0]))))[::-1])
    x = builder.tensor(call.inputs[0])
    return x if axes == sorted(axes) else builder.method("permute", x, tuple(axes))


def _concat(builder: Builder, call: Call) -> fx.Node:
    axis = call.get("axis", 1) % len(builder.shape(call.outputs[0]))
    names = [builder.batched(name) if axis else builder.tensor(name) for name in call.inputs]
    return builder.function(torch.cat, names, axis)


def _pad(builder: Builder, call: Call) -> fx.Node:
    rank = len(builder.shape(call.inputs[0]))
    sizes = call.get("pads", None)
    if sizes is None:
        sizes = builder.constant(call.inputs[1]).tolist()
    value = call.get("value", 0.0)
    if len(call.inputs) > 2 and call.inputs[2]:
        value = float(builder.constant(call.inputs[2]).reshape(()))
    axes = list(range(rank))
    if len(call.inputs) > 3 and call.inputs[3]:
        axes = [axis % rank for axis in builder.constant(call.inputs[3]).tolist()]
    begin, end = dict(zip(axes, sizes[: len(axes)], strict=True)), dict(zip(axes, sizes[len(axes) :], strict=True))
    changed = [axis for axis in axes if begin[axis] or end[axis]]
    x = builder.tensor(call.inputs[0])
    if not changed:
        return x
    around = [n for axis in reversed(range(min(changed), rank)) for n in (begin.get(axis, 0), end.get(axis, 0))]
    mode = call.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise InputError(f'{call} pads in mode "{mode}"')
    if mode == "constant":
        return builder.function(F.pad, x, around, "constant", value)
    return builder.function(F.pad, x, around, mode.replace("edge", "replicate"))


def _softmax(builder: Builder, call: Call) -> fx.Node:
    rank = len(builder.shape(call.inputs[0]))
    axis = call.get("axis", -1 if call.opset >= 13 else 1) % rank
    if call.opset < 13 and axis != rank - 1:
        raise InputError(f"{call} normalises over several axes at once")
    function = torch.softmax if call.kind == "Softmax" else torch.log_softmax
    return builder.function(function, builder.tensor(call.inputs[0]), axis)


def _cast(builder: Builder, call: Call) -> fx.Node:
    dtype = builder.dtype(call.outputs[0])
    if not dtype.is_floating_point:
        raise InputError(f"{call} turns numbers into {str(dtype).removeprefix('torch.')}, which has no gradient")
    x = builder.tensor(call.inputs[0])
    return x if builder.dtype(call.inputs[0]) == dtype else builder.method("to", x, dtype)


def _slice(builder: Builder, call: Call) -> fx.Node:
    given: list[list[int] | None] = [call.get(name, None) for name in ("starts", "ends", "axes", "steps")]
    for position, name in enumerate(call.inputs[1:]):
        given[position] = builder.constant(name).tolist() if name else None
    starts, ends, axes, steps = given
    assert starts is not None
    assert ends is not None
    sizes = builder.shape(call.inputs[0])
    cuts = [slice(None)] * len(sizes)
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        at = axis % len(sizes)
        if step < 1:
            raise InputError(f"{call} takes every {step}th along axis {at}")
        cuts[at] = slice(None) if (start, step) == (0, 1) and end >= sizes[at] else slice(start, end, step)
    return builder.function(operator.getitem, builder.tensor(call.inputs[0]), tuple(cuts))


def _gather(builder: Builder, call: Call) -> fx.Node:
    axis = call.get("axis", 0) % len(builder.shape(call.inputs[0]))
    indices, x = builder.constant(call.inputs[1]), builder.tensor(call.inputs[0])
    if indices.ndim > 1:
        raise InputError(f"{call} picks by a table of {indices.ndim} axes")
    if indices.ndim == 0:
        return builder.function(torch.select, x, axis, int(indices))
    where = builder.buffer(indices % builder.shape(call.inputs[0])[axis])
    return builder.function(torch.index_select, x, axis, where)


def _split(builder: Builder, call: Call) -> None:
    axis = call.get("axis", 0) % len(builder.shape(call.inputs[0]))
    sizes = [builder.shape(name)[axis] for name in call.outputs]
    parts = builder.function(torch.split, builder.tensor(call.inputs[0]), sizes, axis)
    for i, name in enumerate(call.outputs):
        builder.nodes[name] = builder.function(operator.getitem, parts, i)


def _einsum(builder: Builder, call: Call) -> fx.Node:
    return builder.function(torch.einsum, call.get("equation", ""), *(builder.tensor(name) for name in call.inputs))


def _where(builder: Builder, call: Call) -> fx.Node:
    # What exporters of attention add, in case that all of a row is masked, decides nothing.
    guards = builder.varies(call.inputs[0]) and builder.producers[call.inputs[0]].kind == "IsNaN"
    if builder.varies(call.inputs[0]) and not guards:
        raise InputError(f"{call} decides by what the image is, so its gradient does not see the decision")
    return builder.function(torch.where, *(builder.tensor(name) for name in call.inputs))


def _resize(builder: Builder, call: Call) -> fx.Node:
    how = {"linear": "bilinear", "nearest": "nearest"}.get(call.get("mode", "nearest"))
    if how is None or len(builder.shape(call.inputs[0])) != 4:
        raise InputError(f"{call} resizes in mode {call.get('mode', 'nearest')}")
    size = builder.shape(call.outputs[0])[2:]
    corners = call.get("coordinate_transformation_mode", "half_pixel") == "align_corners"
    # What ONNX calls asymmetric is torch's "nearest"; agreement with ONNX Runtime decides for the others.
    return builder.function(
        F.interpolate, builder.tensor(call.inputs[0]), size, None, how, corners if how == "bilinear" else None
    )


OPERATORS: dict[str, Add] = {
    **{kind: lambda b, c: b.function(MAPS[c.kind], b.tensor(c.inputs[0])) for kind in MAPS},
    **dict.fromkeys(PAIRS, _pair),
    **dict.fromkeys(MANY, _many),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "Dropout": _dropout,
    "Identity": lambda b, c: b.tensor(c.inputs[0]),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": _norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "Einsum": _einsum,
    "Elu": _activation(lambda call: nn.ELU(call.get("alpha", 1.0))),
    "Expand": _expand,
    "Gather": _gather,
    "Gelu": _activation(lambda call: nn.GELU(call.get("approximate", "none"))),
    "Gemm": _linear,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _activation(lambda call: nn.Hardswish()),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _activation(lambda call: nn.LeakyReLU(call.get("alpha", 0.01))),
    "LRN": _local_norm,
    "Mean": _average,
    "PRelu": _prelu,
    "Pad": _pad,
    "Relu": _activation(lambda call: nn.ReLU()),
    "Selu": _activation(lambda call: nn.SELU()),
    "Slice": _slice,
    "Transpose": _transpose,
    "Where": _where,
}
