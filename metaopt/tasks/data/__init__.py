"""Read MNIST, Fashion-MNIST and CIFAR-10 from files or a download, and cut them into batches."""

from metaopt.tasks.data.images import Dataset, Images, split, standardized
from metaopt.tasks.data.loading import load
from metaopt.tasks.data.minibatches import batches
from metaopt.tasks.data.table import DATASETS, Description, Download, Part

__all__ = [
    "DATASETS",
    "Dataset",
    "Description",
    "Download",
    "Images",
    "Part",
    "batches",
    "load",
    "split",
    "standardized",
]
