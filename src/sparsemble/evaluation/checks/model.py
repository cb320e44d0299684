"""Do gradients lead attacks on this model: inputs, outputs, gradients (checks 2, 3, 7 to 10 and 12)."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.loss import AttackLoss
from sparsemble.attacks.losses.margin import Margin
from sparsemble.core.module_state import state_tensors
from sparsemble.core.results import CheckResult
from sparsemble.core.source_file import first_line
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Flags, Images, Labels, Logits
from sparsemble.evaluation.checks import skipped, verdict
from sparsemble.evaluation.job import Decide
from sparsemble.models.adapted import AdaptedClassifier

DARKEST = 2 / 255
"""Images whose brightest pixel is below this were divided by 255 twice."""
SURE = 3.0
"""Standard deviations of a fair coin that a difference of two accuracies on the same images must exceed."""
SAME = 1e-3
"""Fraction of the spread of the logits by which an output may differ between batches: kernels round differently."""
REPEATED = 1e-4
"""The same, between passes of the same batch."""
SATURATED = 87.0
"""Lead of the first logit over the second, in nats, from which cross-entropy's gradient underflows in float32."""
PASSES, DIRECTIONS, DRAWS = 5, 8, 4
"""Repeated passes; random directions of finite differences; random steps of either length."""
LOSSES: tuple[AttackLoss, ...] = (CrossEntropy(), Margin())
"""Not DLR: once an image is broken and its true class is third, it is constant."""
PROBE = 1e-3
"""Length of a finite-difference step, in each pixel."""
DISAGREEMENT = 0.2
"""Fraction by which gradient and finite difference of an image may differ: a step may leave a linear piece."""
ROUGH = 1.0
"""Change of the margin under random steps of length eps, in units of its usual size, from which a loss is rough."""
FEW = 8
"""Images that show whether a model computes with values outside [0, 1]."""
SHORTER = 16.0
"""A step this many times shorter must change a smooth loss by clearly less."""
RUGGED = 0.5
"""Fraction of the long step's change that the short one may reach; 1 / 16 on a plane."""


@torch.no_grad()
def normalised_once(model: Classifier, x: Images, y: Labels) -> CheckResult:
    """Check 2: images span [0, 1], and the model expects them so: normalisation is inside it, once.

    The model also classifies the images normalised by their own mean and deviation, and with one normalisation
    undone. If it classifies more of those correctly, beyond chance, it lacks its normalisation or applies it twice. A
    model that is wrong either way looks like one that was trained so; one that refuses images outside [0, 1]
    or clamps them cannot be tried. Costs 3 forward passes an image, and 4 on each of at most 8 images.

    Args:
        model: the classifier.
        x: (B, C, H, W) clean images.
        y: (B) true classes.
    """
    low, high = (float(end) for end in x.aminmax())
    variants_left: list[str] = []
    faults = [] if low >= 0 and DARKEST < high <= 1 else [f"images span [{low:.4g}, {high:.4g}], not [0, 1]"]
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    correct = model(x).argmax(1) == y
    variants = {"normalised beforehand": (x - mean) / std, "with a normalisation undone": x * std + mean}
    for variant, images in variants.items():
        if reason := _keeps_inside(model, images[:FEW]):
            variants_left.append(reason)
            continue
        now = model(images).argmax(1) == y
        gained, lost = int((now & ~correct).sum()), int((correct & ~now).sum())
        if gained - lost > SURE * math.sqrt(gained + lost):
            faults.append(
                f"{int(now.sum())} of {len(x)} images are classified correctly {variant}, {int(correct.sum())} as given"
            )
    if variants_left and not faults:
        return skipped(2, f"{variants_left[0]}, so whether it lacks a normalisation or has two could not be tried")
    detail = "; ".join(faults) or f"images span [{low:.3f}, {high:.3f}], and normalising them outside gains nothing"
    return verdict(2, not faults, detail)


@torch.no_grad()
def independent_of_neighbours(model: Classifier, x: Images) -> CheckResult:
    """Check 3: eval mode, frozen BatchNorm, and the same output alone, in the batch and in the reversed batch.

    Also: a pass leaves every parameter and buffer as it was. Costs 3 forward passes an image.
    """
    if fault := _fault_of_mode(model):
        return verdict(3, False, fault)
    before = _state(model)
    whole = model(x)
    single = torch.cat([model(one) for one in x.split(1)])
    differ = _differ(model, model(x.flip(0)).flip(0), whole) | _differ(model, single, whole)
    moved = [name for name, tensor in _state(model).items() if not torch.equal(tensor, before[name])]
    if isinstance(model, nn.Module):
        state = state_tensors(model)
        for name in moved:
            state[name].copy_(before[name])  # in place, where the network holds it
    changed = f"; passes changed {moved[0]}" if moved else ""
    detail = (
        f"{int(differ.sum())} of {len(x)} images get another output alone, in a batch or in reversed order{changed}"
    )
    return verdict(3, not (differ.any() or moved), detail)


