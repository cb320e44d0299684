"""Named datasets as splits of images in [0, 1]: train / held-out / test; one preprocessing record for all rooms."""

from pathlib import Path
from typing import Any

from sparsemble.core.errors import InputError
from sparsemble.core.registry import component_names, find_component
from sparsemble.data.assemble import as_split, without_test_images
from sparsemble.data.augmentation import Augmentation, PerImage
from sparsemble.data.dataset import Dataset, DataSource, Split, TensorSplit, data_sources

__all__ = [
    "Augmentation",
    "DataSource",
    "Dataset",
    "PerImage",
    "Split",
    "TensorSplit",
    "data_sources",
    "load",
    "source",
]

data_sources.register_package("sparsemble.data")


def source(name: str | Path, **settings: Any) -> DataSource:
    """Return where a data set comes from.

    Args:
        name: of a data set (`digits`), the path of an .npz file, or of a folder of class folders.
        settings: of the data source, such as `held_out`, `crop` and `flip`.

    Raises:
        InputError: unknown data set or setting.
    """
    if Path(name).suffix == ".npz":
        return data_sources.build({"name": "arrays", "path": str(name), **settings}, "data")
    if names_folder(name):
        return data_sources.build({"name": "image_folder", "root": str(name), **settings}, "data")
    return data_sources.build({"name": str(name), **settings}, "data")


def names_folder(name: str | Path) -> bool:
    """Return whether a name is the path of a folder, which may be missing or a file, and not that of a data source."""
    text = str(name)
    if text in data_sources.names() or text.lstrip().startswith("{") or ".py:" in text:
        return False
    return "/" in text or Path(name).expanduser().exists()


def load(data: str | Path | Dataset | DataSource | Split | tuple[Any, Any] | list[Any], **settings: Any) -> Dataset:
    """Load a data set with its train, held-out and test splits.

    Args:
        data: name of a data set (`digits`); path of an .npz file, or of a folder of class folders; a
            data source; or training images (N, C, H, W), uint8 or float in [0, 1], with labels (N), as tensors or
            arrays: a tenth of each class is then held out, and there are no test images.
        settings: of the data source, such as `held_out`, `crop` and `flip`; only with a name or a path.

    Returns:
        The data set; a `Dataset` is returned unchanged.

    Raises:
        InputError: unknown data set or setting, a file that is missing or damaged, or too few images.
    """
    if isinstance(data, str | Path):
        return source(data, **settings).load_and_report()
    if settings:
        raise InputError(f"{min(settings)} is a setting of a data source; give it together with a name or a path")
    if isinstance(data, Dataset):
        return data
    return data.load_and_report() if isinstance(data, DataSource) else without_test_images(as_split(data))


def __getattr__(name: str) -> Any:
    """Return a data source by the name of its class."""
    return find_component(name, data_sources)


def __dir__() -> list[str]:
    return [*__all__, *component_names(data_sources)]
