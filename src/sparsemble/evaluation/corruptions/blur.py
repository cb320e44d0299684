"""Corruptions by blur: out of focus, through glass, in motion, zooming."""

import math

import numpy as np
import scipy  # its parts are imported where they are first used

from sparsemble.evaluation.corruptions.types import Pixels, Request, draw


def defocus_blur(request: Request) -> Pixels:
    """Convolve with a disk whose edge is smoothed; borders are reflected."""
    x = request.x
    radius, deviation = (request.factor * length for length in request.settings)
    reach = max(8, math.ceil(radius))
    distance = np.hypot(*np.meshgrid(*[np.arange(-reach, reach + 1)] * 2))
    disk = (distance <= radius).astype(np.float64)
    taps = np.exp(-0.5 * (np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)) ** 2 / deviation**2)
    for axis in (0, 1):
        disk = scipy.ndimage.correlate1d(disk / disk.sum(), taps / taps.sum(), axis=axis, mode="mirror")
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="reflect")
    blurred: Pixels = scipy.signal.fftconvolve(padded, disk[None, None], mode="valid", axes=(2, 3))
    return blurred


def glass_blur(request: Request) -> Pixels:
    """Blur, let every pixel take the value of a near one, one after the other, blur again.

    The program that made the published arrays means to exchange two pixels, but copies one onto the other: so does
    this.
    """
    deviation, distance, turns = request.settings
    deviation, reach, rounds = request.factor * deviation, max(1, round(request.factor * distance)), int(turns)
    x = _gaussian(request.x, deviation)
    rows, columns = (np.arange(side - reach, reach, -1) for side in x.shape[2:])
    shape = (rounds, len(rows), len(columns), 2)
    shifts = draw(request.streams, lambda rng: rng.integers(-reach, reach, shape)).astype(int)
    image = np.arange(len(x))
    for turn in range(rounds):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                down, right = shifts[:, turn, i, j].T
                x[:, :, row, column] = x[image, :, row + down, column + right]
    return _gaussian(x, deviation)


def motion_blur(request: Request) -> Pixels:
    """Blur along a line within 45 degrees of the horizontal."""
    radius, deviation = (request.factor * length for length in request.settings)
    return blur_along(request.x, radius, deviation, draw(request.streams, lambda rng: rng.uniform(-45, 45)))


def blur_along(x: Pixels, radius: float, deviation: float, degrees: np.ndarray) -> Pixels:
    """Average every pixel with those in one direction, with weights of half a normal distribution.

    Args:
        x: images.
        radius: in pixels; 2 * radius + 1 pixels count.
        deviation: of the weights, in pixels.
        degrees: (B) direction for each image, 0 to the right, 90 down.

    Source: the motion blur of ImageMagick, which Hendrycks & Dietterich 2019 use: nearest pixels, edges repeated.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    weights /= weights.sum()
    angle = np.radians(degrees)[:, None]
    down, right = (np.rint(steps * part).astype(int) for part in (np.sin(angle), np.cos(angle)))
    height, width = x.shape[2:]
    image, channel = np.ogrid[: len(x), : x.shape[1]]
    image, channel = image[..., None, None], channel[..., None, None]
    blurred = np.zeros_like(x)
    for step in np.flatnonzero(weights > 1e-9):
        rows = (np.arange(height) + down[:, step, None]).clip(0, height - 1)
        columns = (np.arange(width) + right[:, step, None]).clip(0, width - 1)
        blurred += weights[step] * x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return blurred


def zoom_blur(request: Request) -> Pixels:
    """Average the image with itself at growing zoom."""
    x: Pixels = request.x
    return (x + sum(zoom(x, factor) for factor in request.settings)) / (len(request.settings) + 1)


def zoom(x: Pixels, factor: float) -> Pixels:
    """Enlarge the middle of images, by a factor >= 1, to their own size; bilinear."""
    down, right = (_zoom_matrix(side, factor) for side in x.shape[2:])
    enlarged: Pixels = down @ x @ right.T
    return enlarged


def _zoom_matrix(side: int, factor: float) -> np.ndarray:
    """Return (side, side): the weights of the pixels that make each pixel of an enlarged row."""
    part = math.ceil(side / factor)
    enlarged = max(round(part * factor), side)
    where = np.arange(side) + (enlarged - side) // 2
    at = (side - part) // 2 + where * (part - 1) / max(enlarged - 1, 1)
    below = np.minimum(at.astype(int), side - 2)
    matrix = np.zeros((side, side))
    matrix[np.arange(side), below] = 1 - (at - below)
    matrix[np.arange(side), below + 1] = at - below
    return matrix


def _gaussian(x: Pixels, deviation: float) -> Pixels:
    blurred: Pixels = scipy.ndimage.gaussian_filter(x, (0, 0, deviation, deviation), mode="nearest")
    return blurred
