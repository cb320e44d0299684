"""Image files as arrays that an ensemble takes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sparsemble.runtime.errors import RuntimeInputError

DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16 bits a pixel."""
DEEP_FORMATS = ("PNG", "PPM")
"""Formats whose pixels have 16 bits where Pillow gives them 32 (mode I)."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}


def image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files named, and the image files in the folders named, sorted.

    Raises:
        RuntimeInputError: a path that does not exist, or a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise RuntimeInputError(f"the folder {path} holds no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise RuntimeInputError(f"{path} does not exist")
    return found


def read_image(path: Path, shape: tuple[int, int, int], *, resize: bool = False) -> NDArray[np.uint8]:
    """Return an image (H, W, C) of whole numbers, in as many colours as the ensemble takes.

    Args:
        path: what Pillow can read.
        shape: channels, height and width that the ensemble takes.
        resize: squeeze an image of another size into this one.

    Raises:
        RuntimeInputError: no image, or one of another size.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise RuntimeInputError(
            f"the ensemble takes images of {channels} channels, which files do not have; hand it arrays"
        )
    try:
        with Image.open(path) as opened:
            image = _of_8_bits(opened, path).convert(MODES[channels])
    except RuntimeInputError:
        raise
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise RuntimeInputError(f"{path} cannot be read as an image: {str(error).splitlines()[0][:120]}") from None
    if image.size != (width, height):
        if not resize:
            raise RuntimeInputError(
                f"{path} has {image.size[0]} x {image.size[1]} pixels, the ensemble takes {width} x {height}; use --resize"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(height, width, channels)


def _of_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Return an image whose pixels have 8 bits a colour: Pillow makes all that is above 255 of deeper ones white."""
    if image.mode in DEEP or (image.mode == "I" and image.format in DEEP_FORMATS):
        deep = np.asarray(image).astype(np.int64)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise RuntimeInputError(
            f"{path} has pixels of 32 bits (mode {image.mode}), whose range is not known; 8 and 16 are read"
        )
    return image
