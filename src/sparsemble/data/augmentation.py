"""Random changes of training images, drawn for each image from the given generator.

Images do not depend on which other packages are installed: random resized crop and the changes of colour are computed
as `torchvision.transforms.v2` defines them, on a whole batch at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sparsemble.core.argument_checks import check_interval
from sparsemble.core.errors import InputError
from sparsemble.core.types import Images
from sparsemble.data.augmentation_ops import affine, blend, grey, resized_crop, turn_hue

ATTEMPTS = 10
"""Draws of a crop before the largest centred one is taken; torchvision's number."""
OPERATIONS = (
    "identity",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "brightness",
    "contrast",
    "saturation",
)
"""What `rand_augment` chooses from."""
ROUNDS = 2
"""Operations of `rand_augment` applied to each image, one after another."""
LARGEST = {"rotate": math.radians(30), "shear": 0.3, "translate": 0.45, "colour": 0.9}
"""Sizes of the operations at strength 1: radians, slope, share of the side, change of the factor; torchvision's."""


RandomChange = Callable[[Images, Generator], Images]
"""From images (B, C, H, W) in [0, 1] to changed ones of the same shape, with all draws from the generator."""


@final
@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crops, flips, changes of colour and cutout (DeVries & Taylor 2017), in the order of the settings."""

    random_resized_crop: tuple[float, ...] = ()
    """Least and largest share of the image's area that is cut out and scaled to the whole image, in (0, 1], such as
    `(0.35, 1.0)`; (): no such crop. Szegedy et al. 2015; drawn as by torchvision."""
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    """Least and largest ratio of width to height of that part, > 0."""
    flip: bool = False
    """Flip half of the images horizontally; only where the classes are invariant to it."""
    crop: int = 0
    """Largest shift in pixels, with zero padding, >= 0."""
    rand_augment: float = 0.0
    """Strength of RandAugment-light (after Cubuk et al. 2020), in [0, 1]; 0: none. Two of nine operations, drawn with
    replacement: none, rotation (up to 30 degrees), shear along either axis (0.3), shift along either axis (0.45 of the
    side), brightness, contrast, saturation (factor 1 +- 0.9); in brackets the size at strength 1; the sign is drawn."""
    jitter: tuple[float, ...] = ()
    """Colour jitter: largest relative change of brightness, contrast and saturation, each >= 0, and largest turn of the
    hue in [0, 0.5], applied in this order; (): none. The last two do nothing to grey images."""
    cutout: int = 0
    """Side in pixels of a square set to zero, with a uniform centre; 0: none."""

    def __post_init__(self) -> None:
        if self.cutout < 0:
            raise InputError(f"cutout = {self.cutout} must be 0 or more pixels")
        if self.random_resized_crop:
            _check_range("random_resized_crop", self.random_resized_crop, highest=1)
        _check_range("ratio", self.ratio, highest=math.inf)
        check_interval("[0, 1]", rand_augment=self.rand_augment)
        if self.jitter and not (
            len(self.jitter) == 4 and all(0 <= change < math.inf for change in self.jitter) and self.jitter[3] <= 0.5
        ):
            raise InputError(
                f"jitter = {list(self.jitter)} must be four numbers of 0 or more: brightness, contrast, saturation, "
                "and hue up to 0.5"
            )

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse settings that do not fit images of this shape (C, H, W).

        Raises:
            InputError: a shift as large as the image, or colours of images that have neither one nor three channels.
        """
        channels, height, width = shape
        most = min(height, width) - 1
        if not 0 <= self.crop <= most:
            raise InputError(f"crop = {self.crop} must lie in 0..{most} for images of {height} x {width} pixels")
        if (self.jitter or self.rand_augment) and channels not in (1, 3):
            name = "jitter" if self.jitter else "rand_augment"
            raise InputError(f"{name} needs images of one or three channels, got {channels}; leave it out")

    def __call__(self, x: Images, rng: Generator) -> Images:
        """Return augmented images of the same shape."""
        if self.random_resized_crop:
            x = self._crop_and_resize(x, rng)
        if self.flip:
            mirror = torch.rand(len(x), generator=rng, device=x.device) < 0.5
            x = torch.where(mirror.view(-1, 1, 1, 1), x.flip(3), x)
        if self.crop:
            x = self._shift(x, rng)
        if self.rand_augment:
            for _ in range(ROUNDS):
                x = self._operate(x, rng)
        if self.jitter:
            x = self._change_colours(x, rng)
        return self._cut_out(x, rng) if self.cutout else x

    def _crop_and_resize(self, x: Images, rng: Generator) -> Images:
        """Cut out the first box drawn that fits, or the largest centred one of a valid ratio, and resize it."""
        count, (height, width) = len(x), x.shape[2:]
        draws = torch.rand(4, ATTEMPTS, count, generator=rng, device=x.device)
        least, largest = self.random_resized_crop
        narrow, wide = self.ratio
        area = height * width * (least + (largest - least) * draws[0])
        ratio = torch.exp(math.log(narrow) + math.log(wide / narrow) * draws[1])
        across, down = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (across > 0) & (across <= width) & (down > 0) & (down <= height)
        first = fits.int().argmax(0, keepdim=True)
        across, down, top, left = (values.gather(0, first)[0] for values in (across, down, draws[2], draws[3]))
        top, left = (top * (height - down + 1)).floor(), (left * (width - across + 1)).floor()
        whole = torch.tensor(_largest_centred(height, width, narrow, wide), device=x.device, dtype=across.dtype)
        boxes = torch.where(fits.any(0)[:, None], torch.stack([top, left, down, across], dim=1), whole)
        return resized_crop(x, boxes)

    def _operate(self, x: Images, rng: Generator) -> Images:
        """Apply to each image one operation of RandAugment-light."""
        count, device = len(x), x.device
        chosen = torch.randint(0, len(OPERATIONS), (count,), generator=rng, device=device)
        sign = 1.0 - 2.0 * torch.randint(0, 2, (count,), generator=rng, device=device)

        def size(operation: str) -> Tensor:
            """Return the size of an operation for each image; 0 for those on which another one was drawn."""
            kind = operation.partition("_")[0]
            at_most = LARGEST.get(kind, LARGEST["colour"])
            return torch.where(chosen == OPERATIONS.index(operation), self.rand_augment * at_most * sign, 0.0)

        angle, side_ratio = size("rotate"), x.shape[2] / x.shape[3]
        across = [angle.cos(), (size("shear_x") - angle.sin()) * side_ratio, 2 * size("translate_x")]
        down = [(size("shear_y") + angle.sin()) / side_ratio, angle.cos(), 2 * size("translate_y")]
        matrices = torch.stack([torch.stack(row, dim=1) for row in (across, down)], dim=1)
        x = affine(x, matrices)
        brightness, contrast, saturation = (1 + size(name) for name in OPERATIONS[6:])
        return _coloured(x, brightness, contrast, saturation)

    def _change_colours(self, x: Images, rng: Generator) -> Images:
        draws = torch.rand(4, len(x), generator=rng, device=x.device)
        low = [max(0.0, 1 - change) for change in self.jitter[:3]]
        factors = [
            least + (1 + change - least) * draw
            for least, change, draw in zip(low, self.jitter[:3], draws, strict=False)
        ]
        x = _coloured(x, *factors)
        hue = self.jitter[3]
        return turn_hue(x, hue * (2 * draws[3] - 1)) if hue and x.shape[1] == 3 else x

    def _cut_out(self, x: Images, rng: Generator) -> Images:
        inside = []
        for side in x.shape[2:]:
            centre = torch.randint(0, side, (len(x), 1), generator=rng, device=x.device)
            first = centre - self.cutout // 2
            position = torch.arange(side, device=x.device)
            inside.append((position >= first) & (position < first + self.cutout))
        rows, columns = inside
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    def _shift(self, x: Images, rng: Generator) -> Images:
        height, width = x.shape[2:]
        padded = F.pad(x, (self.crop,) * 4)
        top, left = torch.randint(0, 2 * self.crop + 1, (2, len(x)), generator=rng, device=x.device)
        rows = (top[:, None] + torch.arange(height, device=x.device)).view(-1, 1, height, 1)
        columns = (left[:, None] + torch.arange(width, device=x.device)).view(-1, 1, 1, width)
        image = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
        return padded[image, channel, rows, columns]


