"""Image classifiers of Hugging Face's transformers, with what their processor does to images inside."""

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line
from sparsemble.core.types import Images, Logits
from sparsemble.models.architecture import Architecture, architectures

PREFIX = "hf:"
"""Before the name or folder of a model, where a classifier is named."""
MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""Ways to resize, by their numbers in Pillow."""
ROUNDING = 2 / 255
"""Difference of images in [0, 1] that comes from a processor that rounds to 8 bits."""


@final
@architectures.register("huggingface")
@dataclass(frozen=True, kw_only=True)
class HuggingFace(Architecture):
    """An image classifier of transformers, with its weights; its processor resizes and normalises inside the model.

    To be pruned it must be made of the layers that `Architecture` names, and decide nothing by its input.
    """

    normalises: ClassVar[bool] = True

    model: str
    """Its name on the hub, which is then asked for it, or a folder with config, safetensors and processor."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""

    def build(self, in_channels: int, classes: int) -> nn.Module:
        """Return the network."""
        return load_classifier(self.model, self.revision)[0]


@final
@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a processor does to an image."""

    size: tuple[int, int] | None
    """Height and width that images are resized to; 0 x n: the shorter edge to n, in proportion; None: not resized."""
    mode: int
    """Of resizing, as in Pillow."""
    crop: tuple[int, int] | None
    """Height and width of the part in the middle that is kept; None: all."""
    scale: float
    """Factor of images in [0, 1]."""
    shift: float
    """Added after that."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def final_size(self) -> tuple[int, int] | None:
        """Height and width after it; None where they depend on the image."""
        return self.crop or (self.size if self.size and self.size[0] else None)

    def __call__(self, x: Images) -> torch.Tensor:
        """Return what the network gets; images that have its size already are not resized or cropped."""
        if tuple(x.shape[2:]) != self.final_size:
            x = self.cropped(self.resized(x))
        mean, std = x.new_tensor(self.mean), x.new_tensor(self.std)
        return (x * self.scale + self.shift - mean[:, None, None]) / std[:, None, None]

    def resized(self, x: torch.Tensor) -> torch.Tensor:
        """Return images of the processor's size."""
        if self.size is None:
            return x
        height, width = self.size
        if not height:  # the longer edge in proportion, rounded down
            old_height, old_width = x.shape[2:]
            short = min(old_height, old_width)
            height, width = (int(width * old_height / short), int(width * old_width / short))
        smooth = self.mode != 0
        mode, corners = MODES[self.mode], False if smooth else None
        resized = F.interpolate(x, (height, width), mode=mode, align_corners=corners, antialias=smooth)
        return resized.clamp(0, 1)

    def cropped(self, x: torch.Tensor) -> torch.Tensor:
        """Return the middle of images."""
        if self.crop is None:
            return x
        (height, width), (old_height, old_width) = self.crop, x.shape[2:]
        up, left = max(0, height - old_height), max(0, width - old_width)
        if up or left:
            x = F.pad(x, (left - left // 2, left // 2, up - up // 2, up // 2))
        top, start = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        return x[:, :, top : top + height, start : start + width]


@final
class HuggingFaceClassifier(nn.Module):
    """Images in [0, 1] to logits: what the processor does, then the network."""

    def __init__(self, network: nn.Module, preparation: Preparation, config: str) -> None:
        super().__init__()
        self.network = network
        self.preparation = preparation
        self.config_hash = hashlib.sha256(config.encode()).hexdigest()[:16]

    def extra_repr(self) -> str:
        """Return what decides the outputs beside layers and weights."""
        return f"{self.preparation}, config {self.config_hash}"

    def forward(self, x: Images) -> Logits:
        """Return logits."""
        logits: Logits = self.network(pixel_values=self.preparation(x), return_dict=True).logits
        return logits


def load_classifier(model: str, revision: str = "main") -> tuple[HuggingFaceClassifier, tuple[str, ...]]:
    """Load an image classifier from safetensors, never from pickle and without code from the hub.

    Args:
        model: its name on the hub, or a folder.
        revision: branch, tag or commit on the hub.

    Returns:
        The classifier in eval mode and float32, and the names of its outputs, in their order.

    Raises:
        InputError: transformers is absent, nothing there, no safetensors, weights missing, or a processor that does
            something to images that is not known here.
    """
    transformers = _transformers()
    if ("/" not in model or model.startswith((".", "/", "~"))) and not Path(model).expanduser().is_dir():
        raise InputError(f"{PREFIX}{model}: there is no such folder; a model on the hub is named owner/name")
    source = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else model
    settings = {} if source != model or Path(source).is_dir() else {"revision": revision}
    with _quiet(transformers):
        try:
            network, loading = transformers.AutoModelForImageClassification.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **settings
            )
            processor = transformers.AutoImageProcessor.from_pretrained(source, **settings)
        except Exception as error:
            raise InputError(
                f"{PREFIX}{model} cannot be loaded ({first_line(error)}); give a folder with config.json, "
                "model.safetensors and preprocessor_config.json, or a name on the hub that can be reached"
            ) from error
        missing = [*loading["missing_keys"], *loading["mismatched_keys"]]
        if missing:
            raise InputError(f"{PREFIX}{model} has no weights for {sorted(map(str, missing))[0]}; it is not trained")
        preparation = _preparation(processor, f"{PREFIX}{model}")
        _check_preparation(preparation, processor, network.config, f"{PREFIX}{model}")
    labels = {int(index): str(name) for index, name in network.config.id2label.items()}
    names = tuple(labels[index] for index in sorted(labels))
    classifier = HuggingFaceClassifier(network, preparation, network.config.to_json_string(use_diff=False))
    return classifier.eval(), names


def _preparation(processor: Any, name: str) -> Preparation:
    """Return what a processor does.

    Raises:
        InputError: something that is not known here.
    """
    given = processor.to_dict()
    size, crop = dict(given.get("size") or {}), dict(given.get("crop_size") or {})
    mode = int(given.get("resample") or 0)
    resized = _edges(size, name) if given.get("do_resize") else None
    cropped = _edges(crop, name) if given.get("do_center_crop") else None
    if resized and (percent := given.get("crop_pct")) and not resized[0]:  # ConvNeXt's
        edge = resized[1]
        resized, cropped = ((0, int(edge / percent)), (edge, edge)) if edge < 384 else ((edge, edge), None)
    if resized and mode not in MODES:
        raise InputError(
            f"{name}: its processor resizes by Pillow's method {mode}; known: {', '.join(map(str, MODES))}"
        )
    scale = 255 * float(given.get("rescale_factor") or 1 / 255) if given.get("do_rescale") else 255.0
    normalises = bool(given.get("do_normalize"))
    mean = _numbers(given.get("image_mean") if normalises else None, 0.0)
    std = _numbers(given.get("image_std") if normalises else None, 1.0)
    if given.get("include_top"):  # EfficientNet's divides once more
        std = tuple(a * b for a, b in zip(std, _numbers(given.get("image_std"), 1.0), strict=True))
    return Preparation(
        size=resized,
        mode=mode,
        crop=cropped if cropped is None or cropped[0] else (cropped[1], cropped[1]),
        scale=scale,
        shift=-1.0 if given.get("rescale_offset") else 0.0,
        mean=mean,
        std=std,
    )


def _edges(size: dict[str, Any], name: str) -> tuple[int, int]:
    """Return height and width, or 0 and the shorter edge.

    Raises:
        InputError: another rule.
    """
    keys = {key for key, value in size.items() if value is not None}
    if keys == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    if keys == {"shortest_edge"}:
        return 0, int(size["shortest_edge"])
    raise InputError(
        f"{name}: its processor resizes by {', '.join(sorted(keys)) or 'nothing'}; known: height and width"
    )


def _numbers(value: Any, default: float) -> tuple[float, ...]:
    """Return a value for each channel, or one for all."""
    if value is None:
        return (default,)
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)


