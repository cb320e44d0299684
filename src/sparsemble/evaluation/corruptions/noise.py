"""Corruptions by noise, drawn for every value of an image."""

import numpy as np

from sparsemble.evaluation.corruptions.types import Pixels, Request, draw


def gaussian_noise(request: Request) -> Pixels:
    """Add normal noise, as of a sensor in low light."""
    x = request.x
    (deviation,) = request.settings
    return x + deviation * draw(request.streams, lambda rng: rng.standard_normal(x.shape[1:]))


def shot_noise(request: Request) -> Pixels:
    """Replace light by a Poisson number of photons."""
    x = request.x
    (photons,) = request.settings
    return np.stack([rng.poisson(image * photons) for rng, image in zip(request.streams, x, strict=True)]) / photons


def impulse_noise(request: Request) -> Pixels:
    """Set some values to 0 or 1, as often to the one as to the other (salt and pepper)."""
    x = request.x
    (fraction,) = request.settings
    hit, white = np.moveaxis(draw(request.streams, lambda rng: rng.random((2, *x.shape[1:]))), 1, 0)
    return np.where(hit < fraction, (white < 0.5).astype(np.float64), x)
