"""Sites of gated units, down(act(gate(x)) * up(x)): scales of the units of ``up``, of any sign."""

from __future__ import annotations

from collections.abc import Iterator

from metaopt.symmetry.finders.network import (
    Candidate,
    Network,
    features_last,
    is_dense,
    of_known_library,
    sizes,
)
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.finders.unit_sites import GATED
from metaopt.symmetry.site import Site

NAMES = (
    ("up_proj", "down_proj"), ("wi_1", "wo"), ("w3", "w2"), ("up", "down"),
    ("linear_v", "linear_2"), ("fc1_x", "fc2"), ("up_proj", "out_proj"),
)  # fmt: skip
"""What up and down are called where gate and up are two layers."""
GATES = ("gate_proj", "wi_0", "w1", "gate", "linear_1", "fc1_g", "gate_linear")
FUSED = (("gate_up_proj", "down_proj"), ("w12", "w3"), ("proj", "out"), ("fc1", "fc2"),
    ("wi", "wo"), ("in_proj", "out_proj"), ("proj_in", "proj_out"), ("c_fc", "c_proj"))  # fmt: skip
"""What the layer of gate and up is called where it is one, and down."""


def gated(network: Network) -> Iterator[Candidate]:
    """Propose scales of the units of gated layers, found by names.

    Those in the data flow are found with the other units (``unit_flow``).

    Args:
        network: the network.
    """
    seen: set[tuple[str, str]] = set()
    for candidate in _by_names(network):
        layers = candidate.alternatives[0].layers
        if layers not in seen:
            seen.add(layers)
            yield candidate


def _by_names(network: Network) -> Iterator[Candidate]:
    for path, module in network.modules.items():
        before = f"{path}." if path else ""
        children = {name for name, child in module.named_children() if is_dense(child)}
        if children & set(GATES):
            for up, down in NAMES:
                if {up, down} <= children:
                    sites = _sites(network, before + up, before + down)
                    if sites:
                        yield Candidate(tuple(sites), of_known_library(module))
                    break
        for up, down in FUSED:
            if {up, down} <= children:
                sites = _sites(network, before + up, before + down)
                if sites and sites[0].incoming[0].narrow:
                    known = up == "gate_up_proj" and of_known_library(module)
                    yield Candidate(tuple(sites[::-1]), known)


def _sites(network: Network, up: str, down: str) -> list[Site]:
    """Return the site between two layers; two where ``up`` is a half of its layer's outputs."""
    made, used = network.modules[up], network.modules[down]
    width, total = sizes(used)[0], sizes(made)[1]
    if total not in (width, 2 * width):
        return []
    weight = network.name_of(made.get_parameter("weight"))
    bias = network.name_of(made._parameters.get("bias"))
    into = network.name_of(used.get_parameter("weight"))
    if weight is None or into is None:
        return []
    last = features_last(made)
    outputs = Projection(down, into, None, not features_last(used), (width,), None, 0)
    parts = [None] if total == width else [(0, width), (width, width)]
    return [
        Site(
            name=f"{up} -> {down}",
            incoming=(Projection(up, weight, bias, last, (width,), None, 0, (), part).rows(
                sizes(made)[0]
            ),),
            outgoing=outputs.columns(sizes(used)[1]),
            between=None,
            group="nonzero",
            width=width,
            layers=(up, down),
            labels=("a gate",),
            homogeneous=True,
            kind=GATED,
        )
        for part in parts
    ]  # fmt: skip