def _check_preparation(preparation: Preparation, processor: Any, config: Any, name: str) -> None:
    """Compare with the processor on random images of two sizes, of middle greys: it clips between its steps.

    Raises:
        InputError: it does something else to them.
    """
    channels = int(getattr(config, "num_channels", 3))
    if channels not in (1, 3):
        raise InputError(f"{name} takes images of {channels} channels; the images here have 1 or 3")
    height, width = preparation.final_size or (32, 32)
    # Odd sizes: a nearest pixel of even ones is a matter of rounding.
    for rows, columns in ((height, width), ((height + height // 2) | 1, (width + width // 4) | 1)):
        image = np.random.default_rng(rows).integers(96, 160, (rows, columns, channels), dtype=np.uint8)
        try:
            expected = processor(images=[image], return_tensors="np", input_data_format="channels_last")["pixel_values"]
        except Exception as error:
            raise InputError(f"{name}: its processor fails on an image: {first_line(error)}") from error
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        whole = preparation.cropped(preparation.resized(x))
        found = preparation(whole).numpy()
        allowed = ROUNDING * abs(preparation.scale) / min(map(abs, preparation.std))
        if found.shape != np.shape(expected) or float(np.abs(found - expected).max()) > allowed:
            raise InputError(
                f"{name}: its processor {type(processor).__name__} does something else to images than to resize, crop "
                "and normalise them; wrap the model in a file of yours, and evaluate file.py:factory"
            )


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except Exception as error:
        raise InputError(
            f"{PREFIX} needs the package transformers ({first_line(error)}); pip install 'sparsemble[transformers]'"
        ) from None


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep the messages and bars of transformers from the terminal."""
    settings = transformers.utils.logging
    bars = settings.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    settings.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            settings.enable_progress_bar()
