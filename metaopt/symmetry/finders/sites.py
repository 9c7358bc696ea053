"""All sites of a model, with what was left out and why, and which actions fit each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from metaopt.symmetry.action import Action
from metaopt.symmetry.actions import ACTIONS, make_action
from metaopt.symmetry.activations import Elementwise
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.site import LeftOut, Site


@dataclass(frozen=True)
class Sites:
    """All places of a model where a group can act, in the order of the data flow.

    Attributes:
        found: the sites.
        left_out: layers between which no group acts, with the reasons.
        chain: the model as a chain of layers, or why it is none. On a chain the input of each site
            is known, which actions need that are exact on a batch alone.
    """

    found: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]
    chain: LayerChain | str

    def why(self) -> str:
        """Return the reasons for what was left out, in one line."""
        return "; ".join(out.reason for out in self.left_out) or "it has too few layers"

    def exact_everywhere(self, action: Action, samples: float) -> bool:
        """Return whether an action is exact at every site of the chain, on so many samples."""
        if isinstance(self.chain, str) or len(self.found) != len(self.chain.pairs):
            return False
        fits = [action.max_samples(site) >= samples for site in self.found]
        return bool(fits) and all(fits)

    def report(self) -> str:
        """Return what was found, which actions fit each, what was left out and why; for people."""
        lines = [f"Found: {len(self.found)}"]
        for site in self.found:
            between = ", ".join(site.labels) or "nothing"
            lines.append(f"  {site.name}: {site.width} units, {between} between")
            lines += [f"    {line}" for line in _fits(site)]
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out)}")
            lines += [f"  {', '.join(out.names)}: {out.reason}" for out in self.left_out]
        return "\n".join(lines)


def exact_on_batch(site: Site) -> str:
    """Return the text of ``Site.exact`` for a site where no group is exact for all data."""
    most = max((make_action(name).max_samples(site) for name in ACTIONS), default=0)
    return f"on a batch of at most {most:g} samples"


def _fits(site: Site) -> list[str]:
    lines = []
    if site.homogeneous:
        where = f" (the scale goes into {site.scaled})" if site.scaled else ""
        lines.append(f"rescaling: exact for all data{where}")
    elif isinstance(site.between, Elementwise):
        lines.append(f"no rescaling: {site.labels[0]} is not positively homogeneous")
        if site.between.one_to_one:
            lines.append(
                "no post_activation: it is one-to-one, but has no inverse on the real line"
            )
    for name in ACTIONS:
        most = make_action(name).max_samples(site)
        if name != "rescaling" and most:
            batch = "all data" if math.isinf(most) else f"a batch of at most {most:g} samples"
            lines.append(f"{name}: exact for {batch}")
    return lines
