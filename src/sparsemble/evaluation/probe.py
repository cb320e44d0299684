"""What kind of classifier a model is, found out on a few images before any work begins."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import Access
from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line
from sparsemble.core.tensor_checks import checked_images
from sparsemble.core.types import Images
from sparsemble.data.dataset import Split
from sparsemble.evaluation.inputs import FIRST
from sparsemble.models.adapted import Adaptation, AdaptedClassifier, Reading, as_logits, find_output

NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float64", torch.float32: "float32"}
SUM = 1e-2
"""Distance from 1 that the sum of probabilities in 16 bits may have."""


@final
@dataclass(frozen=True, kw_only=True)
class Probed:
    """A model that can be attacked, and how it was read."""

    model: nn.Module
    """The model itself, or the model between conversions."""
    notes: tuple[str, ...] = ()
    """What was converted, each a short sentence."""


def probe(
    model: nn.Module,
    data: Split,
    *,
    classes: int | None = None,
    access: Access = "gradients",
    class_map: Sequence[int] = (),
) -> Probed:
    """Run a model on the first images and return it as a classifier that attacks can use; costs about 30 passes.

    Args:
        model: any network in eval mode, on the device of the images; left as found.
        data: labelled images in [0, 1].
        classes: number of classes of the data set; None: not known.
        access: what attacks may use; "gradients" needs a gradient of the logits with respect to the images.
        class_map: output of each class of the data; empty: outputs are the classes in their order.

    Raises:
        InputError: no images, images outside [0, 1], or a model that cannot be read as a classifier of these images,
            or has no gradient where attacks need one; with the cause and what to do about it.
    """
    if not len(data):
        raise InputError("there are no images to evaluate on")
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise InputError(
            f"the model is in training mode ({training[0]}) where model.eval() should have left none of it"
        )
    x = data.images(torch.arange(min(FIRST, len(data)), device=data.labels.device))
    x = checked_images(x)
    notes: list[str] = []
    dtype = _input_dtype(model)
    output, copies = _run(model, x.to(dtype))
    found = _found(output, len(x))
    if classes is None and not found.is_floating_point():
        classes = 1 + max(int(data.labels.max()), int(found.max()))
    if found is not output:
        notes.append(f"the logits are taken from a {type(output).__name__} that the model returns")
    reading = _reading(found, classes, access, notes)
    names = [NAMES.get(each, str(each)) for each in (dtype, found.dtype)]
    if dtype != torch.float32:
        notes.append(f"images are converted to {names[0]}, in which the model computes")
    if found.dtype != torch.float32 and reading != "labels":
        notes.append(f"logits are converted from {names[1]} to float32")
    if copies:
        notes.append("the model gets a copy of its images, because it changes them in place")
    pairs = _refuses_one(model, x.to(dtype))
    if pairs:
        notes.append("a single image is passed twice, because the model takes no batch of one")
    outputs = as_logits(found, reading, classes).shape[1]
    _check_class_map(class_map, outputs, classes)
    adaptation = Adaptation(
        dtype=dtype,
        output=found.dtype if found.is_floating_point() else torch.float32,
        copies=copies,
        pairs=pairs,
        reading=reading,
        classes=classes if reading == "labels" else None,
        class_map=tuple(class_map),
    )
    # Passes are counted by hooks, which a compiled module does not take.
    hooked = not isinstance(model, torch.jit.ScriptModule)
    plain = hooked and adaptation.changes_nothing and found is output and found.ndim == 2
    adapted = model if plain else AdaptedClassifier(model, adaptation).eval()
    if access == "gradients":
        _check_gradient(adapted, x)
    return Probed(model=adapted, notes=tuple(notes))


def _input_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype in which a model computes: that of its first floating-point tensor."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


@torch.no_grad()
def _run(model: nn.Module, x: Images) -> tuple[Any, bool]:
    """Return a model's output, and whether it changed its images.

    Raises:
        InputError: the model failed.
    """
    given = x.clone()
    running: list[str] = []
    try:
        with _tracking(model, running):
            output = model(given)
    except Exception as error:
        shape = "x".join(map(str, x.shape[1:]))
        place = f" in its layer {running[-1]}" if running and running[-1] else ""
        for count in (1, 2):
            if count < len(x) and not _fails(model, x[:count]):
                raise InputError(
                    f"the model takes {count} image{'s' * (count > 1)} of {shape} but not {len(x)} at once "
                    f"({first_line(error)}); a batch may have any size, so use x.size(0) in place of a constant"
                ) from error
        raise InputError(
            f"the model cannot take images of {shape} (channels x height x width), it fails{place}: {first_line(error)}"
        ) from error
    return output, not torch.equal(given, x)


@contextlib.contextmanager
def _tracking(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the names of the layers that have begun and not returned, innermost last."""

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # which take no hooks
        handles.append(module.register_forward_pre_hook(lambda _module, _inputs, name=name: running.append(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _fails(model: nn.Module, x: Images) -> bool:
    try:
        output = find_output(model(x.clone()))
    except Exception:
        return True
    return output is None or len(output) != len(x)


def _refuses_one(model: nn.Module, x: Images) -> bool:
    """Return whether a model fails on one image, or squeezes its axis away, but takes two of the same.

    Raises:
        InputError: it takes neither.
    """
    if not _fails_alone(model, x[:1]):
        return False
    if _fails(model, x[:1].repeat(2, 1, 1, 1)):
        raise InputError(f"the model takes {len(x)} images at once, but neither one nor two; a batch may have any size")
    return True


@torch.no_grad()
def _fails_alone(model: nn.Module, one: Images) -> bool:
    try:
        output = find_output(model(one.clone()))
    except Exception:
        return True
    return output is None or output.ndim == 0 or len(output) != 1


def _found(output: Any, images: int) -> Tensor:
    """Return the tensor of outputs, one row for each image.

    Raises:
        InputError: there is none.
    """
    found = find_output(output)
    if found is None:
        raise InputError(f"the model must return a tensor of logits, got {type(output).__name__}")
    flat = found.flatten(1) if found.ndim > 1 else found
    if found.ndim == 0 or len(found) != images or (found.ndim > 2 and flat.shape[1] != found.shape[1]):
        raise InputError(
            f"the model turned {images} images into {tuple(found.shape)}; it must return (images, classes)"
        )
    return found


def _reading(output: Tensor, classes: int | None, access: Access, notes: list[str]) -> Reading:
    """Return what the numbers of an output are.

    Raises:
        InputError: they are nothing that can be attacked as asked.
    """
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    if not output.is_floating_point():
        if flat.shape[1] != 1 or output.is_complex():
            kind = str(output.dtype).removeprefix("torch.")
            raise InputError(f"the model returns {kind} numbers; attacks need floating-point logits")
        if access != "labels":
            raise InputError(
                "the model returns labels, not logits; evaluate it by attacks that need labels only: --access labels"
            )
        low, high = int(flat.min()), int(flat.max())
        if classes is None or low < 0 or high >= classes:
            raise InputError(f"the model returns labels {low}..{high}, but the data set has {classes} classes")
        notes.append("the model returns labels")
        return "labels"
    values = flat.float()
    if not values.isfinite().all():
        raise InputError("the model returns NaN or infinite logits on clean images")
    in_unit = bool((values >= 0).all()) and bool((values <= 1).all())
    if flat.shape[1] == 1:
        if classes not in (None, 2):
            raise InputError(f"the model has one output but the data set has {classes} classes")
        if in_unit:
            _refuse_probabilities(access, "sigmoid")
            notes.append("one output is read as the probability p of class 1: logits (log(1 - p), log p)")
            return "binary_probability"
        notes.append("one output z is read as the logits (0, z) of classes 0 and 1")
        return "binary"
    if in_unit and bool(((values.sum(1) - 1).abs() < SUM).all()):
        _refuse_probabilities(access, "softmax")
        notes.append("probabilities are read as logits through their logarithm")
        return "probabilities"
    return "logits"


def _refuse_probabilities(access: Access, end: str) -> None:
    """Refuse probabilities where attacks follow gradients, which vanish where they are 0 or 1 in float32.

    Raises:
        InputError: saying so.
    """
    if access == "gradients":
        raise InputError(
            f"the model returns probabilities; attacks need logits: take the {end} off its end, or evaluate it without "
            "gradients: --access scores"
        )


def _check_class_map(class_map: Sequence[int], outputs: int, classes: int | None) -> None:
    """Compare the outputs with the classes of the data, or with the map between them.

    Raises:
        InputError: they do not fit.
    """
    if not class_map:
        if classes is not None and outputs != classes:
            raise InputError(
                f"the model has {outputs} outputs but the data set has {classes} classes; name the output of each "
                f"class with --class-map, as in --class-map {','.join(map(str, range(min(classes, 3))))}"
                f"{',...' if classes > 3 else ''}"
            )
        return
    if classes is not None and len(class_map) != classes:
        raise InputError(f"the class map has {len(class_map)} entries but the data set has {classes} classes")
    wrong = [index for index in class_map if not 0 <= index < outputs]
    if wrong:
        raise InputError(f"the class map names output {wrong[0]}; the model has outputs 0..{outputs - 1}")
    twice = [index for index in class_map if list(class_map).count(index) > 1]
    if twice:
        raise InputError(f"the class map names output {twice[0]} twice; each class needs an output of its own")


def _check_gradient(model: nn.Module, x: Images) -> None:
    """Refuse a model whose logits have no gradient with respect to the images.

    Raises:
        InputError: with the cause, as far as it shows.
    """
    advice = "evaluate it by attacks that need none: --access scores (there bpda makes its own, if named)"
    point = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            logits = model(point)
            if not logits.requires_grad:
                raise InputError(
                    f"the logits have no gradient (no_grad, detach, numpy or integers in the forward pass); {advice}"
                )
            # The gaps to the first class: a sum of log-probabilities or of a softmax may have gradient 0.
            (gradient,) = torch.autograd.grad((logits[:, 1:] - logits[:, :1]).square().sum(), point, allow_unused=True)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the model cannot be differentiated ({first_line(error)}); {advice}") from error
    if gradient is None or not bool(gradient.any()):
        same = bool((logits == logits[:1]).all()) and len(logits) > 1
        cause = "the model gives all images the same logits" if same else "rounding or a comparison in the forward pass"
        raise InputError(f"the gradient of the logits is 0 on the first {len(x)} images ({cause}); {advice}")
    if not bool(gradient.isfinite().all()):
        raise InputError(f"the gradient of the logits is NaN or infinite on clean images; {advice}")
