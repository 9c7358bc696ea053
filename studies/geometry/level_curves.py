"""Level sets in the plane, reached by an angle, of convex functions with a minimiser.

Such a function rises along each ray from the minimiser w*, so that each level set is a closed curve
with one point at each angle. Turning by an angle is then a group that acts transitively on each
level set, which is what Proposition A.2 asks: g.w is the point of w's level set at an angle that is
larger by g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import newton
from torch import Tensor

from metaopt.errors import UserError
from studies.geometry.steepest import (
    BatchedFunction,
    Largest,
    batched_gradient,
    largest_on_circles,
)

FARTHEST = 1e8  # from w*, in units of a weight: where the search for a level ends


@final
@dataclass(frozen=True, eq=False)
class LevelCurves:
    """{L = level} by the angle at w*.

    Attributes:
        function: L, convex, batched.
        minimizer: w*, ``(2,)``.
    """

    function: BatchedFunction
    minimizer: Tensor

    def points(self, angles: Tensor, levels: Tensor) -> Tensor:
        """Where the rays at ``angles`` meet the levels, ``(*batch, 2)``.

        Raises:
            UserError: for a level that is not above L(w*), or is not reached along some ray: the
                level set is then unbounded.
        """
        lowest = self.function(self.minimizer)
        if not bool((levels > lowest).all()):
            raise UserError(
                f"expected levels above the minimum {float(lowest):g}, got "
                f"{float(levels.min()):g}: choose higher ones"
            )
        rays = torch.stack([angles.cos(), angles.sin()], -1)
        far = torch.ones_like(levels)
        while bool((below := self.function(self._at(far, rays)) <= levels).any()):
            if float(far.max()) > FARTHEST:
                raise UserError(
                    f"expected a level that is reached along each ray from w*, got one that is not "
                    f"within {FARTHEST:g}: this level set is unbounded; choose a function that has "
                    f"a minimiser"
                )
            far = torch.where(below, 2 * far, far)

        def above(share: NDArray[np.float64]) -> Any:
            w = self._at(torch.from_numpy(share) * far, rays)
            return (self.function(w) - levels).numpy()

        def slope(share: NDArray[np.float64]) -> Any:
            w = self._at(torch.from_numpy(share) * far, rays)
            return ((batched_gradient(self.function, w) * rays).sum(-1) * far).numpy()

        # From beyond the level, Newton's method on a convex function comes down without a leap.
        share = newton(above, np.ones(levels.shape), slope, tol=1e-13, maxiter=200)
        return self._at(torch.from_numpy(share) * far, rays)

    def _at(self, distance: Tensor, rays: Tensor) -> Tensor:
        return self.minimizer + distance.unsqueeze(-1) * rays

    def steepness(self, angles: Tensor, levels: Tensor) -> Tensor:
        """||grad L||^2 at these points, ``(*batch,)``."""
        return batched_gradient(self.function, self.points(angles, levels)).square().sum(-1)

    def largest(self, levels: Tensor, grid: int = 64) -> Largest:
        """F(x) = max ||grad L||^2 on {L = x}, by angle, for levels ``(m,)``."""
        return largest_on_circles(self.steepness, levels, grid)

    def steepest(self, w: Tensor, grid: int = 64) -> Tensor:
        """The point of largest ||grad L||^2 on the level set of each w, ``(m, 2)`` (eq. 4)."""
        levels = self.function(w)
        return self.points(self.largest(levels, grid).where, levels)