@torch.no_grad()
def returns_logits(model: Classifier, x: Images) -> CheckResult:
    """Check 7: finite logits or log-probabilities, neither probabilities nor saturated; 1 forward pass an image."""
    out = model(x)
    detail = f"outputs in [{float(out.min()):.2f}, {float(out.max()):.2f}]"
    if not out.isfinite().all():
        return verdict(7, False, f"outputs are not finite: {detail}")
    if (out >= 0).all() and ((out.sum(1) - 1).abs() < 1e-4).all():
        return verdict(7, False, "outputs are probabilities")
    first, second = out.topk(2, dim=1).values.unbind(1)
    saturated = int((first - second > SATURATED).sum())
    return verdict(7, not saturated, f"{detail}, {saturated} of {len(x)} images saturate the softmax")


@torch.no_grad()
def repeatable(decide: Decide, x: Images) -> CheckResult:
    """Check 8: repeated passes give the same labels and logits; 5 decisions an image."""
    first = decide(x).logits
    others = [decide(x).logits for _ in range(PASSES - 1)]
    spread = float(torch.stack([(other - first).abs().max() for other in others]).max() / _spread(first))
    flips = int(torch.stack([other.argmax(1) != first.argmax(1) for other in others]).any(0).sum())
    detail = f"largest change over {PASSES} passes {spread:.1e} of the logits' spread, {flips} labels change"
    return verdict(8, spread <= REPEATED and not flips, detail)


@torch.enable_grad()
def gradients_flow(models: Sequence[Classifier], x: Images, y: Labels) -> CheckResult:
    """Check 9: no image has a zero, NaN or infinite gradient, for any loss, on any surrogate.

    Costs a forward and a backward pass an image for each model and loss.

    Args:
        models: the classifiers that attacks differentiate.
        x: (B, C, H, W) clean images.
        y: (B) true classes.
    """
    bad = 0
    for model, loss in itertools.product(models, LOSSES):
        point = x.clone().requires_grad_()
        logits = model(point)
        gradient = _gradient(loss(logits, logits.detach(), y), point).flatten(1)
        bad += int(((gradient.abs().amax(1) == 0) | ~gradient.isfinite().all(1)).sum())
    total = len(LOSSES) * len(models) * len(x)
    return verdict(9, bad == 0, f"{bad} of {total} gradients are zero or not finite")


@torch.enable_grad()
def agrees_with_differences(model: Classifier, x: Images, y: Labels, *, rng: Generator) -> CheckResult:
    """Check 10: the gradient of the lead over one wrong class predicts its change along random directions.

    An image disagrees if gradient and differences are apart by more than a fifth of their size over the directions
    (random signs in every pixel, plus the gradient's own); half of the images must agree. Images are moved inside
    [0, 1] by the length of a step first, so that no step leaves it. Logits of 16 bits are too coarse for such steps.
    Costs 19 forward passes and a backward pass an image.

    Args:
        model: the classifier.
        x: (B, C, H, W) clean images.
        y: (B) true classes.
        rng: draws the directions.
    """
    x = x.clamp(PROBE, 1 - PROBE)
    point = x.clone().requires_grad_()
    logits = model(point)
    if dtype := _coarse(model, logits.detach()):
        name = str(dtype).removeprefix("torch.")
        return skipped(10, f"the logits are computed in {name}, too coarse for differences over steps of {PROBE:g}")
    rival = logits.detach().scatter(1, y[:, None], -math.inf).argmax(1)
    gradient = _gradient(_lead(logits, y, rival), point)
    predicted, measured = [], []
    for i in range(DIRECTIONS + 1):
        noise = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) - 0.5
        step = PROBE * (noise if i else gradient.nan_to_num()).sign()
        with torch.no_grad():
            ends = model((x + step).clamp(0, 1)), model((x - step).clamp(0, 1))
            change = _lead(ends[0], y, rival) - _lead(ends[1], y, rival)
        predicted.append(2 * (gradient * step).flatten(1).sum(1))
        measured.append(change)
    first, second = torch.stack(predicted), torch.stack(measured)
    # 0 in both is no agreement: a flat spot gives an attack no direction.
    difference = 2 * (first - second).norm(dim=0) / (first.norm(dim=0) + second.norm(dim=0))
    median = float(difference.nan_to_num(nan=2.0, posinf=2.0).median())
    detail = f"gradient and finite differences are {100 * median:.1f} % apart on the median of {len(x)} images"
    return verdict(10, median <= DISAGREEMENT, detail)


