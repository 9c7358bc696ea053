"""Follow the data flow from a layer to the layer that alone uses its output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn

from metaopt.symmetry.actions import exact_on_batch
from metaopt.symmetry.activations import Identity
from metaopt.symmetry.finders.layers import obstacle
from metaopt.symmetry.finders.steps import Step, read
from metaopt.symmetry.finders.trace import Trace, first_input
from metaopt.symmetry.site import ALWAYS, LeftOut, MatrixView, Site, matrix_view


@dataclass(frozen=True)
class _Path:
    """What was passed since the incoming layer, and how the units are laid out by now."""

    width: int
    layout: Literal["image", "flat", "rows"]  # channels of an image, blocks of a row, last dim
    steps: tuple[Step, ...] = ()
    norm: Step | None = None  # the last batch norm
    flat_norm: bool = False  # it stands behind a flatten
    commutes: bool = True  # with a scale of the units at the last batch norm, or at the layer

    def then(self, step: Step) -> _Path | str:
        """Return the path with one more step, or why it ends here."""
        path = replace(self, steps=(*self.steps, step), commutes=self.commutes and step.homogeneous)
        if step.needs_image and self.layout != "image":
            return (
                f"{step.label} lies between, where there is no image whose channels are the units"
            )
        if step.kind == "pool to rows":
            return replace(path, layout="rows")
        if step.kind == "flatten":
            return replace(path, layout="flat" if self.layout == "image" else self.layout)
        if step.kind == "rows" and (self.layout != "rows" or step.width != self.width):
            return f"{step.label} does not surely lay each sample out as one row: use flatten(1)"
        if step.kind == "norm":
            flat = self.layout == "flat"
            if not flat and step.width != self.width:
                return (
                    f"{step.label} lies between over {step.width} features, not {self.width} units"
                )
            return replace(path, norm=step, flat_norm=flat, commutes=True)
        return path

    def why_not(self) -> str:
        """Return what does not commute with a scale, and why no other action fits either."""
        worst = next(step for step in reversed(self.steps) if not step.homogeneous)
        return (
            f"{worst.label} is not positively homogeneous, so no group is exact for all data, ReLU "
            f"has one"
        )


def walk(trace: Trace, start: fx.Node) -> Site | LeftOut | None:
    """Return the site behind a layer, or why there is none; None if no layer follows.

    Args:
        trace: the data flow of the model.
        start: the call of the layer.
    """
    incoming = str(start.target)
    following = _following(trace, start)
    if not following:
        return None
    names = tuple(dict.fromkeys((incoming, *following)))
    if reason := obstacle(trace, incoming):
        return LeftOut(names, reason)
    module = trace.model.get_submodule(incoming)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    path: _Path | str = _Path(
        module.weight.shape[0], "rows" if isinstance(module, nn.Linear) else "image"
    )
    value = start
    while not isinstance(path, str):
        users = trace.users(value)
        if value in trace.kept:
            return LeftOut(names, f"the model keeps the output of {trace.label(value)}")
        if len(users) > 1:
            by = " and ".join(trace.label(user) for user in users)
            return LeftOut(
                names, f"the output of {trace.label(value)} is used {len(users)} times, by {by}"
            )
        (node,) = users
        if trace.is_layer(node):
            end = _close(trace, incoming, path, node, value)
            return LeftOut(names, end) if isinstance(end, str) else end
        step = read(trace, node, value)
        path, value = step if isinstance(step, str) else path.then(step), node
    return LeftOut(names, path)


def _following(trace: Trace, start: fx.Node) -> list[str]:
    """Return the names of the next layers in the data flow, on all ways."""
    found: list[str] = []
    seen: set[fx.Node] = set()
    waiting = trace.users(start)
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if trace.is_layer(node):
            found.append(str(node.target))
        else:
            waiting.extend(trace.users(node))
    return found


def _close(trace: Trace, incoming: str, path: _Path, node: fx.Node, value: fx.Node) -> Site | str:
    """Return the site between ``incoming`` and the layer that ``node`` calls, or why it is none."""
    outgoing = str(node.target)
    if first_input(node) is not value:
        return f"{outgoing} does not take it as its input"
    moved = [outgoing] if path.norm is None else [path.norm.name, outgoing]
    if reasons := [reason for name in moved if (reason := obstacle(trace, name))]:
        return reasons[0]
    first, last = (trace.model.get_submodule(name) for name in (incoming, outgoing))
    assert isinstance(first, nn.Linear | nn.Conv2d)
    assert isinstance(last, nn.Linear | nn.Conv2d)
    linear = isinstance(last, nn.Linear)
    if linear == (path.layout == "image"):
        what = "the last dimension of an image" if linear else "rows"
        return f"{outgoing} acts on {what}, where the units of {incoming} are not its inputs"
    inputs = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    block, rest = divmod(inputs, path.width)
    if rest or (block > 1 and path.layout != "flat"):
        return f"{outgoing} has {inputs} inputs, which are not those of {path.width} units"
    if path.norm and path.flat_norm and path.norm.width != inputs:
        return f"{path.norm.name} has {path.norm.width} features, {outgoing} {inputs} inputs"
    activations = [step for step in path.steps if step.kind == "activation"]
    activation = Identity() if not activations else activations[0].activation
    if len(activations) > 1:
        activation = None
    plain = (
        isinstance(first, nn.Linear)
        and linear
        and activation is not None
        and all(step.kind in ("activation", "same") for step in path.steps)
    )
    if not path.commutes and not plain:
        return path.why_not()
    scaled = path.norm.name if path.norm else None
    linear_pair = plain and activation == Identity()
    if scaled is None:
        made = _makes(trace, incoming)
    else:
        made = _gains(scaled, path.width, block if path.flat_norm else 1)
    site = Site(
        name=f"{incoming} -> {outgoing}",
        incoming=(made,),
        outgoing=(_uses(trace, outgoing, path.width, block),),
        between=activation,
        group="positive" if path.commutes and not linear_pair else "GL",
        width=path.width,
        exact=ALWAYS,
        layers=(incoming, outgoing),
        labels=tuple(step.label for step in path.steps if step.kind != "same"),
        fan_in=first.weight[0].numel(),
        plain=plain,
        homogeneous=path.commutes,
        scaled=scaled,
        block=block,
    )
    return site if path.commutes else replace(site, exact=exact_on_batch(site))


def _makes(trace: Trace, name: str) -> MatrixView:
    """Return the view of the matrix that makes a layer's units, a unit a row."""
    module = trace.model.get_submodule(name)
    weight = module.get_parameter("weight")
    bias = None if module.bias is None else f"{name}.bias"
    if weight.dim() == 2:
        return matrix_view(f"{name}.weight", bias)
    return MatrixView(
        f"{name}.weight",
        columns=tuple(range(1, weight.dim())),
        shape=tuple(weight.shape),
        dims=weight.dim(),
        bias=None if bias is None else MatrixView(bias, columns=()),
    )


