"""Files of a network for the other engines: ONNX in float32 and in 8 bits, and MNN."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, final

from sparsemble.core.errors import RunError
from sparsemble.export.onnx import member_graph
from sparsemble.runtime.network import Floats, Network

CONVERT_TO_MNN = "import sys, _tools; _tools.mnnconvert(sys.argv)"
"""Runs MNN's converter without its Python wrapper, which installs packages and sends statistics."""


@final
class Graphs:
    """A network in the formats of other engines, each made when it is first asked for.

    Args:
        network: in float32; its zeros are written, too.
        images: (B, C, H, W) on which the ranges of 8-bit results are calibrated.
    """

    def __init__(self, network: Network, images: Floats) -> None:
        self.network, self.images = network, images

    @contextmanager
    def onnx_file(self, batch: int, *, in_8_bits: bool) -> Iterator[Path]:
        """Write the graph with a fixed batch size, with which engines are fastest.

        Args:
            batch: images.
            in_8_bits: whether weights and results are rounded to 8 bits.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._int8 if in_8_bits else self._float32)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            onnx.save_model(model, path)
            yield path

    @contextmanager
    def mnn_file(self, *, sparse: bool) -> Iterator[Path]:
        """Write the network for MNN.

        Args:
            sparse: whether MNN's kernels for sparse weights are used where MNN takes them to be faster.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.mnn"
            path.write_bytes(self._mnn_sparse if sparse else self._mnn_dense)
            yield path

    @cached_property
    def _float32(self) -> Any:
        return member_graph(self.network)

    @cached_property
    def _int8(self) -> Any:
        """The graph after ONNX Runtime's static quantisation with its defaults: all operations, a scale per output."""
        import onnx
        from onnxruntime import quantization

        batches = iter([{"images": self.images}])

        class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, Floats] | None:
                return next(batches, None)

        with tempfile.TemporaryDirectory() as folder, _without_advice():
            source, target = (Path(folder) / f"{name}.onnx" for name in ("float32", "int8"))
            onnx.save_model(self._float32, source)
            quantization.quantize_static(
                str(source),
                str(target),
                Images(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
            return onnx.load_model(target)

    @cached_property
    def _mnn_dense(self) -> bytes:
        return self._to_mnn()

    @cached_property
    def _mnn_sparse(self) -> bytes:
        return self._to_mnn("--detectSparseSpeedUp")

    def _to_mnn(self, *options: str) -> bytes:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            onnx.save_model(self._float32, Path(folder) / "network.onnx")
            files = ("-f", "ONNX", "--modelFile", "network.onnx", "--MNNModel", "network.mnn")
            done = subprocess.run(
                [sys.executable, "-c", CONVERT_TO_MNN, *files, *options],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                capture_output=True,
                text=True,
                check=False,
            )
            path = Path(folder) / "network.mnn"
            if done.returncode or not path.is_file():
                lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
                raise RunError(f"MNN's converter failed: {lines[-1] if lines else f'status {done.returncode}'}")
            return path.read_bytes()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantiser's advice to optimise graphs beforehand, done here by folding, from the terminal."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
