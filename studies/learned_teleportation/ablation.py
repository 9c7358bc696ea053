"""A trained element rule (m2) with a part of what it proposes taken away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from metaopt.learned.element import ElementRule
from metaopt.learned.observation import TINY, Observation
from metaopt.learned.update import RuleState
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.element import Element


@final
class Ablation(ElementRule):
    """Replaces what an element rule proposes by zero or by random elements.

    The rule itself is stepped as before, so that its state is what it would be. The state here is
    the number of the step, ``(1,)`` int64, and then the rule's own.

    Args:
        rule: the rule, usually a trained m2.
        steps: how many steps keep their elements; after them T = 0. None for all.
        random: the seed of normal random elements with the Frobenius norms of the rule's own. None
            for the rule's own elements.
    """

    def __init__(
        self, rule: ElementRule, steps: int | None = None, random: int | None = None
    ) -> None:
        super().__init__()
        self.rule = rule
        self.steps = steps
        self.random = random

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`ElementRule.init_state`."""
        count = torch.zeros(1, dtype=torch.long)
        return [count, *self.rule.init_state(chain, parameters)]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Element], RuleState]:
        """See :meth:`ElementRule.propose`; the elements are dense."""
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