def _gains(name: str, width: int, block: int) -> MatrixView:
    """Return the view of a batch norm's weights and biases: a row for each unit.

    A row holds the block of features that belongs to the unit.
    """
    weight, bias = f"{name}.weight", f"{name}.bias"
    if block == 1:
        return MatrixView(weight, columns=(), bias=MatrixView(bias, columns=()))
    shape = (width, block)
    return MatrixView(weight, shape=shape, dims=1, bias=MatrixView(bias, shape=shape, dims=1))


def _uses(trace: Trace, name: str, width: int, block: int) -> MatrixView:
    """Return the view of the matrix by which a layer uses ``width`` units, a unit a column."""
    module = trace.model.get_submodule(name)
    weight = module.get_parameter("weight")
    bias = None if module.bias is None else MatrixView(f"{name}.bias", columns=())
    if isinstance(module, nn.Conv2d):
        groups = module.groups
        shape = (groups, weight.shape[0] // groups, width // groups, *weight.shape[2:])
        return MatrixView(f"{name}.weight", rows=(1, 3, 4), columns=(0, 2), shape=shape, dims=4)
    if block == 1:
        return MatrixView(f"{name}.weight", bias=bias)
    return MatrixView(
        f"{name}.weight", rows=(0, 2), columns=(1,), shape=(weight.shape[0], width, block)
    )
