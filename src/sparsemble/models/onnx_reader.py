"""ONNX files as torch networks, whose predictions agree with ONNX Runtime; needs the extra `export`."""

import contextlib
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line
from sparsemble.core.types import Images
from sparsemble.models.onnx_graph import Builder, Call, Run
from sparsemble.models.onnx_operators import add_operator

SEED = 11
"""Of the random images on which a file and its conversion are compared."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 3e-2
"""Of logits, relative to the largest, in 32 and in 16 bits."""
SMALLEST = 1e-4
"""Logits below which differences are rounding."""
BATCHES = (2, 3)
"""Sizes of the two batches on which a file that takes any is observed."""
NAMES = ("logits", "out", "output", "pred")
"""Of the output that is read where a file has several, likeliest first; else it is the first one with fractions."""
ENDS = ("Softmax", "Sigmoid")
"""Operators at the end of a classifier that are left off."""
DTYPES: dict[str, type[np.floating[Any]]] = {"float": np.float32, "float16": np.float16, "double": np.float64}
Shape = tuple[int, int, int]


@final
@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """An ONNX file of an image classifier."""

    path: Path
    model: Any
    """The `onnx.ModelProto`."""
    sha256: str
    shape: Shape
    """Channels, height and width of an image."""
    batch: int | None
    """Images in a batch, where the file fixes that."""
    channels_last: bool
    """Whether it takes images as height, width, channels."""
    dtype: type[np.floating[Any]]
    """Of the images that it takes."""
    input: str
    output: str

    @property
    def calls(self) -> tuple[Call, ...]:
        """The operators, in their order."""
        onnx = _packages()[0]
        opset = next((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), 0)

        def value(attribute: Any) -> Any:
            found = onnx.helper.get_attribute_value(attribute)
            return found.decode() if isinstance(found, bytes) else found

        return tuple(
            Call(
                node.op_type,
                node.name,
                tuple(node.input),
                tuple(node.output),
                {each.name: value(each) for each in node.attribute},
                opset,
                node.domain,
            )
            for node in self.model.graph.node
        )

    @property
    def logits(self) -> tuple[str, str]:
        """Name of the result that attacks follow, and the operator behind it that is left off, "" for none."""
        for call in self.calls:
            if self.output in call.outputs and call.kind in ENDS:
                return call.inputs[0], call.kind
        return self.output, ""


@final
class OnnxSession:
    """A file in ONNX Runtime: a function of float32 images (B, C, H, W), outside torch, without gradients."""

    def __init__(self, file: OnnxFile, outputs: Sequence[str] = ()) -> None:
        onnx, runtime = _packages()
        self.file = file
        self.outputs = tuple(outputs) or (file.output,)
        self.__qualname__ = f"onnx {file.sha256} {self.outputs}"  # what stands for the function in keys of results
        model = onnx.ModelProto()
        model.CopyFrom(file.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot load {file.path}: {first_line(error)}") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxSession":
        return self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the first output for images of any number; a fixed batch is filled up with copies of the last one."""
        size = self.file.batch or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(self.values(filled)[self.outputs[0]][: len(part)])
        return np.concatenate(parts)

    def values(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return all outputs for one batch, by name.

        Raises:
            InputError: ONNX Runtime cannot run it.
        """
        file = self.file
        given = (images.transpose(0, 2, 3, 1) if file.channels_last else images).astype(file.dtype)
        try:
            results = self._session.run(list(self.outputs), {file.input: np.ascontiguousarray(given)})
        except Exception as error:
            raise InputError(f"ONNX Runtime cannot run {file.path}: {first_line(error)}") from error
        return {name: np.asarray(result) for name, result in zip(self.outputs, results, strict=True)}


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


def open_onnx(path: Path, shape: Shape | None = None) -> OnnxFile:
    """Read an ONNX file of an image classifier.

    Args:
        path: the file.
        shape: channels, height and width of an image; needed where the file leaves them open.

    Raises:
        InputError: onnx or onnxruntime is absent, or the file is no classifier of such images.
    """
    onnx, _ = _packages()
    try:
        model = onnx.load(path)  # with the weights that are in files beside it
        content = model.SerializeToString()
    except Exception as error:
        raise InputError(f"{path} cannot be read as an ONNX file: {first_line(error)}") from error
    model = onnx.inliner.inline_local_functions(model) if model.functions else model
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise InputError(f"{path} takes {len(inputs)} inputs ({names}); a classifier takes one, the images")
    tensor = inputs[0].type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if kind not in DTYPES:
        raise InputError(
            f"{path} takes images of {kind}; a classifier must take images in [0, 1], of {', '.join(DTYPES)}"
        )
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    shape, channels_last = _layout(path, dims, shape)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    numbers = [name for name, each in kinds.items() if onnx.TensorProto.DataType.Name(each).lower() in DTYPES]
    outputs = numbers or list(kinds)
    file = OnnxFile(
        path=path,
        model=model,
        sha256=hashlib.sha256(content).hexdigest(),
        shape=shape,
        batch=dims[0],
        channels_last=channels_last,
        dtype=DTYPES[kind],
        input=inputs[0].name,
        output=next((name for name in NAMES if name in outputs), outputs[0]),
    )
    return replace(file, batch=file.batch or _fixed_batch(file))


def _fixed_batch(file: OnnxFile) -> int | None:
    """Return 1 where a file says that it takes any number of images, but its operators are made for one.

    Raises:
        InputError: ONNX Runtime cannot run one either.
    """
    session = OnnxSession(file)
    images = _random_images(file, BATCHES[0])
    with contextlib.suppress(InputError):
        if len(np.atleast_1d(session.values(images)[file.output])) == len(images):
            return None
    session.values(images[:1])
    return 1


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
    onnx, _ = _packages()
    calls = _needed(file.calls, file.logits[0])
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.model.graph.initializer}
    session = OnnxSession(file, [name for call in calls for name in call.outputs if name])
    sizes = (file.batch,) if file.batch else BATCHES
    runs = []
    for size in sizes:
        images = _random_images(file, size)
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
    images = _random_images(session.file, (session.file.batch or BATCHES[-1]) + 1)
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
    onnx, _ = _packages()
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


def _layout(path: Path, dims: Sequence[int | None], shape: Shape | None) -> tuple[Shape, bool]:
    """Return channels, height and width of an image, and whether channels come last.

    Args:
        path: of the file, for messages.
        dims: of its input; None where the file leaves them open.
        shape: channels, height and width of the images, where they are known.

    Raises:
        InputError: it takes no images, others, or images of a size that is not known.
    """
    if len(dims) != 4:
        raise InputError(f"{path} takes a tensor of {len(dims)} axes; images have four: batch, channels, height, width")
    if shape is None:
        last = dims[3] in (1, 3) and dims[1] not in (1, 3)
        known = (dims[3], dims[1], dims[2]) if last else (dims[1], dims[2], dims[3])
        if None in known:
            raise InputError(f"{path} leaves the size of its images open; name the images with --data")
        return (known[0] or 0, known[1] or 0, known[2] or 0), last
    for last in (False, True):
        expected = (*shape[1:], shape[0]) if last else shape
        if all(dim in (None, size) for dim, size in zip(dims[1:], expected, strict=True)):
            return shape, last
    takes = "x".join("?" if dim is None else str(dim) for dim in dims[1:])
    raise InputError(f"{path} takes images of {takes}, the data has {'x'.join(map(str, shape))}")


def _random_images(file: OnnxFile, count: int) -> np.ndarray:
    return np.random.default_rng(SEED).random((count, *file.shape), dtype=np.float32)


def _packages() -> tuple[Any, Any]:
    """Return the packages onnx and onnxruntime.

    Raises:
        InputError: one is not installed.
    """
    try:
        import onnx
        import onnx.inliner
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"ONNX files need the packages onnx and onnxruntime ({first_line(error)}); pip install 'sparsemble[export]'"
        ) from None
    return onnx, onnxruntime
