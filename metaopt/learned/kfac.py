"""K-FAC by hand: heavy-ball steps in the eigenbasis of the curvature (Martens and Grosse, 2015).

The step of a coefficient with gradient g, curvature k and last step m is

    mu m - eta g / (k + lambda max k).

It is the baseline of :mod:`metaopt.learned.whitening`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from metaopt.checks import check_positive
from metaopt.errors import UserError
from metaopt.learned.kronecker import TINY, Factors, curvature, split, spread
from metaopt.learned.observation import Observation, flatten, unflatten
from metaopt.learned.state import Columns
from metaopt.learned.update import UPDATE_RULES, RuleState, UpdateConfig, UpdateRule
from metaopt.learned.without_graph import without_graph
from metaopt.output_loss import SQUARE
from metaopt.symmetry.chain import Layout

ROSE, FELL, BACK = 1.1, 0.5, 1.2  # of trust: it falls where the loss rose by more, and comes back
REVERSED = 4.0  # a step that raised the loss by this factor is taken back
LEAST = 1e-4


@final
class KroneckerFactored(UpdateRule):
    """K-FAC with one damping, rate and momentum for all coefficients, and two safeguards.

    A step is scaled down where the quadratic model says that it would change the loss by more than
    a quarter. Trust is a factor of the steps of a task. Where the loss rose by a tenth since the
    last step, trust is halved and the momentum dropped; elsewhere it comes back. A step after which
    the loss is over four times as large is taken back.

    The state is the last step of each parameter, and for each task the number of the step, trust
    and the last loss.

    Args:
        config: its fields.
    """

    sees_layers: ClassVar[bool] = True
    sees_features = True
    sees_losses: ClassVar[bool] = True

    def __init__(self, config: KroneckerFactoredConfig) -> None:
        super().__init__()
        self.config = config

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        tasks, device = parameters[0].shape[: chain.batch_dims].numel(), parameters[0].device
        count = sum(parameter.numel() for parameter in parameters)
        first = [0.0, self.config.first_trust, torch.inf]
        begun = torch.tensor(first, dtype=torch.float64, device=device)
        last = torch.zeros(count, dtype=torch.float64, device=device)
        return [last, begun[:, None].repeat(1, tasks)]

    def columns(self, chain: Layout, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`."""
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        return [
            Columns("last_step", 0, [parameter.numel() for parameter in parameters]),
            Columns("trust", 1, [tasks] + [0] * (len(parameters) - 1)),
        ]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        own = self.config
        last, of_tasks = state
        batch = seen.gradients[0].shape[: seen.batch_dims]
        count, trust, before = of_tasks
        x = seen.x if seen.as_given is None else seen.as_given[1]
        kind = SQUARE if seen.loss is None else seen.loss.kind
        factors = curvature(seen.chain, seen.double_layers, x.double(), kind).factors
        gradients = [
            f.into(layer.augmented())
            for f, layer in zip(factors, seen.double_gradients, strict=True)
        ]
        last_steps = unflatten(last, seen.parameters)
        moves = seen.chain.layers(last_steps)
        losses = _losses(seen, gradients, factors).reshape(-1)
        if seen.loss is not None:
            before = before * seen.loss.factor
        rose = losses > ROSE * before
        reverse = losses > REVERSED * before
        momenta = [
            torch.where(spread(rose, batch, f.curvature), 0.0, f.into(move.augmented()))
            for f, move in zip(factors, moves, strict=True)
        ]
        steps = [
            own.kfac_momentum * m
            - own.kfac_rate * g / (f.curvature + own.kfac_damping * f.largest + TINY)
            for g, m, f in zip(gradients, momenta, factors, strict=True)
        ]
        trust = torch.where(rose, (FELL * trust).clamp(min=LEAST), (BACK * trust).clamp(max=1.0))
        trust = torch.where(before.isinf(), of_tasks[1], trust)
        factor = trust * _bounded(steps, factors, losses)
        updates = seen.chain.parameters(
            [
                split(f.back(step) * spread(factor, batch, step), layer)
                for f, step, layer in zip(factors, steps, seen.layers, strict=True)
            ]
        )
        updates = [
            torch.where(spread(reverse, batch, f), -back, f)
            for f, back in zip(updates, last_steps, strict=True)
        ]
        # A step that is taken back leads to where the loss was; what comes next starts there.
        known = torch.where(reverse, before, losses)
        moved = flatten([torch.where(spread(reverse, batch, f), 0.0, f) for f in updates])
        return updates, [moved, torch.stack((count + 1, trust, known))]


@UPDATE_RULES.register("kfac")
@dataclass(frozen=True)
class KroneckerFactoredConfig(UpdateConfig):
    """The config of K-FAC by hand.

    Attributes:
        first_trust: trust before the first step; 1 is none too little.
        kfac_damping: lambda, as a fraction of the largest curvature of a layer.
        kfac_rate: eta, the length of a step in units of a Newton step.
        kfac_momentum: mu, the part of the last step that is made again.
    """

    first_trust: float = 0.2
    kfac_damping: float = 0.03
    kfac_rate: float = 0.3
    kfac_momentum: float = 0.5

    def __post_init__(self) -> None:
        for name in ("first_trust", "kfac_damping", "kfac_rate"):
            check_positive(name, getattr(self, name), getattr(type(self), name))
        if not 0 <= self.kfac_momentum < 1:
            raise UserError(
                f"expected a kfac_momentum in [0, 1), got {self.kfac_momentum}: the default is 0.5"
            )

    def build(self, generator: torch.Generator) -> KroneckerFactored:
        """See :meth:`UpdateConfig.build`."""
        return KroneckerFactored(self)


def _losses(
    seen: Observation, gradients: Sequence[Tensor], decomposed: Sequence[Factors]
) -> Tensor:
    """The loss of each task; where nobody says it, what the last layer alone can take away."""
    if seen.loss is not None:
        return seen.loss.values.double()
    k = decomposed[-1].curvature
    reach = gradients[-1].detach().square() / (k + 1e-6 * k.amax(dim=(-2, -1), keepdim=True) + TINY)
    return 0.5 * reach.sum(dim=(-2, -1))


@without_graph
def _bounded(steps: Sequence[Tensor], decomposed: Sequence[Factors], losses: Tensor) -> Tensor:
    """What keeps the quadratic term of the model at a quarter of the loss, ``(tasks,)``."""
    terms = [
        (f.curvature * step.square()).sum(dim=(-2, -1))
        for f, step in zip(decomposed, steps, strict=True)
    ]
    term = 0.5 * torch.stack(terms).sum(dim=0).reshape(-1)
    return (losses / (4 * term + TINY)).sqrt().clamp(max=1.0)
