"""Read every file of a folder once: what can be decoded, how large it is, how it looks, and its pixels."""

import contextlib
import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from sparsemble.data.duplicates import THUMBNAIL, look
from sparsemble.data.file_split import THREADS
from sparsemble.runtime.cache_folder import cache_folder
from sparsemble.runtime.errors import RuntimeInputError, printable
from sparsemble.runtime.images import Preprocessing, decode

logger = logging.getLogger("sparsemble")

VERSION = 1
KEEP_AFTER = 5.0
"""Seconds that a scan took before it is kept for the next process."""
KEPT = 8
"""Scans that are kept, the newest ones."""
REPORT_EVERY = 15.0
"""Seconds between messages about how far it is."""
DIGEST = 16
READ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ImageScan:
    """One entry for each file."""

    arrays: ClassVar[tuple[str, ...]] = ("sizes", "digests", "hashes", "thumbnails", "pixels")

    errors: tuple[str, ...]
    """Why it cannot be read; empty: it can."""
    sizes: NDArray[np.int64]
    """(N, 2) width and height in pixels, upright."""
    digests: NDArray[np.uint8]
    """(N, 16) hash of all its pixels."""
    hashes: NDArray[np.uint64]
    """(N) perceptual hash."""
    thumbnails: NDArray[np.uint8]
    """(N, 16, 16), grey."""
    pixels: NDArray[np.uint8]
    """(N, C, size, size), as the network takes it; empty (0, C, size, size) unless they are asked for."""


def scan_images(root: Path, names: Sequence[str], preprocessing: Preprocessing, *, keep_pixels: bool) -> ImageScan:
    """Decode all files, in threads; a scan that took more than some seconds is kept in the user's cache folder.

    Args:
        root: folder of the files.
        names: paths of the files in it.
        preprocessing: how a file becomes an image.
        keep_pixels: whether the images are returned as well; they fit in memory.
    """
    listed = [VERSION, PIL.__version__, preprocessing.to_dict(), [_state(root, name) for name in names]]
    state = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    key = hashlib.sha256(json.dumps([str(root.resolve()), preprocessing.to_dict(), keep_pixels]).encode()).hexdigest()
    path = cache_folder() / "images" / f"{key[:32]}.npz"
    if (scan := _load(path, state, len(names))) is not None:
        return scan
    start = time.monotonic()
    scan = _scan(root, names, preprocessing, keep_pixels)
    if time.monotonic() - start > KEEP_AFTER:
        with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
            _save(path, state, scan)
    return scan


def _state(root: Path, name: str) -> tuple[str, int, int]:
    """Return what changes when a file does."""
    try:
        status = (root / name).stat()
    except OSError:
        return name, -1, 0
    return name, status.st_size, status.st_mtime_ns


def _scan(root: Path, names: Sequence[str], preprocessing: Preprocessing, keep_pixels: bool) -> ImageScan:
    count, side = len(names), preprocessing.size
    errors = [""] * count
    scan = ImageScan(
        errors=(),
        sizes=np.zeros((count, 2), np.int64),
        digests=np.zeros((count, DIGEST), np.uint8),
        hashes=np.zeros(count, np.uint64),
        thumbnails=np.zeros((count, THUMBNAIL, THUMBNAIL), np.uint8),
        pixels=np.zeros((count if keep_pixels else 0, len(preprocessing.mode), side, side), np.uint8),
    )

    def fill(index: int) -> None:
        path = root / names[index]
        try:
            image = decode(path, preprocessing.mode)
            made = preprocessing.apply(image, path)
        except RuntimeInputError as error:
            errors[index] = str(error).removeprefix(f"{printable(str(path))} ")
            return
        appearance = look(image)
        scan.sizes[index], scan.hashes[index], scan.thumbnails[index] = image.size, *appearance
        scan.digests[index] = np.frombuffer(_digest(image), np.uint8)
        if keep_pixels:
            scan.pixels[index] = made.transpose(2, 0, 1)

    reported = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for done, _ in enumerate(pool.map(fill, range(count))):
            if time.monotonic() - reported > REPORT_EVERY:
                reported = time.monotonic()
                logger.warning("%s", printable(f"{root}: {done:,} of {count:,} image files read"))
    return replace(scan, errors=tuple(errors))


def _digest(image: Image.Image) -> bytes:
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=DIGEST).digest()


def _load(path: Path, state: str, count: int) -> ImageScan | None:
    """Return a scan that was kept, if it is whole and no file has changed since."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if str(file["state"]) != state:
                return None
            errors = tuple(json.loads(str(file["errors"])))
            scan = ImageScan(errors=errors, **{name: file[name] for name in ImageScan.arrays})
    except READ_ERRORS:
        return None
    return scan if len(scan.errors) == len(scan.hashes) == count else None


def _save(path: Path, state: str, scan: ImageScan) -> None:
    """Write a scan under another name, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            arrays = {name: getattr(scan, name) for name in scan.arrays}
            np.savez(stream, state=np.array(state), errors=np.array(json.dumps(scan.errors)), **arrays)
        temporary.replace(path)
        newest = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
        for file in newest[:-KEPT]:
            file.unlink(missing_ok=True)
    finally:
        temporary.unlink(missing_ok=True)
