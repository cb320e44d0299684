"""Operations of augmentation on batches, a size for each image; defined as in `torchvision.transforms.v2`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemble.core.types import Images

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def resized_crop(x: Images, boxes: Tensor) -> Images:
    """Cut a box out of each image and scale it, bilinearly, to the size of the image.

    Args:
        x: (B, C, H, W).
        boxes: (B, 4), top, left, height and width in whole pixels, inside the image.
    """
    grid = []
    for side, (start, length) in zip(x.shape[2:], (boxes[:, 0::2].unbind(1), boxes[:, 1::2].unbind(1)), strict=True):
        centres = torch.arange(side, device=x.device, dtype=x.dtype) + 0.5
        inside = centres * (length / side)[:, None] - 0.5
        position = inside.clamp_min(0).minimum(length[:, None] - 1) + start[:, None]  # nothing from beside the box
        grid.append((2 * position + 1) / side - 1)
    down, across = grid
    points = torch.stack(
        [across[:, None, :].expand(-1, x.shape[2], -1), down[:, :, None].expand(-1, -1, x.shape[3])], dim=3
    )
    return F.grid_sample(x, points, align_corners=False).clamp(0, 1)


def affine(x: Images, matrices: Tensor) -> Images:
    """Return each image at the points that its matrix maps the output's to; zeros outside, bilinear.

    Args:
        x: (B, C, H, W).
        matrices: (B, 2, 3), in coordinates (across, down) that go from -1 to 1.
    """
    grid = F.affine_grid(matrices.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)


def grey(x: Images) -> Tensor:
    """Return the brightness of each pixel (B, 1, H, W) of images with one or three channels."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blend(x: Images, other: Tensor, factor: Tensor) -> Images:
    """Return factor x + (1 - factor) other, clipped to [0, 1].

    Args:
        x: (B, C, H, W).
        other: what `factor` 0 gives; broadcast to the shape of `x`.
        factor: (B), >= 0.
    """
    factor = factor.view(-1, 1, 1, 1)
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def turn_hue(x: Images, turn: Tensor) -> Images:
    """Turn the hue of colour images, at equal saturation and value of the HSV cone.

    Args:
        x: (B, 3, H, W) in [0, 1].
        turn: (B), share of a full turn, in [-0.5, 0.5].
    """
    value, brightest = x.max(1)
    chroma = value - x.amin(1)
    red, green, blue = x.unbind(1)
    sixth = torch.stack([(green - blue), (blue - red), (red - green)]) / chroma.clamp_min(torch.finfo(x.dtype).tiny)
    hue = sixth.gather(0, brightest[None])[0] + 2 * brightest + 6 * turn.view(-1, 1, 1)
    # Each channel is the value less the chroma times a trapezoid over the hue.
    shares = [(hue + offset).remainder(6) for offset in (5, 3, 1)]
    channels = [value - chroma * torch.minimum(share, 4 - share).clamp(0, 1) for share in shares]
    return torch.stack(channels, dim=1).clamp(0, 1)
