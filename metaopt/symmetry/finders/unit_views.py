"""The matrices by which layers make units and use them, of Linear layers and all convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from metaopt.symmetry.site import MatrixView

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def made_by(module: nn.Module, name: str) -> tuple[int, MatrixView] | None:
    """Return the number of units that a layer makes, and the view whose rows they are.

    Args:
        module: the layer.
        name: its name.
    """
    weight, dims = module.get_parameter("weight"), module.get_parameter("weight").dim()
    bias = None if module.bias is None else MatrixView(f"{name}.bias", columns=())
    if isinstance(module, TRANSPOSED):  # (inputs, outputs of a group, ...)
        groups = module.groups
        shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
        rest = (1, *range(3, len(shape)))
        view = MatrixView(f"{name}.weight", (0, 2), rest, shape, dims, bias=bias)
        return module.out_channels, view
    if dims == 2:
        return weight.shape[0], MatrixView(f"{name}.weight", bias=bias)
    rest = tuple(range(1, dims))
    return weight.shape[0], MatrixView(
        f"{name}.weight", (0,), rest, tuple(weight.shape), dims, bias=bias
    )


def used_by(
    module: nn.Module, name: str, widths: Sequence[int], layout: str
) -> list[MatrixView] | str:
    """Return views of a layer's weight whose columns are units, or why there are none.

    Args:
        module: the layer.
        name: its name.
        widths: the numbers of units that are concatenated to its input, one if nothing is.
        layout: of the units; see ``Value``.
    """
    weight, total = module.get_parameter("weight"), sum(widths)
    shape, dims = tuple(weight.shape), weight.dim()
    starts = [sum(widths[:place]) for place in range(len(widths))]
    if isinstance(module, nn.Linear):
        block, rest = divmod(module.in_features, total)
        if rest or layout == "channels" or (block > 1 and layout != "blocks"):
            return f"{name} has {module.in_features} inputs, which are not those of {total} units"
        if block == 1 and len(widths) == 1:
            return [MatrixView(f"{name}.weight")]
        return [
            MatrixView(
                f"{name}.weight", (0, 2), (1,), (shape[0], width, block),
                narrow=_part(1, start * block, width * block, shape),
            )
            for start, width in zip(starts, widths, strict=True)
        ]  # fmt: skip
    if layout != "channels" or module.in_channels != total:
        return f"{name} does not take the units as its channels"
    groups = int(module.groups)  # type: ignore[arg-type]
    views = []
    for start, width in zip(starts, widths, strict=True):
        if isinstance(module, TRANSPOSED):
            part = _part(0, start, width, shape)
            own = (width, *shape[1:])
            view = MatrixView(f"{name}.weight", tuple(range(1, dims)), (0,), own, dims, narrow=part)
        else:
            each, rows = total // groups, shape[0] // groups
            if start % each or width % each:
                if groups > 1:
                    return f"{name} mixes in its groups units of several layers"
                part, own = _part(1, start, width, shape), (1, rows, width, *shape[2:])
            else:
                part = _part(0, start // each * rows, width // each * rows, shape)
                own = (width // each, rows, *shape[1:])
            across = (1, *range(3, len(own)))
            view = MatrixView(f"{name}.weight", across, (0, 2), own, dims, narrow=part)
        views.append(view)
    return views


def _part(
    dimension: int, start: int, length: int, shape: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """Return a part of a parameter, as ``MatrixView`` has it; None for all of it."""
    return None if length == shape[dimension] else (dimension, start, length)
