"""Which networks a meta-optimizer is made of: the flat view of their configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, ClassVar, Self

import torch

from metaopt.checks import check_not_negative
from metaopt.errors import UserError, shown
from metaopt.learned import (  # noqa: F401  these register rules
    baselines,
    kfac,
    layerwise,
    spectral,
    tensorwise,
    whitening,
)
from metaopt.learned.element import ELEMENT_RULES, ElementConfig, ElementRule
from metaopt.learned.update import UPDATE_RULES, UpdateConfig, UpdateRule
from metaopt.registry import Registry, Settings, built
from metaopt.symmetry import ACTIONS, Action, make_action


@dataclass(frozen=True, init=False, repr=False)
class MetaOptimizerSpec(Settings):
    """The update rule (m1), the element rule (m2), the action and the fields of all of them.

    Stored in a checkpoint. The fields of a rule stand in its config, in :data:`UPDATE_RULES` and
    :data:`ELEMENT_RULES`; here they are keywords and attributes under the same names.

    Attributes:
        update: the update rule m1, which proposes the step f of the weights. "coordinatewise" has
            an LSTM for each weight, "tensorwise" and "layerwise" see statistics of each tensor,
            "step_size" learns the step size of gradient descent. The "flat" ones see all weights
            of a network of one size at once, as in the paper.
        element: the element rule m2, which proposes the T of the group element g = exp(T).
            "spectral" works on the eigen-directions of the hidden features, "coordinatewise" on
            the entries of T, "flat" on all entries of one size at once, as in the paper. "none"
            does not teleport. "whitening" and "gradient_direction" are baselines by formula.
        action: the group action by which g moves the weights: "post_activation" is eq. 78,
            "pre_activation" is eq. 79.
        damping: damping of the pseudo-inverse of eq. 79, as a fraction of the mean diagonal entry;
            0 for none.
        exponential: how T is exponentiated, "exact" or "first_order", which is I + T.
        hold: largest change of the network's output by a teleportation, as a fraction of the
            change that the step f made. A larger one is reverted; 0 reverts none.

    Example:
        >>> spec = MetaOptimizerSpec(update="layerwise", element="none", hidden=16)
        >>> spec.update_config
        LayerwiseConfig(hidden=16, layers=1)
    """

    components: ClassVar[Mapping[str, Registry[Any]]] = {
        "update": UPDATE_RULES,
        "element": ELEMENT_RULES,
    }
    named: ClassVar[Mapping[str, Registry[Any]]] = {"action": ACTIONS}
    unused: ClassVar[frozenset[str]] = frozenset({"inputs", "heads", "features"})

    update: str = "coordinatewise"
    element: str = "spectral"
    action: str = "post_activation"
    damping: float = 0.0
    exponential: str = "exact"
    hold: float = 0.03

    def check(self) -> None:
        """Check the fields that are of no rule.

        Raises:
            UserError: for a value that cannot be used.
        """
        check_not_negative("damping", self.damping)
        check_not_negative("hold", self.hold)
        if self.build_action().group != "GL":
            raise UserError(
                f"expected an action of the group GL, of which m2 proposes elements, such as "
                f"post_activation, got {self.action!r}: name another"
            )

    @property
    def update_config(self) -> UpdateConfig:
        """The config of the update rule."""
        return self.chosen(UPDATE_RULES, self.update)

    @property
    def element_config(self) -> ElementConfig:
        """The config of the element rule."""
        return self.chosen(ELEMENT_RULES, self.element)

    def build_update(self, generator: torch.Generator) -> UpdateRule:
        """Return the update rule m1.

        Args:
            generator: of its initial weights.

        Raises:
            UserError: if its config cannot build it.
        """
        what = f"the update rule {shown(self.update)}"
        make = partial(self.update_config.build, generator)
        return built(what, UpdateRule, make)  # type: ignore[type-abstract]

    def build_element(self, action: Action, generator: torch.Generator) -> ElementRule | None:
        """Return the element rule m2; None for "none".

        Args:
            action: the action of its elements.
            generator: of its initial weights.

        Raises:
            UserError: if its config cannot build it.
        """
        if self.element == "none":
            return None
        what = f"the element rule {shown(self.element)}"
        make = partial(self.element_config.build, action, generator)
        return built(what, ElementRule, make)  # type: ignore[type-abstract]

    def build_action(self) -> Action:
        """The action, with what is asked of it.

        Raises:
            UserError: for an action that is not known, or that cannot do what is asked.
        """
        damped = [name for name, make in ACTIONS.items() if "damping" in signature(make).parameters]
        if self.damping and self.action in ACTIONS and self.action not in damped:
            raise UserError(
                f"expected damping of 0 for the action {self.action!r}, got {self.damping}: only "
                f"{', '.join(damped)} can be damped"
            )
        usual = self.own_defaults()
        asked: dict[str, float | str] = {
            "exponential": self.exponential,
            "damping": self.damping,
        }
        options = {name: value for name, value in asked.items() if value != usual[name]}
        return make_action(self.action, **options)

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`; older checkpoints held no teleportation."""
        return super().from_dict({"hold": 0.0} | dict(flat))
