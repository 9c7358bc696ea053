"""Keep the weights of a study in a file, with the facts that belong to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from metaopt.errors import UserError
from metaopt.storage import write_atomically
from studies.generalization.networks import Weights

HEADER = "metaopt.generalization"


def keep(path: Path, weights: Weights, plan: dict[str, Any], facts: Any) -> None:
    """Write weights and facts into a file, whole or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        weights: one tensor a layer.
        plan: what they depend on, as JSON can have it.
        facts: what else is to be kept, as JSON can have it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {str(layer): weight for layer, weight in enumerate(weights)}
    # One key: the order of several would differ from one writing to the next.
    header = json.dumps({"plan": plan, "facts": facts})
    write_atomically(path, save(tensors, {HEADER: header}))


def kept(path: Path, plan: dict[str, Any]) -> tuple[Weights, Any] | None:
    """Read weights and facts that :func:`keep` has written.

    Args:
        path: the file.
        plan: what they have to depend on.

    Returns:
        Weights and facts; None if there is no file.

    Raises:
        UserError: if the file is damaged, or of another plan.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            weights = [file.get_tensor(str(layer)) for layer in range(len(file.keys()))]
        found, facts = header["plan"], header["facts"]
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"expected networks of this study in {str(path)!r}, got a file that is damaged or "
            f"something else ({type(error).__name__}): remove it to make them anew"
        ) from None
    if found != json.loads(json.dumps(plan)):
        raise UserError(
            f"expected networks of the same plan in {str(path)!r}, got others: choose another "
            f"--out, or remove the file"
        )
    return weights, facts
