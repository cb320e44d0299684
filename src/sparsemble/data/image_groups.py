"""Files that show the same picture, and splits that never separate them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from sparsemble.data.assemble import cut_test
from sparsemble.data.duplicates import duplicate_groups
from sparsemble.data.file_summary import FileSummary
from sparsemble.data.image_scan import ImageScan

Indices = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class ImageGroups:
    """The files that can be read, and their groups."""

    labels: NDArray[np.int64]
    """(N) class of each file."""
    used: Indices
    """Indices of the files that can be read."""
    groups: NDArray[np.int64]
    """(N) index of the first file of each file's group."""
    in_several_classes: NDArray[np.bool_]
    """(N) whether a file's group has files of several classes."""

    @classmethod
    def find(cls, labels: NDArray[np.int64], scan: ImageScan, *, near: bool) -> "ImageGroups":
        """Return the groups of the files that can be read.

        Args:
            labels: (N) class of each file.
            scan: of the same files.
            near: whether near-duplicates are the same picture, too.
        """
        used = np.flatnonzero([not error for error in scan.errors])
        same = duplicate_groups(scan.digests[used], scan.hashes[used], scan.thumbnails[used], near=near)
        groups = np.arange(len(labels))
        groups[used] = used[same]
        mixed = used[labels[used] != labels[groups[used]]]
        return cls(labels, used, groups, np.isin(groups, groups[mixed]))

    def cut(self, test: int | float) -> tuple[Indices, Indices]:
        """Return the files to train on and to test on; pictures that are in several classes stay in training.

        Raises:
            InputError: `test` leaves one of them empty.
        """
        used = self.used
        rest, part = cut_test(self.labels[used], test, self.groups[used], self.in_several_classes[used])
        return used[rest], used[part]

    def without_copies(self, in_test: NDArray[np.bool_]) -> tuple[Indices, Indices, dict[int, int]]:
        """Return the files to train on, those to test on that are not in training, and the others.

        Args:
            in_test: (N) whether a file is in the test part.

        Returns:
            Indices to train on and to test on; and those left out of the test, each with a file in training.
        """
        train, test = self.used[~in_test[self.used]], self.used[in_test[self.used]]
        first = dict(zip(self.groups[train][::-1].tolist(), train[::-1].tolist(), strict=True))
        copies = {int(i): first[int(self.groups[i])] for i in test if int(self.groups[i]) in first}
        return train, np.setdiff1d(test, list(copies)), copies

    def summary(self, names: Sequence[str], scan: ImageScan, copies: dict[int, int]) -> FileSummary:
        """Return the sentences on the files that a user sees.

        Args:
            names: (N) relative paths.
            scan: of the files.
            copies: test files that are left out, each with a file in training.
        """
        by_pixels = self.used[np.argsort(scan.sizes[self.used].prod(1), kind="stable")]
        smallest, median, largest = (tuple(scan.sizes[by_pixels[i]].tolist()) for i in (0, len(by_pixels) // 2, -1))
        sizes = np.bincount(self.groups[self.used])
        mixed = self.used[self.labels[self.used] != self.labels[self.groups[self.used]]]
        pairs = {int(self.groups[i]): int(i) for i in mixed[::-1]}
        return FileSummary(
            sizes=(smallest, median, largest),
            unreadable=tuple((name, error) for name, error in zip(names, scan.errors, strict=True) if error),
            duplicates=int(sizes[sizes > 1].sum()),
            groups=int((sizes > 1).sum()),
            removed=tuple((names[test], names[train]) for test, train in copies.items()),
            several_classes=tuple((names[first], names[other]) for first, other in sorted(pairs.items())),
        )
