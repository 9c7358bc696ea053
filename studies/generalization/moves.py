"""Change the weights of a trained network once, by a teleport or by one of its controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.measures.curvature import Curvature, mean_curvature, random_elements
from metaopt.measures.directions import unit_directions
from metaopt.measures.sharpness import Sharpness
from metaopt.optim import TeleportingOptimizer
from metaopt.symmetry import (
    GradientAscent,
    LayerInput,
    Negated,
    Orbit,
    PreActivationAction,
    Search,
    SearchResult,
    chain_orbit,
)
from metaopt.symmetry.functional import NetworkLoss
from metaopt.symmetry.objectives import LossFunction
from studies.generalization.networks import ALONE, SLOPE, Weights
from studies.generalization.setting import Rows
from studies.searches.fixed_ascent import FixedAscent
from studies.searches.random_move import RandomMove

DISPLACEMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of phi as an objective, in the range of the released code: with those of the correlation study
phi is all but the loss itself."""

NAMES = ("0.weight", "2.weight", "4.weight")
HALVINGS = 40
NEAREST = 1e-6  # of the weights' norm: where the way of a warm restart begins to be looked at


@dataclass(frozen=True)
class Effort:
    """How a teleport is searched for: at a fixed rate (appendix F.4), or guarded.

    Attributes:
        batches, samples: a search on each.
        rate, phi_steps, psi_steps: of the paper's search.
        size, guarded_steps: of the guarded one, the first norm of T and the iterations.
        directions: of phi.
        curves: of psi.
    """

    batches: int = 5
    samples: int = 2000
    rate: float = 5e-2
    phi_steps: int = 10
    psi_steps: int = 1
    size: float = 0.1
    guarded_steps: int = 5
    directions: int = 50
    curves: int = 1  # as in the paper


@dataclass(frozen=True)
class Outcome:
    """What a teleport or a control did.

    Attributes:
        weights: after it.
        before, after: the measure that was to change, on the first of the batches; NaN of a control
            that knows none.
        rise: of the loss on all batches together.
        defect: the largest relative change of the outputs on a batch, from the start of all.
        moved: of the weights, over their norm.
        results: what the search did, for the random control.
    """

    weights: Weights
    before: float
    after: float
    rise: float
    defect: float
    moved: float
    results: Sequence[SearchResult] = ()

    def facts(self) -> dict[str, float]:
        """All but the tensors, for JSON."""
        names = ("before", "after", "rise", "defect", "moved")
        return {name: getattr(self, name) for name in names}


Measure = Callable[[Weights], float]


