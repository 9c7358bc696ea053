"""Which networks a meta-optimizer is made of: the fields of a config, checked, and its tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metaopt.errors import UserError
from metaopt.learned.element import CoordinatewiseElement, ElementRule, FlatElement
from metaopt.learned.hand_made import GradientDirection, Whitening
from metaopt.learned.layerwise import LayerwiseUpdate
from metaopt.learned.spectral import SpectralElement
from metaopt.learned.update import (
    CoordinatewiseUpdate,
    FlatStepSize,
    FlatUpdate,
    StepSizeUpdate,
    UpdateRule,
)
from metaopt.symmetry.element import MAX_DIRECTION, MAX_ELEMENT

MOST = {"hidden": 1000, "layers": 100, "flat_widths": 1000}
"""A file that says more is not built, which would take all memory or forever."""


@dataclass(frozen=True)
class MetaOptimizerSpec:
    """Which networks a meta-optimizer is made of. Stored in its checkpoint.

    Attributes:
        update: m1: "coordinatewise", "layerwise", "step_size", "flat" or "flat_step_size".
        element: m2: "spectral" (over eigen-directions of the hidden features), "coordinatewise"
            (over entries of T), "flat", or "none" for g = I; or, as controls, one made by hand:
            "whitening" or "gradient_direction".
        element_size: of those, the fraction of whitening a step, or the Frobenius norm of T.
        action: of GL(k): "post_activation" (eq. 78) or "pre_activation" (eq. 79).
        damping: of eq. 79; 0 for none.
        exponential: "exact" or "first_order".
        hidden: hidden size of each LSTM.
        layers: layers of each LSTM.
        inputs: what m1 sees of a coordinate: "gradient", and as a control "covariance".
        heads: parts of f: "plain", "free", "gradient", "scaled_gradient", "spectral_gradient".
        features: what m2 sees: "gradients", "balance", "covariance"; over entries also
            "preactivations", which a spectral m2 sees as its covariance where eq. 79 acts.
        bound: s in T = s tanh(output) / k; of a spectral T, of each |t_i|.
        stretch: of a spectral T, the most that a direction moves besides being whitened.
        gate: gain of the gate on T; 0 for none.
        hold: a teleportation that changes the network's output by more than this fraction of what
            f changed it is taken back; 0 lets all pass.
        norm: Frobenius norm that flat networks give T; 0 leaves it as it comes.
        flat_widths: input, hidden, output of the one problem size that flat networks fit.
    """

    update: str = "coordinatewise"
    element: str = "spectral"
    element_size: float = 0.1
    action: str = "post_activation"
    damping: float = 0.0
    exponential: str = "exact"
    hidden: int = 20
    layers: int = 1
    inputs: tuple[str, ...] = ("gradient",)
    heads: tuple[str, ...] = ("free", "spectral_gradient")
    features: tuple[str, ...] = ("gradients", "balance", "covariance")
    bound: float = 3.0
    stretch: float = 0.0
    gate: float = 1000.0
    hold: float = 0.03
    norm: float = 0.01
    flat_widths: tuple[int, int, int] = (20, 20, 20)

    def __post_init__(self) -> None:
        if self.update not in UPDATE_RULES:
            raise UserError(
                f"expected update of {', '.join(UPDATE_RULES)}, got {self.update!r}: name one"
            )
        if self.element not in ELEMENT_RULES:
            raise UserError(
                f"expected element of {', '.join(ELEMENT_RULES)}, got {self.element!r}: name one"
            )
        for name in ("hidden", "layers"):
            value, most = getattr(self, name), MOST[name]
            if not isinstance(value, int) or not 1 <= value <= most:
                raise UserError(f"expected {name} of 1 to {most}, got {value}: give a whole number")
        for name in ("damping", "stretch", "gate", "hold", "norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"expected {name} of 0 or more, got {getattr(self, name)}: 0 turns it off"
                )
        largest = MAX_DIRECTION if self.element == "spectral" else MAX_ELEMENT
        for name in ("bound", "element_size"):
            if not 0 < getattr(self, name) <= largest:
                raise UserError(
                    f"expected {name} in (0, {largest:g}] for element={self.element!r}, got "
                    f"{getattr(self, name)}: every action refuses larger elements"
                )
        if self.damping and self.action != "pre_activation":
            raise UserError(
                f"expected damping of 0 for the action {self.action!r}, got {self.damping}: only "
                f"pre_activation (eq. 79) is damped"
            )
        widths = self.flat_widths
        if len(widths) != 3 or not all(1 <= width <= MOST["flat_widths"] for width in widths):
            raise UserError(
                f"expected three flat_widths of 1 to {MOST['flat_widths']}, got {widths}: "
                "give input, hidden and output"
            )
        if self.action == "rescaling":
            raise UserError(
                "expected an action of GL(k), post_activation or pre_activation, got 'rescaling': "
                "name one of those two"
            )

    @property
    def coordinates(self) -> int:
        """Weights of the problem size that flat networks fit."""
        inputs, hidden, outputs = self.flat_widths
        return hidden * (inputs + outputs)

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> MetaOptimizerSpec:
        """The inverse of :meth:`as_dict`."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**({"hold": 0.0} | values))  # older checkpoints held nothing


UPDATE_RULES: dict[str, Callable[[MetaOptimizerSpec, torch.Generator], UpdateRule]] = {
    "coordinatewise": lambda spec, generator: CoordinatewiseUpdate(
        spec.hidden, spec.layers, spec.inputs, spec.heads, generator
    ),
    "step_size": lambda spec, generator: StepSizeUpdate(spec.hidden, spec.layers, generator),
    "layerwise": lambda spec, generator: LayerwiseUpdate(spec.hidden, spec.layers, generator),
    "flat": lambda spec, generator: FlatUpdate(
        spec.hidden, spec.layers, spec.coordinates, generator
    ),
    "flat_step_size": lambda spec, generator: FlatStepSize(
        spec.hidden, spec.layers, spec.coordinates, generator
    ),
}
"""m1 by name."""

ELEMENT_RULES: dict[str, Callable[[MetaOptimizerSpec, torch.Generator], ElementRule] | None] = {
    "none": None,
    "coordinatewise": lambda spec, generator: CoordinatewiseElement(
        spec.hidden, spec.layers, spec.features, spec.bound, spec.gate, generator
    ),
    "flat": lambda spec, generator: FlatElement(
        spec.hidden, spec.layers, spec.coordinates, spec.flat_widths[1], spec.norm, generator
    ),
    "spectral": lambda spec, generator: SpectralElement(
        spec.hidden,
        spec.layers,
        spec.features,
        spec.stretch,
        spec.bound,
        spec.gate,
        spec.action == "pre_activation",
        generator,
    ),
    "whitening": lambda spec, generator: Whitening(spec.element_size),
    "gradient_direction": lambda spec, generator: GradientDirection(spec.element_size),
}
"""m2 by name; "none" means g = I."""
