"""Training curves for TensorBoard, one folder a stage; needs the extra `tensorboard`."""

from pathlib import Path
from typing import Any, final

from sparsemble.core.errors import InputError


@final
class Board:
    """Writes the numbers of every finished epoch as TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        """Set up.

        Raises:
            InputError: the package is not there.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--tensorboard needs the package tensorboard; install it with pip install 'sparsemble[tensorboard]'"
            ) from error
        self.make = SummaryWriter
        self.folder = folder
        self.writers: dict[str, Any] = {}

    def write(self, title: str, record: dict[str, Any]) -> None:
        """Add an epoch of a training."""
        if title not in self.writers:
            self.writers[title] = self.make(str(self.folder / title.replace(" ", "-")))
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "epochs"):
                self.writers[title].add_scalar(name, value, record["epoch"])
        self.writers[title].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self.writers.values():
            writer.close()