@torch.no_grad()
def smooth_loss(model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> CheckResult:
    """Check 12: random steps of length eps change the margin little, and 16 times shorter ones far less.

    Costs 9 forward passes an image.

    Args:
        model: the classifier.
        x: (B, C, H, W) clean images.
        y: (B) true classes.
        threat: gives eps and the norm.
        rng: draws the steps.
    """
    clean = _margin(model, x, y)
    long, short = [], []
    for _ in range(DRAWS):
        noise = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) * 2 - 1
        step = threat.eps * threat.steepest(noise)
        long.append((_margin(model, (x + step).clamp(0, 1), y) - clean).abs().mean())
        short.append((_margin(model, (x + step / SHORTER).clamp(0, 1), y) - clean).abs().mean())
    far, near = (float(torch.stack(changes).mean()) for changes in (long, short))
    size = float(clean.abs().mean())
    good = far <= ROUGH * size and near <= RUGGED * far
    detail = f"margins of size {size:.2e} change by {far:.2e} within eps, by {near:.2e} within eps / {SHORTER:g}"
    return verdict(12, good, detail)


def _keeps_inside(model: Classifier, x: Images) -> str:
    """Return how a model answers images outside [0, 1], where that is not by computing with them."""
    inside = x.clamp(0, 1)
    if torch.equal(inside, x):
        return ""
    expected = model(inside)
    try:
        logits = model(x)
    except Exception as error:
        return f"the model refuses images outside [0, 1] ({first_line(error)})"
    return "" if _differ(model, logits, expected).any() else "the model clamps images to [0, 1]"


def _fault_of_mode(model: Classifier) -> str:
    """Return which part of a network uses statistics of the batch, if any."""
    if not isinstance(model, nn.Module):
        return ""
    for name, part in model.named_modules():
        module = name or type(part).__name__
        if part.training:
            return f"{module} is in training mode"
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            return f"{module} keeps no statistics and normalises by the batch's own"
    return ""


def _state(model: Classifier) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state_tensors(model).items()} if isinstance(model, nn.Module) else {}


def _spread(logits: Logits) -> Tensor:
    """Return the size of the differences between an image's logits, over all images."""
    return (logits - logits.mean(1, keepdim=True)).abs().max().clamp_min(1e-12)


def _differ(model: Classifier, logits: Logits, others: Logits) -> Flags:
    """Return which outputs of a model differ by more than rounding; NaN differs from everything."""
    dtype = _coarse(model, others)
    same = max(SAME, 4 * torch.finfo(dtype).eps) if dtype else SAME
    return ~((logits - others).abs().amax(1) <= same * _spread(others))


def _coarse(model: Classifier, logits: Logits) -> torch.dtype | None:
    """Return the dtype of 16 bits in which logits were computed, where that is known or shows in them."""
    if isinstance(model, AdaptedClassifier) and model.adaptation.is_coarse:
        return min(model.adaptation.dtype, model.adaptation.output, key=lambda dtype: torch.finfo(dtype).bits)
    size = float(logits.abs().max())
    if not 0 < size < math.inf:
        return None
    for dtype in (torch.bfloat16, torch.float16):
        steps = logits / (torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(size)))
        # Values on one grid were rounded on purpose; those of a dtype are finer the smaller they are.
        if torch.equal(logits.to(dtype).to(logits.dtype), logits) and not torch.equal(steps, steps.round()):
            return dtype
    return None


def _gradient(value: Tensor, point: Images) -> Images:
    """Return the gradient of summed values, 0 where none leads back to the images."""
    if not value.requires_grad:
        return torch.zeros_like(point)
    (gradient,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
    return torch.zeros_like(point) if gradient is None else gradient


def _lead(logits: Logits, y: Labels, rival: Labels) -> Tensor:
    return (logits.gather(1, y[:, None]) - logits.gather(1, rival[:, None]))[:, 0]


def _margin(model: Classifier, x: Images, y: Labels) -> Tensor:
    logits = model(x)
    return Margin()(logits, logits, y)
