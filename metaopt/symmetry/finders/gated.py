"""Sites of gated units, down(act(gate(x)) * up(x)): scales of the units of ``up``, of any sign."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from metaopt.symmetry.finders.network import (
    Candidate,
    Network,
    features_last,
    is_dense,
    of_known_library,
    sizes,
)
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.finders.trace import Trace, first_input
from metaopt.symmetry.site import Site

GATED = "gated units"
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
    """Propose scales of the units of gated layers, found by names and in the data flow.

    Args:
        network: the network.
    """
    seen: set[tuple[str, str]] = set()
    for candidate in (*_by_names(network), *_by_flow(network)):
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


def _by_flow(network: Network) -> Iterator[Candidate]:
    """Yield the layers whose output is multiplied with a value that another layer uses alone."""
    for trace in network.traces:
        for node in trace.layers():
            down = str(node.target)
            product = first_input(node)
            while product is not None and _keeps(trace, product):
                product = first_input(product)
            if product is None or not is_dense(network.modules.get(down)):
                continue
            for value in product.args if _is_product(product) else ():
                found = _made_by(trace, value) if isinstance(value, fx.Node) else None
                if found is not None and is_dense(network.modules.get(found[0])):
                    sites = _sites(network, found[0], down)
                    if len(sites) == (1 if found[1] is None else 2):
                        yield Candidate.of(sites[found[1] or 0])


def _keeps(trace: Trace, node: fx.Node) -> bool:
    """Return whether a node is a dropout, which comes between the product and its user."""
    return isinstance(trace.module(node), nn.Dropout | nn.Identity) or node.target is F.dropout


def _is_product(node: fx.Node) -> bool:
    return node.target in (operator.mul, torch.mul, "mul", operator.imul)


def _made_by(trace: Trace, value: fx.Node) -> tuple[str, int | None] | None:
    """Return the layer that gives a value, if it is used once, and which half of it the value is.

    None in place of the half stands for all of it.
    """
    if len(trace.users(value)) != 1:
        return None
    half = None
    if value.target is operator.getitem and isinstance(value.args[0], fx.Node):
        half = value.args[1]
        value = value.args[0]
        if value.target not in (torch.chunk, "chunk", torch.split, "split"):
            return None
        before = first_input(value)
        value = value if before is None else before
    if not trace.is_layer(value) or not (half is None or half in (0, 1)):
        return None
    return str(value.target), half if isinstance(half, int) else None


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
