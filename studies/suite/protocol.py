"""What is run: the settings of each baseline, the seeds, and what names a run."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from metaopt.errors import UserError, unknown
from metaopt.evaluation.ordinary import ORDINARY
from metaopt.learned.checkpoint import checkpoint_bytes, named_checkpoint, pretrained_names
from metaopt.tasks import first_seeds
from metaopt.tasks.suite import SUITE
from metaopt.tasks.suite.text import text_digest

BASELINE = "adamw_cosine"
"""Tuned, what speed-ups are measured against."""

CONSTANT = "adamw"
"""The baseline of methods that are not told the number of steps."""

TUNING_SEEDS = tuple(first_seeds("validation", 1))
TEST_SEEDS = tuple(first_seeds("test", 3))
QUICK_STEPS = 10
QUICK_SETTINGS = 2


@dataclass(frozen=True)
class Setting:
    """What is chosen for a baseline.

    Attributes:
        rate: the rate; None for an optimizer that has none.
        decay: the weight decay.
    """

    rate: float | None = None
    decay: float = 0.0

    def __str__(self) -> str:
        decay = f", {self.decay:g}" if self.decay else ""
        return "–" if self.rate is None else f"{self.rate:g}{decay}"


def _settings(rates: tuple[float, ...], decays: tuple[float, ...] = (0.0,)) -> tuple[Setting, ...]:
    return tuple(Setting(rate, decay) for rate in rates for decay in decays)


SIX = (1e-3, 2e-3, 5e-3, 1e-2, 3e-2, 1e-1)
FOUR = (1e-3, 3e-3, 1e-2, 3e-2)

SETTINGS: dict[str, tuple[Setting, ...]] = {
    BASELINE: _settings(SIX, (0.0, 0.1)),
    CONSTANT: _settings(SIX),
    "muon": _settings(FOUR),
    "schedule_free": _settings(FOUR),
    "sgd_cosine": _settings((1e-2, 3e-2, 1e-1, 3e-1)),
}
"""The settings that each baseline is tuned over, for each task."""


OPEN = ":open"
"""The end of the name of a learned optimizer that is not told how many steps there will be."""


@dataclass(frozen=True)
class Contender:
    """A method that is judged.

    Attributes:
        name: as the user gave it.
        optimizer: a key of ``ORDINARY``, or where the checkpoint of a learned optimizer is.
        settings: those it is tuned over; one is not tuned.
        digest: of the checkpoint; "" for an ordinary optimizer.
    """

    name: str
    optimizer: str
    settings: tuple[Setting, ...]
    digest: str = ""

    @property
    def learned(self) -> bool:
        """Whether it was meta-trained."""
        return bool(self.digest)


@dataclass(frozen=True)
class Run:
    """All that a run depends on.

    Attributes:
        task: a key of ``SUITE``.
        method: the name of the contender.
        optimizer, digest: see :class:`Contender`.
        setting: of the optimizer.
        seed: of initial weights and of the order of the data.
        steps: how many.
        data: digest of the data that depends on the running Python or on this study's pretraining.
    """

    task: str
    method: str
    optimizer: str
    digest: str
    setting: Setting
    seed: int
    steps: int
    data: str = ""

    @property
    def told(self) -> bool:
        """Whether a learned optimizer is told how many steps there will be."""
        return not self.method.endswith(OPEN)

    @property
    def key(self) -> str:
        """Names the run, and differs from that of any other."""
        setting = f"{self.setting.rate!r}/{self.setting.decay!r}"
        parts = (self.task, self.method, self.digest, setting, self.seed, self.steps, self.data)
        return "|".join(map(str, parts))


def baselines(quick: bool = False) -> list[Contender]:
    """Return the tuned baselines.

    Args:
        quick: whether to take the first settings alone.
    """
    most = QUICK_SETTINGS if quick else None
    return [Contender(name, name, own[:most]) for name, own in SETTINGS.items()]


def contender(text: str) -> Contender:
    """Return the method that a user means; a baseline without a rate is tuned.

    Args:
        text: a baseline, ``baseline@rate``, a shipped optimizer, or the path of a checkpoint. One
            of the last two may end with ``:open``: it is not told how many steps there will be.

    Raises:
        UserError: for an unknown name, a rate that is none, or a checkpoint that cannot be read.
    """
    source = text.removesuffix(OPEN)
    name, at, rate_text = source.partition("@")
    if source.endswith(".safetensors") or name in pretrained_names():
        if at and not source.endswith(".safetensors"):
            raise UserError(f"expected {name} without a rate, got {text!r}: leave out the @")
        checkpoint = named_checkpoint(source)
        digest = hashlib.sha256(checkpoint_bytes(*checkpoint)).hexdigest()[:12]
        return Contender(text, source, (Setting(),), digest)
    if name not in ORDINARY:
        known = [*ORDINARY, *pretrained_names()]
        raise UserError(unknown("a method", name, known, "name one, or a .safetensors file"))
    if not at:
        return Contender(name, name, SETTINGS[name])
    try:
        rate = float(rate_text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"expected a positive rate, got {text!r}: as in {name}@0.001")
    return Contender(text, name, (Setting(rate),))


def plan(
    task: str, of: Contender, setting: Setting, seed: int, quick: bool, pretrained: Path
) -> Run:
    """Return a run.

    Args:
        task: a key of ``SUITE``.
        of: the method.
        setting: one of its settings.
        seed: of the run.
        quick: whether it has few steps.
        pretrained: the file of the weights that LoRA tunes.
    """
    steps = QUICK_STEPS if quick else SUITE[task].kind.steps
    run = Run(task, of.name, of.optimizer, of.digest, setting, seed, steps)
    if SUITE[task].needs == "data_dir":
        return run
    data = text_digest()
    if SUITE[task].needs == "pretrained":
        data += "+" + hashlib.sha256(pretrained.read_bytes()).hexdigest()[:12]
    return replace(run, data=data)
