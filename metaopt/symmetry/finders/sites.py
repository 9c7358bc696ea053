"""All sites of a model, the layers that were left out, and the actions that fit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from metaopt.symmetry.action import Action
from metaopt.symmetry.actions import ACTIONS, make_action
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.site import ALWAYS, LeftOut, Site

LONGEST = 350  # characters of grouped reasons
FEW = 3  # names that are listed where there are many


@dataclass(frozen=True)
class Sites:
    """All sites of a model, in the order of the data flow, and the layers that were left out.

    Attributes:
        found: the sites.
        left_out: layers between which no group acts, with the reasons.
        chain: the model as a chain of layers, or why it is none. On a chain the input of each site
            is known, as actions need that are exact only on a batch.
    """

    found: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]
    chain: LayerChain | str

    def why(self) -> str:
        """Return in one line why no group is exact for all data; equal reasons are counted."""
        near = [
            LeftOut(
                site.layers,
                f"{', '.join(site.labels)} between two Linear layers: no group is exact for all "
                f"data, ReLU has one",
            )
            for site in self.found
            if site.exact != ALWAYS
        ]
        return grouped([*near, *self.left_out]) or "it has too few layers"

    def largest_batch(self) -> float:
        """Return the largest batch for which some action is exact at every site of the chain."""
        if isinstance(self.chain, str) or len(self.found) != len(self.chain.pairs):
            return 0
        actions = [make_action(name) for name in ACTIONS]
        return max(min((a.max_samples(s) for s in self.found), default=0) for a in actions)

    def exact_everywhere(self, action: Action, samples: float) -> bool:
        """Return whether an action is exact at every site of the chain.

        Args:
            action: the action.
            samples: the number of samples.
        """
        if isinstance(self.chain, str) or len(self.found) != len(self.chain.pairs):
            return False
        fits = [action.max_samples(site) >= max(samples, 1) for site in self.found]
        return bool(fits) and all(fits)

    def report(self) -> str:
        """Return a text on the sites, the actions that fit each, and the layers left out."""
        lines = [f"Found: {len(self.found)}"]
        for site in self.found:
            between = ", ".join(site.labels) or "nothing"
            into = f"; scales go into {site.scaled}" if site.scaled else ""
            lines.append(f"  {site.name}: {site.width} units, {between} between{into}")
            lines += [f"    {line}" for line in _fits(site)]
        if self.left_out:
            lines.append(f"Left out: {len(self.left_out)}")
            lines += [f"  {line}" for line in _each(self.left_out, FEW)]
        return "\n".join(lines)


def grouped(left_out: Sequence[LeftOut]) -> str:
    """Return in one line of at most ``LONGEST`` characters why layers were left out.

    Reasons that differ only in the names of layers are given once, with their number and the first
    few of the layers.

    Args:
        left_out: layers with reasons.

    Example:
        >>> print(grouped([LeftOut((f"a.{n}",), f"a.{n} is called twice") for n in range(9)]))
        9 × a.0 is called twice (a.0, a.1, a.2, ...)
    """
    texts = _each(left_out)
    shown: list[str] = []
    for text in texts:
        if len("; ".join((*shown, text))) > LONGEST - 30 and shown:
            break
        shown.append(shorten(text, LONGEST - 30))
    left = len(texts) - len(shown)
    further = [f"and {left} more reason{'s' * (left > 1)}"] if left else []
    return "; ".join((*shown, *further))


def grouped_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a line for each reason; those that differ in names of layers alone are grouped.

    Args:
        left_out: layers with reasons.
    """
    return _each(left_out, FEW)


def _each(left_out: Sequence[LeftOut], alone: int = 1) -> list[str]:
    """Return each reason once; one that is given at most ``alone`` times, each time."""
    names = {name for out in left_out for name in out.names}
    places = names | {above for name in names for above in _above(name)}

    def without_places(reason: str) -> str:
        def blank(word: re.Match[str]) -> str:
            found = word[0] in places or any(above in names for above in _above(word[0]))
            return "*" if found else word[0]

        return re.sub(r"[\w.]+", blank, reason)

    groups: dict[str, list[LeftOut]] = {}
    for out in left_out:
        groups.setdefault(without_places(out.reason), []).append(out)
    parts = [[[out] for out in g] if len(g) <= alone else [g] for g in groups.values()]
    return [_one_line(part) for group in parts for part in group]


def first_few(names: Sequence[str]) -> str:
    """Return up to three names in one line, and how many more there are."""
    rest = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {rest} more" if rest > 0 else "")


def shorten(text: str, length: int) -> str:
    """Return a text cut to a number of characters, its end replaced by dots."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _one_line(group: Sequence[LeftOut]) -> str:
    """The layers, and the first of reasons that are alike."""
    names, reason = group[0]
    if len(group) == 1:
        return f"{first_few(names)}: {reason}" if names else reason
    layers = list(dict.fromkeys(out.names[0] for out in group))
    return f"{len(group)} × {reason} ({', '.join(layers[:FEW])}{', ...' * (len(layers) > FEW)})"


def _above(name: str) -> list[str]:
    """The modules that hold what is called so: "a" and "a.0" of "a.0.weight"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _fits(site: Site) -> list[str]:
    """What the actions can do there, and where none keeps all data, why others cannot."""
    if site.kind:  # a site of metaopt.symmetries, which has one group
        heads = f", one for each of {site.heads} heads" if site.head_dims else ""
        return [f"{site.group}{heads}: exact for all data"]
    lines = []
    actions = {name: make_action(name) for name in ACTIONS}
    for name, action in sorted(actions.items(), key=lambda item: -item[1].max_samples(site)):
        most = action.max_samples(site)
        if math.isinf(most):
            lines.append(f"{name}: exact for all data")
        elif most:
            lines.append(f"{name}: exact for a batch of at most {most:g} samples")
        elif site.exact != ALWAYS and (why := action.obstacle(site)):
            lines.append(f"no {name}: {why}")
    return lines
