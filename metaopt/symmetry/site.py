"""A site of an ordinary module, which actions fit it, and the list of all that was found."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from metaopt.symmetry import ACTIONS, GroupAction, RescalingAction
from metaopt.symmetry.chain import Activation, Layer, LayerChain
from metaopt.symmetry.finders.steps import Elementwise


@dataclass(frozen=True)
class ModuleSite:
    """A place where a group can act: two layers, and what lies between them.

    Attributes:
        incoming: name of a Linear or Conv2d.
        outgoing: name of the Linear or Conv2d that alone consumes its output.
        activation: the one between, ``Identity`` for none; None where it is not one fixed function.
        scaled: name of the batch norm that takes a scale instead of the incoming layer.
        width: hidden units, or channels.
        block: inputs of the outgoing layer that one unit feeds: H * W across a Flatten, else 1.
        groups: of an outgoing convolution.
        plain: Linear, activation alone, Linear.
        homogeneous: whether all that follows the scale commutes with positive scales of units.
        multiplied: names of the parameters that take a scale, units first.
        inputs: what one unit of the incoming layer sees: features, or channels * kernel.
        biased: whether the incoming and the outgoing layer have a bias.
        between: what lies between, in order, for people.
    """

    incoming: str
    outgoing: str
    activation: Activation | None
    scaled: str | None
    width: int
    block: int
    groups: int
    plain: bool
    homogeneous: bool
    multiplied: tuple[str, ...]
    inputs: int
    biased: tuple[bool, bool]
    between: tuple[str, ...]

    @property
    def pair(self) -> tuple[str, str]:
        """(incoming, outgoing), which identifies the site in its model."""
        return self.incoming, self.outgoing

    @property
    def divided(self) -> str:
        """Name of the parameter whose inputs are divided by the scale."""
        return f"{self.outgoing}.weight"


class Fit(NamedTuple):
    """An action that fits a site, and the data for which it keeps the network's function."""

    action: str
    exact_for: Literal["all", "the batch"]


def actions_for(site: ModuleSite, samples: int | None) -> list[Fit]:
    """The actions that are exact at the site, by the actions' own ``is_exact``.

    Args:
        samples: columns that the incoming layer sees, rows of a batch times positions; None where
            it is not known, and then no action is promised that is exact for the batch alone.

    >>> from torch import nn
    >>> from metaopt.symmetry.finders import find_sites
    >>> (site,) = find_sites(nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2))).found
    >>> [fit.action for fit in actions_for(site, samples=5)]
    ['pre_activation', 'rescaling']
    >>> [fit.action for fit in actions_for(site, samples=6)]
    ['rescaling']
    """
    fits = []
    for name, make in ACTIONS.items():
        action = make()
        if isinstance(action, RescalingAction):
            if site.homogeneous:
                fits.append(Fit(name, "all"))
        elif samples is not None and _is_exact(action, site, samples):
            fits.append(Fit(name, "the batch"))
    return fits


def most_samples(site: ModuleSite, action: GroupAction) -> int:
    """The largest batch for which the action is exact at the site; 0 where it never is."""
    bound = site.inputs + site.width + 3
    return bisect_left(range(1, bound), True, key=lambda n: not _is_exact(action, site, n))


def _is_exact(action: GroupAction, site: ModuleSite, samples: int) -> bool:
    """Of an action on whole features, which come from a Linear and go into one."""
    if not site.plain or site.activation is None:
        return False
    incoming, outgoing = (
        Layer(torch.empty(out, fan_in), torch.empty(out) if biased else None)
        for (out, fan_in), biased in zip(
            ((site.width, site.inputs), (1, site.width)), site.biased, strict=True
        )
    )
    return action.is_exact(incoming, outgoing, samples, site.activation)


class LeftOut(NamedTuple):
    """Layers between which no group acts: the incoming one, then those that it leads to."""

    names: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Sites:
    """All places of a model where a group can act, in the order of the data flow."""

    found: tuple[ModuleSite, ...]
    left_out: tuple[LeftOut, ...]

    def why(self) -> str:
        """The reasons for what was left out, in one line."""
        return "; ".join(out.reason for out in self.left_out) or "it has too few layers"

    def exact_on_all(self, chain: LayerChain, samples: int) -> set[str]:
        """The actions that are exact at every site of the chain; none if one was not found."""
        if len(self.found) != len(chain.sites) or not self.found:
            return set()
        fits = [{fit.action for fit in actions_for(site, samples)} for site in self.found]
        return set.intersection(*fits)

    def report(self) -> str:
        """What was found, which actions fit each, what was left out and why; for people."""
        lines = [f"Found: {len(self.found)}"]
        for site in self.found:
            between = ", ".join(site.between) or "nothing"
            lines.append(
                f"  {site.incoming} -> {site.outgoing}: {site.width} units, {between} between"
            )
            lines += [f"    {line}" for line in _fits(site)]
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out)}")
            lines += [f"  {', '.join(out.names)}: {out.reason}" for out in self.left_out]
        return "\n".join(lines)


def _fits(site: ModuleSite) -> list[str]:
    lines = []
    if site.homogeneous:
        where = f" (the scale goes into {site.scaled})" if site.scaled else ""
        lines.append(f"rescaling: exact for all data{where}")
    elif isinstance(site.activation, Elementwise):
        lines.append(f"no rescaling: {site.between[0]} is not positively homogeneous")
        if site.activation.one_to_one:
            lines.append(
                "no post_activation: it is one-to-one, but has no inverse on the real line"
            )
    for name, make in ACTIONS.items():
        action = make()
        if not isinstance(action, RescalingAction) and (most := most_samples(site, action)):
            lines.append(f"{name}: exact for a batch of at most {most} samples")
    return lines
