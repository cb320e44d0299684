"""Training curves for TensorBoard, one folder a stage; needs the extra `tensorboard`."""

from pathlib import Path
from typing import Any, final

from sparsemble.core.errors import InputError


@final
class Board:
    """Writes the numbers of every finished epoch as TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--tensorboard needs the package tensorboard; install it with pip install 'sparsemble[tensorboard]'"
            ) from error
        self.make = SummaryWriter
        self.folder = folder
        self.writers: dict[str, tuple[int, Any]] = {}
        """The last epoch of each training, and what writes its events."""

    def write(self, title: str, record: dict[str, Any]) -> None:
        """Add an epoch of a training, in place of those that were drawn from it on and taken back since."""
        epoch = record["epoch"]
        last, writer = self.writers.get(title, (epoch, None))
        if epoch <= last:  # also the first: an earlier run of this folder may have drawn further
            if writer:
                writer.close()
            writer = self.make(str(self.folder / title.replace(" ", "-")), purge_step=epoch)
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "epochs"):
                writer.add_scalar(name, value, epoch)
        writer.flush()
        self.writers[title] = epoch, writer

    def close(self) -> None:
        """Close the files."""
        for _, writer in self.writers.values():
            writer.close()
