"""Read image files as arrays."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sparsemble.runtime.errors import RuntimeInputError

MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16 bits a pixel."""
FORMATS_16_BIT = ("PNG", "PPM")
"""Formats with 16 bits a pixel that Pillow reads as 32 (mode I)."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the given files, and all image files in the given folders, sorted.

    Raises:
        RuntimeInputError: a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise RuntimeInputError(f"the folder {path} holds no image ({', '.join(SUFFIXES)})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise RuntimeInputError(f"{path} does not exist")
    return files


def read_image(path: Path, shape: tuple[int, int, int], *, resize: bool = False) -> NDArray[np.uint8]:
    """Return an image file as an array.

    Args:
        path: of a file that Pillow can read.
        shape: channels (1 or 3), height and width of the array.
        resize: resize an image of another size, bilinear; without it such an image is refused.

    Returns:
        (H, W, C) in 0..255.

    Raises:
        RuntimeInputError: no image, or one of another size.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise RuntimeInputError(
            f"the ensemble takes images of {channels} channels, which files do not have; give arrays"
        )
    try:
        with Image.open(path) as opened:
            image = _as_8_bit(opened, path).convert(MODES[channels])
    except RuntimeInputError:
        raise
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise RuntimeInputError(f"{path} cannot be read as an image: {str(error).splitlines()[0][:120]}") from None
    if image.size != (width, height):
        if not resize:
            raise RuntimeInputError(
                f"{path} has {image.size[0]} x {image.size[1]} pixels, the ensemble takes {width} x {height}; "
                "use --resize, or resize=True in Python"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def _as_8_bit(image: Image.Image, path: Path) -> Image.Image:
    """Return an image with 8 bits a channel; Pillow itself would clip 16-bit values at 255."""
    if image.mode in MODES_16_BIT or (image.mode == "I" and image.format in FORMATS_16_BIT):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise RuntimeInputError(
            f"{path} has pixels of 32 bits (mode {image.mode}), whose range is not known; 8 and 16 are read"
        )
    return image
