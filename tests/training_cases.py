"""Trainers small enough for tests."""

from pathlib import Path

from torch import Tensor

from metaopt.cli.common import guarded
from metaopt.cli.train import HINT, main
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.training.run import BEST, LAST
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


def flags(out: Path, *switches: str, **changed: object) -> list[str]:
    """Of a training by the command line that takes a part of a second."""
    values = {"hidden": 4, **TINY, **changed, "out": out}
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return [*(part for k, v in listed.items() for part in (f"--{k}", str(v))), *switches]


def command(out: Path, *switches: str, **changed: object) -> int:
    """The exit code of ``train_meta.py`` with these flags, run in this process."""
    return guarded(lambda _: main(flags(out, *switches, **changed)), HINT)()


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in (LAST, BEST)}
