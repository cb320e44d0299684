"""Reading the parts of a packed file: nothing is taken for granted."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.compiler.fused import fuse
from sparsemble.runtime.compiler.memory_estimate import table_bytes
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import index_coding
from sparsemble.runtime.format.header import field, items, table_of, whole
from sparsemble.runtime.format.op_serialization import node_from_dict
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import LARGEST, LEAST_SCALE, VALUES, times_scales
from sparsemble.runtime.network import Floats, Network, Node, Weight
from sparsemble.runtime.stopping import build_rule

MOST_MEMBERS, MOST_NODES, MOST_CLASSES = 64, 10_000, 100_000
CODINGS = ("dense", "bitmap", "rice")


class _Part:
    """Bytes that are handed out from the front."""

    def __init__(self, content: memoryview, name: str) -> None:
        self.content, self.name, self.place = content, name, 0

    def rest(self) -> memoryview:
        return self.content[self.place :]

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self.content) - self.place:
            raise RuntimeInputError(
                f"{what} takes {size} bytes, but {len(self.content) - self.place} of {self.name} are left"
            )
        found = self.content[self.place : self.place + size]
        self.place += size
        return found

    def finish(self) -> None:
        if self.place != len(self.content):
            raise RuntimeInputError(f"{len(self.content) - self.place} bytes of {self.name} belong to nothing")


@final
class Reader:
    """Makes an ensemble of a header and the bytes behind it.

    Args:
        header: as parsed.
        content: all parts.
    """

    def __init__(self, header: Mapping[str, Any], content: memoryview) -> None:
        self.header, self.content = header, content
        values = field(header, "values", "the header")
        if values not in VALUES:
            raise RuntimeInputError(f"values = {values!r:.60} must be one of {', '.join(VALUES)}")
        self.values = np.dtype(values).newbyteorder("<")

    def ensemble(self, max_memory: int) -> PackedEnsemble:
        """Return the ensemble."""
        header, where = self.header, "the header"
        classes = items(field(header, "classes", where), "classes")
        if not 2 <= len(classes) <= MOST_CLASSES or not all(isinstance(name, str) for name in classes):
            raise RuntimeInputError(f"classes must be a list of 2 to {MOST_CLASSES} names; there are {len(classes)}")
        image = [whole(one, "image", 1, 2**16) for one in items(field(header, "image", where), "image", 3)]
        if field(header, "range", where) != [0, 1]:
            raise RuntimeInputError("range must be [0, 1]; images in another one are not known")
        told = items(field(header, "members", where), "members")
        if not 1 <= len(told) <= MOST_MEMBERS:
            raise RuntimeInputError(f"there are {len(told)} members; 1 to {MOST_MEMBERS} are read")
        whole(field(header, "nonzeros", where), "nonzeros")
        if not isinstance(field(header, "sparsity", where), int | float):
            raise RuntimeInputError("sparsity must be a number")
        parts = self._parts(3 * len(told))
        shape = (image[0], image[1], image[2])
        members = [self._member(one, i, parts[3 * i : 3 * i + 3], shape) for i, one in enumerate(told)]
        results = max(4 * sum(math.prod(one) for one in member.shapes) for member in members)
        if results > max_memory:
            raise RuntimeInputError(
                f"the results of one image take {results} bytes, more than max_memory = {max_memory}"
            )
        # Before anything is laid out: a few bytes can describe windows as large as they like.
        tables = max(table_bytes(fuse(member)) for member in members)
        if tables > max_memory:
            raise RuntimeInputError(
                f"the tables to run a member take {tables} bytes, more than max_memory = {max_memory}"
            )
        combiner, rule = (table_of(field(header, name, where), name) for name in ("combine", "stop"))
        build_combiner(combiner)
        build_rule(rule)
        return PackedEnsemble(
            members=tuple(members),
            combiner=combiner,
            rule=rule,
            classes=tuple(classes),
            parent_weights=whole(field(header, "parent_weights", where), "parent_weights", 1),
            recipe=table_of(field(header, "recipe", where), "recipe"),
            provenance=table_of(field(header, "provenance", where), "provenance"),
        )

    def _parts(self, count: int) -> list[memoryview]:
        """Return the parts, which lie one behind the other and fill the file, each with the sha256 it should have."""
        told = items(field(self.header, "parts", "the header"), "parts", count)
        found, end = [], 0
        for i, one in enumerate(told):
            where = f"part {i}"
            table = table_of(one, where)
            offset, size = (whole(field(table, name, where), f"{where}.{name}") for name in ("offset", "size"))
            if offset != end or end + size > len(self.content):
                raise RuntimeInputError(
                    f"{where} is said to take {size} bytes from {offset} on, of {len(self.content)} there are"
                )
            found.append(self.content[offset : offset + size])
            end += size
            if hashlib.sha256(found[-1]).hexdigest() != field(table, "sha256", where):
                raise RuntimeInputError(f"{where} is damaged: its sha256 is another one")
        if end != len(self.content):
            raise RuntimeInputError(f"{len(self.content) - end} bytes at the end of the file belong to nothing")
        return found

    def _member(self, told: Any, number: int, parts: list[memoryview], image: tuple[int, int, int]) -> Network:
        where = f"member {number + 1}"
        nodes = items(told, where)
        if not 1 <= len(nodes) <= MOST_NODES:
            raise RuntimeInputError(f"{where} has {len(nodes)} operations; 1 to {MOST_NODES} are read")
        places, values, floats = (
            _Part(part, f"the {name} of {where}")
            for part, name in zip(parts, ("positions", "values", "constants"), strict=True)
        )
        made: list[Node] = []
        for place, one in enumerate(nodes):
            here = f"{where}, operation {place}"
            table = table_of(one, here)
            made.append(
                node_from_dict(
                    table,
                    here,
                    lambda table=table, here=here: self._weight(table, here, places, values, floats),  # type: ignore[misc]
                    lambda count, here=here: _floats(floats, count, here),  # type: ignore[misc]
                )
            )
        for part in (places, values, floats):
            part.finish()
        try:
            return Network(image, tuple(made))
        except RuntimeInputError as error:
            raise RuntimeInputError(f"{where}: {error}") from None

    def _weight(self, told: Mapping[str, Any], where: str, places: _Part, values: _Part, floats: _Part) -> Weight:
        table = table_of(field(told, "weight", where), f"{where}.weight")
        shape = tuple(whole(one, f"{where}.shape", 1) for one in items(field(table, "shape", where), where))
        wanted = 4 if told.get("kind") == "convolution" else 2
        size = math.prod(shape)
        if len(shape) != wanted or size >= 2**32:
            raise RuntimeInputError(
                f"{where} has weights of shape {shape}; {wanted} axes and fewer than 2^32 weights are read"
            )
        count = whole(field(table, "nonzeros", where), f"{where}.nonzeros", 0, size)
        coding = field(table, "coding", where)
        if coding not in CODINGS:
            raise RuntimeInputError(f"{where}.coding = {coding!r:.60} must be one of {', '.join(CODINGS)}")
        parameter = whole(field(table, "parameter", where), f"{where}.parameter", 0, index_coding.LARGEST_PARAMETER)
        stored = size if coding == "dense" else count
        # Before anything is made of it: so many values must be there.
        taken = values.take(stored * self.values.itemsize, f"{where}, weights,")
        found, used = index_coding.decode(places.rest(), size, count, coding, parameter)
        places.take(used, f"{where}, positions,")
        kept = np.frombuffer(taken, self.values)
        if coding == "dense":
            some = kept != 0
            found, kept = found[some], kept[some]
        if self.values == np.int8:
            scales = _scales(floats, shape[0], where)
            if len(kept) and kept.min() < -LARGEST:
                raise RuntimeInputError(
                    f"{where} has a weight of {kept.min()} scales; {-LARGEST} to {LARGEST} are read"
                )
            with np.errstate(over="ignore"):
                numbers = times_scales(kept, found, shape, scales)
        else:
            numbers = kept.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise RuntimeInputError(f"{where} has a weight that is no number")
        if len(found) != count or not numbers.all():
            raise RuntimeInputError(f"{where} has other than {count} weights that are not 0")
        return Weight(shape, found, numbers)


def _scales(part: _Part, count: int, where: str) -> Floats:
    found = _floats(part, count, where)
    wrong = found[(found != 0) & (found < LEAST_SCALE)]
    if len(wrong):
        raise RuntimeInputError(f"{where} has a scale of {wrong[0]:g}; 0 and {LEAST_SCALE:g} or more are read")
    return found


def _floats(part: _Part, count: int, where: str) -> Floats:
    found = np.frombuffer(part.take(4 * count, f"{where}, constants,"), "<f4").astype(np.float32)
    if not np.isfinite(found).all():
        raise RuntimeInputError(f"{where} has a constant that is no number")
    return found
