"""Named datasets as tensors of images in [0, 1] with train / held-out / test splits."""

from pathlib import Path
from typing import Any

from sparsemble.core.registry import component_names, find_component
from sparsemble.data.dataset import Augmentation, Dataset, DataSource, Split, TensorSplit, data_sources

__all__ = ["Augmentation", "DataSource", "Dataset", "Split", "TensorSplit", "data_sources", "load", "source"]

data_sources.walk("sparsemble.data")


def source(name: str | Path, **settings: Any) -> DataSource:
    """Return where a data set comes from.

    Args:
        name: of a data set (`digits`), the path of an .npz file, or of a folder with train/CLASS and test/CLASS.
        settings: of the data source, such as `held_out`, `crop` and `flip`.

    Raises:
        InputError: unknown data set or setting.
    """
    path = Path(name)
    if path.suffix == ".npz":
        return data_sources.build({"name": "arrays", "path": str(name), **settings}, "data")
    if str(name) not in data_sources.names() and path.is_dir():
        return data_sources.build({"name": "image_folder", "root": str(name), **settings}, "data")
    return data_sources.build({"name": str(name), **settings}, "data")


def load(name: str | Path, **settings: Any) -> Dataset:
    """Load a data set with its train, held-out and test splits.

    Args:
        name: of a data set (`digits`), the path of an .npz file, or of a folder with train/CLASS and test/CLASS.
        settings: of the data source, such as `held_out`, `crop` and `flip`.

    Raises:
        InputError: unknown data set or setting, or a file that is missing or damaged.
    """
    return source(name, **settings).load()


def __getattr__(name: str) -> Any:
    """Return a data source by the name of its class."""
    return find_component(name, data_sources)


def __dir__() -> list[str]:
    return [*__all__, *component_names(data_sources)]
