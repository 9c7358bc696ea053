"""Low-rank tuning (LoRA) of the pretrained model of characters to another text."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.storage import user_path
from metaopt.tasks.data.loading import VARIABLE
from metaopt.tasks.suite.base import TextTask
from metaopt.tasks.suite.characters import LENGTH, CharacterModel
from metaopt.tasks.suite.text import help_text

PRETRAINED = "characters.safetensors"
"""The name of the file of the pretrained weights."""


class LowRank(nn.Module):
    """A frozen linear layer beside a trained product of two narrow matrices.

    Source: Hu et al., LoRA (2021). The second matrix starts at 0, so that nothing changes at first.

    Args:
        base: the layer, which is frozen.
        rank: columns of the first matrix.
        alpha: the product is scaled by alpha / rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer and the adapter say.

        Args:
            x: ``(..., in)``.
        """
        out: Tensor = self.base(x) + (x @ self.down.T) @ self.up.T * self.scale
        return out


def adapt(model: nn.Module, rank: int, alpha: float) -> nn.Module:
    """Freeze a module, and put an adapter beside each linear layer but those at its root.

    Args:
        model: is changed.
        rank: of the adapters.
        alpha: of the adapters.

    Returns:
        The same module.
    """
    model.requires_grad_(False)
    inside = [module for name, module in model.named_modules() if name]
    for parent in inside:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank, alpha))
    return model


class LoraCharacters(TextTask):
    """Adapters of rank 4 tune the pretrained model of characters to Python's help pages.

    Batches have 8 windows of 48 characters.

    Args:
        pretrained: the file of the pretrained weights, which ``python -m studies.suite`` makes; by
            default ``$METAOPT_DATA/characters.safetensors``.
    """

    steps: ClassVar[int] = 500

    def __init__(self, pretrained: str | Path | None = None) -> None:
        super().__init__(8, LENGTH)
        self.pretrained = pretrained

    def text(self) -> dict[str, Tensor]:
        """Return the characters of each split."""
        return help_text()

    def build(self) -> nn.Module:
        """Return the pretrained network with fresh adapters.

        Raises:
            UserError: if there are no pretrained weights, or others.
        """
        model = CharacterModel()
        path = self._path()
        try:
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"expected the pretrained model of characters in {str(path)!r}, got "
                f"{type(error).__name__}: python -m studies.suite --out DIR makes DIR/{PRETRAINED}"
            ) from error
        return adapt(model, rank=4, alpha=8.0)

    def _path(self) -> Path:
        if self.pretrained is not None:
            return user_path(self.pretrained)
        if above := os.environ.get(VARIABLE):
            return user_path(above) / PRETRAINED
        raise UserError(
            f"expected the file {PRETRAINED} of the pretrained model, got neither a path nor "
            f"{VARIABLE}: python -m studies.suite --out DIR makes DIR/{PRETRAINED}"
        )
