"""Named datasets as tensors of images in [0, 1] with train / held-out / test splits."""

from sparsemble.data.dataset import Augmentation, Dataset, DataSource, Split, TensorSplit, data_sources

__all__ = ["Augmentation", "DataSource", "Dataset", "Split", "TensorSplit", "data_sources"]

data_sources.walk("sparsemble.data")
