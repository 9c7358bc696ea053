"""Folding: the gains and shifts of norms go into the layers that read them, and stay there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.symmetry.finders.network import Network
from metaopt.symmetry.finders.norms import norms, reading_views
from metaopt.symmetry.finders.record import Use
from metaopt.symmetry.nested import as_inputs
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.site import LeftOut, MatrixView
from metaopt.wrappers import unwrapped

TOLERANCE = 1e-9
"""The largest relative change of the output, in float64, that folding a norm may make."""


@torch.no_grad()
def fold_norms(model: nn.Module, *inputs: Any) -> tuple[LeftOut, ...]:
    """Fold the gains and shifts of a network's norms into the layers that read them, in place.

    Afterwards each folded norm has a gain of ones and a shift of zeros, which are frozen
    (``requires_grad`` is False). Then rotations of the residual stream keep the network, and
    :func:`metaopt.symmetries` finds them. A norm stays as it is if something else uses what it
    gives too, or a layer has no bias to take its shift.

    Args:
        model: the module.
        *inputs: what it is called with; a run on them tells who reads what.

    Returns:
        The norms that stay, with the reasons.

    Raises:
        UserError: without inputs.
    """
    model = unwrapped(model)
    x = as_inputs(inputs)
    if x is None:
        raise UserError("expected inputs, which tell who reads a norm, got none: give a batch")
    network = Network(model, x)
    stays: list[LeftOut] = []
    outputs = NetworkOutputs(model, x)
    for norm in norms(network):
        folded = _folded(network, norm.name, norm.module, norm.readers, norm.other)
        if isinstance(folded, str):
            stays.append(LeftOut((norm.name,), folded))
            continue
        before, after = outputs({}), outputs(folded)
        change = float((after - before).norm() / before.norm())
        if not change <= (TOLERANCE if outputs.precise else 1e-4):
            why = f"folding it changes what the model gives by {change:.0e}"
            stays.append(LeftOut((norm.name,), why))
            continue
        for name, value in folded.items():
            model.get_parameter(name).copy_(value)
        for parameter in norm.module.parameters():
            parameter.requires_grad_(False)
    return tuple(stays)


def _folded(
    network: Network, norm: str, module: nn.Module, readers: tuple[Use, ...], other: str
) -> dict[str, Tensor] | str:
    """Return the new values of the parameters, or why the norm stays."""
    gain, shift = (module._parameters.get(name) for name in ("weight", "bias"))
    name = network.name_of(gain)
    if gain is None or name is None:
        return f"{norm} has no gain"
    if not readers or other:
        return f"what {norm} gives is used by {other or 'no layer that is seen'}"
    taking = {}
    for use in dict.fromkeys(use.name for use in readers):
        reader = network.modules[use]
        weight, bias = _weight_and_bias(reader)
        if isinstance(reader, nn.MultiheadAttention) and not reader._qkv_same_embed_dim:
            return f"{use} has weights of three sizes, not handled"
        owned = network.name_of(weight)
        if owned is None or id(weight) in network.shared:
            return f"{use} shares its weights"
        taking[owned] = (weight, bias)
    new: dict[str, Tensor] = {name: torch.ones_like(gain)}
    if shift is not None:
        new[network.name_of(shift) or ""] = torch.zeros_like(shift)
    moved = bool(shift is not None and shift.any())
    for view in reading_views(network, readers):
        weight, bias = taking[view.parameter]
        values = {view.parameter: new.get(view.parameter, weight.detach()).double()}
        old = view.read(values)
        if moved and shift is not None:
            held = network.name_of(bias)
            if bias is None or held is None:
                return f"{view.parameter} has no bias to take the shift of {norm}"
            into = MatrixView(held, rows=(1,), columns=(), shape=(3, len(bias) // 3), dims=1,
                at=view.at) if view.at else MatrixView(held, columns=())  # fmt: skip
            biases = {held: new.get(held, bias.detach()).double()}
            into.write(biases, into.read(biases) + (old @ shift.double()).unsqueeze(-1))
            new[held] = biases[held]
        view.write(values, old * gain.double())
        new[view.parameter] = values[view.parameter]
    return new


def _weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight, module.in_proj_bias
    return module.get_parameter("weight"), module._parameters.get("bias")
