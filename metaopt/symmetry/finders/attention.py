"""Attention layers as queries, keys, values and outputs, whatever their module calls them.

A reader of :data:`ATTENTIONS` says what an attention layer consists of. The sites follow from that
(:mod:`metaopt.symmetry.finders.heads`). So an attention that nobody listed is one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from metaopt.registry import Registry
from metaopt.symmetry.finders.network import Network
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.site import LeftOut


@dataclass(frozen=True)
class Attention:
    """What an attention layer consists of.

    Attributes:
        name: the name of its module.
        queries, keys, values: what makes them, split into heads; None if that is not known.
        output: what uses the heads; None if that is not known.
        rotated: how many of the features of a head a rotary embedding turns; None if it is not
            known whether there is one.
        interleaved: whether that turns neighbours, and not a feature of the first half with one of
            the second half.
        normalised: whether queries or keys are normalised, so that no group acts on them.
        known: whether the module is of a library that is known.
    """

    name: str
    queries: Projection | None
    keys: Projection | None
    values: Projection | None
    output: Projection | None
    rotated: int | None = None
    interleaved: bool = False
    normalised: bool = False
    known: bool = False


Reader = Callable[[Network, str, nn.Module], Iterator["Attention | LeftOut"]]
"""A function from a network, and a module with its name, to the attention that the module is.

It yields nothing for a module that is none, and more than one where several readings may be right.
"""

ATTENTIONS: Registry[Reader] = Registry("attention")
"""The readers of attention layers by name; the first that knows a module reads it."""


def attentions(network: Network) -> Iterator[Attention | LeftOut]:
    """Yield what the attention layers of a network consist of.

    Args:
        network: the network.
    """
    for path, module in network.modules.items():
        for read in ATTENTIONS.values():
            readings = list(read(network, path, module))
            if readings:
                yield from readings
                break


def of_torch(network: Network, path: str, module: nn.Module) -> Iterator[Attention | LeftOut]:
    """Read ``nn.MultiheadAttention``, whose weights of three layers may be one parameter."""
    if type(module) is not nn.MultiheadAttention:
        return
    before = f"{path}." if path else ""
    if module.bias_k is not None:
        yield LeftOut((path,), f"{path} adds a key and a value of its own (add_bias_kv)")
        return
    heads, width = module.num_heads, module.head_dim
    bias = None if module.in_proj_bias is None else f"{before}in_proj_bias"
    parts = []
    for place, own in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        weight = f"{before}in_proj_weight" if module._qkv_same_embed_dim else before + own
        fused = (3, heads, width), ((0, place),)
        shape, at = fused if module._qkv_same_embed_dim else ((heads, width), ())
        if module._qkv_same_embed_dim or bias is None:
            part = Projection(path, weight, bias, False, shape, len(shape) - 2, len(shape) - 1, at)
        else:  # the biases alone are one parameter
            part = Projection(path, weight, None, False, shape, 0, 1)
        parts.append(part)
    out = f"{before}out_proj"
    if not module._qkv_same_embed_dim and bias is not None:
        yield LeftOut((path,), f"{path} has weights of three sizes with one bias, not handled")
        return
    output = Projection(out, f"{out}.weight", None, True, (heads, width), 0, 1)
    q, k, v = parts
    yield Attention(path, q, k, v, output, rotated=0, known=True)
