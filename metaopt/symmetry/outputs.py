"""What a network gives on some inputs, in float64 where its forward pass can be made so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.symmetry.functional import call_with, evaluating
from metaopt.symmetry.nested import Inputs, arguments_of, mapped, tensors_in
from metaopt.symmetry.precise import Precise


class NetworkOutputs:
    """All floating-point tensors that a model gives in evaluation mode, as one row in float64.

    Args:
        model: the module; it is not changed.
        x: what it is called with.

    Attributes:
        precise: whether the forward pass computes in float64, and not in the model's own dtype.
    """

    def __init__(self, model: nn.Module, x: Inputs) -> None:
        self.model, self.x = model, x
        self.precise = True

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs, ``(1, entries)``.

        Args:
            values: the parameters that have other values than the model's, by name.

        Raises:
            UserError: if the model gives nothing that can be compared.
        """
        with evaluating(self.model):
            if self.precise:
                try:
                    return self._outputs(values, torch.float64)
                except (RuntimeError, TypeError, ValueError, AssertionError):
                    # A dtype may be written into the forward; any other error comes again.
                    self.precise = False
            kept = {n: v.to(self.model.get_parameter(n).dtype) for n, v in values.items()}
            return self._outputs(kept, None)

    def _outputs(self, values: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
        def wide(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

        args, kwargs = arguments_of(mapped(wide, self.x))
        names, own = list(values), [wide(value) for value in values.values()]
        if dtype is None:
            result = call_with(self.model, names, own, args, kwargs)
        else:
            with Precise():  # type: ignore[no-untyped-call]
                result = call_with(self.model, names, own, args, kwargs, dtype)
        floating = [t for t in tensors_in(result) if t.is_floating_point()]
        rows = [t.double().reshape(1, -1) for t in floating if t.dim()]
        rows = rows or [t.double().reshape(1, -1) for t in floating]
        if not rows:
            raise UserError(
                f"expected a model that gives floating-point tensors, got "
                f"{type(result).__name__}: wrap it in a module that gives some"
            )
        return torch.cat(rows, dim=1)
