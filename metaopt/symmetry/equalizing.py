"""Equalisation before quantisation: the point of an orbit where rounding the weights costs least.

Where a tensor shares one step, each unit should have the same range on both sides of a site, so
that no range is wasted (Nagel et al., 2019): exp(t) = sqrt(max |b| / max |a|). Where each output
channel has its own step, the scale of what makes the units costs nothing, and only the ranges of
what uses them count. Then a search by gradient may go on, through a rounding whose gradient passes
straight through. What does not lower the error that is measured is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from metaopt.checks import check_whole
from metaopt.errors import UserError
from metaopt.symmetry.element import Element
from metaopt.symmetry.finders.stream import STREAM
from metaopt.symmetry.moves import Move, made, orbit_of, sites_to_move
from metaopt.symmetry.nested import as_inputs
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.rounding import RoundedOutputs, check_rounding, rounded_weights
from metaopt.symmetry.site import MatrixView, Site
from metaopt.wrappers import unwrapped

LIMIT = 6.0
"""The largest change of the logarithm of a scale in one pass."""

STRENGTHS = (1.0, 0.5, 0.25)
"""The parts of the way to the closed form that are tried."""

PASSES = 20
SETTLED = 1e-3
RATE = 0.1
"""The step of the search's Adam, in entries of T."""


@final
@dataclass(frozen=True, repr=False, eq=False)
class Equalized:
    """A move that equalised a network, and what rounding costs before and after it.

    Attributes:
        move: the move, which can be undone; its ``invariance_error`` is of weights not rounded.
        error_before: the relative change of what the network gives by rounding its weights, before
            the move; None without inputs.
        error_after: the same after it.
    """

    move: Move
    error_before: float | None
    error_after: float | None

    def __repr__(self) -> str:
        if self.error_before is None or self.error_after is None:
            return f"Equalized(rounding error not measured, {self.move!r})"
        errors = f"{self.error_before:.2e} -> {self.error_after:.2e}"
        return f"Equalized(rounding error {errors}, {self.move!r})"

    @property
    def invariance_error(self) -> float | None:
        """The relative change of what the network gives by the move, without rounding."""
        return self.move.invariance_error

    def undo(self) -> None:
        """Move the weights back. See :meth:`Move.undo`."""
        self.move.undo()


def equalize(
    model: nn.Module,
    *inputs: Any,
    bits: int = 8,
    per: str = "tensor",
    sites: Sequence[Site] | None = None,
    steps: int = 0,
    seed: int = 0,
) -> Equalized:
    """Move a network's weights along its symmetries to where rounding them costs less, in place.

    The network stays the function that it is, until its weights are rounded. With inputs the cost
    is measured, and a move that does not lower it is not made.

    Args:
        model: any module.
        *inputs: what the model is called with, a batch of usual data.
        bits: that each weight of a Linear, convolutional or attention layer will have.
        per: what will share the size of a step: "tensor", "channel" of the output, or "group" of 32
            weights of one channel.
        sites: sites of ``metaopt.symmetries`` to move at; None for all but the residual stream.
        steps: of a search by gradient after the closed form; it needs inputs.
        seed: of the first direction at sites where the search has none.

    Returns:
        The move with its errors.

    Raises:
        UserError: if there is no site, or for options that cannot be.

    Example:
        >>> model = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with torch.no_grad():  # one unit far larger than the others
        ...     _ = model[0].weight[0].mul_(50), model[2].weight[:, 0].div_(50)
        >>> result = equalize(model, torch.randn(64, 9), bits=5)
        >>> result.error_after < result.error_before / 2
        True
    """
    check_rounding(bits, per)
    check_whole("steps", steps, 0)
    model = unwrapped(model)
    x = as_inputs(inputs)
    if steps and x is None:
        raise UserError("expected inputs for a search, got none: give a batch, or steps=0")
    orbit = orbit_of(sites_to_move(model, x, sites, (STREAM,)))
    before = [model.get_parameter(name).detach().clone() for name in orbit.names]
    with torch.no_grad():
        way = _closed_form(orbit, before, per, set(rounded_weights(model)))
        if x is None:
            after = orbit.move(before, way).parameters
            return Equalized(made(model, x, orbit, before, after, [way]), None, None)
    outputs = RoundedOutputs(model, x, bits, per)
    first = best = _error(outputs, orbit, before)
    end, steps_made = before, list[Sequence[Element]]()
    for strength in STRENGTHS:
        elements = [element.scaled(strength) for element in way]
        with torch.no_grad():
            after = orbit.move(before, elements).parameters
        if (reached := _error(outputs, orbit, after)) < best:
            best, end, steps_made = reached, after, [elements]
    if steps:
        found = _search(outputs, orbit, end, steps, seed)
        if found is not None and (reached := _error(outputs, orbit, found[0])) < best:
            best, end = reached, found[0]
            steps_made.append(found[1])
    return Equalized(made(model, x, orbit, before, end, steps_made), first, best)


