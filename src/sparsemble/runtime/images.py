"""Image files as arrays: one reader, and one record of how, for training and for prediction."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sparsemble.runtime.errors import RuntimeInputError, printable

MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of 16 bits a pixel."""
FORMATS_16_BIT = ("PNG", "PPM")
"""Formats with 16 bits a pixel that Pillow reads as 32 (mode I)."""
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".j2k", ".pcx", ".ico"),
)
"""Endings of image files in folders, in lower case; a file that is named by itself may have any."""
MODES: Mapping[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
"""Pillow's colour mode for a number of channels."""
LARGEST_SIDE = 2**14
"""Upper bound of the sides of an image that is made of a file."""
LARGEST_IMAGE = 2**27
"""Upper bound of the pixels of a resized image, before its centre is cut out."""
NAMED = 3


@final
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How image files become the images that a network is trained on.

    The first frame, turned upright by its EXIF orientation; 16 bits scaled to 8; converted to the colour mode; its
    short side resized; the centre square cut out; 0..255 divided by 255.

    Raises:
        RuntimeInputError: sizes that do not fit each other.
    """

    mode: Literal["L", "RGB"]
    """Colour mode, as Pillow's `convert` takes it."""
    resize: int
    """Length of the short side after resizing, in pixels (bilinear, antialiased)."""
    size: int
    """Side of the square that is cut from the centre, in pixels, at most `resize`."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise RuntimeInputError(f"size = {self.size} must lie in 1..{self.resize}, the length of the short side")
        if self.resize > LARGEST_SIDE:
            raise RuntimeInputError(f"the short side of {self.resize} pixels must be at most {LARGEST_SIDE}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return len(self.mode), self.size, self.size

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Return an image file as (size, size, C) in 0..255.

        Raises:
            RuntimeInputError: the file cannot be read as an image.
        """
        return self.apply(decode(path, self.mode), path)

    def apply(self, image: Image.Image, path: Path) -> NDArray[np.uint8]:
        """Return a decoded image as (size, size, C) in 0..255.

        Raises:
            RuntimeInputError: its sides differ so much that it would become too long.
        """
        short = min(image.size)
        width, height = (self.resize * side // short for side in image.size)
        if width * height > LARGEST_IMAGE:
            raise RuntimeInputError(f"{path} has {image.size[0]} x {image.size[1]} pixels, which is too long to resize")
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return _pixels(resized.crop((left, top, left + self.size, top + self.size)))

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, for files that others read."""
        return {
            "orientation": "exif",
            "mode": self.mode,
            "resize": self.resize,
            "crop": [self.size, self.size],
            "range": [0, 1],
        }

    def __str__(self) -> str:
        colours = "grey" if self.mode == "L" else "colour"
        return (
            f"turned upright, {colours}, short side resized to {self.resize}, centre of {self.size} x {self.size} "
            "cut out"
        )


def list_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the image files in a folder and in the folders within, and all other files; both sorted.

    Links are followed, and each folder is entered once. Files and folders whose name begins with a dot are no images.

    Raises:
        RuntimeInputError: a folder that cannot be read.
    """
    images: list[Path] = []
    others: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting = [(folder, False)]
    while waiting:
        current, hidden = waiting.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                inside = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise RuntimeInputError(f"{current} cannot be read: {error.strerror}") from None
        for entry in inside:
            path, dotted = Path(entry.path), hidden or entry.name.startswith(".")
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                waiting.append((path, dotted))
            elif not dotted and path.suffix.lower() in SUFFIXES and _may_be_read(entry, path):
                images.append(path)
            else:
                others.append(path)
    return sorted(images, key=os.fspath), sorted(others, key=os.fspath)


def _may_be_read(entry: "os.DirEntry[str]", path: Path) -> bool:
    """Return whether an entry is a file, or a link to nothing, which is then refused as an image; no pipe or device."""
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and (path.is_file() or not path.exists()))


def describe_left_out(files: Sequence[Path]) -> str:
    """Return a sentence about files that are no images, for the terminal; empty where there are none."""
    if not files:
        return ""
    names = ", ".join(map(str, files[:NAMED])) + (", ..." if len(files) > NAMED else "")
    count = f"{len(files):,} files are" if len(files) > 1 else "1 file is"
    return printable(f"{count} left out, hidden or without the ending of an image: {names}")


def image_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Return the given files and all image files in the given folders, and what is left out of the folders.

    Raises:
        RuntimeInputError: a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside, others = list_images(path)
            if not inside:
                raise RuntimeInputError(f"the folder {path} holds no image ({', '.join(SUFFIXES)})")
            files += inside
            left_out += others
        elif path.is_file():
            files.append(path)
        else:
            raise RuntimeInputError(f"{path} does not exist")
    return files, left_out


def read_image(path: Path, shape: tuple[int, int, int], *, resize: bool = False) -> NDArray[np.uint8]:
    """Return an image file as an array, where nothing is known of how the network's images were made of files.

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
    image = decode(path, MODES[channels])
    if image.size != (width, height):
        if not resize:
            raise RuntimeInputError(
                f"{path} has {image.size[0]} x {image.size[1]} pixels, the ensemble takes {width} x {height}; "
                "use --resize, or resize=True in Python"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return _pixels(image)


def decode(path: Path, mode: Literal["L", "RGB"]) -> Image.Image:
    """Return the first frame of a file, upright, in a colour mode.

    Raises:
        RuntimeInputError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as opened:
            image = _as_8_bit(ImageOps.exif_transpose(opened), opened.format, path)
            image.info.pop("transparency", None)  # neither mode has it, and Pillow would warn
            return image.convert(mode)
    except RuntimeInputError:
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):  # whose text names the path once more
            reason = "its format is not known, or it is damaged"
        raise RuntimeInputError(f"{path} cannot be read as an image: {reason.partition(chr(10))[0][:120]}") from None


def _as_8_bit(image: Image.Image, kind: str | None, path: Path) -> Image.Image:
    """Return an image with 8 bits a channel; Pillow itself would clip 16-bit values at 255."""
    if image.mode in MODES_16_BIT or (image.mode == "I" and kind in FORMATS_16_BIT):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise RuntimeInputError(
            f"{path} has pixels of 32 bits (mode {image.mode}), whose range is not known; 8 and 16 are read"
        )
    return image


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image as (H, W, C)."""
    width, height = image.size
    return np.asarray(image, dtype=np.uint8).reshape(height, width, -1)
