"""A context in which a forward pass computes in float64, whatever it converts its values to.

Norms and softmaxes of many models convert to float32 and back. That would hide how exact a move
is: 1e-7 instead of 1e-15.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SMALLER = (torch.float32, torch.float16, torch.bfloat16)


class Precise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes float64 of each dtype of less precision that an operation is asked for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation with float64 in place of a smaller dtype."""
        options = dict(kwargs or {})
        if options.get("dtype") in _SMALLER:
            options["dtype"] = torch.float64
        return func(*args, **options)
