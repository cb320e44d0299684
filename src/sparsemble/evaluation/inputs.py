"""Which images are evaluated, and what is refused about a classifier or its images before any work begins."""

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.tensor_checks import checked_images
from sparsemble.core.types import Classifier
from sparsemble.data.dataset import Dataset, Split, stratified

FIRST = 8
"""Images that the classifier is tried on."""
SUBSET_SEED = 50
"""Fixed, so that every run and row is measured on the same test images."""


def select_indices(data: Dataset, images: int) -> Tensor:
    """Return the positions of the test images that are evaluated: all for 0, else a fixed stratified part."""
    if not images or images >= len(data.test):
        return torch.arange(len(data.test))
    return torch.from_numpy(stratified(data.test.labels.cpu().numpy(), images, SUBSET_SEED)[1])


def select_images(data: Dataset, images: int) -> Split:
    """Return the test images at `select_indices`."""
    indices = select_indices(data, images)
    return data.test if len(indices) == len(data.test) else data.test.subset(indices.to(data.test.labels.device))


@torch.no_grad()
def check_classifier(model: nn.Module, data: Split, classes: int | None = None) -> int:
    """Run a classifier on the first images and return its number of classes; costs 8 forward passes.

    Args:
        model: from images in [0, 1] to logits.
        data: labelled images on the device of the model.
        classes: how many the data set has, where that is known.

    Raises:
        InputError: no images, images outside [0, 1], a model in training mode, an output that is not (B, K), is NaN,
            or is probabilities, or classes that do not fit the labels.
    """
    if not len(data):
        raise InputError("there are no images to evaluate on")
    first = torch.arange(min(FIRST, len(data)), device=data.labels.device)
    x = data.images(first)
    x = checked_images(x)
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise InputError(f"the model is in training mode ({training[0]}); call model.eval() first")
    logits = _try(model, x)
    if logits.ndim != 2 or len(logits) != len(x):
        raise InputError(
            f"the model turned {len(x)} images into {tuple(logits.shape)}; it must return (images, classes)"
        )
    if not logits.isfinite().all():
        raise InputError("the model returns NaN or infinite logits on clean images")
    if logits.shape[1] > 1 and bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise InputError("the model returns probabilities; attacks need logits: take the softmax off its end")
    return _check_labels(data.labels, int(logits.shape[1]), classes)


def _check_labels(labels: Tensor, outputs: int, classes: int | None) -> int:
    """Compare the model's number of outputs with the labels and the data set's classes; return it."""
    low, high = (int(end) for end in labels.aminmax())
    if classes is not None and outputs != classes:
        raise InputError(f"the model has {outputs} outputs but the data set has {classes} classes")
    if low < 0 or high >= outputs:
        raise InputError(f"labels must lie in 0..{outputs - 1}, the model's classes; got {low}..{high}")
    return outputs


def _try(model: Classifier, x: Tensor) -> Tensor:
    try:
        logits = model(x)
    except (RuntimeError, ValueError, TypeError) as error:
        shape = "x".join(map(str, x.shape[1:]))
        first = str(error).splitlines()[0]
        raise InputError(f"the model cannot take images of {shape} (channels x height x width): {first}") from error
    if not isinstance(logits, Tensor):
        raise InputError(f"the model must return a tensor of logits, got {type(logits).__name__}")
    return logits
