"""ONNX files of image classifiers, and how ONNX Runtime runs them; needs the extra `export`."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line
from sparsemble.models.onnx_graph import Call

SEED = 11
"""Of the random images on which a file and its conversion are compared."""
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
        onnx = onnx_packages()[0]
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
        onnx, runtime = onnx_packages()
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


def open_onnx(path: Path, shape: Shape | None = None) -> OnnxFile:
    """Read an ONNX file of an image classifier.

    Args:
        path: the file.
        shape: channels, height and width of an image; needed where the file leaves them open.

    Raises:
        InputError: onnx or onnxruntime is absent, or the file is no classifier of such images.
    """
    onnx, _ = onnx_packages()
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
    images = random_images(file, BATCHES[0])
    with contextlib.suppress(InputError):
        if len(np.atleast_1d(session.values(images)[file.output])) == len(images):
            return None
    session.values(images[:1])
    return 1


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


def random_images(file: OnnxFile, count: int) -> np.ndarray:
    """Return images in [0, 1] of the file's size, always the same."""
    return np.random.default_rng(SEED).random((count, *file.shape), dtype=np.float32)


def onnx_packages() -> tuple[Any, Any]:
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
