"""What a teleporting optimizer keeps besides its base's state."""

from __future__ import annotations

from typing import Any

from metaopt.errors import UserError

PARTS = ("base", "steps", "undone")


def check_own_state(state_dict: dict[str, Any]) -> dict[str, Any]:
    """``state_dict``, or a UserError if it is not one of a teleporting optimizer."""
    if not state_dict.keys() >= set(PARTS):
        raise UserError(
            f"expected a state of a TeleportingOptimizer, with {', '.join(PARTS)}, got one with "
            f"{', '.join(map(str, state_dict))}: load a state of the base into the base, before it "
            f"is wrapped"
        )
    return state_dict
