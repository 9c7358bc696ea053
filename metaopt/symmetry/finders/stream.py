"""The residual stream under norms without gains: rotations of all that writes to it and reads it.

An RMSNorm without a gain gives Q n(x) for Q x, where Q is orthogonal. So if all that writes to the
stream is multiplied by Q, and all that reads it by Q^-1, the network stays. A LayerNorm subtracts
the mean, so Q has to fix the vector of ones. Where a norm has a gain, fold it into its readers
first: :func:`metaopt.symmetry.fold_norms`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from metaopt.symmetry.finders.network import Candidate, Network, features_last, is_dense
from metaopt.symmetry.finders.norms import Norm, centres, is_norm, norms, reading_views
from metaopt.symmetry.site import LeftOut, MatrixView, Site

STREAM = "residual streams"
_LAYERS = (nn.Embedding, nn.MultiheadAttention, nn.modules.conv._ConvNd)


def stream(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose rotations of the residual stream, one for each width that the norms have.

    The readers are seen in a run, so this needs inputs.

    Args:
        network: the network.
    """
    if network.record is None:
        return
    by_width: dict[int, list[Norm]] = {}
    for norm in norms(network):
        width = _width_of(network, norm)
        if width is not None and norm.readers:
            by_width.setdefault(width, []).append(norm)
    for width, own in by_width.items():
        if any(not _without_gain(norm.module) for norm in own):
            yield LeftOut(
                (f"the stream of {width} features",),
                "its norms have gains that are trained: metaopt.symmetry.fold_norms() takes them "
                "into the readers",
            )
            continue
        yield _site(network, own, width)


def _site(network: Network, own: list[Norm], width: int) -> Candidate:
    uses = tuple(use for norm in own for use in norm.readers if _is_reader(network, use.name))
    readers = reading_views(network, tuple(dict.fromkeys(uses)))
    reading = {view.parameter for view in readers}
    held = {name for norm in own for name in _own_parameters(network, norm.module)}
    writers = tuple(_writers(network, width, reading | held))
    written = {view.parameter for view in writers}
    centred = any(centres(norm.module) for norm in own)
    group = "orthogonal_of_ones" if centred else "orthogonal"
    return Candidate.of(
        Site(
            name=f"the stream of {width} features",
            incoming=writers,
            outgoing=tuple(view for view in readers if view.parameter not in written),
            between=None,
            group=group,
            width=width,
            layers=(writers[0].parameter.rpartition(".")[0], own[0].name),
            labels=("norms without gains",),
            kind=STREAM,
        )
    )


def _width_of(network: Network, norm: Norm) -> int | None:
    if norm.width is not None:
        return norm.width
    shape = getattr(norm.module, "normalized_shape", None)
    if shape:
        return int(shape[0])
    return None


def _without_gain(module: nn.Module) -> bool:
    """Return whether a norm has no gain and no shift, or frozen ones that do nothing."""
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        parameter = module._parameters.get(name)
        if parameter is not None and (
            parameter.requires_grad or not torch.equal(parameter, torch.full_like(parameter, value))
        ):
            return False
    return True


def _own_parameters(network: Network, module: nn.Module) -> Iterator[str]:
    for parameter in module.parameters():
        name = network.name_of(parameter)
        if name is not None:
            yield name


def _is_reader(network: Network, name: str) -> bool:
    module = network.modules.get(name)
    return is_dense(module) or type(module) is nn.MultiheadAttention


def _writers(network: Network, width: int, others: set[str]) -> Iterator[MatrixView]:
    """Yield the views of all that gives as many features, and does not read the stream."""
    seen: set[str] = set()
    for module in network.modules.values():
        weight = module._parameters.get("weight")
        name = network.name_of(weight)
        if isinstance(module, nn.MultiheadAttention) or weight is None or name is None:
            continue
        if name in seen or (name in others and not isinstance(module, nn.Embedding)):
            continue
        view = _written(module, name, weight, network, width)
        if view is not None:
            seen |= set(view.parameters)
            yield view
    for module in network.modules.values():
        if is_dense(module) or is_norm(module) or isinstance(module, _LAYERS):
            continue
        for parameter in module._parameters.values():  # such as positions, or a class token
            name = network.name_of(parameter)
            if parameter is None or name is None or name in seen | others:
                continue
            if parameter.dim() > 1 and parameter.shape[-1] == width:
                seen.add(name)
                yield _last(name, parameter)


def _written(
    module: nn.Module, name: str, weight: Tensor, network: Network, width: int
) -> MatrixView | None:
    """Return the view of a layer's weight whose rows are the features that it gives."""
    bias = network.name_of(module._parameters.get("bias"))
    beside = None if bias is None else MatrixView(bias, columns=())
    if isinstance(module, nn.Embedding):
        return _last(name, weight) if weight.shape[1] == width else None
    if is_dense(module):
        last = features_last(module)
        if weight.shape[1 if last else 0] != width:
            return None
        if last:
            return MatrixView(name, (1,), (0,), tuple(weight.shape), bias=beside)
        return MatrixView(name, bias=beside)
    if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and weight.shape[0] == width:
        dims = weight.dim()
        return MatrixView(name, (0,), tuple(range(1, dims)), tuple(weight.shape), dims, bias=beside)
    return None


def _last(name: str, tensor: Tensor) -> MatrixView:
    """Return the view whose rows are the last dimension."""
    dims = tensor.dim()
    return MatrixView(name, (dims - 1,), tuple(range(dims - 1)), tuple(tensor.shape), dims)
