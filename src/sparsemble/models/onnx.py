"""The network of an ONNX file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.models.architecture import Architecture, architectures
from sparsemble.models.onnx_file import open_onnx
from sparsemble.models.onnx_reader import convert_onnx


@final
@architectures.register("onnx")
@dataclass(frozen=True, kw_only=True)
class Onnx(Architecture):
    """The network of an ONNX file, converted to torch; it normalises its images itself.

    To be pruned it must consist of the operators of the layers that `Architecture` names, and fix the size of images.
    """

    normalises: ClassVar[bool] = True

    file: str
    """The file, from images in [0, 1] to logits; needs the extra `export`."""
    file_hash: str = ""
    """sha256 of the file, filled in; stored results are computed anew when the file changes."""

    def __post_init__(self) -> None:
        if not Path(self.file).is_file():
            return  # `build` raises the error
        sha256 = hashlib.sha256(Path(self.file).read_bytes()).hexdigest()
        if self.file_hash not in ("", sha256):
            raise InputError(f"{self.file} was changed since this was made with it; bring the old file back")
        object.__setattr__(self, "file_hash", sha256)

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Return the converted network, with the weights of the file."""
        if not Path(self.file).is_file():
            raise InputError(f"{self.file} does not exist")
        file = open_onnx(Path(self.file))
        if file.shape[0] != in_channels:
            raise InputError(f"{self.file} takes images of {file.shape[0]} channels, the data has {in_channels}")
        return convert_onnx(file)[0]
