"""What a wrapper keeps beside the state of its base, in the form in which torch saves states."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError

KEY = "teleports"
"""The entry of the first parameter group that holds the counts.

Tools that save, shard and load optimizers know parameter groups and the state of parameters, and
nothing else. In the groups of the base itself the entry is None, so that these tools find it."""

EARLIER = {"made": 0, "skipped": 0, "last_batch": None, "other_came": False, "dtype": None}
"""What states of earlier versions do not all have."""


def mark(base: torch.optim.Optimizer) -> None:
    """Make room for the counts in the first parameter group of an optimizer.

    Args:
        base: the optimizer.
    """
    base.param_groups[0][KEY] = None


def with_counts(state: dict[str, Any], counts: dict[str, Any]) -> dict[str, Any]:
    """Return a state of the base with the counts of the wrapper.

    Args:
        state: of the base.
        counts: the counts by name.
    """
    if not state.get("param_groups"):  # a wrapper whose state has another form
        return {**state, KEY: counts}
    groups = [
        {**group, KEY: counts} if KEY in group else group  # the first, wherever it is listed
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def without_counts(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return copies of the state of the base and of the counts.

    Args:
        state: what :func:`with_counts` returned; or that of an earlier version, "base" and counts.

    Raises:
        UserError: if it has no counts.
    """
    copied = copy.deepcopy(dict(state))
    if "base" in copied:
        base = copied.pop("base")
        batch = copied.get("last_batch")
        copied["last_batch"] = batch.tolist() if isinstance(batch, Tensor) else batch
        return base, {**EARLIER, **copied}
    parts = (copied, *copied.get("param_groups", ()))  # groups may be in another order
    found = [part.pop(KEY) for part in parts if part.get(KEY) is not None]
    if found:
        return copied, {**EARLIER, **found[0]}
    raise UserError(
        f"expected a state of a TeleportingOptimizer, with {KEY!r} in its first group, got one "
        f"with {', '.join(map(str, state))}: load a state of the base into the base, before it is "
        f"wrapped"
    )


def dtype_of(optimizer: torch.optim.Optimizer) -> str | None:
    """Return the dtype of an optimizer's parameters; None if they have several.

    Args:
        optimizer: the optimizer.
    """
    dtypes = {str(p.dtype) for group in optimizer.param_groups for p in group["params"]}
    return dtypes.pop() if len(dtypes) == 1 else None


def keep_dtypes(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], dtype: str | None
) -> None:
    """Give the entries of a loaded state the dtypes that they were saved with.

    Torch casts them to the dtype of their parameter. That stays where an entry had the dtype of the
    parameters that it was saved of, so that a state loads into a model of another dtype.

    Args:
        optimizer: the optimizer that has loaded the state.
        saved: the state that it was given.
        dtype: of the parameters that it was saved of; None if they had several.
    """
    indices = chain.from_iterable(group["params"] for group in saved.get("param_groups", ()))
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for index, parameter in zip(indices, parameters, strict=False):
        if index in saved.get("state", {}) and parameter in optimizer.state:
            optimizer.state[parameter] = _as_saved(
                optimizer.state[parameter], saved["state"][index], dtype
            )


def _as_saved(loaded: Any, saved: Any, dtype: str | None) -> Any:
    """What was loaded, in the dtype that it was saved with if it is nothing but a cast of that."""
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        if str(saved.dtype) not in (dtype, str(loaded.dtype)) and loaded.shape == saved.shape:
            cast = saved.to(loaded)
            if bool(((loaded == cast) | (cast != cast)).all()):
                return saved.to(loaded.device)
        return loaded
    if isinstance(loaded, dict) and isinstance(saved, Mapping):
        return {k: _as_saved(v, saved[k], dtype) if k in saved else v for k, v in loaded.items()}
    plain = type(loaded) in (list, tuple) and isinstance(saved, list | tuple)
    if plain and len(loaded) == len(saved):
        return type(loaded)(_as_saved(*pair, dtype) for pair in zip(loaded, saved, strict=True))
    return loaded
