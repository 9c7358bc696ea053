"""Whether the parameters of a layer, or of a batch norm, may be moved."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from metaopt.symmetry.finders.steps import altered
from metaopt.symmetry.finders.trace import Trace

_KNOWN = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def obstacle(trace: Trace, name: str) -> str | None:
    """Return in plain words why the parameters of a module must stay; None if they may move.

    Args:
        trace: the data flow of the model.
        name: the name of the module.
    """
    module = trace.model.get_submodule(name)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return f"{name} is a transposed convolution, which is not handled"
    if parametrize.is_parametrized(module) or not {"weight", "bias"} <= module._parameters.keys():
        return f"the weight of {name} is computed from other tensors, not a parameter of its own"
    if type(module) not in _KNOWN:
        return f"{name} is a {type(module).__name__}, not exactly a Linear or Conv2d"
    if reason := altered(module):
        return f"{name} {reason}"
    parameters = list(module.parameters(recurse=False))
    if not all(p.requires_grad for p in parameters):
        return f"{name} is frozen (requires_grad is False)"
    if not all(p.is_floating_point() for p in parameters):
        return f"{name} has weights that are not real numbers"
    if trace.calls[id(module)] > 1:
        return f"{name} is called {trace.calls[id(module)]} times"
    for parameter in parameters:
        if id(parameter) in trace.shared:
            held = [n for n in trace.shared[id(parameter)] if n.rpartition(".")[0] != name]
            return f"{name} shares its weights with {' and '.join(held) or 'itself'}"
        if id(parameter) in trace.direct:
            return f"the forward reads the weights of {name} outside of {name} too"
    return None
