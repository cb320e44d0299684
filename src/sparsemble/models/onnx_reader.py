"""ONNX files as torch networks, whose logits agree with those of ONNX Runtime."""

import importlib
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line
from sparsemble.core.types import Images
from sparsemble.models.onnx_file import BATCHES, OnnxFile, OnnxSession, onnx_packages, random_images
from sparsemble.models.onnx_graph import Builder, Call, Run
from sparsemble.models.onnx_operators import add_operator

TOLERANCE, HALF_TOLERANCE = 1e-3, 3e-2
"""Of logits, relative to the largest, in 32 and in 16 bits."""
SMALLEST = 1e-4
"""Logits below which differences are rounding."""


@final
class ConvertedOnnx(nn.Module):
    """The network of an ONNX file in torch."""

    def __init__(self, network: nn.Module, file: OnnxFile, batch: int | None) -> None:
        super().__init__()
        self.network = network
        self.batch = batch
        """Images that it takes at once; None: any number."""
        self.channels_last = file.channels_last
        self.sha256 = file.sha256

    def extra_repr(self) -> str:
        """Return the hash of the file, which decides the outputs as the weights do."""
        return f"sha256={self.sha256}, batch={self.batch}"

    def forward(self, x: Images) -> Tensor:
        """Return logits."""
        given = x.permute(0, 2, 3, 1) if self.channels_last else x
        if self.batch is None:
            output: Tensor = self.network.forward(given)  # called as a module it prints a traceback where it fails
            return output
        parts = []
        for part in given.split(self.batch):
            filled = torch.cat([part, part[-1:].expand(self.batch - len(part), -1, -1, -1)])
            parts.append(self.network.forward(filled)[: len(part)])
        return torch.cat(parts)


def convert_onnx(file: OnnxFile) -> tuple[ConvertedOnnx, tuple[str, ...]]:
    """Return the network of an ONNX file in torch, in eval mode, and what was converted, in short sentences.

    Our own reader builds it from layers that pruning knows; where it lacks an operator, the package onnx2torch does, if
    it imports. A softmax or sigmoid at the end is left off, because attacks need logits. The logits of the network that
    is returned agree with those of ONNX Runtime on random images.

    Raises:
        InputError: neither converts it; the message names the operator.
    """
    session = OnnxSession(file, file.logits[:1])
    converter = ""
    try:
        network = _agreeing(_built(file), session)
    except InputError as error:
        network, converter = _by_onnx2torch(session, str(error)), " by onnx2torch"
    notes = [f"the ONNX file was converted to torch{converter}; on random images both give the same logits"]
    if file.logits[1]:
        notes.append(f"the {file.logits[1].lower()} at the end of the file is left off, because attacks need logits")
    if network.batch:
        notes.append(f"images pass in groups of {network.batch}, the size that the file fixes")
    return network, tuple(notes)


def _built(file: OnnxFile) -> nn.Module:
    """Return the network that our reader makes of a file.

    Raises:
        InputError: it lacks an operator, or settings of one.
    """
    builder = Builder(_observe(file))
    for call in builder.run.calls:
        if any(name in builder.run.varying for name in call.outputs):
            add_operator(builder, call)
    if builder.run.output not in builder.nodes:
        raise InputError(f"the output {builder.run.output} does not depend on the images")
    return builder.finish()


def _observe(file: OnnxFile) -> Run:
    """Run a file on random images and keep every result, for two sizes of the batch where it takes any."""
    onnx, _ = onnx_packages()
    calls = _needed(file.calls, file.logits[0])
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.model.graph.initializer}
    session = OnnxSession(file, [name for call in calls for name in call.outputs if name])
    sizes = (file.batch,) if file.batch else BATCHES
    runs = []
    for size in sizes:
        images = random_images(file, size)
        given = {file.input: images.transpose(0, 2, 3, 1) if file.channels_last else images}
        runs.append({"": np.zeros(0, np.float32), **constants, **given, **session.values(images)})
    varying = {file.input}
    for call in calls:
        if call.kind not in ("Shape", "Size") and varying.intersection(call.inputs):
            varying.update(name for name in call.outputs if name)
    return Run(
        calls=calls,
        input=file.input,
        output=file.logits[0],
        values=runs[0],
        others=runs[1] if len(runs) > 1 else None,
        varying=frozenset(varying),
    )


def _needed(calls: Sequence[Call], output: str) -> tuple[Call, ...]:
    """Return the operators that an output depends on, in their order."""
    needed, names = [], {output}
    for call in reversed(calls):
        if names.intersection(call.outputs):
            needed.append(call)
            names.update(call.inputs)
    return tuple(reversed(needed))


def _agreeing(network: nn.Module, session: OnnxSession) -> ConvertedOnnx:
    """Return a network for images of any number, else in groups of the size that the file fixes, whichever agrees.

    Raises:
        InputError: neither does.
    """
    file = session.file
    reason = ""
    for batch in (None, file.batch) if file.batch else (None,):
        converted = ConvertedOnnx(network, file, batch).eval()
        reason = _disagreement(converted, session)
        if not reason:
            return converted
    raise InputError(reason)


def _disagreement(converted: ConvertedOnnx, session: OnnxSession) -> str:
    """Return how a network differs from its file on random images; "" where it does not."""
    images = random_images(session.file, (session.file.batch or BATCHES[-1]) + 1)
    expected = session(images)
    try:
        with torch.no_grad():
            found = converted(torch.from_numpy(images.astype(session.file.dtype))).numpy()
    except Exception as error:
        return f"its conversion to torch fails ({first_line(error)})"
    if found.shape != expected.shape:
        return f"its conversion to torch returns {found.shape}, ONNX Runtime {expected.shape}"
    difference = float(np.abs(found.astype(np.float64) - expected).max())
    relative = difference / max(float(np.abs(expected).max()), SMALLEST)
    tolerance = HALF_TOLERANCE if session.file.dtype == np.float16 else TOLERANCE
    return "" if relative <= tolerance else f"its conversion to torch differs from ONNX Runtime by {relative:.2g}"


def _by_onnx2torch(session: OnnxSession, reason: str) -> ConvertedOnnx:
    """Return the network that onnx2torch makes of a file.

    Raises:
        InputError: the package does not import, or cannot convert the file either.
    """
    onnx, _ = onnx_packages()
    file = session.file
    advice = "evaluate it by attacks that need no gradient: --access scores"
    try:
        convert = importlib.import_module("onnx2torch").convert
    except Exception:
        raise InputError(
            f"{file.path}: {reason}; install onnx2torch, which knows more operators, or {advice}"
        ) from None
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=session.outputs[0]))
    try:
        return _agreeing(convert(model).eval(), session)
    except Exception as error:
        raise InputError(f"{file.path}: {reason}, and onnx2torch fails: {first_line(error)}; {advice}") from error
