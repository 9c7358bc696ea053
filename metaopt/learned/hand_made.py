"""Elements that nothing is learned of: the controls that say what a learned m2 is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from metaopt.learned.element import ELEMENT_RULES, ElementConfig, ElementRule, check_element
from metaopt.learned.observation import TINY, Observation
from metaopt.learned.spectral import Spectrum
from metaopt.learned.update import State
from metaopt.symmetry import Action
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.element import Element


@final
class Whitening(ElementRule):
    """T = -fraction / 2 log(C / c), so that C = h h^T becomes C^(1 - fraction) c^fraction.

    c is the mean diagonal of C. A fraction of 1 whitens at once, g = (C / c)^(-1/2).
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = fraction

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        return []

    def propose(self, seen: Observation, state: State) -> tuple[list[Element], State]:
        spectra = [
            Spectrum.of(seen.double_inputs[site.outgoing], seen.x.dtype)
            for site in seen.chain.pairs
        ]
        return [Element(-0.5 * self.fraction * s.log_values, s.basis) for s in spectra], []


@final
class GradientDirection(ElementRule):
    """T of a given Frobenius norm along D_m^T D_m - D_{m-1} D_{m-1}^T, with D = dL/dW.

    The derivative of ||grad L||^2 along the orbit of a linear network at T = 0 (half of it), which
    a network whose hidden units are all active is.
    """

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        return []

    def propose(self, seen: Observation, state: State) -> tuple[list[Element], State]:
        elements = []
        for site in seen.chain.pairs:
            incoming = seen.layer_gradients[site.incoming].augmented()
            outgoing = seen.layer_gradients[site.outgoing].weight
            direction = outgoing.mT @ outgoing - incoming @ incoming.mT
            size = torch.linalg.matrix_norm(direction, keepdim=True)
            elements.append(Element(self.norm * direction / (size + TINY)))
        return elements, []


@dataclass(frozen=True)
class SizeFields:
    """How large an element is that is made by hand.

    Attributes:
        element_size: the fraction of whitening a step, or the Frobenius norm of T.
    """

    element_size: float = 0.1

    def __post_init__(self) -> None:
        check_element("element_size", self.element_size)


@ELEMENT_RULES.register("whitening")
@dataclass(frozen=True)
class WhiteningConfig(SizeFields, ElementConfig):
    """A control: T whitens the hidden features by a fixed fraction."""

    def build(self, action: Action, generator: torch.Generator) -> Whitening:
        return Whitening(self.element_size)


@ELEMENT_RULES.register("gradient_direction")
@dataclass(frozen=True)
class GradientDirectionConfig(SizeFields, ElementConfig):
    """A control: T follows the gradient of the gradient's norm along the orbit."""

    def build(self, action: Action, generator: torch.Generator) -> GradientDirection:
        return GradientDirection(self.element_size)


@final
class Replaced(ElementRule):
    """What another rule proposes, put through a control.

    Args:
        rule: the rule, usually a trained m2.
        steps: T = 0 from this step on.
        random: in its place a random T of the same Frobenius norm, from this seed.
    """

    def __init__(self, rule: ElementRule, steps: int | None = None, random: int | None = None):
        super().__init__()
        self.rule = rule
        self.steps = steps
        self.random = random

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        count = torch.zeros(1, dtype=torch.long)
        return [count, *self.rule.init_state(chain, parameters)]

    def propose(self, seen: Observation, state: State) -> tuple[list[Element], State]:
        count, *inner = state
        proposed, following = self.rule.propose(seen, inner)
        elements = [element.dense() for element in proposed]
        step = int(count)
        if self.steps is not None and step >= self.steps:
            elements = [torch.zeros_like(element) for element in elements]
        elif self.random is not None:
            generator = torch.Generator().manual_seed(self.random * 10**6 + step)
            elements = [_random_like(element, generator) for element in elements]
        return [Element(element) for element in elements], [count + 1, *following]


def _random_like(element: Tensor, generator: torch.Generator) -> Tensor:
    """Normal entries, scaled to the Frobenius norm of the element."""
    drawn = torch.randn(element.shape, generator=generator, dtype=element.dtype).to(element.device)
    size: Tensor = torch.linalg.matrix_norm(element, keepdim=True)
    unit: Tensor = drawn / (torch.linalg.matrix_norm(drawn, keepdim=True) + TINY)
    return unit * size
