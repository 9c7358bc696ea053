"""A module that is wholly a chain of Linear layers, seen as a :class:`LayerChain`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn

from metaopt.symmetry.chain import Activation, Identity, LayerChain
from metaopt.symmetry.finders.layers import obstacle
from metaopt.symmetry.finders.steps import read
from metaopt.symmetry.finders.trace import Trace, trace


@dataclass(frozen=True)
class ChainView:
    """The chain, without batch dimensions, and the names of its parameters in order.

    ``chain.output(chain.layers(view.parameters(model)), x.flatten(1).mT)`` is ``model(x).mT``.
    """

    chain: LayerChain
    names: tuple[str, ...]

    def parameters(self, model: nn.Module) -> list[Tensor]:
        """The model's own parameters, in the order of the chain."""
        return [model.get_parameter(name) for name in self.names]


def as_chain(model: nn.Module) -> ChainView | str:
    """The model as a chain, or the reason in plain words why it is none.

    A chain is Linear layers with one fixed elementwise activation or none between and behind them,
    which may flatten its input first, is the same in training and evaluation mode, and has no
    other parameters and no frozen ones.

    >>> view = as_chain(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> view.names
    ('1.weight', '1.bias', '3.weight', '3.bias')
    >>> as_chain(nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Linear(3, 2)))
    'Dropout is not part of a chain'
    """
    views = [
        traced if isinstance(traced, str) else _read(traced)
        for traced in (trace(model, training) for training in (True, False))
    ]
    for view in views:
        if isinstance(view, str):
            return view
    if views[0] != views[1]:
        return "the forward differs between training and evaluation mode"
    return views[0]


def _read(trace: Trace) -> ChainView | str:
    inputs = [n for n in trace.graph.nodes if n.op == "placeholder" and not n.args and n.users]
    if len(inputs) != 1:
        return f"the forward uses {len(inputs)} inputs"
    (value,) = inputs
    names: list[str] = []
    activations: list[Activation] = []
    biased: list[bool] = []
    while True:
        users = trace.users(value)
        if len(users) != 1 or value in trace.kept:
            return f"the output of {trace.label(value)} is used {len(users)} times"
        (node,) = users
        if node.op == "output":
            if node.args[0] is not value:
                return "the forward returns more than one tensor"
            break
        if trace.is_layer(node):
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
            f"parameters outside the chain: {', '.join(sorted(others))}" if others else "no layers"
        )
    return ChainView(LayerChain(tuple(activations), tuple(biased)), tuple(names))


def _step(trace: Trace, node: fx.Node, value: fx.Node, activations: list[Activation]) -> str | None:
    """Take the step into the last of ``activations``, or say why it is not part of a chain."""
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
