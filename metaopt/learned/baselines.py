"""Element rules (m2) that follow a formula: the baselines that a learned m2 is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.learned.element import (
    ELEMENT_RULES,
    ElementConfig,
    ElementRule,
    check_element,
    gradients,
)
from metaopt.learned.observation import TINY, Observation
from metaopt.learned.spectral import Spectrum
from metaopt.learned.update import RuleState
from metaopt.symmetry import Action
from metaopt.symmetry.chain import Layout
from metaopt.symmetry.element import Element


@final
class Whitening(ElementRule):
    """Whitens the hidden features of each site by a fixed fraction at each step.

    T = -fraction / 2 log(C / c), with C = h h^T of the hidden features and c its mean diagonal, so
    that C becomes C^(1 - fraction) c^fraction. It has no state and no weights.

    Args:
        fraction: above 0; at 1 one step whitens wholly, g = (C / c)^(-1/2).
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`ElementRule.init_state`; the state is empty."""
        return []

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose`."""
        spectra = [
            Spectrum.of(seen.double_inputs[site.outgoing], seen.x.dtype)
            for site in seen.chain.pairs
        ]
        return [Element(-0.5 * self.fraction * s.log_values, s.basis) for s in spectra], []


@final
class GradientDirection(ElementRule):
    """Follows the gradient of the gradient's norm along the orbit, by a fixed distance.

    T is along D_m^T D_m - D_{m-1} D_{m-1}^T, where D_m = dL/dW_m. That is half the derivative of
    ||grad L||^2 at T = 0 for a linear network, and for one whose hidden units are all active. The
    rule has no state and no weights.

    Args:
        norm: the Frobenius norm of T, above 0.
    """

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`ElementRule.init_state`; the state is empty."""
        return []

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose`."""
        elements = []
        for site in seen.chain.pairs:
            incoming, outgoing = gradients(seen, site).by_log
            direction = outgoing - incoming
            size = torch.linalg.matrix_norm(direction, keepdim=True)
            elements.append(Element(self.norm * direction / (size + TINY)))
        return elements, []


@dataclass(frozen=True)
class SizeFields:
    """How large the element of a baseline is.

    Attributes:
        element_size: for "whitening", the fraction of whitening in a step; for
            "gradient_direction", the Frobenius norm of T.
    """

    element_size: float = 0.1

    def __post_init__(self) -> None:
        check_element("element_size", self.element_size)


@ELEMENT_RULES.register("whitening")
@dataclass(frozen=True)
class WhiteningConfig(SizeFields, ElementConfig):
    """A baseline: T whitens the hidden features by a fixed fraction."""

    def build(self, action: Action, generator: torch.Generator) -> Whitening:
        """See :meth:`ElementConfig.build`; nothing is drawn."""
        return Whitening(self.element_size)


@ELEMENT_RULES.register("gradient_direction")
@dataclass(frozen=True)
class GradientDirectionConfig(SizeFields, ElementConfig):
    """A baseline: T follows the gradient of the gradient's norm along the orbit."""

    def build(self, action: Action, generator: torch.Generator) -> GradientDirection:
        """See :meth:`ElementConfig.build`; nothing is drawn."""
        return GradientDirection(self.element_size)
