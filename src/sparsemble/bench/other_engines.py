"""Calls of the engines that others wrote: PyTorch, ONNX Runtime, OpenVINO, DeepSparse and MNN."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparsemble.runtime.network import Floats

Call = Callable[[Floats], Floats]
OPENVINO_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def torch_call(model: nn.Module, threads: int, *, channels_last: bool) -> Call:
    """Return a network in torch, eager.

    Args:
        model: in eval mode.
        threads: that it uses.
        channels_last: memory format of weights and images.
    """
    order = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(model).to(memory_format=order)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call(x: Floats) -> Floats:
        torch.set_num_threads(threads)
        logits: Floats = model(torch.from_numpy(x).contiguous(memory_format=order)).numpy()
        return logits

    return call


def onnxruntime_call(path: Path, threads: int, *, spinning: bool) -> Call:
    """Return ONNX Runtime with threads that sleep, or spin (the default), between the layers of a run.

    Spinning is faster on idle cores and slower on busy ones, so both are timed. Spinning after a run, also a default,
    is off: it would slow down the engine that is timed next (for over 30 ms, longer than a round).

    Args:
        path: of an ONNX graph.
        threads: that it uses.
        spinning: whether they spin.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"images": x})[0]


def openvino_call(path: Path, threads: int, *, in_float32: bool) -> tuple[Call, str]:
    """Return OpenVINO in one stream with all threads, and the arithmetic of its layers in floats.

    Args:
        path: of an ONNX graph.
        threads: that it uses.
        in_float32: whether it computes in float32; by default it takes bfloat16 where that is faster.
    """
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    import openvino

    settings: dict[str, object] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"INFERENCE_PRECISION_HINT": "f32"} if in_float32 else {}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return lambda x: np.array(request.infer({"images": x})["logits"]), OPENVINO_NAMES.get(precision, precision)


def deepsparse_call(path: Path, batch: int, threads: int) -> Call:
    """Return DeepSparse.

    Args:
        path: of an ONNX graph.
        batch: images.
        threads: that it uses.
    """
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")
    import deepsparse

    engine = deepsparse.Engine(model=str(path), batch_size=batch, num_cores=threads)
    return lambda x: engine.run([x])[0]


def mnn_call(path: Path, threads: int) -> Call:
    """Return MNN in float32.

    Args:
        path: of its own format.
        threads: that it uses.
    """
    import MNN

    manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "numThread": threads, "precision": "high"},))
    network = MNN.nn.load_module_from_file(str(path), ["images"], ["logits"], runtime_manager=manager)

    def call(x: Floats) -> Floats:
        images = MNN.expr.placeholder(list(x.shape), MNN.expr.NCHW, MNN.expr.float)
        images.write(x)
        return np.array(network.forward([images])[0].read(), np.float32).reshape(len(x), -1)

    return call
