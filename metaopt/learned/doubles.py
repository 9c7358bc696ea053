"""Forward passes in float64, whatever dtype is written into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metaopt.symmetry.nested import mapped

NARROW = (torch.float32, torch.float16, torch.bfloat16)
CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
MAKERS = (
    torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones,
    torch.rand, torch.randn, torch.scalar_tensor, torch.tensor, torch.zeros,
)  # fmt: skip
"""What makes a tensor of the default dtype, where none is given."""


@final
class Doubles(TorchFunctionMode):
    """Lets all that runs inside a ``with`` block cast to float64, and make tensors of it.

    So a hidden state of ``torch.zeros(...)`` fits weights in float64, and a norm that casts to
    float32 loses nothing.

    >>> with Doubles():
    ...     print(torch.zeros(1).dtype, torch.ones(1).double().float().dtype, torch.arange(3).dtype)
    torch.float64 torch.float64 torch.int64
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch."""
        if func in CASTS:
            return args[0].double()
        args = tuple(map(_wide, args))
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        made = func(*args, **kwargs)
        if func in MAKERS and "out" not in kwargs:
            return mapped(lambda own: own.double() if own.dtype in NARROW else own, made)
        return made


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value
