"""Accuracy under common corruptions, as a part of an evaluation's result."""

import math
from dataclasses import dataclass
from typing import Literal, final

from sparsemble.core.errors import InputError
from sparsemble.core.results.result_file import check_fractions, check_lengths, check_not_negative

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The fifteen corruptions of CIFAR-10-C and ImageNet-C, by the names of their files."""
CORRUPTIONS = tuple(name for names in FAMILIES.values() for name in names)
SEVERITIES = 5


@final
@dataclass(frozen=True, kw_only=True)
class CorruptionAccuracy:
    """Accuracy under one corruption."""

    name: str
    accuracy: tuple[float, ...]
    """Fraction of all images that are classified correctly, at severities 1 to 5."""
    mean: float
    """Over the severities."""

    def __post_init__(self) -> None:
        check_lengths(SEVERITIES, "the number of severities", **{f"accuracy of {self.name}": self.accuracy})
        check_fractions(**{f"accuracy of {self.name} at severity {i}": a for i, a in enumerate(self.accuracy, 1)})
        _check_mean(f"mean of {self.name}", self.mean, self.accuracy)


@final
@dataclass(frozen=True, kw_only=True)
class CorruptionRecord:
    """The fifteen common corruptions of Hendrycks & Dietterich 2019, at five severities each."""

    source: str
    """generated, or the folder of the published arrays."""
    parameters: Literal["CIFAR-10-C", "ImageNet-C"] | None = None
    """Whose parameters the corruptions were generated with; none: read from arrays."""
    seed: int | None = None
    """Of generated corruptions."""
    sha256: str | None = None
    """Of the arrays."""
    images: int
    corruptions: tuple[CorruptionAccuracy, ...]
    mean: float
    """Over all corruptions and severities; not the mCE, which is relative to AlexNet."""
    inside: int
    """Corrupted images that lie inside the threat model."""
    missed: int
    """Images that one of those misclassifies although they are correct in the worst case over the attacks."""

    def __post_init__(self) -> None:
        check_not_negative(images=self.images, inside=self.inside, missed=self.missed)
        names = [corruption.name for corruption in self.corruptions]
        if sorted(names) != sorted(CORRUPTIONS):
            raise InputError(f"corruptions must be the {len(CORRUPTIONS)} of ImageNet-C, each once, got {len(names)}")
        _check_mean("mean of the corruptions", self.mean, [corruption.mean for corruption in self.corruptions])

    def by_severity(self, names: tuple[str, ...] = CORRUPTIONS) -> tuple[float, ...]:
        """Return the mean accuracy over corruptions, at severities 1 to 5."""
        rows = [corruption.accuracy for corruption in self.corruptions if corruption.name in names]
        return tuple(sum(column) / len(rows) for column in zip(*rows, strict=True))


def _check_mean(name: str, mean: float, values: "tuple[float, ...] | list[float]") -> None:
    if not math.isclose(mean, sum(values) / len(values), abs_tol=1e-6):
        raise InputError(f"{name} = {mean} must be the mean of its {len(values)} values, {sum(values) / len(values)}")
