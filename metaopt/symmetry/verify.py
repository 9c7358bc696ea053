"""Verification by doing: each proposed site is moved at random in float64, and outputs compared.

The weights are disturbed first, on copies. So what holds only at an initialisation, such as for
biases of zero, does not hold here. Many sites are moved at once; where the output changes, halves
of them are, until those that change it are alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.symmetry.action import relative_change
from metaopt.symmetry.auto import for_all_data
from metaopt.symmetry.element import Element
from metaopt.symmetry.finders.network import Candidate, Network
from metaopt.symmetry.nested import Inputs
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.site import LeftOut, Site

TOLERANCE = 1e-9
"""The largest relative change of the output, in float64, for which a site holds."""

SIZE = 0.3
"""The standard deviation of the entries of T times the root of the width, of a random move."""

SEED = 0

SEEN = 100.0
"""How many times the tolerance the output has to change by, if one side of a site moved alone."""


@dataclass(frozen=True)
class Verified:
    """What became of candidates.

    Attributes:
        sites: those that hold, in the order of the candidates.
        left_out: the others, with the reasons.
    """

    sites: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]


def random_elements(
    orbit: Orbit, parameters: Sequence[Tensor], size: float, seed: int
) -> list[Element]:
    """Return a random T for each site of an orbit.

    Args:
        orbit: the orbit.
        parameters: the weights, in order.
        size: the standard deviation of each number of a diagonal T, and of the entries of a dense
            one times the root of its width.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    elements = []
    for zero, (site, _) in zip(orbit.identity(parameters), orbit.acting, strict=True):
        drawn = torch.randn(zero.values.shape, generator=generator, dtype=torch.float64)
        scale = size if zero.diagonal else size / site.width**0.5
        elements.append(zero.with_values(scale * drawn.to(zero.values.device)))
    return elements


def acting_at(sites: Sequence[Site]) -> tuple[ActingSite, ...]:
    """Return sites with the action of the largest group that is exact for all data there.

    Args:
        sites: the sites.

    Raises:
        UserError: for a site where no group is exact for all data.
    """
    found = []
    for site in sites:
        acting = for_all_data(site)
        if acting is None:
            raise UserError(
                f"expected sites where a group keeps all data, got {site.name}: leave it out"
            )
        found.append(acting)
    return tuple(found)


class Judge:
    """A model in float64 with disturbed weights, on which moves are tried.

    The disturbance is large enough that each layer counts, whatever the weights began as.

    Args:
        model: the module; it is not changed.
        x: what it is called with.
        moved: the names of the parameters that sites may move.

    Raises:
        UserError: if the model gives nothing that can be compared.
    """

    def __init__(self, model: nn.Module, x: Inputs, moved: Sequence[str]) -> None:
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        self.names = tuple(dict.fromkeys((*moved, *trained)))
        generator = torch.Generator().manual_seed(SEED)
        self.start = {}
        for name in self.names:
            old = model.get_parameter(name).detach()
            noise = torch.randn(old.shape, generator=generator, dtype=torch.float64).to(old.device)
            inputs = old.numel() // max(len(old), 1) if old.dim() > 1 else 25
            least = 0.5 / max(inputs, 1) ** 0.5  # so that signals neither fade nor grow
            size = max(0.1 * float(old.double().square().mean().sqrt()), least)
            self.start[name] = old.double() + size * noise
        self.outputs = NetworkOutputs(model, x)
        self.before = self.outputs(self.start)
        self.reached = self._reached()

    def _reached(self) -> dict[str, Tensor]:
        """Return the gradient of a random function of the outputs, to see what they depend on."""
        leaves = {name: value.clone().requires_grad_() for name, value in self.start.items()}
        with torch.enable_grad():
            outputs = self.outputs(leaves)
            generator = torch.Generator().manual_seed(SEED)
            weights = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
            value = (outputs * weights.to(outputs.device)).sum()
            gradients = torch.autograd.grad(
                value, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return {name: g.detach() for name, g in zip(leaves, gradients, strict=True)}

    def unseen(self, site: Site) -> bool:
        """Return whether the output would hardly change if one side of a site moved alone.

        Then that it stays under a move of both sides says nothing. The change is taken to first
        order.
        """
        size = SIZE / site.width**0.5 / float(self.before.norm().clamp(min=1e-300))
        for views, across in ((site.incoming, -1), (site.outgoing, -2)):
            change = torch.stack(
                [
                    (view.read(self.reached) * view.read(self.start)).sum(dim=across).norm()
                    for view in views
                ]
            ).sum()
            if not float(change) * size > SEEN * self.tolerance:
                return True
        return False

    @torch.no_grad()
    def change(self, sites: Sequence[Site], size: float = SIZE) -> float:
        """Return the relative change of the output by a random move at some sites.

        Args:
            sites: the sites.
            size: of the move; see :func:`random_elements`.
        """
        orbit = Orbit(self.names, acting_at(sites))
        start = [self.start[name] for name in self.names]
        point = orbit.move(start, random_elements(orbit, start, size, SEED + 1))
        after = self.outputs(dict(zip(self.names, point.parameters, strict=True)))
        changed = float(relative_change(self.before, after))
        return changed if not bool(point.rejected) else float("inf")

    @property
    def tolerance(self) -> float:
        """The largest change for which a site holds; larger where the model is not in float64."""
        return TOLERANCE if self.outputs.precise else 1e-4


def verified(network: Network, candidates: Sequence[Candidate]) -> Verified:
    """Return the sites that keep the output of a network on its inputs, moved at random.

    Args:
        network: the network with its inputs.
        candidates: the proposals.
    """
    moved = [name for c in candidates for site in c.alternatives for name in site.parameters]
    if not moved:
        return Verified((), ())
    judge = Judge(network.model, network.x, moved)
    chosen: dict[int, Site] = {}
    left_out: list[LeftOut] = []
    waiting = {place: list(c.alternatives) for place, c in enumerate(candidates)}
    while waiting:
        trying = []
        for place, alternatives in list(waiting.items()):
            if judge.unseen(alternatives[0]):
                del waiting[place]
                why = "what the model gives hardly depends on it, so nothing could be verified"
                left_out.append(LeftOut(alternatives[0].layers, why))
            else:
                trying.append(place)
        held = _hold(judge, [(place, waiting[place][0]) for place in trying])
        for place in trying:
            site = waiting[place].pop(0)
            if place in held:
                chosen[place] = site
                del waiting[place]
            elif not waiting[place]:
                del waiting[place]
                changed = judge.change([site])
                why = f"a random move there changes what the model gives by {changed:.0e}"
                left_out.append(LeftOut(site.layers, why))
    return Verified(tuple(chosen[place] for place in sorted(chosen)), tuple(left_out))


def _hold(judge: Judge, sites: Sequence[tuple[int, Site]]) -> set[int]:
    """Return the places of the sites that hold, found by halves."""
    if not sites:
        return set()
    if judge.change([site for _, site in sites]) <= judge.tolerance:
        return {place for place, _ in sites}
    if len(sites) == 1:
        return set()
    middle = len(sites) // 2
    return _hold(judge, sites[:middle]) | _hold(judge, sites[middle:])
