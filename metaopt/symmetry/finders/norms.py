"""Sites of normalisation layers: the gain, and the shift, into all layers that read the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from metaopt.symmetry.finders.network import (
    Candidate,
    Network,
    features_last,
    is_dense,
)
from metaopt.symmetry.finders.record import GIVEN, SUMS, Use
from metaopt.symmetry.finders.trace import Trace
from metaopt.symmetry.site import LeftOut, MatrixView, Site

GAINS = "norm gains"
_MULTIHEAD = ("query", "key", "value")


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm, and the layers that read what it gives.

    Attributes:
        name: its name.
        module: the module.
        readers: the uses of its output by modules.
        other: in words, what uses it and takes no inverse of a scale; "" if there is none.
    """

    name: str
    module: nn.Module
    readers: tuple[Use, ...]
    other: str = ""

    @property
    def width(self) -> int | None:
        """The number of features; None if the norm has no gain to tell."""
        gain = self.module._parameters.get("weight")
        return None if gain is None else gain.numel()


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a LayerNorm or an RMSNorm over the last dimension.

    Args:
        module: any module.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) == 1
    name = type(module).__name__
    gain = module._parameters.get("weight")
    named = name.endswith(("RMSNorm", "LayerNorm")) or name in ("RMSNorm", "LayerNorm")
    return named and gain is not None and gain.dim() == 1


def centres(module: nn.Module) -> bool:
    """Return whether a norm subtracts the mean, as a LayerNorm does and an RMSNorm does not."""
    name = type(module).__name__  # T5 calls its RMSNorm a LayerNorm
    return "RMS" not in name and not name.startswith(("T5", "MT5", "UMT5"))


def norms(network: Network) -> Iterator[Norm]:
    """Yield the norms of a network with their readers, from a run or else from a trace.

    Args:
        network: the network.
    """
    seen = network.record
    for name, module in network.modules.items():
        if not is_norm(module):
            continue
        if seen is not None:
            uses = tuple(use for use in seen.users.get(name, ()) if not _passes(network, use))
            others = [*seen.others.get(name, ())]
            ran = name in seen.called
        else:
            found = [_traced(network, trace, name) for trace in network.traces]
            uses = tuple(dict.fromkeys(use for part, _ in found for use in part))
            others = [other for _, part in found for other in part]
            ran = bool(found)
        if ran:
            others += [use.name for use in uses if not _reads(network, use)]
            yield Norm(name, module, uses, _in_words(others))


def _in_words(others: Sequence[str]) -> str:
    """Return what is most telling of what uses a value, other than layers."""
    if any(name in SUMS for name in others):
        return "a sum, as a residual connection after the norm is"
    return others[0] if others else ""


def _traced(network: Network, trace: Trace, name: str) -> tuple[list[Use], list[str]]:
    """Return the modules that use what a norm gives in a trace, and names of what else does."""
    uses: list[Use] = []
    others: list[str] = []
    waiting = [n for n in trace.graph.nodes if n.op == "call_module" and n.target == name]
    while waiting:
        node = waiting.pop(0)
        for user in trace.users(node):
            if _keeps_features(trace, user):
                waiting.append(user)
            elif user.op == "call_module":
                named = str(user.target)
                uses += [Use(named, i) for i, value in enumerate(user.args) if value is node]
                uses += [Use(named, k) for k, v in user.kwargs.items() if _is(v, node)]
            else:
                others.append(GIVEN if user.op == "output" else trace.label(user))
    uses = [use for use in uses if not _passes(network, use)]
    return uses, others


def _is(value: object, node: fx.Node) -> bool:
    return value is node


def _keeps_features(trace: Trace, node: fx.Node) -> bool:
    """Return whether a node is a dropout or the like, or an average over positions."""
    if isinstance(trace.module(node), nn.Dropout | nn.Identity) or node.target is F.dropout:
        return True
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = (dims,) if isinstance(dims, int) else dims
    # Of the dimension 2 it is not known whether it is the last one.
    if node.target not in ("mean", torch.mean) or not isinstance(dims, tuple | list):
        return False
    return set(dims) == {1, 2} or set(dims) <= {1, -2, -3}


def _passes(network: Network, use: Use) -> bool:
    """Return whether a use is by a module that holds the users, or that has no weights."""
    module = network.modules[use.name]
    holds = next(module.children(), None) is not None
    return not isinstance(module, nn.MultiheadAttention) and (holds or not module._parameters)


def _reads(network: Network, use: Use) -> bool:
    """Return whether a use is by a layer whose weights are known."""
    module = network.modules.get(use.name)
    return is_dense(module) or type(module) is nn.MultiheadAttention


def reading_views(network: Network, uses: tuple[Use, ...]) -> tuple[MatrixView, ...]:
    """Return the views of the weights that read a value, its features as columns.

    Args:
        network: the network.
        uses: the uses of the value.
    """
    views: dict[MatrixView, None] = {}
    for use in uses:
        module = network.modules[use.name]
        if isinstance(module, nn.MultiheadAttention):
            views |= dict.fromkeys(_of_multihead(network, module, use))
            continue
        weight = network.name_of(module.get_parameter("weight"))
        if weight is not None:
            views[columns_of(module, weight)] = None
    return tuple(views)


def columns_of(module: nn.Module, weight: str) -> MatrixView:
    """Return the view of a dense layer's weight whose columns are its inputs.

    Args:
        module: the layer.
        weight: the name of its weight.
    """
    if not features_last(module):
        return MatrixView(weight)
    return MatrixView(weight, (1,), (0,), tuple(module.get_parameter("weight").shape))


def _of_multihead(
    network: Network, module: nn.MultiheadAttention, use: Use
) -> Iterator[MatrixView]:
    place = _MULTIHEAD.index(str(use.position)) if isinstance(use.position, str) else use.position
    if not module._qkv_same_embed_dim:
        own = ("q_proj_weight", "k_proj_weight", "v_proj_weight")[int(place)]
        weight = network.name_of(getattr(module, own))
        if weight is not None:
            yield MatrixView(weight)
        return
    weight = network.name_of(module.in_proj_weight)
    if weight is not None:
        width = module.embed_dim
        yield MatrixView(
            weight, rows=(1,), columns=(2,), shape=(3, width, width), at=((0, int(place)),)
        )


def norm_gains(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose scales of the gain and shift of a norm, whose inverse all its readers take.

    Args:
        network: the network.
    """
    for norm in norms(network):
        gain = network.name_of(norm.module._parameters.get("weight"))
        shift = network.name_of(norm.module._parameters.get("bias"))
        if gain is None:
            continue
        layers = (norm.name, *(use.name for use in norm.readers[:1]))
        if norm.other or not norm.readers:
            what = norm.other or "no layer that is seen"
            yield LeftOut(
                layers,
                f"what {norm.name} gives is used by {what}, which takes no inverse of a gain",
            )
            continue
        bias = None if shift is None else MatrixView(shift, columns=())
        site = Site(
            name=f"{norm.name} -> {', '.join(dict.fromkeys(u.name for u in norm.readers))}",
            incoming=(MatrixView(gain, columns=(), bias=bias),),
            outgoing=reading_views(network, norm.readers),
            between=None,
            group="nonzero",
            width=norm.width or 0,
            layers=(norm.name, norm.readers[0].name),
            labels=("a norm",),
            homogeneous=True,
            kind=GAINS,
        )
        yield Candidate.of(site)
