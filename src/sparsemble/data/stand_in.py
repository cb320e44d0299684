"""Images without content, in place of those of a data set whose sizes are known: for plans, which compute nothing."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sparsemble.core.types import Images, seeded
from sparsemble.data.dataset import Dataset, DataSource, Sizes, Split


@final
class _Blank(Split):
    """So many images of noise, whose classes take turns."""

    def __init__(self, labels: Tensor, shape: tuple[int, int, int]) -> None:
        self.labels, self.shape = labels, shape

    def images(self, indices: Tensor) -> Images:
        """Return images of noise."""
        return torch.rand((len(indices), *self.shape), generator=seeded(0)).to(self.labels.device)

    def subset(self, indices: Tensor) -> "_Blank":
        """Return a split of these images only."""
        return _Blank(self.labels[indices], self.shape)

    def to(self, device: torch.device | str) -> "_Blank":
        """Return the split on a device."""
        return _Blank(self.labels.to(device), self.shape)


@final
@dataclass(frozen=True, kw_only=True)
class StandIn(DataSource):
    """A data set of known sizes, in place of its source; nothing is read."""

    name: ClassVar[str] = "stand_in"
    source: DataSource
    sizes: Sizes

    @staticmethod
    def of(source: DataSource) -> DataSource:
        """Return a stand-in for a source whose sizes are known without its files; else the source."""
        sizes = source.known_sizes()
        return StandIn(source=source, sizes=sizes) if sizes else source

    def load(self) -> Dataset:
        """Make splits of the known sizes."""
        sizes = self.sizes
        held_out = round(sizes.held_out * sizes.train if sizes.held_out < 1 else sizes.held_out)
        counts = (sizes.train - held_out, held_out // 2, held_out - held_out // 2, sizes.test)
        train, selection, calibration, test = (
            _Blank(torch.arange(count) % sizes.classes, sizes.shape) for count in counts
        )
        channels = sizes.shape[0]
        return Dataset(
            train=train,
            selection=selection,
            calibration=calibration,
            test=test,
            classes=tuple(map(str, range(sizes.classes))),
            shape=sizes.shape,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )

    def fingerprint(self) -> str:
        """Return an empty hash: nothing is read."""
        return ""