@final
@dataclass(frozen=True)
class PerImage:
    """Any transform of one image, such as those of `torchvision.transforms.v2`, applied to each image of a batch.

    Its draws come from torch's global generator, which is seeded from the given one and put back afterwards.
    """

    transform: Callable[[Tensor], Tensor]
    """From an image (C, H, W) in [0, 1] to one of the same shape; its result is clipped to [0, 1]."""

    def __call__(self, x: Images, rng: Generator) -> Images:
        """Return the transformed images."""
        seed = int(torch.randint(2**62, (), generator=rng, device=x.device))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([self.transform(image) for image in x]).clamp(0, 1)


def _check_range(name: str, ends: tuple[float, ...], *, highest: float) -> None:
    """Check that a setting is two numbers above 0, in order."""
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= highest or ends[1] == math.inf:
        limit = f" and at most {highest:g}" if highest < math.inf else ""
        raise InputError(f"{name} = {list(ends)} must be two numbers in order, above 0{limit}")


def _largest_centred(height: int, width: int, narrow: float, wide: float) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the largest centred box whose ratio is allowed."""
    down, across = height, width
    if width / height < narrow:
        down = round(width / narrow)
    elif width / height > wide:
        across = round(height * wide)
    return (height - down) // 2, (width - across) // 2, down, across


def _coloured(x: Images, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Images:
    """Return images with these factors applied; 1 changes nothing."""
    x = blend(x, torch.zeros_like(x), brightness)
    x = blend(x, grey(x).mean((1, 2, 3), keepdim=True), contrast)
    return blend(x, grey(x), saturation)
