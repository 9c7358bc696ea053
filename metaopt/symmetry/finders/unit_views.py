"""The matrices by which layers make units and use them, of Linear layers and all convolutions."""

from __future__ import annotations

from torch import nn

from metaopt.symmetry.site import MatrixView

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def outputs_of(module: nn.Module) -> int:
    """Return how many units a layer makes.

    Args:
        module: a Linear layer or a convolution.
    """
    outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return int(outputs)  # type: ignore[arg-type]


def group_of(module: nn.Module, made: bool = False) -> int:
    """Return how many units lie in one group of a layer's weight; 1 where groups do not matter.

    Args:
        module: the layer.
        made: whether it makes the units; else it uses them.
    """
    groups = 1 if isinstance(module, nn.Linear) else int(module.groups)  # type: ignore[arg-type]
    if groups == 1 or made != isinstance(module, TRANSPOSED):
        return 1
    total = module.out_channels if made else module.in_channels
    return int(total) // groups  # type: ignore[arg-type]


def made_by(module: nn.Module, name: str, start: int, width: int, step: int) -> MatrixView | str:
    """Return the view of a layer's weight whose rows are units, or why there is none.

    Args:
        module: the layer.
        name: its name.
        start: the first of the units among the layer's outputs.
        width: the number of units.
        step: between their places, 1.
    """
    weight = module.get_parameter("weight")
    shape, dims, total = tuple(weight.shape), weight.dim(), outputs_of(module)
    bias = None if module.bias is None else vector(f"{name}.bias", start, width, total)
    if isinstance(module, TRANSPOSED):  # (inputs, outputs of a group, ...)
        inputs, each = shape[0] // int(module.groups), shape[1]
        if start % each or width % each:
            if start // each != (start + width - 1) // each:
                return f"{name} makes them in groups that are split"
            own, inside = (int(module.groups), inputs, width, *shape[2:]), (1, start % each, width)
            rest, at = (1, *range(3, len(own))), ((0, start // each),)
            return MatrixView(f"{name}.weight", (2,), rest, own, dims, at, (), bias, inside)
        own = (width // each, inputs, each, *shape[2:])
        part = _part(0, start // each * inputs, width // each * inputs, shape)
        rest = (1, *range(3, len(own)))
        return MatrixView(f"{name}.weight", (0, 2), rest, own, dims, bias=bias, narrow=part)
    if dims == 2 and width == total:
        return MatrixView(f"{name}.weight", bias=bias)
    rest, part = tuple(range(1, dims)), _part(0, start, width, shape)
    return MatrixView(
        f"{name}.weight", (0,), rest, (width, *shape[1:]), dims, bias=bias, narrow=part
    )


def vector(name: str, start: int, width: int, total: int) -> MatrixView:
    """Return the view of a bias, or of a norm's gains: a row for each unit.

    Args:
        name: of the parameter.
        start: the first of the units.
        width: the number of units.
        total: how many entries the parameter has.
    """
    if width == total:
        return MatrixView(name, columns=())
    return MatrixView(name, columns=(), shape=(width,), dims=1, narrow=(0, start, width))


def gains_of(
    gain: str, shift: str, total: int, start: int, width: int, step: int
) -> MatrixView | str:
    """Return the view of a batch norm's gains and shifts.

    Args:
        gain: the name of the parameter.
        shift: likewise.
        total: how many features the norm has.
        start: the first of the units.
        width: the number of units.
        step: between their places, 1.
    """
    own = vector(gain, start, width, total)
    beside = vector(shift, start, width, total)
    return MatrixView(gain, own.rows, (), own.shape, own.dims, bias=beside, narrow=own.narrow)


def obstacle_to_use(module: nn.Module, name: str, total: int, layout: str) -> str:
    """Return why the inputs of a layer are not units; "" if they are.

    Args:
        module: the layer.
        name: its name.
        total: the number of units of its input.
        layout: of the units; see ``Value``.
    """
    if isinstance(module, nn.Linear):
        block, rest = divmod(module.in_features, total)
        if rest or layout in ("channels", "pairs") or (block > 1 and layout != "blocks"):
            return f"{name} has {module.in_features} inputs, which are not those of {total} units"
    elif layout != "channels" or module.in_channels != total:
        return f"{name} does not take the units as its channels"
    return ""


def used_by(
    module: nn.Module, name: str, total: int, start: int, width: int, step: int
) -> MatrixView | str:
    """Return the view of a layer's weight whose columns are units, or why there is none.

    Args:
        module: the layer.
        name: its name.
        total: the number of all units of its input.
        start: the first of the units.
        width: the number of units.
        step: between their places.
    """
    weight = module.get_parameter("weight")
    shape, dims = tuple(weight.shape), weight.dim()
    reach = width * step
    skipped = max(0, start + reach - total)  # so that the last step ends inside of the weight
    first = start - skipped
    if first < 0:
        return f"{name} takes the units at places that are no part of its weight"
    # The places are ``skipped + step * unit``, counted from ``first``.
    at, split = ((), (width,)) if step == 1 else ((skipped,), (width, step))
    if isinstance(module, nn.Linear):
        block = module.in_features // total
        if block == 1 and width == total:
            return MatrixView(f"{name}.weight")
        own = (shape[0], *split, block)
        part = _part(1, first * block, reach * block, shape)
        return _strided(name, (0, len(own) - 1), (1,), own, 2, part, (2, *at))
    if isinstance(module, TRANSPOSED):
        own, part = (*split, *shape[1:]), _part(0, first, reach, shape)
        rest = tuple(range(len(split), len(own)))
        return _strided(name, rest, (0,), own, dims, part, (1, *at))
    groups = int(module.groups)  # type: ignore[arg-type]
    each, rows = total // groups, shape[0] // groups
    if groups == 1:
        own, part = (rows, *split, *shape[2:]), _part(1, first, reach, shape)
        rest = (0, *range(1 + len(split), len(own)))
        return _strided(name, rest, (1,), own, dims, part, (2, *at))
    if step > 1 and each > 1:
        return f"{name} takes in its groups units at steps"
    if start % each or width % each:
        if start // each != (start + width - 1) // each:
            return f"{name} takes them in groups that are split"
        own, at_group = (groups, rows, width, *shape[2:]), ((0, start // each),)
        rest, part = (1, *range(3, len(own))), (1, start % each, width)
        return MatrixView(f"{name}.weight", rest, (2,), own, dims, at_group, narrow=part)
    part = _part(0, first // each * rows, reach // each * rows, shape)
    if step > 1:
        own = (*split, rows, *shape[1:])
        return _strided(name, tuple(range(2, len(own))), (0,), own, dims, part, (1, *at))
    own = (width // each, rows, each, *shape[2:])
    return MatrixView(f"{name}.weight", (1, *range(3, len(own))), (0, 2), own, dims, narrow=part)


def _strided(
    name: str, rows: tuple[int, ...], columns: tuple[int, ...], shape: tuple[int, ...], dims: int,
    part: tuple[int, int, int] | None, at: tuple[int, ...],
) -> MatrixView:  # fmt: skip
    """Return a view at a place and an index of it, if there is one."""
    fixed = () if len(at) == 1 else ((at[0], at[1]),)
    return MatrixView(f"{name}.weight", rows, columns, shape, dims, fixed, narrow=part)


def _part(
    dimension: int, start: int, length: int, shape: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """Return a part of a parameter, as ``MatrixView`` has it; None for all of it."""
    return None if length == shape[dimension] else (dimension, start, length)
