"""A module that is wholly a chain of Linear layers, as a :class:`LayerChain`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from metaopt.symmetry.activations import Activation, Identity
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.finders.layers import obstacle
from metaopt.symmetry.finders.sites import first_few
from metaopt.symmetry.finders.steps import read
from metaopt.symmetry.finders.trace import Trace, trace
from metaopt.wrappers import unwrapped

_RESHAPES = {
    "flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze",
    torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze,
}  # fmt: skip


def as_chain(model: nn.Module) -> LayerChain | str:
    """Return a model as a chain of layers, or in plain words why it is none.

    A chain consists of Linear layers, with one fixed elementwise activation, or none, after each.
    It may flatten its input first, and give its output in another shape, as a language model does
    that lays all positions out as rows. Its forward pass is the same in training and in evaluation
    mode. It has no other parameters and no frozen ones. The output of the chain on
    ``x.flatten(1).mT`` is ``model(x).mT``, up to its shape.

    Args:
        model: any module.

    Example:
        >>> layers = nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
        >>> as_chain(nn.Sequential(*layers)).names
        ('1.weight', '1.bias', '3.weight', '3.bias')
        >>> as_chain(nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)))
        'Dropout is not part of a chain'
    """
    inner = unwrapped(model)
    return chain_of([trace(inner, training) for training in (True, False)])


def chain_of(traces: Sequence[Trace | str]) -> LayerChain | str:
    """Return the chain that a model is in each of its traces, or why it is none.

    Args:
        traces: the traces in training and in evaluation mode; a string says why there is none.
    """
    chains = [traced if isinstance(traced, str) else _read(traced) for traced in traces]
    for chain in chains:
        if isinstance(chain, str):
            return chain
    if chains[0] != chains[1]:
        return "the forward differs between training and evaluation mode"
    return chains[0]


def _read(trace: Trace) -> LayerChain | str:
    inputs = [n for n in trace.graph.nodes if n.op == "placeholder" and not n.args and n.users]
    if len(inputs) != 1:
        return f"the forward uses {len(inputs)} inputs"
    (value,) = inputs
    names: list[str] = []
    activations: list[Activation] = []
    biased: list[bool] = []
    reshaped = ""
    while True:
        users = trace.users(value)
        if len(users) != 1 or value in trace.kept:
            return f"the output of {trace.label(value)} is used {len(users)} times"
        (node,) = users
        if node.op == "output":
            if node.args[0] is not value:
                return "the forward returns more than one tensor"
            break
        if names and _reshapes(trace, node):
            reshaped = trace.label(node)
        elif reshaped:
            return f"{reshaped} between layers is not part of a chain"
        elif trace.is_layer(node):
            name = str(node.target)
            module = trace.model.get_submodule(name)
            if reason := obstacle(trace, name):
                return reason
            if not isinstance(module, nn.Linear):
                return f"{name} is a {type(module).__name__}, not a Linear"
            names += [f"{name}.{own}" for own, _ in module.named_parameters()]
            biased.append(module.bias is not None)
            activations.append(Identity())
        elif reason := _step(trace, node, value, activations):
            return reason
        value = node
    others = {name for name, _ in trace.model.named_parameters()} - set(names)
    if others or not names:
        return (
            f"parameters outside the chain: {first_few(sorted(others))}" if others else "no layers"
        )
    return LayerChain(tuple(activations), tuple(biased), names=tuple(names))


def _reshapes(trace: Trace, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(trace.module(node), nn.Flatten | nn.Unflatten)
    return node.target in _RESHAPES


def _step(trace: Trace, node: fx.Node, value: fx.Node, activations: list[Activation]) -> str | None:
    """Add a step to the last of ``activations``, or return why it is not part of a chain."""
    step = read(trace, node, value)
    if isinstance(step, str):
        return step
    allowed = step.kind == "same"
    if not activations:
        allowed = allowed or step.kind in ("flatten", "rows")
    elif step.activation is not None and activations[-1] == Identity():
        activations[-1] = step.activation
        allowed = True
    return None if allowed else f"{step.label} is not part of a chain"
