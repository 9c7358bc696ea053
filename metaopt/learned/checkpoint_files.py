"""Checkpoint files: one safetensors file each, written atomically, read without running any code.

The metadata of a file hold one JSON object. It has the format, the version, the meta-optimizer's
spec, whatever else the writer keeps, and a SHA-256 over all that and all tensors. It has no times,
so equal runs give equal bytes. Nothing here knows what a meta-optimizer is, so that rules can read
a file too.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from metaopt.errors import UserError, unknown
from metaopt.storage import is_file, user_path, write_together

FORMAT = "metaopt"
VERSION = 1
META = "meta/"  # prefix of the meta-optimizer's own tensors


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        tensors: by name.
        facts: what JSON can hold, by name.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``prefix``, by the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], facts: dict[str, Any], keep: Path | None = None
) -> None:
    """Write a checkpoint file atomically: the old file stays whole until the new one is.

    The new file gets a temporary name, is synced to the disk, and is renamed.

    Args:
        path: the file.
        tensors: by name, on any device.
        facts: what JSON can hold, by name.
        keep: the name that the old file gets; None replaces it.

    Raises:
        OSError: as the file system gives it, for example where the disk is full.
    """
    path = user_path(path)
    kept = {} if keep is None else {path: keep}
    write_together({path: checkpoint_bytes(tensors, facts)}, kept)


def checkpoint_bytes(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """Return the content of a checkpoint file; equal tensors and facts give equal bytes."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "version": VERSION, **facts}
    header.pop("sha256", None)  # of a file these facts were read from
    header["sha256"] = _digest(whole, header)
    return save(whole, {FORMAT: json.dumps(header, sort_keys=True)})


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file and verify its checksum.

    Args:
        path: the file; a ~ at its start is the home folder.

    Returns:
        Its tensors, on the CPU, and its facts.

    Raises:
        UserError: if the file is missing, truncated, damaged or no checkpoint, or has a version
            that this code does not know.
    """
    path = user_path(path)
    if not is_file(path):
        raise UserError(
            f"expected a checkpoint file, got {str(path)!r}, which does not exist: check the path"
        )
    return parse_checkpoint(path.read_bytes(), str(path))


def named_checkpoint(source: str | Path) -> Checkpoint:
    """Return the checkpoint of a shipped meta-optimizer, or of a ``.safetensors`` file.

    Args:
        source: the name of a shipped one, or the path of a file.

    Raises:
        UserError: for an unknown name, or a file that cannot be used.
    """
    if str(source).endswith(".safetensors"):
        return read_checkpoint(source)
    return parse_checkpoint(_shipped(str(source), ".safetensors").read_bytes(), str(source))


def parse_checkpoint(data: bytes, source: str) -> Checkpoint:
    """Return what the content of a checkpoint file holds, and verify its checksum.

    Args:
        data: the content.
        source: where it came from, for messages.

    Raises:
        UserError: if it is truncated, damaged or no checkpoint, or has a version that this code
            does not know.
    """
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        header = json.loads(metadata[FORMAT])
        canonical = json.dumps(header, sort_keys=True) == metadata[FORMAT]
        digest = str(header.pop("sha256"))
    except (
        SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise UserError(
            f"expected a metaopt checkpoint, got {source!r}, which is truncated, damaged or "
            f"no checkpoint: take another copy ({type(error).__name__})"
        ) from None
    if header.get("version") != VERSION:
        raise UserError(
            f"expected a checkpoint of version {VERSION}, got {header.get('version')!r} in "
            f"{source!r}: use the metaopt release that wrote it"
        )
    if not canonical or _digest(tensors, header) != digest:
        raise UserError(
            f"expected the checksum {digest[:12]} in {source!r}, got another: the file is "
            f"damaged, take another copy"
        )
    return Checkpoint(tensors, header | {"sha256": digest})


def pretrained_names() -> list[str]:
    """Return the names of the shipped meta-optimizers, sorted."""
    folder = resources.files("metaopt.learned") / "pretrained"
    return sorted(
        entry.name.removesuffix(".safetensors")
        for entry in folder.iterdir()
        if entry.name.endswith(".safetensors")
    )


def pretrained_path(name: str) -> Path:
    """Return the path of the file of a shipped meta-optimizer, if the package is no zip.

    Raises:
        UserError: for a name that is not shipped.
    """
    return Path(str(_shipped(name, ".safetensors")))


def _shipped(name: str, ending: str) -> Traversable:
    """Return a file of a shipped meta-optimizer, which may be inside a zip."""
    if name not in pretrained_names():
        what, advice = "a shipped optimizer", "name one, or the path of a .safetensors file"
        raise UserError(unknown(what, name, pretrained_names(), advice))
    return resources.files("metaopt.learned") / "pretrained" / f"{name}{ending}"


def pretrained_card(name: str) -> str:
    """Return what a shipped meta-optimizer was trained on, what it reaches and its limits.

    Args:
        name: one of :func:`metaopt.list_pretrained`.

    Returns:
        A text in Markdown.

    Raises:
        UserError: for a name that is not shipped.

    >>> pretrained_card("lstm_update").splitlines()[0]
    '# lstm_update'
    """
    return _shipped(name, ".md").read_text(encoding="utf-8")


def _digest(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
