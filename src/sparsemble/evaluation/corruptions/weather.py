"""Corruptions by weather: snow, frost, fog, brightness."""

import numpy as np

from sparsemble.evaluation.corruptions.blur import blur_along, zoom
from sparsemble.evaluation.corruptions.types import Pixels, Request, Streams, draw

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey."""
ICE = (0.82, 0.92, 1.0)
"""Red, green and blue of frost at its brightest."""
ROUGHNESS = 1.35
"""Decay of the structure of frost."""


def snow(request: Request) -> Pixels:
    """Whiten the image and add flakes: zoomed noise above a threshold, blurred as it falls, in two directions."""
    x, factor = request.x, request.factor
    mean, deviation, size, threshold, radius, length, kept = request.settings
    height, width = x.shape[2:]
    flakes = draw(request.streams, lambda rng: rng.normal(mean, deviation, (1, height, width)))
    flakes = zoom(flakes, max(1.0, size * factor))
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    angles = draw(request.streams, lambda rng: rng.uniform(-135, -45))
    flakes = blur_along(flakes, factor * radius, factor * length, angles)
    grey = np.tensordot(x, LUMA, (1, 0))[:, None] if x.shape[1] == 3 else x.mean(1, keepdims=True)
    whitened = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    snowy: Pixels = whitened + flakes + flakes[:, :, ::-1, ::-1]
    return snowy


def frost(request: Request) -> Pixels:
    """Lay frost over the image: ridges of a rough fractal in bluish white, in place of photographs of frost."""
    x = request.x
    image, ice = request.settings
    ridges = 1 - np.abs(2 * plasma(max(x.shape[2:]), ROUGHNESS, request.streams) - 1)
    ridges = ridges[:, None, : x.shape[2], : x.shape[3]]
    colour = np.array(ICE if x.shape[1] == 3 else (1.0,)).reshape(1, -1, 1, 1)
    frosted: Pixels = image * x + ice * ridges * colour
    return frosted


def fog(request: Request) -> Pixels:
    """Add a fractal cloud and scale the image back to its own maximum."""
    x = request.x
    density, decay = request.settings
    brightest = x.max((1, 2, 3), keepdims=True)
    cloud = plasma(max(x.shape[2:]), decay, request.streams)[:, None, : x.shape[2], : x.shape[3]]
    foggy: Pixels = (x + density * cloud) * brightest / (brightest + density)
    return foggy


def brightness(request: Request) -> Pixels:
    """Raise the value of HSV, which is the largest of the channels, at the same hue and saturation."""
    x = request.x
    (added,) = request.settings
    value = x.max(1, keepdims=True)
    raised = (value + added).clip(0, 1)
    bright: Pixels = np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)
    return bright


def plasma(side: int, decay: float, streams: Streams) -> np.ndarray:
    """Return fractal clouds (B, S, S) in [0, 1], S the power of two from `side` on, by the diamond-square algorithm.

    The random part of a level has amplitude `decay ** -2` of that of the level above, as published: the program that
    made the arrays multiplies by its amplitude twice.

    Args:
        side: pixels that are needed.
        decay: from level to level, > 1.
        streams: a generator for each image.
    """
    size = 1 << (side - 1).bit_length()
    field = np.zeros((len(streams), size, size))
    step, amplitude = size, 1.0
    while step >= 2:
        half, cells = step // 2, size // step
        middle, top, left = amplitude * np.moveaxis(_uniform(streams, cells), 1, 0)
        corner = field[:, ::step, ::step]
        right, below = np.roll(corner, -1, 2), np.roll(corner, -1, 1)
        centre = (corner + right + below + np.roll(right, -1, 1)) / 4 + middle
        field[:, half::step, half::step] = centre
        field[:, ::step, half::step] = (corner + right + centre + np.roll(centre, 1, 1)) / 4 + top
        field[:, half::step, ::step] = (corner + below + centre + np.roll(centre, 1, 2)) / 4 + left
        step, amplitude = half, amplitude / decay**2
    low, high = field.min((1, 2), keepdims=True), field.max((1, 2), keepdims=True)
    clouds: np.ndarray = (field - low) / (high - low)
    return clouds


def _uniform(streams: Streams, cells: int) -> np.ndarray:
    """Return three random numbers in [-1, 1] for each cell of a square."""
    return draw(streams, lambda rng: rng.uniform(-1, 1, (3, cells, cells)))
