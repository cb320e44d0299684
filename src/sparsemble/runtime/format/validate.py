"""Validate a packed file: every field of its header and every byte behind it are checked before they are used."""

import hashlib
import math
from typing import Any, final

import numpy as np

from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.compiler.fused import fuse
from sparsemble.runtime.compiler.layout import table_bytes
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import index_coding
from sparsemble.runtime.format.header import LARGEST_INT, Fields
from sparsemble.runtime.format.op_serialization import node_from_dict, steps_from_dict
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import LARGEST, LEAST_SCALE, VALUES, dequantize
from sparsemble.runtime.images import LARGEST_SIDE, MODES, Preprocessing
from sparsemble.runtime.network import Floats, Network, Node, Steps, Weight
from sparsemble.runtime.stopping import build_rule

MAX_MEMBERS, MAX_NODES, MAX_CLASSES = 64, 10_000, 100_000
PARTS = ("positions", "values", "constants")
"""Of each member: coded positions of its weights; their values; scales, biases and shifts."""


def validate_packed_file(header: dict[str, Any], content: memoryview, version: int, max_memory: int) -> PackedEnsemble:
    """Return the ensemble that a packed file holds, if everything in the file is valid.

    Args:
        header: the parsed header; nothing in it is trusted.
        content: the bytes behind the header.
        version: of the file; results in 8 bits begin with version 2.
        max_memory: bytes that the activations of one image, and the tables to run a member, may take.
    """
    return _Validator(Fields(header, "the header"), content, version).ensemble(max_memory)


def read_preprocessing(header: Fields) -> Preprocessing | None:
    """Return how files become images, as a header says; None where it does not, as in files of version 0.1."""
    if "preprocessing" not in header.values:
        return None
    record = header.table("preprocessing")
    record.choice("orientation", ("exif",))
    size, _ = record.integers("crop", 2, 1, LARGEST_SIDE)
    made = Preprocessing(
        mode=record.choice("mode", tuple(MODES.values())),
        resize=record.integer("resize", 1, LARGEST_SIDE),
        size=size,
    )
    if made.to_dict() != record.values:
        raise RuntimeInputError(f"{record.name} must have the form {made.to_dict()}")
    return made


@final
class _Part:
    """Bytes that are read from front to back."""

    def __init__(self, content: memoryview, name: str) -> None:
        self.content, self.name, self.position = content, name, 0

    def remaining(self) -> memoryview:
        """Return the bytes that were not read yet."""
        return self.content[self.position :]

    def read(self, size: int, purpose: str) -> memoryview:
        """Return the next bytes."""
        if size > len(self.content) - self.position:
            raise RuntimeInputError(
                f"{purpose} takes {size} bytes, but {len(self.content) - self.position} of {self.name} are left"
            )
        start = self.position
        self.position += size
        return self.content[start : self.position]

    def read_floats(self, count: int, where: str) -> Floats:
        """Return the next constants, all of them finite."""
        constants = np.frombuffer(self.read(4 * count, f"{where}, constants,"), "<f4").astype(np.float32)
        if not np.isfinite(constants).all():
            raise RuntimeInputError(f"{where} has a constant that is no number")
        return constants

    def read_scales(self, count: int, where: str) -> Floats:
        """Return the next scales of int8 weights: 0, or not subnormal."""
        scales = self.read_floats(count, where)
        invalid = scales[(scales != 0) & (scales < LEAST_SCALE)]
        if len(invalid):
            raise RuntimeInputError(f"{where} has a scale of {invalid[0]:g}; 0 and {LEAST_SCALE:g} or more are read")
        return scales

    def check_end(self) -> None:
        """Refuse bytes that were not read."""
        if self.position != len(self.content):
            raise RuntimeInputError(f"{len(self.content) - self.position} bytes of {self.name} belong to nothing")


