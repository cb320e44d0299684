"""Engines that a network can be timed in: PyTorch, ONNX Runtime, OpenVINO, DeepSparse, and ours."""

import copy
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsemble.export.folded import FoldedNetwork
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.network import Network

Floats = NDArray[np.float32]
Call = Callable[[Floats], Floats]


class Timed(NamedTuple):
    """An engine with a network in it."""

    name: str
    call: Call
    dense: bool
    """Whether zeros cost as much as other weights."""


def engines(network: Network, batch: int, threads: int) -> list[Timed]:
    """Return every engine that is installed, ready for batches of one size.

    Args:
        network: what to run; the dense engines run it zeros and all.
        batch: images.
        threads: of each engine.
    """
    folded = FoldedNetwork(network).eval()
    found = [
        Timed("torch", _torch(folded, threads, channels_last=False), True),
        Timed("torch, channels last", _torch(folded, threads, channels_last=True), True),
    ]
    if importlib.util.find_spec("onnx"):
        with _written(network, batch) as path:
            for name, make in (("onnxruntime", _onnxruntime), ("openvino", _openvino)):
                if importlib.util.find_spec(name):
                    found.append(Timed(name, make(path, threads), True))
            if importlib.util.find_spec("deepsparse"):
                found.append(Timed("deepsparse", _deepsparse(path, batch, threads), False))
    engine = Engine(network)
    found.append(Timed("sparsemble", lambda x: engine.run(x, threads), False))
    return found


def engine_versions() -> dict[str, str]:
    """Return the versions of the engines that are not ours, as far as they are installed."""
    found = {}
    for name in ("onnxruntime", "openvino", "deepsparse"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextmanager
def _written(network: Network, batch: int) -> Any:
    """Write the graph with a fixed batch, which is what the other engines like best."""
    import onnx

    from sparsemble.export.onnx import member_graph

    model = member_graph(network)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save_model(model, path)
        yield path


def _torch(model: nn.Module, threads: int, *, channels_last: bool) -> Call:
    order = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(memory_format=order)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call(x: Floats) -> Floats:
        torch.set_num_threads(threads)
        found: Floats = model(torch.from_numpy(x).contiguous(memory_format=order)).numpy()
        return found

    return call


def _onnxruntime(path: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that spin between calls would take the cores from whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(x: Floats) -> Floats:
        found: Floats = session.run(["logits"], {"images": x})[0]
        return found

    return call


def _openvino(path: Path, threads: int) -> Call:
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def call(x: Floats) -> Floats:
        return np.array(request.infer({"images": x})["logits"])

    return call


def _deepsparse(path: Path, batch: int, threads: int) -> Call:
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")
    import deepsparse

    engine = deepsparse.Engine(model=str(path), batch_size=batch, num_cores=threads)

    def call(x: Floats) -> Floats:
        found: Floats = engine.run([x])[0]
        return found

    return call