@torch.no_grad()
def _error(outputs: RoundedOutputs, orbit: Orbit, values: Sequence[Tensor]) -> float:
    return float(outputs.error(dict(zip(orbit.names, values, strict=True))))


def _closed_form(
    orbit: Orbit, parameters: Sequence[Tensor], per: str, rounded: set[str]
) -> list[Element]:
    """Return T of each site that leads to the equalised point; it is diagonal, so passes add up."""
    weights = dict(zip(orbit.names, parameters, strict=True))
    total = orbit.identity(parameters)
    for _ in range(PASSES):
        zeros = orbit.identity([weights[name] for name in orbit.names])
        elements = []
        for (site, action), zero in zip(orbit.acting, zeros, strict=True):
            t = _scales(site, weights, per, rounded)
            if site.planes:
                t = _same_in_planes(t, site)
            dense = torch.diag_embed(action.project(torch.diag_embed(t), site).diagonal(
                dim1=-2, dim2=-1)) if not zero.diagonal else t  # fmt: skip
            element = zero.with_values(dense)
            weights |= action.move(element, site, weights).weights
            elements.append(element)
        total = [t.with_values(t.values + e.values) for t, e in zip(total, elements, strict=True)]
        if max(float(e.values.abs().max()) for e in elements) <= SETTLED:
            break
    return total


def _scales(site: Site, weights: Mapping[str, Tensor], per: str, rounded: set[str]) -> Tensor:
    """Return t of each unit, ``(*heads, k)``, float64."""
    used = _ranges([v for v in site.outgoing if v.parameter in rounded], weights, -2)
    made = None
    if per == "tensor":
        made = _ranges([v for v in site.incoming if v.parameter in rounded], weights, -1)
    if used is None and made is None:
        like = site.incoming[0].read(weights)
        return like.new_zeros(like.shape[:-1], dtype=torch.float64)
    if used is None or made is None:  # the other side has no step to share
        own = used if used is not None else made
        assert own is not None
        sign = 1.0 if used is not None else -1.0
        live = own > 0
        logs = torch.where(live, own, 1.0).log()
        mean = (logs * live).sum(dim=-1, keepdim=True) / live.sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.where(live, sign * (logs - mean), 0.0).clamp(-LIMIT, LIMIT)
    live = (used > 0) & (made > 0)
    ratio = torch.where(live, used, 1.0) / torch.where(live, made, 1.0)
    return (ratio.log() / 2).clamp(-LIMIT, LIMIT)


def _ranges(
    views: Sequence[MatrixView], weights: Mapping[str, Tensor], across: int
) -> Tensor | None:
    """Return the largest entry of each unit, ``(*heads, k)``, float64; None without views."""
    if not views:
        return None
    largest = [view.read(weights).double().abs().amax(dim=across) for view in views]
    return torch.stack(largest).amax(dim=0)


def _same_in_planes(t: Tensor, site: Site) -> Tensor:
    first, second = torch.tensor(site.planes, device=t.device).T
    mean = (t[..., first] + t[..., second]) / 2
    t = t.clone()
    t[..., first] = mean
    t[..., second] = mean
    return t


def _search(
    outputs: RoundedOutputs, orbit: Orbit, start: Sequence[Tensor], steps: int, seed: int
) -> tuple[list[Tensor], list[Element]] | None:
    """Return the best point of a search by gradient with its T; None if none is better."""
    zeros = orbit.identity(start)
    generator = torch.Generator().manual_seed(seed)
    values = [
        (1e-3 * torch.randn(z.values.shape, generator=generator, dtype=torch.float64))
        .to(z.values.device)
        .requires_grad_()
        for z in zeros
    ]
    optimizer = torch.optim.Adam(values, RATE)
    best, found = _error(outputs, orbit, start), None
    for _ in range(steps):
        with torch.enable_grad():
            elements = [z.with_values(v) for z, v in zip(zeros, values, strict=True)]
            point = orbit.move(start, elements).parameters
            error = outputs.error(dict(zip(orbit.names, point, strict=True)))
            optimizer.zero_grad()
            torch.autograd.backward(error)
        if (reached := float(error.detach())) < best:
            best = reached
            kept = [element.with_values(element.values.detach().clone()) for element in elements]
            found = [p.detach() for p in point], kept
        optimizer.step()
    return found
