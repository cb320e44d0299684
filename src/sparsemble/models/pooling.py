"""Torch pooling operations as nodes of the runtime, if it can compute them."""

from typing import Any

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.models.graph import Operation
from sparsemble.runtime import network as runtime
from sparsemble.runtime.network import Pair, Shape

POSITIONAL_SETTINGS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "mean": ("dim", "keepdim"),
}
"""Settings that a function or method takes by position, after the images."""


Pool = runtime.MaxPool | runtime.AveragePool


def pool_node(operation: Operation, input_shape: Shape, inputs: tuple[int, ...]) -> Pool:
    """Return a pooling operation as a node.

    Args:
        operation: of kind `pool`.
        input_shape: channels, height and width of its input.
        inputs: index of the node before it.

    Raises:
        InputError: the runtime cannot compute it; the message names the operation.
    """
    module = operation.module
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or "adaptive" in operation.function:
        kernel = _adaptive_kernel(operation, input_shape)
        return _kind(operation)(inputs, kernel, kernel)
    if operation.function == "mean":
        _check_mean(operation, input_shape)
        _, height, width = input_shape
        return runtime.AveragePool(inputs, (height, width), (height, width))
    settings = _call_settings(operation) if module is None else dict(vars(module))
    kernel = as_pair(settings["kernel_size"])
    stride = settings.get("stride")
    padding = as_pair(settings.get("padding", 0))
    node = _kind(operation)(inputs, kernel, as_pair(stride) if stride else kernel, padding)
    _check(operation, settings, node, input_shape)
    return node


def _kind(operation: Operation) -> type[Pool]:
    is_max = isinstance(operation.module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) or "max" in operation.function
    return runtime.MaxPool if is_max else runtime.AveragePool


def _adaptive_kernel(operation: Operation, input_shape: Shape) -> Pair:
    """An adaptive pool whose output divides its input evenly is an ordinary one."""
    down, across = (before // after for before, after in zip(input_shape[1:], operation.shape[1:], strict=True))
    if (operation.shape[1] * down, operation.shape[2] * across) != input_shape[1:]:
        raise InputError(
            f"operation {operation.name} pools {input_shape[1:]} to {operation.shape[1:]}; the runtime knows adaptive "
            "pools whose output divides their input evenly"
        )
    return down, across


def _check_mean(operation: Operation, input_shape: Shape) -> None:
    settings = _call_settings(operation)
    axes = settings.get("dim", settings.get("axis"))
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    if len(input_shape) != 3 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise InputError(
            f"operation {operation.name} is a mean over axes {axes} of {(1, *input_shape)}; the runtime knows the one "
            "over rows and columns, (2, 3)"
        )


def _check(operation: Operation, settings: dict[str, Any], node: Pool, input_shape: Shape) -> None:
    """Refuse settings that the node cannot represent."""
    name, kernel, divisor = operation.name, node.kernel, settings.get("divisor_override")
    is_mean = isinstance(node, runtime.AveragePool)
    if as_pair(settings.get("dilation", 1)) != (1, 1):
        raise InputError(f"operation {name} pools with dilation {settings['dilation']}; the runtime knows 1 only")
    if divisor not in (None, kernel[0] * kernel[1]):
        raise InputError(
            f"operation {name} pools with divisor_override = {divisor}; the runtime divides by the size of the window, "
            f"{kernel[0] * kernel[1]}"
        )
    if is_mean and divisor is None and any(node.padding) and not settings.get("count_include_pad", True):
        raise InputError(f"operation {name} leaves padding out of its means, which the runtime does not")
    # Where ceil_mode adds no window, it changes nothing.
    if settings.get("ceil_mode") and node.shape(input_shape) != operation.shape:
        raise InputError(
            f"operation {name} pools {input_shape[1:]} to {operation.shape[1:]} by ceil_mode; the runtime has no "
            "windows that reach over the edge"
        )


def _call_settings(operation: Operation) -> dict[str, Any]:
    """Return the settings of a pooling function by name."""
    names = iter(POSITIONAL_SETTINGS[operation.function])
    settings: dict[str, Any] = {}
    for argument in operation.arguments:
        if isinstance(argument, tuple) and len(argument) == 2 and isinstance(argument[0], str):
            settings[argument[0]] = argument[1]
        else:
            settings[next(names)] = argument
    return settings


def as_pair(value: Any) -> Pair:
    """Return a setting of torch, one number or one for each axis, as two numbers."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))
