"""Attention layers read by the usual names of their parts: those of transformers, timm and others.

What the names do not tell, such as how a fused layer is split, is left to verification.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.symmetry.finders.attention import Attention
from metaopt.symmetry.finders.network import (
    Network,
    children_of,
    features_last,
    is_dense,
    of_known_library,
    sizes,
)
from metaopt.symmetry.finders.projection import Projection
from metaopt.symmetry.site import LeftOut

SEPARATE = (
    ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"),
    ("to_q", "to_k", "to_v"), ("wq", "wk", "wv"), ("q_lin", "k_lin", "v_lin"), ("Q", "K", "V"),
    ("q_linear", "k_linear", "v_linear"), ("W_q", "W_k", "W_v"), ("queries", "keys", "values"),
    ("query_proj", "key_proj", "value_proj"), ("W_Q", "W_K", "W_V"),
)  # fmt: skip
FUSED = ("qkv", "c_attn", "query_key_value", "qkv_proj", "to_qkv", "in_proj", "Wqkv", "W_pack")
OUTPUTS = (
    "o_proj", "out_proj", "proj", "c_proj", "dense", "o", "out", "to_out", "wo", "out_lin", "W_o",
    "output", "out_linear", "W_O", "proj_out",
)  # fmt: skip
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead", "nheads")
GROUPS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv", "dim_head", "head_size")
NORMS = ("q_norm", "k_norm", "query_norm", "key_norm", "q_layernorm", "k_layernorm", "norm_q",
    "norm_k", "q_ln", "k_ln", "qk_norm")  # fmt: skip
ROTARY = ("rope_parameters", "rope_theta", "rotary_dim", "rope_scaling", "rotary_pct")


def by_names(network: Network, path: str, module: nn.Module) -> Iterator[Attention | LeftOut]:
    """Read a module whose layers have usual names, such as q_proj, k_proj, v_proj and o_proj."""
    heads = _number(module, HEADS)
    output = _output(network, path, module)
    if heads is None:
        return
    common: dict[str, Any] = {
        "output": None,
        "rotated": _rotated(network, module),
        "interleaved": _interleaved(module),
        "normalised": _normalised(module),
        "known": of_known_library(module),
    }
    for names in SEPARATE:
        layers = [_child(module, name) for name in names]
        if all(is_dense(layer) for layer in layers):
            width, rest = divmod(_outputs(layers[0]), heads)
            if rest or any(_outputs(layer) % width for layer in layers[1:]):
                continue
            q, k, v = (
                _projection(network, path, name, layer, (_outputs(layer) // width, width))
                for name, layer in zip(names, layers, strict=True)
            )
            yield _grouped(path, q, k, v, _uses(network, output, v, heads), common)
            return
    yield from _fused(network, path, module, heads, output, common)


def _fused(
    network: Network, path: str, module: nn.Module, heads: int, output: str | None,
    common: dict[str, Any],
) -> Iterator[Attention | LeftOut]:  # fmt: skip
    """Read a module with one layer for queries, keys and values, or for keys and values."""
    name = next((n for n in FUSED if is_dense(_child(module, n))), None)
    if name is None:
        return
    layer = _child(module, name)
    total = _outputs(layer)
    listed = name == "c_attn" or type(module).__name__.startswith(("GPTNeoX", "Bloom"))
    common = {**common, "known": common["known"] and listed}  # of others the layout is not known
    beside = next((n for n in ("q_attn", "to_q", "q") if is_dense(_child(module, n))), None)
    if beside is not None:  # as a cross-attention of GPT-2
        width, rest = divmod(total, 2 * heads)
        if rest:
            return
        k, v = (
            _projection(network, path, name, layer, (2, heads, width), ((0, i),)) for i in (0, 1)
        )
        q = _projection(network, path, beside, _child(module, beside), (heads, width))
        yield _grouped(path, q, k, v, _uses(network, output, v, heads), common)
        return
    groups = _number(module, GROUPS) or heads
    width, rest = divmod(total, heads + 2 * groups)
    if rest:
        return
    if groups == heads:
        # Heads inside of queries, keys and values, as mostly; or the other way round, as GPT-NeoX.
        layouts = [((3, heads, width), 0), ((heads, 3, width), 1)]
        if name == "query_key_value":
            layouts.reverse()
        for shape, place in layouts[: 1 if common["known"] and network.x is None else 2]:
            q, k, v = (
                _projection(network, path, name, layer, shape, ((place, i),)) for i in range(3)
            )
            yield _grouped(path, q, k, v, _uses(network, output, v, heads), common)
        return
    starts = (0, heads * width, (heads + groups) * width)
    q, k, v = (
        _projection(network, path, name, layer, (count, width), (), (start, count * width))
        for start, count in zip(starts, (heads, groups, groups), strict=True)
    )
    yield _grouped(path, q, k, v, _uses(network, output, v, heads), common)


def _grouped(
    path: str, q: Projection, k: Projection, v: Projection, output: Projection | None,
    common: dict[str, Any],
) -> Attention:  # fmt: skip
    """Return the attention, its heads in groups that share their keys and values."""
    used = None if output is None else output.grouped(v.groups)
    return Attention(path, q.grouped(k.groups), k, v, **{**common, "output": used})


def _child(module: nn.Module, name: str) -> nn.Module | None:
    child = module._modules.get(name)
    return child if isinstance(child, nn.Module) else None


def _outputs(layer: nn.Module | None) -> int:
    assert layer is not None
    return sizes(layer)[1]


def _projection(
    network: Network, path: str, name: str, layer: nn.Module | None, shape: tuple[int, ...],
    at: tuple[tuple[int, int], ...] = (), narrow: tuple[int, int] | None = None,
) -> Projection:  # fmt: skip
    assert layer is not None
    full = f"{path}.{name}" if path else name
    bias = network.name_of(layer._parameters.get("bias"))
    fixed = {place for place, _ in at}
    heads, units = (place for place in range(len(shape)) if place not in fixed)
    weight = network.name_of(layer.get_parameter("weight")) or ""
    return Projection(full, weight, bias, features_last(layer), shape, heads, units, at, narrow)


def _output(network: Network, path: str, module: nn.Module) -> str | None:
    """Return the name of the layer that uses the heads, inside of the module or beside it."""
    inside = dict(module.named_children())
    before = f"{path}." if path else ""
    for name in OUTPUTS:
        child = inside.get(name)
        if is_dense(child):
            return before + name
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child) and is_dense(child[0]):
            return f"{before}{name}.0"
    above = path.rpartition(".")[0]
    if not path or above not in network.modules:
        return None
    for name, sibling in children_of(network, above):  # as BERT's attention.output.dense
        if name.rpartition(".")[2] == "output" and is_dense(_child(sibling, "dense")):
            return f"{name}.dense"
    return None


def _uses(network: Network, name: str | None, values: Projection, heads: int) -> Projection | None:
    """Return the layer that uses the values of all heads."""
    if name is None:
        return None
    layer = network.modules[name]
    if sizes(layer)[0] != heads * values.width:
        return None
    weight = network.name_of(layer.get_parameter("weight")) or ""
    # The features are its inputs, which a Linear layer has last and a Conv1D first.
    return Projection(name, weight, None, not features_last(layer), (heads, values.width), 0, 1)


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """Return the first attribute of these names that is a whole number, or the config's."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _normalised(module: nn.Module) -> bool:
    return any(
        isinstance(child, nn.Module) and not isinstance(child, nn.Identity)
        for child in map(module._modules.get, NORMS)
    )


def _interleaved(module: nn.Module) -> bool:
    """Return whether the rotary embedding of a module's file turns neighbours, by calling it."""
    file = sys.modules.get(type(module).__module__)
    rotate = getattr(file, "rotate_half", None) or getattr(file, "rotate_every_two", None)
    if rotate is None or not of_known_library(module):
        return False
    turned: Tensor = rotate(torch.arange(4.0).reshape(1, 1, 1, 4))
    return turned.flatten().tolist() == [-1.0, 0.0, -3.0, 2.0]


def _rotated(network: Network, module: nn.Module) -> int | None:
    """Return how many features of a head are turned by positions; None if that is not known."""
    own = _number(module, ("rotary_ndims", "rotary_dim", "rotary_emb_dim"))
    if own is not None:
        return own
    config = getattr(module, "config", None)
    named = any(
        "rotary" in type(m).__name__.lower() or "rope" in type(m).__name__.lower()
        for m in network.modules.values()
    )
    if config is not None and of_known_library(module):
        rotary = named or any(getattr(config, name, None) is not None for name in ROTARY)
        part = getattr(config, "partial_rotary_factor", None) or 1.0
        width = _number(module, WIDTHS) or 0
        return round(part * width) if rotary else 0
    return None
