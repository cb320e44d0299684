"""What the files of a data set are: their sizes, those that cannot be read, and duplicates."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class FileSummary:
    """The image files of a data set, as they were before they were resized."""

    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """Width and height, in pixels, of the files with the fewest pixels, the median number, and the most."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Relative path of each file that cannot be read, and why; they are left out."""
    duplicates: int = 0
    """Files that are equal, or nearly, to another one that is used."""
    groups: int = 0
    """Groups of such files."""
    removed: tuple[tuple[str, str], ...] = ()
    """Relative path of each test image that is left out, and of the training image that it is a duplicate of."""
    several_classes: tuple[tuple[str, str], ...] = ()
    """Relative paths of two files of one group that are in different classes, for each such group."""
