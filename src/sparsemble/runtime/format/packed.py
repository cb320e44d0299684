"""The packed file of an ensemble: written once, read without trust (docs/packed_file.md)."""

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import index_coding
from sparsemble.runtime.format.header import parse, text
from sparsemble.runtime.format.op_serialization import node_to_dict
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import Values, quantize, round_weight
from sparsemble.runtime.format.validate import Reader
from sparsemble.runtime.network import Affine, Convolution, Floats, Linear, Network, Node

MAGIC = b"\x89SPARSE\n"
VERSION = 1
PREFIX = struct.Struct("<8sII32s")
"""Magic, version, length of the header, sha256 of the header."""
SUFFIX = ".sparsemble"
LARGEST_HEADER = 2 * 2**20
PARTS = ("positions", "values", "floats")
"""Of each member: coded positions of its layers; their values; scales, biases and shifts."""


def round_weights(ensemble: PackedEnsemble, values: Values) -> PackedEnsemble:
    """Return the ensemble with weights as the file keeps them; those that round to 0 are dropped.

    Raises:
        RuntimeInputError: a weight that is no number, or too large for the format.
    """
    return replace(ensemble, members=tuple(_rounded(member, values, i) for i, member in enumerate(ensemble.members, 1)))


def _rounded(member: Network, values: Values, number: int) -> Network:
    nodes: list[Node] = []
    for place, node in enumerate(member.nodes):
        for floats in node_constants(node):
            if not np.isfinite(floats).all():
                raise RuntimeInputError(f"member {number}, operation {place} holds a constant that is no number")
        if isinstance(node, Convolution | Linear):
            if not np.isfinite(node.weight.values).all():
                raise RuntimeInputError(f"member {number}, operation {place} has a weight that is no number")
            weight = round_weight(node.weight, values)
            if not np.isfinite(weight.values).all():
                worst = float(np.abs(node.weight.values).max())
                raise RuntimeInputError(
                    f"member {number}, operation {place} has a weight of size {worst:g}, too much for {values}"
                )
            nodes.append(replace(node, weight=weight))
        else:
            nodes.append(node)
    return Network(member.image, tuple(nodes))


def node_constants(node: Node) -> list[Floats]:
    """Return the constants of a node that are kept in full."""
    if isinstance(node, Affine):
        return [node.scale, node.shift]
    return [node.bias] if isinstance(node, Convolution | Linear) else []


def save(ensemble: PackedEnsemble, path: Path, *, values: Values = "float16") -> None:
    """Write an ensemble, its weights rounded to `values`.

    Raises:
        RuntimeInputError: a weight that is no number, or too large for the format.
    """
    ensemble = round_weights(ensemble, values)
    members, parts, bodies = [], [], []
    offset = 0
    for member in ensemble.members:
        nodes, contents = _member(member, values)
        members.append(nodes)
        for name in PARTS:
            body = contents[name]
            parts.append({"offset": offset, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()})
            bodies.append(body)
            offset += len(body)
    header = {
        "classes": list(ensemble.classes),
        "image": list(ensemble.image),
        "range": [0, 1],
        "combine": dict(ensemble.combiner),
        "stop": dict(ensemble.rule),
        "parent_weights": ensemble.parent_weights,
        "nonzeros": ensemble.nonzeros,
        "sparsity": ensemble.sparsity,
        "values": values,
        "recipe": dict(ensemble.recipe),
        "provenance": dict(ensemble.provenance),
        "members": members,
        "parts": parts,
    }
    encoded = text(header)
    if len(encoded) > LARGEST_HEADER:
        raise RuntimeInputError(f"the header takes {len(encoded)} bytes, more than the {LARGEST_HEADER} that are read")
    prefix = PREFIX.pack(MAGIC, VERSION, len(encoded), hashlib.sha256(encoded).digest())
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(b"".join([prefix, encoded, *bodies]))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _member(member: Network, values: Values) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return what the header says of a member's nodes, and the content of its parts."""
    nodes = []
    contents: dict[str, list[bytes]] = {name: [] for name in PARTS}
    for node in member.nodes:
        told = node_to_dict(node)
        if isinstance(node, Convolution | Linear):
            weight, bits = node.weight, 8 * np.dtype(values).itemsize
            coding, parameter = index_coding.best_coding(weight.positions, weight.size, bits)
            told["weight"] = {
                "shape": list(weight.shape),
                "nonzeros": weight.nonzeros,
                "coding": coding,
                "parameter": parameter,
            }
            contents["positions"].append(index_coding.encode(weight.positions, weight.size, coding, parameter))
            if values == "int8":
                scales, integers = quantize(weight)
                contents["floats"].append(scales.astype("<f4").tobytes())
                weight = replace(weight, values=integers.astype(np.float32))
            stored = weight.dense().reshape(-1) if coding == "dense" else weight.values
            contents["values"].append(stored.astype(np.dtype(values).newbyteorder("<")).tobytes())
        contents["floats"] += [floats.astype("<f4").tobytes() for floats in node_constants(node)]
        nodes.append(told)
    return nodes, {name: b"".join(found) for name, found in contents.items()}


def describe(path: Path) -> dict[str, Any]:
    """Return what a file says of itself, sizes in bytes; the parts are not read.

    Raises:
        RuntimeInputError: it is no packed file, or its header is damaged.
    """
    content = _content(path)
    header, begin = _header(content)
    return {"version": VERSION, "bytes": len(content), "header_bytes": begin - PREFIX.size, **header}


def load(path: Path, *, max_memory: int = 2**30) -> PackedEnsemble:
    """Read an ensemble.

    Takes no more memory than 64 MB, 16 times the file, and what its results take for one image, which may be
    `max_memory` bytes.

    Raises:
        RuntimeInputError: whatever is wrong with the file, in a sentence.
    """
    content = _content(path)
    header, begin = _header(content)
    reader = Reader(header, memoryview(content)[begin:])
    found = reader.ensemble(max_memory)
    if found.nonzeros != header["nonzeros"] or abs(found.sparsity - header["sparsity"]) > 1e-9:
        raise RuntimeInputError(
            f"{found.nonzeros} weights are there, a sparsity of {found.sparsity:.6f}; the header says "
            f"{header['nonzeros']} and {header['sparsity']:.6f}"
        )
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RuntimeInputError(f"{path} cannot be read: {error.strerror}") from None


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """Return the header and where the parts begin."""
    if len(content) < PREFIX.size or not content.startswith(MAGIC):
        raise RuntimeInputError("this is no packed ensemble; such a file begins with 89 53 50 41 52 53 45 0A")
    _, version, length, digest = PREFIX.unpack_from(content)
    if version > VERSION:
        raise RuntimeInputError(
            f"this file has version {version}, written by a newer sparsemble; this one reads {VERSION}"
        )
    if version != VERSION:
        raise RuntimeInputError(f"this file has version {version}; this sparsemble reads {VERSION}")
    if length > LARGEST_HEADER or PREFIX.size + length > len(content):
        raise RuntimeInputError(f"the header is said to take {length} bytes of a file of {len(content)}")
    encoded = content[PREFIX.size : PREFIX.size + length]
    if hashlib.sha256(encoded).digest() != digest:
        raise RuntimeInputError("the header is damaged: its sha256 is another one")
    header: Mapping[str, Any] = parse(encoded)
    return dict(header), PREFIX.size + length