@final
class _Validator:
    """Builds an ensemble from a header and the bytes behind it."""

    def __init__(self, header: Fields, content: memoryview, version: int) -> None:
        self.header, self.content, self.version = header, content, version
        self.values = np.dtype(header.choice("values", VALUES)).newbyteorder("<")

    def ensemble(self, max_memory: int) -> PackedEnsemble:
        """Return the ensemble."""
        header = self.header
        classes = header.items("classes")
        if not 2 <= len(classes) <= MAX_CLASSES or not all(isinstance(name, str) for name in classes):
            raise RuntimeInputError(f"classes must be a list of 2 to {MAX_CLASSES} names; there are {len(classes)}")
        channels, height, width = header.integers("image", 3, 1, 2**16)
        if header.get("range") != [0, 1]:
            raise RuntimeInputError("range must be [0, 1]; images in another one are not known")
        node_lists = header.items("members")
        if not 1 <= len(node_lists) <= MAX_MEMBERS:
            raise RuntimeInputError(f"there are {len(node_lists)} members; 1 to {MAX_MEMBERS} are read")
        nonzeros, sparsity = header.integer("nonzeros"), header.get("sparsity")
        if not isinstance(sparsity, int | float) or abs(sparsity) > LARGEST_INT:
            raise RuntimeInputError(f"sparsity must be a number, of at most {LARGEST_INT}")
        parts = self._parts(3 * len(node_lists))
        members = [
            self._member(nodes, i + 1, parts[3 * i : 3 * i + 3], (channels, height, width))
            for i, nodes in enumerate(node_lists)
        ]
        _check_memory(members, max_memory)
        combiner, rule = (header.table(key).values for key in ("combine", "stop"))
        build_combiner(combiner)
        build_rule(rule)
        ensemble = PackedEnsemble(
            members=tuple(members),
            combiner=combiner,
            rule=rule,
            classes=tuple(classes),
            parent_weights=header.integer("parent_weights", 1),
            recipe=header.table("recipe").values,
            provenance=header.table("provenance").values,
            preprocessing=read_preprocessing(header),
        )
        if ensemble.nonzeros != nonzeros or abs(ensemble.sparsity - sparsity) > 1e-9:
            raise RuntimeInputError(
                f"{ensemble.nonzeros} weights are there, a sparsity of {ensemble.sparsity:.6f}; the header has "
                f"{nonzeros} and {sparsity:.6f}"
            )
        return ensemble

    def _parts(self, count: int) -> list[memoryview]:
        """Return the parts of the file, which are contiguous and fill it, after comparing each with its sha256."""
        parts: list[memoryview] = []
        end = 0
        for i, entry in enumerate(self.header.items("parts", count)):
            where = f"part {i}"
            part = Fields(entry, where)
            offset, size = part.integer("offset"), part.integer("size")
            if offset != end or end + size > len(self.content):
                raise RuntimeInputError(
                    f"{where} has offset {offset} and size {size}; parts must be contiguous and within the "
                    f"{len(self.content)} bytes there are"
                )
            parts.append(self.content[offset : offset + size])
            end += size
            if hashlib.sha256(parts[-1]).hexdigest() != part.get("sha256"):
                raise RuntimeInputError(f"{where} is damaged: its sha256 is another one")
        if end != len(self.content):
            raise RuntimeInputError(f"{len(self.content) - end} bytes at the end of the file belong to nothing")
        return parts

    def _member(self, node_list: Any, number: int, parts: list[memoryview], image: tuple[int, int, int]) -> Network:
        """Return a member from the list of its operations and its three parts."""
        where = f"member {number}"
        if not isinstance(node_list, list) or not 1 <= len(node_list) <= MAX_NODES:
            raise RuntimeInputError(f"{where} must be a list of 1 to {MAX_NODES} operations")
        positions, values, constants = (
            _Part(part, f"the {name} of {where}") for part, name in zip(parts, PARTS, strict=True)
        )
        nodes: list[Node] = []
        steps: dict[int, Steps] = {}
        for i, entry in enumerate(node_list):
            node = Fields(entry, f"{where}, operation {i}")
            if found := self._steps(node):
                steps[i] = found
            nodes.append(
                node_from_dict(
                    node,
                    lambda node=node: self._weight(node, positions, values, constants),  # type: ignore[misc]
                    lambda count, name=node.name: constants.read_floats(count, name),  # type: ignore[misc]
                )
            )
        for part in (positions, values, constants):
            part.check_end()
        try:
            return Network(image, tuple(nodes), steps)
        except RuntimeInputError as error:
            raise RuntimeInputError(f"{where}: {error}") from None

    def _steps(self, node: Fields) -> Steps | None:
        """Return the steps in which an operation stores its result, if it does."""
        steps = steps_from_dict(node)
        if steps and self.version < 2:
            raise RuntimeInputError(f"{node.name} has steps, which begin with version 2; this file has {self.version}")
        if steps and self.values != np.int8:
            raise RuntimeInputError(f"{node.name} has steps, but the values are {self.values.name} and must be int8")
        return steps

    def _weight(self, node: Fields, positions: _Part, values: _Part, constants: _Part) -> Weight:
        """Return the weights of a convolution or linear layer from its entry in the header and the member's parts."""
        where, table = node.name, node.table("weight")
        shape = table.integers("shape", 4 if node.get("kind") == "convolution" else 2, 1)
        size = math.prod(shape)
        if size >= 2**32:
            raise RuntimeInputError(f"{where} has weights of shape {shape}; fewer than 2^32 weights are read")
        count = table.integer("nonzeros", 0, size)
        coding = table.choice("coding", index_coding.CODINGS)
        parameter = table.integer("parameter", 0, index_coding.LARGEST_PARAMETER)
        # The values must be there before memory is taken for the positions.
        stored_bytes = values.read((size if coding == "dense" else count) * self.values.itemsize, f"{where}, weights,")
        indices, used = index_coding.decode(positions.remaining(), size, count, coding, parameter)
        positions.read(used, f"{where}, positions,")
        stored = np.frombuffer(stored_bytes, self.values)
        if coding == "dense":
            nonzero = stored != 0
            indices, stored = indices[nonzero], stored[nonzero]
        if self.values == np.int8:
            scales = constants.read_scales(shape[0], where)
            if len(stored) and stored.min() < -LARGEST:
                raise RuntimeInputError(
                    f"{where} has a weight of {stored.min()} scales; {-LARGEST} to {LARGEST} are read"
                )
            with np.errstate(over="ignore"):
                weight = Weight(shape, indices, dequantize(stored, indices, shape, scales), stored.copy(), scales)
        else:
            weight = Weight(shape, indices, stored.astype(np.float32))
        if not np.isfinite(weight.values).all():
            raise RuntimeInputError(f"{where} has a weight that is no number")
        if len(indices) != count or not weight.values.all():
            raise RuntimeInputError(f"{where} has other than {count} weights that are not 0")
        return weight


def _check_memory(members: list[Network], max_memory: int) -> None:
    """Refuse a network that takes too much memory to run; nothing is allocated for that."""
    activations = max(4 * sum(math.prod(shape) for shape in member.shapes) for member in members)
    if activations > max_memory:
        raise RuntimeInputError(
            f"the results of one image take {activations} bytes, more than max_memory = {max_memory}"
        )
    # A few bytes of a header can describe windows of any size.
    tables = max(table_bytes(fuse(member)) for member in members)
    if tables > max_memory:
        raise RuntimeInputError(f"the tables to run a member take {tables} bytes, more than max_memory = {max_memory}")
