"""The window of a torch pooling operation, if the runtime can compute it."""

from typing import Any, NamedTuple

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


class PoolWindow(NamedTuple):
    """The window of a pool."""

    is_max: bool
    """Whether the pool returns the maximum of a window, not the mean."""
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    @property
    def is_identity(self) -> bool:
        """Whether every window is one pixel, so that the pool changes nothing."""
        return (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))

    def node(self, inputs: tuple[int, ...]) -> runtime.MaxPool | runtime.AveragePool:
        """Return the pool as a node of the runtime."""
        pool = runtime.MaxPool if self.is_max else runtime.AveragePool
        return pool(inputs, self.kernel, self.stride, self.padding)


def pool_window(operation: Operation, input_shape: Shape) -> PoolWindow:
    """Return the window of a pooling operation.

    Args:
        operation: of kind `pool`.
        input_shape: channels, height and width of its input.

    Raises:
        InputError: the runtime cannot compute it; the message names the operation.
    """
    module = operation.module
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or "adaptive" in operation.function:
        return _adaptive(operation, input_shape)
    if operation.function == "mean":
        return _mean(operation, input_shape)
    settings = _call_settings(operation) if module is None else dict(vars(module))
    kernel = as_pair(settings["kernel_size"])
    stride = settings.get("stride")
    padding = as_pair(settings.get("padding", 0))
    window = PoolWindow(_is_max(operation), kernel, as_pair(stride) if stride else kernel, padding)
    _check(operation, settings, window, input_shape)
    return window


def _is_max(operation: Operation) -> bool:
    return isinstance(operation.module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) or "max" in operation.function


def _adaptive(operation: Operation, input_shape: Shape) -> PoolWindow:
    """An adaptive pool whose output divides its input evenly is an ordinary one."""
    down, across = (before // after for before, after in zip(input_shape[1:], operation.shape[1:], strict=True))
    if (operation.shape[1] * down, operation.shape[2] * across) != input_shape[1:]:
        raise InputError(
            f"operation {operation.name} pools {input_shape[1:]} to {operation.shape[1:]}; the runtime knows adaptive "
            "pools whose output divides their input evenly"
        )
    return PoolWindow(_is_max(operation), (down, across), (down, across))


def _mean(operation: Operation, input_shape: Shape) -> PoolWindow:
    settings = _call_settings(operation)
    axes = settings.get("dim", settings.get("axis"))
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    if len(input_shape) != 3 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise InputError(
            f"operation {operation.name} is a mean over axes {axes} of {(1, *input_shape)}; the runtime knows the one "
            "over rows and columns, (2, 3)"
        )
    return PoolWindow(False, (input_shape[1], input_shape[2]), (input_shape[1], input_shape[2]))


def _check(operation: Operation, settings: dict[str, Any], window: PoolWindow, input_shape: Shape) -> None:
    """Refuse settings that `PoolWindow` cannot represent."""
    name, kernel, divisor = operation.name, window.kernel, settings.get("divisor_override")
    if as_pair(settings.get("dilation", 1)) != (1, 1):
        raise InputError(f"operation {name} pools with dilation {settings['dilation']}; the runtime knows 1 only")
    if divisor not in (None, kernel[0] * kernel[1]):
        raise InputError(
            f"operation {name} pools with divisor_override = {divisor}; the runtime divides by the size of the window, "
            f"{kernel[0] * kernel[1]}"
        )
    if not window.is_max and divisor is None and any(window.padding) and not settings.get("count_include_pad", True):
        raise InputError(f"operation {name} leaves padding out of its means, which the runtime does not")
    # Where ceil_mode adds no window, it changes nothing.
    if settings.get("ceil_mode") and window.node((0,)).shape(input_shape) != operation.shape:
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
