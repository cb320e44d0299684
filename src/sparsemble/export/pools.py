"""Which windows a pooling operation of torch has, if the runtime knows them."""

from typing import Any, NamedTuple

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.models.graph import Operation
from sparsemble.runtime import network as runtime
from sparsemble.runtime.network import Pair, Shape

POSITIONS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "mean": ("dim", "keepdim"),
}
"""Names of the settings that a function or method takes by position, after the images."""


class Windows(NamedTuple):
    """Where the windows of a pool lie."""

    largest: bool
    """Whether it takes the largest of a window, not the mean."""
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    @property
    def keeps(self) -> bool:
        """Whether every window is one pixel, so that nothing changes."""
        return (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))

    def node(self, inputs: tuple[int, ...]) -> runtime.MaxPool | runtime.AveragePool:
        """Return the pool as the runtime knows it."""
        make = runtime.MaxPool if self.largest else runtime.AveragePool
        return make(inputs, self.kernel, self.stride, self.padding)


def windows(operation: Operation, given: Shape) -> Windows:
    """Return the windows of a pooling operation.

    Args:
        operation: of kind `pool`.
        given: shape of what it pools.

    Raises:
        InputError: it pools as the runtime does not; the operation is named.
    """
    module = operation.module
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) or "adaptive" in operation.function:
        return _adaptive(operation, given)
    if operation.function == "mean":
        return _mean(operation, given)
    settings = _called(operation) if module is None else dict(vars(module))
    kernel = pair(settings["kernel_size"])
    stride = settings.get("stride")
    found = Windows(_largest(operation), kernel, pair(stride) if stride else kernel, pair(settings.get("padding", 0)))
    _check(operation, settings, found, given)
    return found


def _largest(operation: Operation) -> bool:
    return isinstance(operation.module, nn.MaxPool2d | nn.AdaptiveMaxPool2d) or "max" in operation.function


def _adaptive(operation: Operation, given: Shape) -> Windows:
    """An adaptive pool whose output divides its input evenly is an ordinary one."""
    down, across = (before // after for before, after in zip(given[1:], operation.shape[1:], strict=True))
    if (operation.shape[1] * down, operation.shape[2] * across) != given[1:]:
        raise InputError(
            f"operation {operation.name} pools {given[1:]} to {operation.shape[1:]}; the runtime knows adaptive pools "
            "whose output divides their input evenly"
        )
    return Windows(_largest(operation), (down, across), (down, across))


def _mean(operation: Operation, given: Shape) -> Windows:
    settings = _called(operation)
    axes = settings.get("dim", settings.get("axis"))
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    if len(given) != 3 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise InputError(
            f"operation {operation.name} is a mean over axes {axes} of {(1, *given)}; the runtime knows the one over "
            "rows and columns, (2, 3)"
        )
    return Windows(False, (given[1], given[2]), (given[1], given[2]))


def _check(operation: Operation, settings: dict[str, Any], found: Windows, given: Shape) -> None:
    """Refuse what `Windows` cannot say."""
    name, kernel, divisor = operation.name, found.kernel, settings.get("divisor_override")
    if pair(settings.get("dilation", 1)) != (1, 1):
        raise InputError(f"operation {name} pools with dilation {settings['dilation']}; the runtime knows 1 only")
    if divisor not in (None, kernel[0] * kernel[1]):
        raise InputError(
            f"operation {name} pools with divisor_override = {divisor}; the runtime divides by the size of the window, "
            f"{kernel[0] * kernel[1]}"
        )
    if not found.largest and divisor is None and any(found.padding) and not settings.get("count_include_pad", True):
        raise InputError(f"operation {name} leaves padding out of its means, which the runtime does not")
    # Where ceil_mode adds no window, it changes nothing.
    if settings.get("ceil_mode") and found.node((0,)).shape(given) != operation.shape:
        raise InputError(
            f"operation {name} pools {given[1:]} to {operation.shape[1:]} by ceil_mode; the runtime has no windows "
            "that reach over the edge"
        )


def _called(operation: Operation) -> dict[str, Any]:
    """Return the settings of a pooling function by name."""
    names = iter(POSITIONS[operation.function])
    found: dict[str, Any] = {}
    for argument in operation.arguments:
        if isinstance(argument, tuple) and len(argument) == 2 and isinstance(argument[0], str):
            found[argument[0]] = argument[1]
        else:
            found[next(names)] = argument
    return found


def pair(value: Any) -> Pair:
    """Return a setting of torch, one number or one for each direction, as two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))
