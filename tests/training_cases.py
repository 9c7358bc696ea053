"""Trainers small enough for tests."""

import torch
from torch import Tensor

from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer

TINY = {
    "trajectories": 8,
    "batch_size": 1,
    "steps": 6,
    "window": 3,
    "widths": (8,),
    "validation_problems": 2,
    "validation_at": (2, 4),
    "validation_families": (),
}


def make(networks: dict | None = None, **fields) -> Trainer:
    return Trainer(
        MetaOptimizerSpec(**{"hidden": 4, **(networks or {})}), TrainingSpec(**{**TINY, **fields})
    )


def copies(meta: MetaOptimizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in meta.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(first), second, rtol=0, atol=0)
