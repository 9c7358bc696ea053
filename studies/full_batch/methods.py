"""The methods on real problems: learned optimizers without a setting, and tuned baselines."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module

import torch
from torch import nn

from metaopt.target import ModuleTarget, target_of
from studies.builders import Build, kfac_of, lbfgs_of, learned_of

LEARNED = ("lstm_update_tele", "lstm_whitened", "lstm_update_tele_v1")
"""Shipped optimizers; the first is the one that the others are compared with."""

ADAM = (3e-3, 1e-2, 3e-2, 0.1, 0.3)
SOAP = (1e-2, 3e-2, 0.1)
LBFGS = ((1.0, 30), (1.0, 100), (1.0, 300))
"""First length and history of L-BFGS."""

KFAC = ((0.03, 0.3, 0.5), (1e-3, 0.6, 0.9), (1e-4, 0.6, 0.9))
"""Damping, rate and momentum of K-FAC by hand: two of the zoo's settings, and a lower damping."""

OF_CHAINS = ("kfac", "lstm_whitened")
"""Methods that are run on chains of Linear layers alone. K-FAC by hand needs one. On other networks
m2 does not act, so lstm_whitened is lstm_update_tele there."""

Methods = Mapping[str, Mapping[str, Build]]
"""What builds the optimizer of a network, by method and setting."""


def methods(soap: bool) -> Methods:
    """Return the methods by name, each with its settings.

    Levenberg-Marquardt is not among them: it needs the residuals of a chain of layers, and a module
    with a loss does not show them.

    Args:
        soap: whether SOAP is among them; it needs the package pytorch_optimizer.
    """
    own: dict[str, Mapping[str, Build]] = {
        name: {"": partial(learned_of, name)} for name in LEARNED
    }
    tuned: dict[str, Mapping[str, Build]] = {
        "adam": {f"{rate:g}": partial(_adam_of, rate) for rate in ADAM},
        "lbfgs_wolfe": {f"{rate:g}, {n}": partial(lbfgs_of, rate, n) for rate, n in LBFGS},
        "kfac": {f"{a:g}, {b:g}, {c:g}": partial(kfac_of, a, b, c) for a, b, c in KFAC},
    }
    if soap:
        tuned["soap"] = {f"{rate:g}": partial(_soap_of, rate) for rate in SOAP}
    return own | tuned


def is_chain(model: nn.Module) -> bool:
    """Return whether a module is a chain of Linear layers.

    Args:
        model: the module.
    """
    target = target_of(model)
    return isinstance(target, ModuleTarget) and bool(target.whole_chain.names)


def _adam_of(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), rate)


def _soap_of(rate: float, model: nn.Module) -> torch.optim.Optimizer:
    """Imported late: that takes seconds."""
    soap = import_module("pytorch_optimizer").SOAP
    optimizer: torch.optim.Optimizer = soap(model.parameters(), lr=rate, weight_decay=0.0)
    return optimizer
