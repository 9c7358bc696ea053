"""Labelled images: MNIST, Fashion-MNIST and CIFAR-10, from files on disk or downloaded."""

from metaopt.data.images import Dataset, Images, split, standardized
from metaopt.data.loading import load
from metaopt.data.minibatches import batches
from metaopt.data.table import DATASETS, Description, Download, Part

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
