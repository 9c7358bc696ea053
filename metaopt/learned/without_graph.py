"""Functions whose results have no graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def without_graph(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that computes what another does, and records nothing for autograd.

    ``torch.no_grad()`` makes and enters a context at each call. Where nothing is recorded already,
    as in a step of an optimizer, that is left out: it takes as long as a product of small matrices.

    Args:
        function: any function.
    """

    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        with torch.no_grad():
            return function(*args, **kwargs)

    return computed
