"""Which parameters are shared: tied weights, and views of the same memory."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def shared_parameters(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Return the parameters whose memory is held under several names.

    One module under two names holds its parameters once.

    Args:
        model: any module.

    Returns:
        The names by the ``id`` of the parameter.
    """
    holders: dict[tuple[int, str], tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and has_memory(tensor):
                holders[id(module), name] = (f"{path}.{name}".lstrip("."), tensor)
    storages = defaultdict(list)
    for name, tensor in holders.values():
        storages[tensor.untyped_storage()._cdata].append((name, tensor))
    shared = {}
    for group in storages.values():
        for _, tensor in group:
            names = tuple(name for name, other in group if _overlap(tensor, other))
            if len(names) > 1:
                shared[id(tensor)] = names
    return shared


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has entries that lie in one piece of memory, as dense ones do."""
    return not is_lazy(tensor) and tensor.layout == torch.strided and tensor.numel() > 0


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors may share bytes of their storage; strides may skip some."""
    (start, end), (other_start, other_end) = _reach(one), _reach(other)
    return start < other_end and other_start < end


def _reach(tensor: Tensor) -> tuple[int, int]:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((int(size) - 1) * int(stride) for size, stride in steps)
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()
