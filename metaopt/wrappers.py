"""Modules of torch that hold another module and call it: what is inside is the model."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def layers_of_wrapping(module: nn.Module) -> list[nn.Module]:
    """Return a module, what it wraps, what that wraps, and so on; the model itself is last.

    ``torch.compile``, ``DistributedDataParallel``, ``DataParallel`` and ``AveragedModel`` wrap.

    Args:
        module: any module.
    """
    found = [module]
    while (inner := _inside(found[-1])) is not None:
        found.append(inner)
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model that is inside all wrappers; a module that wraps nothing is the model."""
    return layers_of_wrapping(module)[-1]


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is what ``torch.compile`` returned."""
    return "_orig_mod" in module._modules and type(module).__module__.startswith("torch._dynamo")


def _inside(module: nn.Module) -> nn.Module | None:
    inner: Any = None
    if is_compiled(module):
        inner = module._orig_mod
    elif isinstance(module, DataParallel | DistributedDataParallel | AveragedModel):
        inner = module.module
    return inner if isinstance(inner, nn.Module) else None
