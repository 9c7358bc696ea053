"""Moves of a network's weights along its symmetries, made in place, that can be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError, shown
from metaopt.symmetry.balancing import Balance
from metaopt.symmetry.element import Element
from metaopt.symmetry.finders.norms import GAINS
from metaopt.symmetry.finders.stream import STREAM
from metaopt.symmetry.nested import Inputs, as_inputs
from metaopt.symmetry.network_sites import symmetries
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.site import Site
from metaopt.symmetry.verify import acting_at
from metaopt.wrappers import unwrapped


@final
@dataclass(frozen=True, repr=False, eq=False)
class Move:
    """A move of a network's weights along its symmetries.

    Attributes:
        model: the network.
        orbit: what its weights moved along; ``orbit.names`` are the parameters that moved.
        steps: for each step, T of each site.
        invariance_error: the relative change of what the network gives on the inputs, at the
            weights as they are stored, computed in float64; None if no inputs were given.
    """

    model: nn.Module
    orbit: Orbit
    steps: Sequence[Sequence[Element]]
    invariance_error: float | None

    def __repr__(self) -> str:
        error = self.invariance_error
        measured = "not measured" if error is None else f"{error:.1e}"
        return f"Move(sites={len(self.orbit.acting)}, invariance_error={measured})"

    @property
    def size(self) -> float:
        """The largest change of a logarithm of a scale, over all sites and steps."""
        largest = [e.values.abs().max() for step in self.steps for e in step if e.values.numel()]
        return float(torch.stack(largest).max()) if largest else 0.0

    def undo(self) -> None:
        """Move the weights back by the inverses of the group elements, in place.

        Where the weights were changed since, what was changed moves along.
        """
        for elements in reversed(self.steps):
            write(self.model, self.orbit, [e.scaled(-1.0) for e in elements])


@torch.no_grad()
def write(model: nn.Module, orbit: Orbit, elements: Sequence[Element]) -> None:
    """Move a model's weights along an orbit, in place.

    Args:
        model: the model.
        orbit: the orbit.
        elements: T of each site.
    """
    parameters = [model.get_parameter(name) for name in orbit.names]
    point = orbit.move([p.detach() for p in parameters], elements)
    for parameter, value in zip(parameters, point.parameters, strict=True):
        parameter.copy_(value)


def orbit_of(sites: Sequence[Site]) -> Orbit:
    """Return the orbit of sites where groups keep all data, of all parameters that they move.

    Args:
        sites: the sites.
    """
    names = (name for site in sites for name in site.without_outgoing_bias().parameters)
    return Orbit(tuple(dict.fromkeys(names)), acting_at(sites))


def sites_to_move(
    model: nn.Module, x: Inputs | None, sites: Sequence[Site] | None, without: Sequence[str]
) -> Sequence[Site]:
    """Return the sites that a user gave, or those that are found.

    Args:
        model: the model, without wrappers.
        x: what it is called with, or None.
        sites: what the user gave; None for all that are found.
        without: kinds that are left out of what is found.

    Raises:
        UserError: if there is none, or something else was given.
    """
    if sites is None:
        found = symmetries(model) if x is None else symmetries(model, x)
        own = [site for site in found if site.kind not in without]
        if not own:
            why = found.as_sites().why()
            raise UserError(f"expected a site to move, got none ({why}): declare one", longest=580)
        return own
    if isinstance(sites, str) or not all(isinstance(site, Site) for site in sites) or not sites:
        raise UserError(
            f"expected sites of metaopt.symmetries(), got {shown(sites)}: leave them out for all"
        )
    return tuple(sites)


def balance(
    model: nn.Module,
    *inputs: Any,
    sites: Sequence[Site] | None = None,
    passes: int = 20,
    strength: float = 1.0,
    limit: float = 4.0,
    basis: str = "nearest",
) -> Move:
    """Balance a network's weights along its symmetries, in place: B^T B = A A^T at each site.

    This is the point of least squared norm that the sites can reach. The network stays the function
    that it is. By default the gains of norms are left alone, and so is the residual stream, whose
    rotations change no norm.

    Args:
        model: any module.
        *inputs: what the model is called with. Then each site is verified first, and the move's
            error is measured. Without inputs sites are found by modules alone.
        sites: the sites to balance, such as ``metaopt.symmetries(model, x).of_kind(...)``; None for
            all.
        passes: the most passes over all sites, which may depend on one another.
        strength: the part of the way to go; see :class:`~metaopt.symmetry.Balance`.
        limit: the largest change of the logarithm of a scale in one pass.
        basis: "nearest" for the nearest such point; "singular" to turn the features of each site of
            GL to singular directions, too, the largest first, and a stream that is given; see
            :class:`~metaopt.symmetry.Balance`.

    Returns:
        The move that was made, which can be undone.

    Raises:
        UserError: if there is no site, or for options that cannot be.

    Example:
        >>> model = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3)).double()
        >>> move = balance(model, torch.rand(5, 9, dtype=torch.float64))
        >>> move.invariance_error < 1e-14
        True
        >>> made, used = model[0], model[2]
        >>> size = made.weight.square().sum(1) + made.bias.square()
        >>> torch.allclose(size, used.weight.square().sum(0), rtol=1e-2)
        True
    """
    search = Balance(passes, strength, limit, basis=basis)
    model = unwrapped(model)
    x = as_inputs(inputs)
    orbit = orbit_of(sites_to_move(model, x, sites, (GAINS, STREAM)))
    parameters = [model.get_parameter(name) for name in orbit.names]
    before = [parameter.detach().clone() for parameter in parameters]
    result = search(orbit, before)
    return made(model, x, orbit, before, result.parameters, result.elements)


@torch.no_grad()
def made(
    model: nn.Module, x: Inputs | None, orbit: Orbit, before: Sequence[Tensor],
    after: Sequence[Tensor], steps: Sequence[Sequence[Element]],
) -> Move:  # fmt: skip
    """Write the end of a move into a model, and return the move with its error.

    Args:
        model: the model.
        x: what it is called with, or None.
        orbit: the orbit.
        before: the parameters before the move, in order.
        after: the parameters after it.
        steps: for each step, T of each site.
    """
    error = None
    if x is not None:
        outputs = NetworkOutputs(model, x)
        old, new = (outputs(dict(zip(orbit.names, side, strict=True))) for side in (before, after))
        error = float((new - old).norm() / old.norm().clamp(min=torch.finfo(old.dtype).tiny))
    for name, value in zip(orbit.names, after, strict=True):
        model.get_parameter(name).copy_(value)
    return Move(model, orbit, steps, error)
