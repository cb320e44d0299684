"""The interface of attacks, the checks around every one of them, and what several attacks share."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from sparsemble.core.errors import InputError, RunError
from sparsemble.core.registry import Component, Registry
from sparsemble.core.tensor_checks import checked_images, checked_labels
from sparsemble.core.threat import Norm, ThreatModel, checked_threat, unit_laplace
from sparsemble.core.types import Classifier, Images, Labels, Logits, seeded

Access = Literal["gradients", "scores", "labels"]
"""What an attack uses of a model: its gradients, only its logits, only the predicted class."""
ACCESS: tuple[Access, ...] = ("labels", "scores", "gradients")
"""From least to most."""

SMALLEST = 1e-12
"""Added to or put in place of a divisor that may be 0."""
DEFAULT_SEED = 0
"""Seed of an attack that is called without a generator."""


@dataclass(frozen=True, kw_only=True)
class Labelled(Component):
    """A component with a name in results."""

    label: str = ""
    """Name in results, where the same attack stands twice in a list; empty: the component's name and steps."""

    def __post_init__(self) -> None:
        self._set_label(self.name)

    def _set_label(self, automatic: str) -> None:
        """Use an automatic label where none was given."""
        if not self.label:
            object.__setattr__(self, "label", automatic)


@dataclass(frozen=True, kw_only=True)
class Attack(Labelled):
    """Finds, for each image, an adversarial image inside the threat model.

    An attack returns the best point of its path, never the clean image in place of a failure, and does not change
    weights, gradients, mode or BatchNorm statistics of the model. Put the model in eval mode before the call.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    """Norms of the threat models in which the attack works."""
    instead: ClassVar[Mapping[Norm, str]] = {}
    """Names of the attacks to use in the norms that are missing from `norms`."""
    access: ClassVar[Access] = "gradients"
    """What the attack uses of the model."""
    own_gradients: ClassVar[bool] = False
    """Whether it makes gradients of its own where those of the model are zero or missing."""

    @final
    def __call__(
        self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator | None = None
    ) -> Images:
        """Return adversarial images.

        Args:
            model: maps images to logits (or log-probabilities); differentiable.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball in which the adversarial images must lie.
            rng: source of random draws, on the device of `x`; None uses a fixed seed.

        Returns:
            (B, C, H, W) images in [0, 1], within `threat.eps` of `x`.

        Raises:
            InputError: images outside [0, 1], labels that are no classes of the model, or a norm in which the attack
                does not work.
            RunError: the attack left the box or the ball, or met NaN.
        """
        x, y, rng = checked_arguments(x, y, threat, rng)
        self.check_norm(threat.norm)
        target = refusing_other_labels(model, y)
        return search_inside(threat, x, lambda: self.perturb(target, x, y, threat, rng=rng), self.name)

    @final
    def check_norm(self, norm: Norm) -> None:
        """Refuse a norm in which the attack does not work."""
        if norm not in self.norms:
            works = " and ".join(self.norms)
            raise InputError(f'{self.name} works in {works} only, not in {norm}; use "{self.instead[norm]}" for {norm}')

    @abstractmethod
    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Search for adversarial images; `__call__` has checked the arguments and checks the result.

        Args:
            model: maps images to logits (or log-probabilities); differentiable.
            x: (B, C, H, W) clean images in [0, 1].
            y: (B) true classes.
            threat: norm and radius of the ball.
            rng: source of random draws, on the device of `x`.
        """


attacks: Registry[Attack] = Registry("attack", Attack)


def checked_arguments(
    x: Images, y: Labels, threat: ThreatModel, rng: Generator | None
) -> tuple[Images, Labels, Generator]:
    """Return what an attack was called with: images within [0, 1], labels as int64, and a generator.

    Args:
        x: (B, C, H, W) clean images; those that rounding carried beyond [0, 1] are clamped.
        y: (B) true classes, whole numbers of any type or one-hot.
        threat: norm and radius of the ball.
        rng: source of random draws, on the device of `x`; None: one with a fixed seed.

    Raises:
        InputError: another type, shape, range or device.
    """
    x = checked_images(x)
    checked_threat(threat)
    if rng is not None and not isinstance(rng, Generator):
        raise InputError(
            f"rng must be a torch.Generator, got {type(rng).__name__}; use torch.Generator().manual_seed(0)"
        )
    if rng is not None and rng.device.type != x.device.type:
        raise InputError(f"rng is on {rng.device} and the images on {x.device}; make it there")
    return x, checked_labels(y, len(x)).to(x.device), rng if rng is not None else seeded(DEFAULT_SEED, x.device)


def refusing_other_labels(model: Classifier, y: Labels) -> Classifier:
    """Return the model; its first call refuses images that it cannot take, and labels that it has no output for."""
    highest, compared = int(y.max()) if len(y) else -1, False

    def classify(x: Images) -> Logits:
        nonlocal compared
        try:
            logits = model(x)
        except RuntimeError as error:
            if compared or type(error) is not RuntimeError:  # such as no memory left
                raise
            given = f"{str(x.dtype).removeprefix('torch.')} images of {'x'.join(map(str, x.shape[1:]))}"
            raise InputError(f"the model cannot take {given}: {str(error).partition(chr(10))[0]}") from error
        if not compared and logits.ndim == 2 and highest >= logits.shape[1]:
            raise InputError(
                f"labels must lie in 0..{logits.shape[1] - 1}, the model's classes; the highest is {highest}"
            )
        compared = True
        return logits

    return classify


def search_inside(threat: ThreatModel, x: Images, search: Callable[[], Images], name: str) -> Images:
    """Run a search, checking that its result lies in box and ball.

    Args:
        threat: norm and radius of the ball.
        x: (B, C, H, W) clean images in [0, 1].
        search: returns the adversarial images; run with gradients enabled.
        name: of the attack, for messages.
    """
    if not len(x):
        return x
    with torch.inference_mode(False), torch.enable_grad():
        x_adv = search().detach()
    inside = float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    if not inside or not float(threat.distance(x_adv, x).max()) <= threat.eps + threat.tolerance:
        raise RunError(f"{name} left the allowed images ({threat}); the model may return NaN")
    return x_adv


def refuse_nan(values: Tensor) -> None:
    """Stop at NaN: its argmax looks like a wrong prediction, its sign like no gradient, and no comparison holds."""
    if values.isnan().any():
        raise RunError("an attack met NaN; does the model return NaN or infinite logits?")


def input_gradient(loss: Tensor, x: Images) -> Images:
    """Return the gradient of the summed losses with respect to the images, leaving the model's gradients alone."""
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return gradient


def likeliest_wrong(logits: Logits, y: Labels, count: int) -> Int[Tensor, "B J"]:
    """Return the wrong classes of largest logit, likeliest first.

    Args:
        logits: (B, K).
        y: (B) true classes.
        count: number of classes to return, >= 1.
    """
    wrong = logits.scatter(1, y[:, None], -float("inf"))
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices


def random_direction(x: Images, norm: Norm, rng: Generator) -> Images:
    """Draw a random direction of norm 1 for each image.

    Args:
        x: (B, C, H, W) gives shape, device and dtype.
        norm: in which the direction has length 1.
        rng: source of the draws.
    """
    if norm == "linf":
        noise = 2 * torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) - 1
        return noise / noise.flatten(1).abs().amax(1).clamp_min(SMALLEST).view(-1, 1, 1, 1)
    if norm == "l1":
        return unit_laplace(torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype))
    noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    return ThreatModel(norm=norm, eps=1.0).steepest(noise)
