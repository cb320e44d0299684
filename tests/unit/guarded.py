"""Memory between pages that nobody may touch: what reads or writes outside of it ends the process."""

import ctypes
import mmap
import os

import numpy as np
import pytest

posix = pytest.mark.skipif(os.name != "posix", reason="pages are guarded with mprotect")
NOBODY = 0


def guarded(size: int, *, front: bool = False) -> np.ndarray:
    """Return so many bytes, all of them 0, that end where a page does, or begin there."""
    page = mmap.PAGESIZE
    inside = -(-size // page) * page
    every = np.frombuffer(mmap.mmap(-1, inside + 2 * page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for place in (0, page + inside):
        if protect(ctypes.c_void_p(every.ctypes.data + place), ctypes.c_size_t(page), NOBODY):
            raise OSError(ctypes.get_errno(), "mprotect")
    begin = page if front else page + inside - size
    return every[begin : begin + size]
