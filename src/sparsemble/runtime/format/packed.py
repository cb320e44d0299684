"""The packed file of an ensemble (docs/packed_file.md): written here, read here, checked in `validate`."""

import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import index_coding
from sparsemble.runtime.format.header import encode_header, parse_header
from sparsemble.runtime.format.op_serialization import node_constants, node_to_dict
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import Values, quantize, round_weight
from sparsemble.runtime.format.validate import PARTS, validate_packed_file
from sparsemble.runtime.network import Convolution, Linear, Network, Node

MAGIC = b"\x89SPARSE\n"
VERSION = 2
"""The newest that is read; files without 8-bit arithmetic are written in version 1, which older sparsembles read."""
PREFIX = struct.Struct("<8sII32s")
"""Magic, version, length of the header, sha256 of the header."""
SUFFIX = ".sparsemble"
MAX_HEADER_BYTES = 2 * 2**20


def round_weights(ensemble: PackedEnsemble, values: Values) -> PackedEnsemble:
    """Return the ensemble with its weights rounded as the file stores them; those that round to 0 are removed."""
    members = (_round_member(member, values, number) for number, member in enumerate(ensemble.members, start=1))
    return replace(ensemble, members=tuple(members))


def _round_member(member: Network, values: Values, number: int) -> Network:
    nodes: list[Node] = []
    for i, node in enumerate(member.nodes):
        where = f"member {number}, operation {i}"
        if not all(np.isfinite(constants).all() for constants in node_constants(node)):
            raise RuntimeInputError(f"{where} holds a constant that is no number")
        if isinstance(node, Convolution | Linear):
            if not np.isfinite(node.weight.values).all():
                raise RuntimeInputError(f"{where} has a weight that is no number")
            weight = round_weight(node.weight, values)
            if not np.isfinite(weight.values).all():
                largest = float(np.abs(node.weight.values).max())
                raise RuntimeInputError(f"{where} has a weight of size {largest:g}, too much for {values}")
            node = replace(node, weight=weight)
        nodes.append(node)
    return Network(member.image, tuple(nodes), member.steps)


def save(ensemble: PackedEnsemble, path: Path, *, values: Values = "float16") -> None:
    """Write an ensemble; the file appears only when it is complete.

    Args:
        ensemble: any; its weights are rounded to `values`.
        path: the file.
        values: number format of the weights.

    Raises:
        RuntimeInputError: a weight that is not finite, or too large for the format; 8-bit arithmetic with other values
            than int8.
    """
    if ensemble.arithmetic == "int8" and values != "int8":
        raise RuntimeInputError(f"8-bit arithmetic needs int8 values of the weights, got {values}")
    ensemble = round_weights(ensemble, values)
    node_lists, parts, bodies = [], [], []
    offset = 0
    for member in ensemble.members:
        nodes, contents = _encode_member(member, values)
        node_lists.append(nodes)
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
        "members": node_lists,
        "parts": parts,
    }
    if ensemble.preprocessing:
        header["preprocessing"] = ensemble.preprocessing.to_dict()
    encoded = encode_header(header)
    if len(encoded) > MAX_HEADER_BYTES:
        raise RuntimeInputError(
            f"the header takes {len(encoded)} bytes, more than the {MAX_HEADER_BYTES} that are read"
        )
    version = 2 if ensemble.arithmetic == "int8" else 1
    prefix = PREFIX.pack(MAGIC, version, len(encoded), hashlib.sha256(encoded).digest())
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(b"".join([prefix, encoded, *bodies]))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _encode_member(member: Network, values: Values) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return the header's entries of a member's operations, and the content of its parts."""
    nodes = []
    contents: dict[str, list[bytes]] = {name: [] for name in PARTS}
    for i, node in enumerate(member.nodes):
        entry = node_to_dict(node, member.steps.get(i))
        if isinstance(node, Convolution | Linear):
            weight, value_bits = node.weight, 8 * np.dtype(values).itemsize
            coding, parameter = index_coding.best_coding(weight.positions, weight.size, value_bits)
            entry["weight"] = {
                "shape": list(weight.shape),
                "nonzeros": weight.nonzeros,
                "coding": coding,
                "parameter": parameter,
            }
            contents["positions"].append(index_coding.encode(weight.positions, weight.size, coding, parameter))
            if values == "int8":
                scales, integers = quantize(weight)
                contents["constants"].append(scales.astype("<f4").tobytes())
                weight = replace(weight, values=integers.astype(np.float32))
            stored = weight.dense().reshape(-1) if coding == "dense" else weight.values
            contents["values"].append(stored.astype(np.dtype(values).newbyteorder("<")).tobytes())
        contents["constants"] += [constants.astype("<f4").tobytes() for constants in node_constants(node)]
        nodes.append(entry)
    return nodes, {name: b"".join(pieces) for name, pieces in contents.items()}


def describe(path: Path) -> dict[str, Any]:
    """Return the header of a file, its version and its sizes in bytes; the parts are not read.

    Raises:
        RuntimeInputError: it is no packed file, or its header is damaged.
    """
    version, content, header, header_end = _read(path)
    return {"version": version, "bytes": len(content), "header_bytes": header_end - PREFIX.size, **header}


def load(path: Path, *, max_memory: int = 2**30) -> PackedEnsemble:
    """Read and validate a packed file.

    Takes at most 64 MB, plus 16 times the size of the file, plus the activations of one image.

    Args:
        path: the file; nothing in it is trusted.
        max_memory: bytes that the activations of one image, and the tables to run a member, may take.

    Returns:
        The ensemble.

    Raises:
        RuntimeInputError: the first fault of the file, in one sentence.
    """
    version, content, header, header_end = _read(path)
    return validate_packed_file(header, memoryview(content)[header_end:], version, max_memory)


def _read(path: Path) -> tuple[int, bytes, dict[str, Any], int]:
    """Return the version and content of a file, its header and the index of the first byte behind the header."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RuntimeInputError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) < PREFIX.size or not content.startswith(MAGIC):
        raise RuntimeInputError("this is no packed ensemble; such a file begins with 89 53 50 41 52 53 45 0A")
    _, version, length, digest = PREFIX.unpack_from(content)
    if version > VERSION:
        raise RuntimeInputError(
            f"this file has version {version}, written by a newer sparsemble; this one reads {VERSION}"
        )
    if version < 1:
        raise RuntimeInputError(f"this file has version {version}; this sparsemble reads 1 to {VERSION}")
    end = PREFIX.size + length
    if length > MAX_HEADER_BYTES or end > len(content):
        raise RuntimeInputError(f"the header has a length of {length} bytes, in a file of {len(content)}")
    encoded = content[PREFIX.size : end]
    if hashlib.sha256(encoded).digest() != digest:
        raise RuntimeInputError("the header is damaged: its sha256 is another one")
    return version, content, parse_header(encoded), end
