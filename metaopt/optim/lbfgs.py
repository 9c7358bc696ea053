"""L-BFGS that goes on where its line search fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from metaopt.learned.observation import flatten


@final
class RestartingLBFGS(torch.optim.LBFGS):
    """L-BFGS with a strong Wolfe line search, one iteration a step, that never stops for good.

    ``torch.optim.LBFGS`` stays where it is for good once a direction is no descent or a search
    finds nothing. Here such a step forgets the history, so that the next one searches along the
    gradient. Nothing is given up because a gradient or a change is small.

    Args:
        params: the parameters, in one group.
        lr: the first length that each search tries.
        history_size: how many changes are remembered.
        max_eval: the most evaluations in a step.
    """

    def __init__(
        self, params: Any, lr: float = 1.0, history_size: int = 20, max_eval: int = 20
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            max_iter=1,
            max_eval=max_eval,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=history_size,
            line_search_fn="strong_wolfe",
        )

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make one iteration.

        Args:
            closure: evaluates the loss and its gradients anew.

        Returns:
            The loss before the step.
        """
        before = self._weights()
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        if torch.equal(before, self._weights()):
            self.state.clear()
        return loss

    @torch.no_grad()
    def _weights(self) -> Tensor:
        return flatten(self.param_groups[0]["params"])
