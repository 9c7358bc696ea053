"""The state of a teleporting optimizer besides that of its base."""

from __future__ import annotations

from typing import Any

from metaopt.errors import UserError

PARTS = ("base", "steps", "undone")


def check_own_state(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Check that a state dict is one of a teleporting optimizer, and return it.

    Args:
        state_dict: what ``TeleportingOptimizer.state_dict`` returned.

    Raises:
        UserError: if it is another one, such as that of the base optimizer.
    """
    if not state_dict.keys() >= set(PARTS):
        raise UserError(
            f"expected a state of a TeleportingOptimizer, with {', '.join(PARTS)}, got one with "
            f"{', '.join(map(str, state_dict))}: load a state of the base into the base, before it "
            f"is wrapped"
        )
    return state_dict
