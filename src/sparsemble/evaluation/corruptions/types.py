"""What the corruptions share: types, and random numbers drawn image by image."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Pixels = Float64[np.ndarray, "B C H W"]
"""Images in [0, 1]; what a corruption returns may leave the range."""
Settings = tuple[float, ...]
"""Of one severity."""
Streams = Sequence[np.random.Generator]
"""One an image."""


class Request(NamedTuple):
    """What a corruption is applied to."""

    x: Pixels
    settings: Settings
    streams: Streams
    factor: float
    """Of lengths in pixels."""


def draw(streams: Streams, sample: Callable[[np.random.Generator], np.ndarray | float]) -> np.ndarray:
    """Draw from every image's own generator and stack the samples."""
    return np.stack([np.asarray(sample(stream), dtype=np.float64) for stream in streams])
