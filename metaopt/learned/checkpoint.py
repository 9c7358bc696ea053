"""Meta-optimizers in checkpoint files (:mod:`metaopt.learned.checkpoint_files`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from metaopt.errors import UserError
from metaopt.learned.checkpoint_files import FORMAT as FORMAT
from metaopt.learned.checkpoint_files import META as META
from metaopt.learned.checkpoint_files import VERSION as VERSION
from metaopt.learned.checkpoint_files import Checkpoint as Checkpoint
from metaopt.learned.checkpoint_files import checkpoint_bytes as checkpoint_bytes
from metaopt.learned.checkpoint_files import named_checkpoint as named_checkpoint
from metaopt.learned.checkpoint_files import parse_checkpoint as parse_checkpoint
from metaopt.learned.checkpoint_files import pretrained_card as pretrained_card
from metaopt.learned.checkpoint_files import pretrained_names as pretrained_names
from metaopt.learned.checkpoint_files import pretrained_path as pretrained_path
from metaopt.learned.checkpoint_files import read_checkpoint as read_checkpoint
from metaopt.learned.checkpoint_files import write_checkpoint as write_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.registry import UnknownComponent


def save_meta_optimizer(path: Path, meta: MetaOptimizer, facts: dict[str, Any]) -> None:
    """Write a file of one meta-optimizer: its tensors, its spec, and ``facts`` about it."""
    write_checkpoint(path, meta_tensors(meta), {"spec": meta.spec.as_dict(), **facts})


def meta_tensors(meta: MetaOptimizer) -> dict[str, Tensor]:
    """Return a meta-optimizer's tensors by the names that they have in a checkpoint."""
    return {META + name: tensor for name, tensor in meta.state_dict().items()}


def load_meta_optimizer(source: str | Path) -> MetaOptimizer:
    """Return a shipped meta-optimizer, or one of a ``.safetensors`` file.

    Args:
        source: the name of a shipped one, or the path of a file.

    Returns:
        The meta-optimizer on the CPU; its weights require no gradient.

    Raises:
        UserError: for an unknown name, or a file that cannot be used.
    """
    return build_meta_optimizer(named_checkpoint(source), str(source))


def build_meta_optimizer(checkpoint: Checkpoint, source: str) -> MetaOptimizer:
    """Return the meta-optimizer that a checkpoint describes.

    Args:
        checkpoint: its spec and tensors; tensors of a trainer are passed over.
        source: where it came from, for messages.

    Returns:
        The meta-optimizer on the CPU; its weights require no gradient.

    Raises:
        UserError: if the tensors do not fit the spec.
    """
    try:
        meta = MetaOptimizer(MetaOptimizerSpec.from_dict(checkpoint.facts["spec"]))
        meta.load_state_dict(checkpoint.under(META))
    except UnknownComponent as error:
        raise UserError(
            f"expected an extension that registers {error.kind} {error.name}, which {source!r} "
            "needs, got none: --import its module, or import it first"
        ) from None
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected tensors that fit the spec in {source!r}, got others ({reason[:200]}): "
            f"take a checkpoint of this version"
        ) from None
    return meta.requires_grad_(False)
