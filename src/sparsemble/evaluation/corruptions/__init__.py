"""The fifteen common corruptions of Hendrycks & Dietterich 2019 (CIFAR-10-C, ImageNet-C), made on the fly.

Every function takes images (B, C, H, W) in [0, 1] as float64, the settings of one severity and a generator for each
image, so that an image is corrupted alike in any batch. What departs from the published arrays: docs/evaluation.md.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from sparsemble.core.errors import InputError
from sparsemble.core.results.corruptions import CORRUPTIONS, SEVERITIES
from sparsemble.core.types import Images
from sparsemble.evaluation.corruptions import blur, digital, noise, weather
from sparsemble.evaluation.corruptions.types import Pixels, Request, Settings

LARGEST_SMALL = 96
"""Images whose shorter side has at most so many pixels get the parameters of CIFAR-10-C, larger ones of ImageNet-C."""
SMALLEST = 4
"""Pixels that an image needs on each side."""


class Corruption(NamedTuple):
    """A corruption with its settings at severities 1 to 5."""

    apply: Callable[[Request], Pixels]
    small: tuple[Settings, ...]
    """Of CIFAR-10-C; lengths in pixels of images of 32 x 32."""
    large: tuple[Settings, ...]
    """Of ImageNet-C; lengths in pixels of images of 224 x 224."""


def _zooms(step: float, *ends: float) -> tuple[Settings, ...]:
    """Return zoom factors from 1 to about each end: as published, arange's rounding decides whether it is included."""
    return tuple(tuple(np.arange(1, end, step).tolist()) for end in ends)


def _each(*values: float) -> tuple[Settings, ...]:
    """Return settings of one number."""
    return tuple((value,) for value in values)


ELASTIC = 244 / 224
"""ImageNet-C counts lengths of elastic_transform in 244 pixels."""
TABLE = {
    "gaussian_noise": Corruption(
        noise.gaussian_noise,  # standard deviation
        _each(0.04, 0.06, 0.08, 0.09, 0.10),
        _each(0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot_noise": Corruption(
        noise.shot_noise,  # photons of a white pixel
        _each(500, 250, 100, 75, 50),
        _each(60, 25, 12, 5, 3),
    ),
    "impulse_noise": Corruption(
        noise.impulse_noise,  # fraction of the values
        _each(0.01, 0.02, 0.03, 0.05, 0.07),
        _each(0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "defocus_blur": Corruption(
        blur.defocus_blur,  # radius, standard deviation of the smoothing of the disk
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Corruption(
        blur.glass_blur,  # standard deviation, largest shift, rounds
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Corruption(
        blur.motion_blur,  # radius, standard deviation
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Corruption(
        blur.zoom_blur,  # zoom factors
        _zooms(0.01, 1.06, 1.11, 1.16, 1.21, 1.26),
        (*_zooms(0.01, 1.11, 1.16), *_zooms(0.02, 1.21, 1.26), *_zooms(0.03, 1.31)),
    ),
    "snow": Corruption(
        weather.snow,  # noise: mean, deviation, zoom, threshold; motion: radius, deviation; fraction kept of the image
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(
        weather.frost,  # weights of the image and of the frost
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Corruption(
        weather.fog,  # density, decay of its structure with its size
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        weather.brightness,  # added to the value of HSV
        _each(0.05, 0.1, 0.15, 0.2, 0.3),
        _each(0.1, 0.2, 0.3, 0.4, 0.5),
    ),
    "contrast": Corruption(
        digital.contrast,  # factor
        _each(0.75, 0.5, 0.4, 0.3, 0.15),
        _each(0.4, 0.3, 0.2, 0.1, 0.05),
    ),
    "elastic_transform": Corruption(
        digital.elastic_transform,  # displacement, its standard deviation, affine jitter; fractions of the shorter side
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        tuple(
            tuple(ELASTIC * fraction for fraction in row)
            for row in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    ),
    "pixelate": Corruption(
        digital.pixelate,  # fraction of the side that is kept
        _each(0.95, 0.9, 0.85, 0.75, 0.65),
        _each(0.6, 0.5, 0.4, 0.3, 0.25),
    ),
    "jpeg_compression": Corruption(
        digital.jpeg_compression,  # quality
        _each(80, 65, 58, 50, 40),
        _each(25, 18, 15, 10, 7),
    ),
}
"""Functions and published settings, by name in the order of `CORRUPTIONS`."""
assert tuple(TABLE) == CORRUPTIONS


def parameters_for(height: int, width: int) -> Literal["CIFAR-10-C", "ImageNet-C"]:
    """Return whose parameters images of a size are corrupted with."""
    return "CIFAR-10-C" if min(height, width) <= LARGEST_SMALL else "ImageNet-C"


def corrupt(name: str, severity: int, x: Images, *, seed: int, positions: Sequence[int]) -> Images:
    """Corrupt images; each depends on its own pixels, the seed and its position only.

    Args:
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
        x: (B, C, H, W) in [0, 1].
        seed: >= 0.
        positions: (B) of the images in their split.

    Returns:
        (B, C, H, W) float32 in [0, 1], in steps of 1/255 as the published arrays, on the device of `x`.

    Raises:
        InputError: an unknown corruption or severity, or images of fewer than 4 pixels on a side.

    Source: Hendrycks & Dietterich 2019, appendix; parameters as published with CIFAR-10-C and ImageNet-C.
    """
    height, width = x.shape[2:]
    if name not in TABLE or not 1 <= severity <= SEVERITIES:
        raise InputError(
            f"{name} at severity {severity} is no corruption; known: {', '.join(TABLE)}, severities 1 to 5"
        )
    if min(height, width) < SMALLEST:
        raise InputError(f"images of {height} x {width} pixels are too small to corrupt; each side needs {SMALLEST}")
    corruption, small = TABLE[name], parameters_for(height, width) == "CIFAR-10-C"
    streams = [np.random.default_rng([seed, zlib.crc32(name.encode()), severity, position]) for position in positions]
    settings = (corruption.small if small else corruption.large)[severity - 1]
    # Lengths follow the size of the image; those of tiny images stay as they are for 32 pixels, else they vanish.
    factor = max(1.0, min(height, width) / 32) if small else min(height, width) / 224
    pixels = corruption.apply(Request(x.cpu().double().numpy(), settings, streams, factor))
    levels = np.rint(255 * pixels.clip(0, 1)).astype(np.float32) / np.float32(255)
    return torch.from_numpy(levels).to(x.device)
