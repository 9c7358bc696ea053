"""Check that labels are classes, for all formats of files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from metaopt.tasks.data.files import unusable


def checked(labels: Tensor, classes: int, path: Path) -> Tensor:
    """Return labels as they are, once it is known that each is a class.

    Args:
        labels: ``(n,)``.
        classes: the number of classes.
        path: the file that they come from, for the message.

    Raises:
        UserError: if one is not in 0 ... ``classes`` - 1.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise unusable(
            f"labels from 0 to {classes - 1}", f"{int(labels[first])} for image {first}", path
        )
    return labels
