"""The methods of the zoo, each with up to ten settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from metaopt.evaluation.methods import BASELINES
from studies.builders import Build, kfac_of, lbfgs_of, learned_of


@dataclass(frozen=True)
class Contender:
    """A method with its settings.

    Attributes:
        settings: what builds the optimizer of a batch, by setting.
        rival: whether it is one of the rivals that the learned optimizer is measured against.
        one_by_one: whether networks are run one at a time, since it takes inner products over all.
        residuals: the most residuals of the squared error that it is run on; None for any loss.
    """

    settings: Mapping[str, Build]
    rival: bool = False
    one_by_one: bool = False
    residuals: int | None = None


def _of_rate(name: str, rate: float, tasks: nn.Module) -> torch.optim.Optimizer:
    return BASELINES[name].build(tasks, rate)


def _rates(name: str, *rates: float) -> dict[str, Build]:
    return {f"{rate:g}": partial(_of_rate, name, rate) for rate in rates}


KFAC = (
    (0.03, 0.3, 0.5),
    (0.01, 0.3, 0.5),
    (0.1, 0.3, 0.5),
    (0.03, 0.6, 0.5),
    (0.03, 0.3, 0.9),
    (0.1, 0.6, 0.9),
    (0.01, 0.6, 0.9),
    (0.003, 0.3, 0.8),
    (0.001, 0.6, 0.9),
    (0.001, 0.3, 0.5),
)
"""Damping, rate and momentum of K-FAC by hand."""

MOST_RESIDUALS = 200
"""Of Levenberg-Marquardt, which takes minutes for more."""

LBFGS = ((1.0, 10), (1.0, 30), (1.0, 100))
"""First length and history of L-BFGS."""


def contenders(learned: Mapping[str, str], soap: bool = True) -> dict[str, Contender]:
    """Return the methods by name.

    Args:
        learned: checkpoints of learned optimizers, or names of shipped ones, by name.
        soap: whether SOAP is among them; it needs the package pytorch_optimizer.
    """
    own = {name: Contender({"": partial(learned_of, path)}) for name, path in learned.items()}
    adam = _rates("adam", 0.001, 0.003, 0.01, 0.02, 0.03, 0.06, 0.1, 0.3)
    lbfgs = {f"{rate:g}, {n}": partial(lbfgs_of, rate, n) for rate, n in LBFGS}
    by_hand = {f"{a:g}, {b:g}, {c:g}": partial(kfac_of, a, b, c) for a, b, c in KFAC}
    rivals = {
        "adam": Contender(adam, rival=True),
        "lbfgs_wolfe": Contender(lbfgs, rival=True, one_by_one=True),
        "kfac": Contender(by_hand, rival=True),
    }
    if soap:
        rates = _rates("soap", 0.003, 0.01, 0.03, 0.1, 0.3)
        rivals["soap"] = Contender(rates, rival=True)
    beside = Contender(_rates("levenberg_marquardt", 1e-3), residuals=MOST_RESIDUALS)
    return own | rivals | {"levenberg_marquardt": beside}
