"""The engines that are timed: PyTorch, ONNX Runtime, OpenVINO, DeepSparse, and ours."""

import copy
import importlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsemble.models.folded import FoldedNetwork
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.network import Network

DEEPSPARSE = "1.8"
"""The last version that contains an engine; 1.9 is empty."""
Floats = NDArray[np.float32]
Call = Callable[[Floats], Floats]


class TimedEngine(NamedTuple):
    """An engine with a network loaded."""

    name: str
    call: Call
    dense: bool
    """Whether the engine computes zeros, too."""


def installed_engines(network: Network, batch: int, threads: int) -> list[TimedEngine]:
    """Return every engine that is installed, ready for batches of one size.

    Args:
        network: what is run; dense engines compute its zeros, too.
        batch: images.
        threads: of each engine.
    """
    folded = FoldedNetwork(network).eval()
    engines = [
        TimedEngine("torch", _torch(folded, threads, channels_last=False), True),
        TimedEngine("torch, channels last", _torch(folded, threads, channels_last=True), True),
    ]
    if importlib.util.find_spec("onnx"):
        with _onnx_file(network, batch) as path:
            if importlib.util.find_spec("onnxruntime"):
                engines.append(TimedEngine("onnxruntime", _onnxruntime(path, threads, spinning=False), True))
            if importlib.util.find_spec("onnxruntime") and threads > 1:
                engines.append(TimedEngine("onnxruntime, spinning", _onnxruntime(path, threads, spinning=True), True))
            if importlib.util.find_spec("openvino"):
                engines.append(TimedEngine("openvino", _openvino(path, threads), True))
            if _has_deepsparse():
                engines.append(TimedEngine("deepsparse", _deepsparse(path, batch, threads), False))
    engine = Engine(network)
    engines.append(TimedEngine("sparsemble", lambda x: engine.run(x, threads), False))
    return engines


def engine_versions() -> dict[str, str]:
    """Return the versions of the other engines, or "not installed"; DeepSparse only if it is timed."""
    names = ["onnxruntime", "openvino", *(["deepsparse"] if _has_deepsparse() else [])]
    return {name: _version(name) for name in names}


def excluded_engines() -> list[str]:
    """Return a sentence for each installed engine that cannot be timed."""
    if not importlib.util.find_spec("deepsparse") or _has_deepsparse():
        return []
    return [
        f"deepsparse {_version('deepsparse')} is left out; {DEEPSPARSE} is timed, the last version with an engine: "
        f"pip install 'deepsparse=={DEEPSPARSE}.*'"
    ]


def _has_deepsparse() -> bool:
    return _version("deepsparse").startswith(f"{DEEPSPARSE}.")


def _version(package: str) -> str:
    if not importlib.util.find_spec(package):
        return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # as with onnxruntime-gpu, whose module has the plain name
        return str(vars(importlib.import_module(package)).get("__version__", "unknown"))


@contextmanager
def _onnx_file(network: Network, batch: int) -> Any:
    """Write the graph with a fixed batch size, with which the other engines are fastest."""
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
        logits: Floats = model(torch.from_numpy(x).contiguous(memory_format=order)).numpy()
        return logits

    return call


def _onnxruntime(path: Path, threads: int, *, spinning: bool) -> Call:
    """Return ONNX Runtime with threads that sleep, or spin (the default), between the layers of a run.

    Spinning is faster on idle cores and slower on busy ones, so both are timed. Spinning after a run, also a default,
    is off: it would slow down the engine that is timed next (for over 30 ms, longer than a round).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"images": x})[0]


def _openvino(path: Path, threads: int) -> Call:
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    # The hint means one stream with all threads; by default it would compute in bfloat16 where that is faster.
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda x: np.array(request.infer({"images": x})["logits"])


def _deepsparse(path: Path, batch: int, threads: int) -> Call:
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")
    import deepsparse

    engine = deepsparse.Engine(model=str(path), batch_size=batch, num_cores=threads)
    return lambda x: engine.run([x])[0]
