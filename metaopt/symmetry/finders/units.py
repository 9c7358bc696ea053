"""Sites of units, scaled by positive numbers: from the data flow, or from what a run showed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.network import (
    Candidate,
    Network,
    features_last,
    is_dense,
    sizes,
)
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.finders.unit_flow import Flow
from metaopt.symmetry.finders.unit_sites import PAIRS, UNITS
from metaopt.symmetry.site import LeftOut, Site

_RELUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU)


def units(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose positive scales of units in the data flow, by torch.fx or by torch.export.

    Args:
        network: the network.
    """
    found = [Flow(trace).sites() for trace in network.traces]
    if len(found) < 2:
        yield from _seen(network)
        for site in () if network.exported is None else Flow(network.exported).sites():
            yield site if isinstance(site, LeftOut) else Candidate.of(site)
        return
    training, evaluation = found
    for site, label in evaluation.items():
        if isinstance(site, LeftOut):
            yield site
        elif site in training:
            yield Candidate.of(site, known=not label)


def _seen(network: Network) -> Iterator[Candidate]:
    """Yield the layers of which one alone uses another in a run, at most a ReLU between.

    What else uses a value than a module is not seen, so this is for what is verified.
    """
    seen = network.record
    for name, module in network.modules.items() if seen is not None else ():
        assert seen is not None
        if not is_dense(module):
            continue
        between, following = module, seen.users.get(name, ())
        if len(following) == 1 and type(network.modules[following[0].name]) in _RELUS:
            between = network.modules[following[0].name]
            following = seen.users.get(following[0].name, ())
        names = {use.name for use in following if network.modules[use.name]._parameters}
        if len(names) != 1:
            continue
        user = names.pop()
        if is_dense(network.modules[user]) and user != name:
            yield Candidate.of(_between(network, name, user, between))


def _between(network: Network, name: str, user: str, between: nn.Module) -> Site:
    """Return the site between two dense layers."""
    made, used = network.modules[name], network.modules[user]
    weight = network.name_of(made.get_parameter("weight")) or ""
    into = network.name_of(used.get_parameter("weight")) or ""
    bias = network.name_of(made._parameters.get("bias"))
    width, linear = sizes(made)[1], between is made
    rows = Projection(name, weight, bias, features_last(made), (width,), None, 0)
    columns = Projection(user, into, None, not features_last(used), (width,), None, 0)
    return Site(
        name=f"{name} -> {user}",
        incoming=(rows.rows(sizes(made)[0]),),
        outgoing=columns.columns(sizes(used)[1]),
        between=Identity() if linear else None,
        group="GL" if linear else "positive",
        width=width,
        layers=(name, user),
        labels=() if linear else (type(between).__name__,),
        plain=linear,
        homogeneous=True,
        kind=PAIRS if linear else UNITS,
    )
