"""The table of data sets: their files, how these are read, and where they are downloaded from.

The checksums are those of TensorFlow Datasets. Those of Fashion-MNIST were also computed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from metaopt.tasks.data.cifar import read_cifar
from metaopt.tasks.data.idx import read_idx_pair
from metaopt.tasks.data.images import Images


class Reader(Protocol):
    """The type of functions that read the images of a part of a data set."""

    def __call__(
        self, files: list[Path], shape: tuple[int, int, int], classes: int, most: int
    ) -> Images:
        """Read the images of some files.

        Args:
            files: in the order of ``Part.files``.
            shape: channels, height and width of an image.
            classes: the number of classes.
            most: the largest number of images that is accepted.
        """


class Part(NamedTuple):
    """The files of the training images, or those of the test images.

    Attributes:
        files: their names, in the order that the reader takes.
        images: how many images they have; a subset in the same format may have fewer.
    """

    files: tuple[str, ...]
    images: int


class Download(NamedTuple):
    """A public file that can be downloaded.

    Attributes:
        url: where it is.
        sha256: its checksum, in hexadecimal digits.
        files: the files of the data set that it is or contains.
    """

    url: str
    sha256: str
    files: tuple[str, ...]

    @property
    def archive(self) -> bool:
        """Whether it is an archive, which is unpacked after the download."""
        return self.url.endswith(".tar.gz")


@dataclass(frozen=True)
class Description:
    """The layout of a data set on disk.

    Attributes:
        shape: channels, height and width of an image.
        classes: the number of classes; labels are 0 ... ``classes`` - 1.
        train: the files of the training images.
        test: the files of the test images.
        read: reads the files of either part.
        downloads: the public files that have them.
        subfolder: a folder in that of the data set where its files may be too.
    """

    shape: tuple[int, int, int]
    classes: int
    train: Part
    test: Part
    read: Reader
    downloads: tuple[Download, ...]
    subfolder: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files, without the ``.gz`` that they may end in."""
        return self.train.files + self.test.files


IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR_TEST = ("test_batch.bin",)


def _like_mnist(base: str, sha256: tuple[str, str, str, str]) -> Description:
    """Describe 28×28 grey images in four IDX files.

    Args:
        base: the address that the names of the files are appended to.
        sha256: checksums of the gzipped files, in the order of the names above.
    """
    return Description(
        shape=(1, 28, 28),
        classes=10,
        train=Part(IDX_TRAIN, 60_000),
        test=Part(IDX_TEST, 10_000),
        read=read_idx_pair,
        downloads=tuple(
            Download(f"{base}{name}.gz", digest, (name,))
            for name, digest in zip(IDX_TRAIN + IDX_TEST, sha256, strict=True)
        ),
    )


DATASETS: dict[str, Description] = {
    "mnist": _like_mnist(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion-mnist": _like_mnist(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "cifar10": Description(
        shape=(3, 32, 32),
        classes=10,
        train=Part(CIFAR_TRAIN, 50_000),
        test=Part(CIFAR_TEST, 10_000),
        read=read_cifar,
        downloads=(
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                CIFAR_TRAIN + CIFAR_TEST,
            ),
        ),
        subfolder="cifar-10-batches-bin",
    ),
}
"""Data sets by name. A further one in one of these formats takes one more entry here."""
