"""The state of a learned optimizer: joint tensors for the rules, kept per parameter as torch does.

m1 and m2 step all coordinates at once, so each tensor of their state is one for all parameters. In
``optimizer.state`` every parameter has its own entries, which tools save, shard, move and load.
These entries are views of the joint tensors for as long as nobody replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

State = dict[str, list[Tensor]]
"""The state by part: "update" of m1 and, where g is learned, "element" of m2."""


class Columns(NamedTuple):
    """How one tensor of a rule's state is divided between parameters, or between sites.

    Attributes:
        name: of its entries, such as "h1".
        dim: the dimension that is divided.
        sizes: how long the part of each is, in order.
        owner: place of the one parameter that it belongs to; None if it is divided.
    """

    name: str
    dim: int = 0
    sizes: Sequence[int] = ()
    owner: int | None = None


class Kept(NamedTuple):
    """Where a tensor of a state is kept.

    Attributes:
        name: of its entries.
        owners: the parameters that have an entry each.
        dim: the dimension that is divided between the owners.
        sizes: how long the part of each owner is; empty where the one owner keeps it whole.
    """

    name: str
    owners: Sequence[nn.Parameter]
    dim: int = 0
    sizes: Sequence[int] = ()

    def divide(self, joint: Tensor) -> list[Tensor]:
        """Return the part of each owner, as views."""
        if not self.sizes:
            return [joint]
        return list(joint.split_with_sizes(list(self.sizes), dim=self.dim))


KeptState = Mapping[str, Sequence[Kept]]
"""Where the tensors of each part of a state are kept."""


def kept_of(
    name: str,
    columns: Sequence[Columns] | None,
    owners: Sequence[nn.Parameter],
    start: Callable[[], Sequence[Tensor]],
) -> list[Kept]:
    """Return where the tensors of a rule's state are kept.

    Args:
        name: the start of the names, "m1" or "m2".
        columns: how each is divided between the owners; None if none is.
        owners: the parameters, in order.
        start: makes the state before the first step.
    """
    if columns is None:
        return [Kept(f"{name}_{index}", owners[:1]) for index in range(len(start()))]
    return [
        Kept(f"{name}_{own.name}", owners, own.dim, own.sizes)
        if own.owner is None
        else Kept(f"{name}_{own.name}", [owners[own.owner]])
        for own in columns
    ]


class PerParameter:
    """Reads a state from the entries of parameters, and writes it back as views.

    Args:
        entries: by name, by parameter: ``optimizer.state``.
    """

    def __init__(self, entries: MutableMapping[Any, Any]) -> None:
        self.entries = entries
        self._joint: dict[tuple[str, int], tuple[Tensor, list[Tensor]]] = {}

    def read(self, kept: KeptState, start: Callable[[], State]) -> State:
        """Return a state; what a parameter has no entry of is as before the first step.

        Args:
            kept: where it is kept.
            start: makes the whole state before the first step.
        """
        of = {key: self.entries.get(p, {}) for key, p in _owners(kept).items()}
        state = {part: [self._whole(own, of) for own in places] for part, places in kept.items()}
        if all(tensor is not None for tensors in state.values() for tensor in tensors):
            return state  # type: ignore[return-value]
        fresh = start()
        return {
            part: [
                _completed(own, begun, of) if tensor is None else tensor
                for own, begun, tensor in zip(places, fresh[part], state[part], strict=True)
            ]
            for part, places in kept.items()
        }

    def write(self, kept: KeptState, state: State) -> None:
        """Give each owner its entries of a state.

        Args:
            kept: where it is kept; other parts of the state are not.
            state: the state.
        """
        of = {key: self.entries[p] for key, p in _owners(kept).items()}
        for part, places in kept.items():
            for own, joint in zip(places, state[part], strict=True):
                before, views = self._joint.get((own.name, id(own.owners[0])), (None, []))
                if before is not joint:
                    views = own.divide(joint)
                for owner, view in zip(own.owners, views, strict=True):
                    of[id(owner)][own.name] = view
                self._joint[own.name, id(own.owners[0])] = joint, views

    def _whole(self, kept: Kept, of: dict[int, dict[str, Tensor]]) -> Tensor | None:
        """The tensor, or None if a part of it is missing."""
        entries = [of[id(owner)].get(kept.name) for owner in kept.owners]
        joint, views = self._joint.get((kept.name, id(kept.owners[0])), (None, []))
        if len(views) == len(entries) and all(map(_same, views, entries)):
            return joint
        parts = [entry for entry in entries if entry is not None]
        if len(parts) < len(entries):
            return None
        return torch.cat(parts, dim=kept.dim) if kept.sizes else parts[0]


def _owners(kept: KeptState) -> dict[int, nn.Parameter]:
    """All owners by ``id``: to hash a parameter takes long, so it is done once for each."""
    return {id(p): p for places in kept.values() for own in places for p in own.owners}


def _completed(kept: Kept, begun: Tensor, of: dict[int, dict[str, Tensor]]) -> Tensor:
    pairs = zip(kept.owners, kept.divide(begun), strict=True)
    parts = [of[id(owner)].get(kept.name, own) for owner, own in pairs]
    return torch.cat(parts, dim=kept.dim) if kept.sizes else parts[0]


def _same(view: Tensor, entry: Tensor | None) -> bool:
    return view is entry
