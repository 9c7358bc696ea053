"""Which layers may be scaled, and what a scale of units passes through."""

from __future__ import annotations

from torch import nn

from metaopt.symmetry.finders.steps import Step, altered
from metaopt.symmetry.finders.trace import Trace
from metaopt.symmetry.finders.unit_values import Value
from metaopt.symmetry.finders.unit_views import CONVS, TRANSPOSED

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
POOLS = (nn.MaxPool1d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool3d, nn.Upsample)  # fmt: skip


def obstacle(trace: Trace, module: nn.Module, name: str) -> str:
    """Return why the weights of a layer must stay; "" if they may move.

    Args:
        trace: the data flow.
        module: the layer, or the batch norm.
        name: its name.
    """
    if not {"weight", "bias"} <= module._parameters.keys() or "parametrizations" in dict(
        module.named_children()
    ):
        return f"the weight of {name} is computed from other tensors"
    if type(module) not in (nn.Linear, *CONVS, *TRANSPOSED, *NORMS):
        return f"{name} is a {type(module).__name__}, which is not known"
    if reason := altered(module):
        return f"{name} {reason}"
    if trace.calls[id(module)] > 1:
        return f"{name} is called {trace.calls[id(module)]} times"
    if any(id(p) in trace.direct for p in module.parameters()):
        return f"the forward reads the weights of {name} outside of {name} too"
    return ""


def layout_after(step: Step, value: Value) -> str | None:
    """Return how the units are laid out after a step; None where their scale does not pass.

    Args:
        step: the step.
        value: what it is made on.
    """
    if not step.homogeneous or step.kind in ("norm", "rows"):
        return None
    if step.needs_image and value.layout != "channels":
        return None
    if step.kind == "pool to rows":
        return "last"
    if step.kind == "flatten":
        return {"channels": "blocks", "blocks": "blocks"}.get(value.layout)
    return value.layout
