"""8-bit arithmetic: which results of a network are stored in 8 bits, and in which steps, from held-out images."""

import math
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images
from sparsemble.models.folded import KEEPS_STEPS, FoldedNetwork, run_nodes
from sparsemble.runtime import network as runtime
from sparsemble.runtime.compiler.fused import fused_groups
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.packed import round_weights
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import LEAST_SCALE, Values
from sparsemble.runtime.network import Network, Node, Steps

KNOWN = (
    runtime.Input,
    runtime.Affine,
    runtime.Convolution,
    runtime.Linear,
    runtime.Relu,
    runtime.Add,
    runtime.MaxPool,
    runtime.AveragePool,
    runtime.Flatten,
)
"""Operations that 8-bit arithmetic has."""
MOST_VALUES = 2**24
"""Numbers of one result that its range is calibrated on; where results are large, on fewer images."""
FEWEST_IMAGES = 16


Arithmetic = Literal["float32", "int8"]


def values_for(arithmetic: Arithmetic, values: Values | None) -> Values:
    """Return the number format of the weights: int8 where they are multiplied in 8 bits, else float16 unless given.

    Raises:
        InputError: another format with 8-bit arithmetic, or an unknown arithmetic.
    """
    if arithmetic not in get_args(Arithmetic):
        raise InputError(f'arithmetic = "{arithmetic}" is not known; use float32 or int8')
    if arithmetic == "int8" and values not in (None, "int8"):
        raise InputError(
            f'values = "{values}" does not fit arithmetic = "int8", which multiplies int8 weights; leave values out, '
            "or use float32 arithmetic"
        )
    return values or ("int8" if arithmetic == "int8" else "float16")


def quantize(ensemble: PackedEnsemble, clean: Images, adversarial: Images) -> PackedEnsemble:
    """Return an ensemble whose members compute in 8 bits: weights of -127..127, results of 0..255.

    A member's first layer reads the image, and logits are returned, in float32; so is the mean that only the last layer
    reads. The range of every other result is that of its values on the images, half of them adversarial, in the network
    whose earlier results are in 8 bits already. Ranges that cut off the largest values (percentiles, least squared
    error) changed the logits more in all networks that were measured (docs/runtime.md).

    Args:
        ensemble: computes in float32; its weights are rounded to int8.
        clean: (B, C, H, W) held-out images in [0, 1].
        adversarial: (B, C, H, W) made of them.

    Raises:
        InputError: no images, an operation without 8-bit arithmetic, a range of zero width, or nothing to quantize.
    """
    if not len(clean) or len(adversarial) != len(clean):
        raise InputError(
            f"ranges of 8-bit arithmetic are calibrated on held-out images, clean and adversarial; there are "
            f"{len(clean)} and {len(adversarial)}, so they never were; hold images out, or use float32 arithmetic"
        )
    rounded = round_weights(ensemble, "int8")
    members = []
    for number, member in enumerate(rounded.members, start=1):
        try:
            members.append(_calibrated(member, _some(member, clean, adversarial)))
        except (InputError, RuntimeInputError) as error:
            raise InputError(f"member {number} cannot compute in 8 bits: {error}; use float32 arithmetic") from None
    return replace(rounded, members=tuple(members))


def stored_in_8_bits(network: Network) -> set[int]:
    """Return the operations whose results are stored in 8 bits: the last of each group that is computed in one go.

    Not the image or its normalisation, the logits, or a mean that only the last layer reads.

    Raises:
        InputError: an operation without 8-bit arithmetic, or nothing to store.
    """
    for i, node in enumerate(network.nodes):
        if not isinstance(node, KNOWN):
            raise InputError(f"operation {i} is {type(node).__name__}, which has no 8-bit arithmetic")
    groups, last = fused_groups(network), len(network.nodes) - 1
    image, logits = groups[0], groups[last]
    results = {
        buffer: index
        for index, buffer in sorted(groups.items())
        if not isinstance(network.nodes[index], runtime.Flatten)
    }
    read_by = {
        buffer: {
            groups[i] for i, node in enumerate(network.nodes) for source in node.inputs if groups[source] == buffer
        }
        - {buffer}
        for buffer in results
    }
    means = {
        groups[i]
        for i, node in enumerate(network.nodes)
        if isinstance(node, runtime.AveragePool) and read_by[groups[i]] == {logits}
    }
    stored = {index for buffer, index in results.items() if buffer not in {image, logits} | means}
    if not stored:
        raise InputError("all its layers are the first or the last, which compute in float32")
    return stored


def _some(member: Network, clean: Images, adversarial: Images) -> Tensor:
    """Return as many images as the largest result leaves room for, half of them adversarial."""
    largest = max(int(np.prod(shape)) for shape in member.shapes)
    half = max(FEWEST_IMAGES, MOST_VALUES // largest) // 2
    chosen = torch.linspace(0, len(clean) - 1, min(half, len(clean)), device=clean.device).long()
    return torch.cat([clean[chosen], adversarial[chosen]])


@torch.no_grad()
def _calibrated(member: Network, images: Tensor) -> Network:
    """Return a member with the steps of its results; each is calibrated where those before it are rounded already."""
    wanted, network = stored_in_8_bits(member), FoldedNetwork(member)
    steps: dict[int, Steps] = {}

    def run(index: int, node: Node, inputs: list[Tensor]) -> Tensor:
        result = network.run(index, node, inputs)
        if node.inputs[0] in steps and isinstance(node, KEEPS_STEPS):
            steps[index] = steps[node.inputs[0]]
        elif index in wanted:
            steps[index] = whole_range(result, f"operation {index}")
            return _rounded(result, steps[index])
        return result

    run_nodes(network.nodes, network.free, images, run)
    return Network(member.image, member.nodes, steps)


def _rounded(values: Tensor, steps: Steps) -> Tensor:
    return ((values / steps.scale).round().clamp(-steps.zero, 255 - steps.zero)) * steps.scale


def whole_range(values: Tensor, name: str) -> Steps:
    """Return the steps from the least to the largest value, 0 among them.

    Args:
        values: a result, for all images.
        name: of the operation, for messages.

    Raises:
        InputError: values that are not finite, or all 0.
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if not math.isfinite(high - low):
        raise InputError(f"{name} gives values that are not finite for held-out images")
    if low == high:
        raise InputError(f"{name} gives 0 for every held-out image, so its range has no width")
    scale = max(float(np.float32((high - low) / 255)), LEAST_SCALE)
    return Steps(scale, min(round(-low / scale), 255))
