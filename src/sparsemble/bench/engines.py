"""The engines that are timed: ours, others with the dense network in three arithmetics, others with sparse kernels."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, final

from sparsemble.bench.graphs import Graphs
from sparsemble.bench.models import BenchModel
from sparsemble.bench.other_engines import (
    Call,
    deepsparse_call,
    mnn_call,
    onnxruntime_call,
    openvino_call,
    torch_call,
)
from sparsemble.models.folded import FoldedNetwork
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.network import Network

DEEPSPARSE = "1.8"
"""The last version that contains an engine; 1.9 is empty."""
OURS = "sparsemble"
FLOAT32, INT8 = "float32", "int8"


class TimedEngine(NamedTuple):
    """An engine with a network loaded."""

    name: str
    call: Call
    dense: bool
    """Whether the engine computes every weight of the dense network, zeros, too."""
    arithmetic: str = FLOAT32
    reference: Network | None = None
    """What it must compute as torch does, if that is not the network that torch is timed with."""


@final
@dataclass(frozen=True, eq=False)
class Engines:
    """Every engine that is installed, for one model; files that they read are made once."""

    model: BenchModel

    @cached_property
    def _graphs(self) -> Graphs:
        return Graphs(self.model.network, self.model.calibration)

    @cached_property
    def _narrow(self) -> Graphs | None:
        return Graphs(self.model.narrow, self.model.calibration) if self.model.narrow else None

    def load(self, batch: int, threads: int) -> list[TimedEngine]:
        """Return the engines, ready for batches of one size; torch, the reference, first and ours last.

        Args:
            batch: images.
            threads: of each engine.
        """
        folded = FoldedNetwork(self.model.network).eval()
        engines = [
            TimedEngine("torch", torch_call(folded, threads, channels_last=False), True),
            TimedEngine("torch, channels last", torch_call(folded, threads, channels_last=True), True),
        ]
        if _installed("onnx"):
            engines += _on_graphs(self._graphs, batch, threads)
            if _has_deepsparse():
                with self._graphs.onnx_file(batch, in_8_bits=False) as path:
                    engines.append(TimedEngine("deepsparse", deepsparse_call(path, batch, threads), False))
            if _installed("MNN"):
                for sparse in (False, True):
                    with self._graphs.mnn_file(sparse=sparse) as path:
                        name = "mnn, sparse kernels" if sparse else "mnn"
                        engines.append(TimedEngine(name, mnn_call(path, threads), not sparse))
            if self._narrow:
                engines += [
                    engine._replace(name=f"{engine.name}, channels pruned", dense=False, reference=self.model.narrow)
                    for engine in _on_graphs(self._narrow, batch, threads)
                ]
        engine, ours = Engine(self.model.ours), self.model.ours
        arithmetic = INT8 if ours.steps else FLOAT32
        return [*engines, TimedEngine(OURS, lambda x: engine.run(x, threads), False, arithmetic, ours)]


def _on_graphs(graphs: Graphs, batch: int, threads: int) -> Iterator[TimedEngine]:
    """Load an ONNX graph in float32, in the default arithmetic of an engine, and in 8 bits.

    Args:
        graphs: of the network.
        batch: images.
        threads: of each engine.
    """

    def file(*, in_8_bits: bool) -> AbstractContextManager[Path]:
        return graphs.onnx_file(batch, in_8_bits=in_8_bits)

    quantized = _installed("onnxruntime")
    for in_8_bits in (False, True) if quantized else (False,):
        arithmetic, ending = (INT8, ", int8") if in_8_bits else (FLOAT32, "")
        with file(in_8_bits=in_8_bits) as path:
            for spinning in ((False, True) if threads > 1 else (False,)) if quantized else ():
                call = onnxruntime_call(path, threads, spinning=spinning)
                name = f"onnxruntime{ending}{', spinning' if spinning else ''}"
                yield TimedEngine(name, call, True, arithmetic)
            if not _installed("openvino"):
                continue
            call, default = openvino_call(path, threads, in_float32=False)
            if in_8_bits:
                yield TimedEngine("openvino, int8", call, True, INT8)
            else:
                yield TimedEngine("openvino", openvino_call(path, threads, in_float32=True)[0], True)
                yield TimedEngine("openvino, default precision", call, True, default)


def engine_versions() -> dict[str, str]:
    """Return the versions of the other engines, or "not installed"; DeepSparse only if it is timed."""
    names = ["onnxruntime", "openvino", "MNN", *(["deepsparse"] if _has_deepsparse() else [])]
    return {name.lower(): _version(name) for name in names}


def skipped_engines(model: BenchModel) -> dict[str, str]:
    """Return why an engine, or a network in all of them, is not timed.

    Args:
        model: what is timed.
    """
    skipped = {}
    if not _installed("onnx"):
        skipped["all but torch"] = "they read ONNX files, which need onnx: pip install 'sparsemble[bench]'"
    for name in ("onnxruntime", "openvino"):
        if not _installed(name):
            skipped[name] = "not installed: pip install 'sparsemble[bench]'"
    if not _installed("onnxruntime"):
        skipped["int8"] = "the dense network is quantised by onnxruntime, which is not installed"
    if not _installed("MNN"):
        skipped["mnn"] = "not installed: pip install --no-deps mnn (what it depends on would downgrade protobuf)"
    if _installed("deepsparse") and not _has_deepsparse():
        skipped["deepsparse"] = (
            f"{_version('deepsparse')} has no engine; {DEEPSPARSE} is the last version with one: "
            f"pip install 'deepsparse=={DEEPSPARSE}.*'"
        )
    if not model.narrow:
        skipped["channels pruned"] = model.why_not_narrow
    return skipped


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _has_deepsparse() -> bool:
    return _version("deepsparse").startswith(f"{DEEPSPARSE}.")


def _version(package: str) -> str:
    if not _installed(package):
        return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # as with onnxruntime-gpu, whose module has the plain name
        return str(vars(importlib.import_module(package)).get("__version__", "unknown"))
