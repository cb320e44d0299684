"""Data folds: which training images each sub-model is trained on."""

import numpy as np
from torch import Tensor, tensor

from sparsemble.core.errors import InputError


def data_folds(labels: Tensor, folds: int, rng: np.random.Generator) -> list[Tensor]:
    """Split the training images of one score among its sub-models.

    A stratified partition into d equal folds D_0..D_{d-1}; sub-model j = 1..d-1 gets D_0 and D_j, so two sub-models of
    a score have 1/d of the images in common and each is trained on 2/d. One fold means no split.

    Args:
        labels: (N,) classes of the training images.
        folds: d, 1 or more; at most as many as the rarest class has images.
        rng: draws the partition, anew for every score.

    Returns:
        max(d - 1, 1) tensors of image indices, ascending.

    Source: EED main paper, section 4.1.
    """
    classes, counts = np.unique(labels.cpu().numpy(), return_counts=True)
    if not 1 <= folds <= counts.min():
        raise InputError(
            f"folds = {folds} must be between 1 and {counts.min()}, the number of training images of the rarest "
            f"class ({classes[counts.argmin()]})"
        )
    if folds == 1:
        return [tensor(np.arange(len(labels)))]
    fold = np.empty(len(labels), dtype=int)
    offset = 0
    for label in classes:
        members = rng.permutation(np.flatnonzero(labels.cpu().numpy() == label))
        fold[members] = (np.arange(len(members)) + offset) % folds
        offset += len(members)
    return [tensor(np.flatnonzero((fold == 0) | (fold == j))) for j in range(1, folds)]