class Recording:
    """A search that remembers what it found."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.results: list[SearchResult] = []

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult:
        self.results.append(self.search(orbit, parameters, loss))
        return self.results[-1]


class Replaying:
    """A search that finds what was found before, in order, wherever it starts."""

    def __init__(self, results: Sequence[SearchResult]) -> None:
        self.results = iter(results)

    def __call__(
        self, orbit: Orbit, parameters: Sequence[Tensor], loss: LossFunction
    ) -> SearchResult:
        return next(self.results)


class Teleporter:
    """Teleports of one network on some batches, and their controls, of one seed."""

    def __init__(self, weights: Weights, batches: Sequence[Rows], effort: Effort, seed: int):
        self.weights, self.batches, self.effort, self.seed = weights, batches, effort, seed
        x, _ = batches[0]
        self.sharpness = Sharpness.drawn(
            weights, self._generator(0), DISPLACEMENTS, effort.directions, ALONE
        )
        orbit = chain_orbit(ALONE, weights, LayerInput(x.mT), self._action())
        self.elements = random_elements(orbit, weights, effort.curves, self._generator(1))
        self.orbit = orbit

    def _generator(self, use: int) -> torch.Generator:
        return torch.Generator().manual_seed(10**8 + 100 * self.seed + use)

    @staticmethod
    def _action() -> PreActivationAction:
        """Eq. 79, however inexact on so many samples, as in the paper."""
        return PreActivationAction(max_defect=float("inf"))

    def phi(self, sign: int, guarded: bool = False) -> Outcome:
        """Towards sharper (1) or flatter (-1) points."""
        return self._along(self.sharpness, sign, self.effort.phi_steps, guarded, self._phi_at)

    def psi(self, sign: int, guarded: bool = False) -> Outcome:
        """Towards points of more (1) or less (-1) curvature."""
        objective = Curvature(self.elements)
        return self._along(objective, sign, self.effort.psi_steps, guarded, self._psi_at)

    def _along(
        self,
        objective: Sharpness | Curvature,
        sign: int,
        steps: int,
        guarded: bool,
        measure: Measure,
    ) -> Outcome:
        maximised = objective if sign > 0 else Negated(objective)
        search: Search = FixedAscent(steps, self.effort.rate, maximised)
        if guarded:
            search = GradientAscent(
                self.effort.guarded_steps, self.effort.size, objective=maximised
            )
        return self._teleported(search, measure)

    def random(self, outcome: Outcome) -> Outcome:
        """Move as far along a random direction of the Lie algebra, at each step of each batch."""
        search = RandomMove(Replaying(outcome.results), self._generator(2))
        return self._teleported(search, None)

    def warm_restart(self, outcome: Outcome) -> Outcome:
        """Along a random direction of the weights until the loss has risen as much."""
        direction = [d[0] for d in unit_directions(self.weights, 1, self._generator(3))]
        start = self._loss(self.weights)
        size = torch.cat([w.flatten() for w in self.weights]).norm().item()

        def at(t: float) -> Weights:
            return [w + t * d for w, d in zip(self.weights, direction, strict=True)]

        def short(t: float) -> bool:
            return self._loss(at(t)) - start < outcome.rise

        low, high = 0.0, 0.0
        if outcome.rise > 0:
            high = NEAREST * size
            while short(high) and high < 1e6 * size:
                low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            if short(middle):
                low = middle
            else:
                high = middle
        return self._outcome(at(high), None, ())

    def _teleported(self, search: Search, measure: Measure | None) -> Outcome:
        recording = Recording(search)
        model = module_of(self.weights)
        optimizer = TeleportingOptimizer(
            torch.optim.SGD(model.parameters(), 1.0),
            model,
            functional.cross_entropy,
            self._action(),
            search=recording,
            max_defect=float("inf"),
        )
        optimizer.teleport_on(self.batches)
        after = [parameter.detach().clone() for parameter in model.parameters()]
        return self._outcome(after, measure, recording.results)

    def _outcome(
        self, weights: Weights, measure: Measure | None, results: Sequence[SearchResult]
    ) -> Outcome:
        nan = float("nan")
        flat, start = (torch.cat([w.flatten() for w in ws]) for ws in (weights, self.weights))
        defects = [
            float((out - origin).norm() / origin.norm())
            for out, origin in zip(self._outputs(weights), self._outputs(self.weights), strict=True)
        ]
        return Outcome(
            weights,
            nan if measure is None else measure(self.weights),
            nan if measure is None else measure(weights),
            self._loss(weights) - self._loss(self.weights),
            max(defects),
            float((flat - start).norm() / start.norm()),
            results,
        )

    @torch.no_grad()
    def _outputs(self, weights: Weights) -> list[Tensor]:
        return [ALONE.output(ALONE.layers(weights), x.mT) for x, _ in self.batches]

    def _loss(self, weights: Weights) -> float:
        """On all batches together."""
        losses = [
            functional.cross_entropy(output.mT, y).double() * len(y)
            for output, (_, y) in zip(self._outputs(weights), self.batches, strict=True)
        ]
        return float(torch.stack(losses).sum()) / sum(len(y) for _, y in self.batches)

    @torch.no_grad()
    def _phi_at(self, weights: Weights) -> float:
        x, y = self.batches[0]
        return float(
            self.sharpness(
                weights, NetworkLoss(module_of(weights), NAMES, functional.cross_entropy, x, y)
            )
        )

    @torch.no_grad()
    def _psi_at(self, weights: Weights) -> float:
        return float(mean_curvature(self.orbit, weights, self.elements))


def module_of(weights: Weights) -> nn.Sequential:
    """One network as a module, with copies of the weights."""
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.clone())
        layers += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])
