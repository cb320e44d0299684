"""Corruptions by processing: contrast, elastic deformation, pixels, JPEG."""

import io
from collections.abc import Callable

import numpy as np
import scipy  # its parts are imported where they are first used
from PIL import Image

from sparsemble.evaluation.corruptions.types import Pixels, Request, draw


def contrast(request: Request) -> Pixels:
    """Move all values towards the mean of their channel."""
    x = request.x
    (factor,) = request.settings
    mean = x.mean((2, 3), keepdims=True)
    flat: Pixels = factor * (x - mean) + mean
    return flat


def elastic_transform(request: Request) -> Pixels:
    """Move three points of the image, then every pixel by a smooth random field."""
    x = request.x
    height, width = x.shape[2:]
    shorter = min(height, width)
    displacement, deviation, jitter = (shorter * fraction for fraction in request.settings)
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float64)
    third, middle = shorter // 3, np.array([height // 2, width // 2], float)
    before = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + draw(request.streams, lambda rng: rng.uniform(-jitter, jitter, (3, 2)))
    # The affine map from where the points are now to where they were: solved for each image.
    known = np.concatenate([after, np.ones((len(x), 3, 1))], 2)
    back = np.stack([np.linalg.lstsq(one, before, rcond=None)[0] for one in known])
    at = np.einsum("bki,khw->bihw", back[:, :2], grid) + back[:, 2, :, None, None]
    x = _sample(x, at, "mirror")
    field = draw(request.streams, lambda rng: rng.uniform(-1, 1, (2, height, width)))
    smooth = scipy.ndimage.gaussian_filter(field, (0, 0, deviation, deviation), mode="reflect", truncate=3)
    return _sample(x, grid + displacement * smooth, "reflect")


def _sample(x: Pixels, at: np.ndarray, border: str) -> Pixels:
    """Return each image at the positions (B, 2, H, W) of its rows and columns, bilinear."""
    return np.stack(
        [
            np.stack([scipy.ndimage.map_coordinates(channel, place, order=1, mode=border) for channel in image])
            for image, place in zip(x, at, strict=True)
        ]
    )


def pixelate(request: Request) -> Pixels:
    """Make the image smaller and enlarge it again, by boxes."""
    x = request.x
    (fraction,) = request.settings
    height, width = x.shape[2:]
    small = max(1, int(fraction * width)), max(1, int(fraction * height))

    def resized(image: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return image.resize(small, box).resize((width, height), box)

    return _through_pillow(x, resized)


def jpeg_compression(request: Request) -> Pixels:
    """Write the image as JPEG, with halved colour resolution, and read it."""
    x = request.x
    (quality,) = request.settings

    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(quality))
        return Image.open(buffer)

    return _through_pillow(x, compressed)


def _through_pillow(x: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Apply a function of pictures with 8 bits to each image; unless it is RGB, to each channel as grey."""
    levels = np.rint(255 * x).astype(np.uint8)
    if x.shape[1] == 3:
        changed = [np.asarray(change(Image.fromarray(image.transpose(1, 2, 0)))).transpose(2, 0, 1) for image in levels]
    else:
        changed = [np.stack([np.asarray(change(Image.fromarray(channel))) for channel in image]) for image in levels]
    return np.stack(changed) / 255
