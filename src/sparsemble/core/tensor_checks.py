"""Checks of the images and labels that callers give: what is exact is converted, the rest refused in a sentence."""

from typing import Any

import torch
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images, Labels

ROUNDING = 1e-6
"""Distance from [0, 1] that is put down to rounding."""


def checked_images(images: Any) -> Images:
    """Return images (B, C, H, W) in [0, 1], float; those that rounding carried beyond are clamped.

    Raises:
        InputError: another type or shape, or a value that is NaN or more than 1e-6 outside [0, 1].
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor, got {type(images).__name__}; use torch.as_tensor")
    if images.ndim != 4:
        raise InputError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise InputError(f"images must be floats in [0, 1], got {kind}; divide whole numbers 0..255 by 255")
    return in_unit_range(for_autograd(images).detach())


def for_autograd(tensor: Tensor) -> Tensor:
    """Return a tensor, or a copy of one that was made in inference mode, which gradients cannot be taken through."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def in_unit_range(x: Tensor) -> Tensor:
    """Return floats in [0, 1]; those that rounding carried beyond are clamped, in a copy.

    Raises:
        InputError: a value that is NaN or more than 1e-6 outside [0, 1].
    """
    if not x.numel():
        return x
    low, high = (float(end) for end in x.detach().aminmax())
    if low >= 0 and high <= 1:
        return x
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(
            f"images must lie in [0, 1], got [{_shown(low)}, {_shown(high)}]; normalisation belongs inside the model"
        )
    return x.clamp(0.0, 1.0)


def _shown(value: float) -> str:
    """Return a number with three digits, or with as many as show that it lies outside [0, 1]."""
    text = f"{value:.3g}"
    return text if 0 <= value <= 1 or not 0 <= float(text) <= 1 else f"{value:.9g}"


def checked_labels(labels: Any, images: int, classes: int | None = None) -> Labels:
    """Return class indices (B) as int64; whole numbers of any type, a column of them and one-hot rows are converted.

    Args:
        labels: a tensor, an array or a list.
        images: how many images there are, B.
        classes: how many classes there are, where that is known.

    Raises:
        InputError: another shape, a label that is no whole number, or one that is no class.
    """
    try:
        y = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"labels must be a tensor of class indices, got {type(labels).__name__}") from None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.is_complex() or (y.ndim != 1 and not (y.ndim == 2 and len(y) == images)) or len(y) != images:
        kind = str(y.dtype).removeprefix("torch.")
        raise InputError(
            f"labels must be one class index for each of the {images} images, got {kind} of shape {tuple(y.shape)}"
        )
    if y.ndim == 2:
        y = _from_one_hot(y)
    if y.is_floating_point():
        wrong = y[~y.isfinite() | (y != y.round())]
        if len(wrong):
            raise InputError(f"labels must be whole numbers, got {float(wrong[0]):g}")
    y = for_autograd(y).long()
    if len(y):
        low, high = (int(end) for end in y.aminmax())
        if low < 0 or (classes is not None and high >= classes):
            allowed = "0 or more" if classes is None else f"in 0..{classes - 1}, the classes of the model"
            raise InputError(f"labels must be {allowed}; got {low}..{high}")
    return y


def _from_one_hot(rows: Tensor) -> Labels:
    """Return the position of the 1 in every row."""
    if not (((rows == 0) | (rows == 1)).all() and ((rows == 1).sum(1) == 1).all()):
        raise InputError(
            f"labels of shape {tuple(rows.shape)} must be one-hot, a single 1 in each row and 0 elsewhere; or give one "
            "class index for each image"
        )
    return (rows == 1).int().argmax(1)
