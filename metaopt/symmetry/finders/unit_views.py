"""The matrices by which layers make units and use them, of Linear layers and all convolutions."""

from __future__ import annotations

from torch import nn

from metaopt.symmetry.site import MatrixView

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def made_by(module: nn.Module, name: str) -> tuple[int, MatrixView] | None:
    """Return the number of units that a layer makes, and the view whose rows they are."""
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


def used_by(module: nn.Module, name: str, width: int, layout: str) -> MatrixView | str:
    """Return the view of a layer's weight whose columns are the units, or why there is none."""
    weight, dims = module.get_parameter("weight"), module.get_parameter("weight").dim()
    if isinstance(module, nn.Linear):
        block, rest = divmod(module.in_features, width)
        if rest or layout == "channels" or (block > 1 and layout != "blocks"):
            return f"{name} has {module.in_features} inputs, which are not those of {width} units"
        if block == 1:
            return MatrixView(f"{name}.weight")
        return MatrixView(f"{name}.weight", (0, 2), (1,), (weight.shape[0], width, block))
    if layout != "channels" or module.in_channels != width:
        return f"{name} does not take the units as its channels"
    groups = int(module.groups)  # type: ignore[arg-type]
    if isinstance(module, TRANSPOSED):
        rows = tuple(range(1, dims))
        return MatrixView(f"{name}.weight", rows, (0,), tuple(weight.shape), dims)
    shape = (groups, weight.shape[0] // groups, *weight.shape[1:])
    across = (1, *range(3, len(shape)))
    return MatrixView(f"{name}.weight", across, (0, 2), shape, dims)
