"""What of a model a teleport may move now: layers are frozen, unfrozen and added in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.symmetry.site import LeftOut, Site
from metaopt.target import Chosen, Target, are_sites, target_of


@final
class Movable:
    """A model with what of it may be moved now.

    Parameters stay that are frozen, or that the optimizer does not hold. A site that has one of
    them is left out. The model is traced again whenever something was frozen or unfrozen.

    Args:
        model: the model.
        base: the optimizer whose groups hold the parameters that are trained.
        sites: pairs of names (incoming layer, outgoing layer) to use, instead of all sites; or
            sites themselves.

    Attributes:
        target: the model with the sites that may be moved, as of the last :meth:`update`.
    """

    def __init__(
        self,
        model: nn.Module,
        base: torch.optim.Optimizer,
        sites: Chosen | None,
    ) -> None:
        self.model, self.base = model, base
        self._whole = self.target = target_of(model, sites)
        self._given = sites if sites is not None and are_sites(sites) else None
        by_names = sites is not None and self._given is None
        self._chosen = [site.layers for site in self._whole.sites.found] if by_names else None
        self._requiring = self._that_require_a_gradient()
        self._staying: dict[int, str] = {}

    def update(self, with_rate: bool = False) -> Target:
        """Return the model with the sites that may be moved now.

        Args:
            with_rate: whether parameters stay, too, whose learning rate is 0.
        """
        if self._requiring != self._that_require_a_gradient():
            self._requiring = self._that_require_a_gradient()
            chain = None if self._chosen is None else "sites were given"
            self._whole = _without(target_of(self.model, self._given), self._not_chosen, chain)
        staying = self._reasons(with_rate)
        if staying != self._staying:  # also where something was frozen or unfrozen
            self._staying = staying
            self.target = _without(self._whole, self._why_it_stays)
        return self.target

    def names(self) -> tuple[str, ...]:
        """Return the names of all parameters that may be moved, in order."""
        return tuple(
            name
            for name, parameter in self.target.model.named_parameters()
            if id(parameter) not in self._staying
        )

    def _that_require_a_gradient(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.model.parameters()]

    def _reasons(self, with_rate: bool) -> dict[int, str]:
        """Why parameters stay, by their ids."""
        held = {
            id(parameter): group
            for group in self.base.param_groups
            for parameter in group["params"]
        }
        reasons = {}
        for name, parameter in self.target.model.named_parameters():
            if not parameter.requires_grad:
                reasons[id(parameter)] = f"{name} is frozen (requires_grad is False)"
            elif id(parameter) not in held:
                reasons[id(parameter)] = f"the optimizer does not hold {name}"
            elif with_rate and rate_of(held[id(parameter)]) == 0:
                reasons[id(parameter)] = f"the learning rate of {name} is 0"
        return reasons

    def _why_it_stays(self, site: Site) -> str | None:
        parameters = self.target.parameters(site.parameters)
        return next((self._staying[id(p)] for p in parameters if id(p) in self._staying), None)

    def _not_chosen(self, site: Site) -> str | None:
        chosen = self._chosen is None or site.layers in self._chosen
        return None if chosen else "it is not among the given sites"


def rate_of(group: Mapping[str, Any], wait: bool = True) -> float:
    """Return the learning rate of a parameter group; 1 if it has none.

    Args:
        group: the group.
        wait: whether to wait for a rate on another device; if not, it is taken to be 1.
    """
    rate = group.get("lr", 1.0)
    if isinstance(rate, Tensor) and rate.device.type != "cpu" and not wait:
        return 1.0
    return float(rate)


def _without(
    target: Target, reason: Callable[[Site], str | None], chain: str | None = None
) -> Target:
    """A target without the sites that there is a reason against."""
    reasons = [(site, reason(site)) for site in target.sites.found]
    left_out = [LeftOut(site.layers, why) for site, why in reasons if why is not None]
    if not left_out and chain is None:
        return target
    fewer = copy.copy(target)
    fewer.sites = replace(
        target.sites,
        found=tuple(site for site, why in reasons if why is None),
        left_out=(*target.sites.left_out, *left_out),
        chain=chain or target.sites.chain,
    )
    return fewer


def check_memory(names: Sequence[str], parameters: Sequence[nn.Parameter]) -> None:
    """Check that parameters can be written: no two entries may lie at one place of the memory.

    Args:
        names: their names.
        parameters: the parameters.

    Raises:
        UserError: for an expanded parameter, or two parameters that share memory.
    """
    places: dict[int, list[tuple[int, int, str]]] = {}
    for name, parameter in zip(names, parameters, strict=True):
        if not parameter.numel():
            continue
        reach = 1 + sum(
            (n - 1) * s for n, s in zip(parameter.shape, parameter.stride(), strict=True)
        )
        if reach < parameter.numel():
            raise UserError(
                f"expected parameters whose entries have memory of their own, got {name} of "
                f"strides {parameter.stride()}: assign parameter.data = parameter.data.contiguous()"
            )
        start = int(parameter.storage_offset()) * parameter.element_size()
        end = start + int(reach) * parameter.element_size()
        memory = parameter.untyped_storage().data_ptr()
        places.setdefault(memory, []).append((start, end, name))
    for taken in places.values():
        taken.sort()
        for (_, end, name), (start, _, other) in pairwise(taken):
            if start < end:
                raise UserError(
                    f"expected parameters with memory of their own, got {name} and {other}, which "
                    f"share some: tie them as one parameter, or copy the data of one"
                )
