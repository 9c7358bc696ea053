"""The right-hand sides of Theorems 3.1 and 3.2, as printed and as they follow.

SGD with a teleport before each step (eq. 5), of the learning rate eta = 1 / (beta sqrt(T - 1)),
has w_0, ..., w_{T-1}; G_t = E max_g ||grad L(g.w_t)||^2. With x = (beta eta)^2 = 1 / (T - 1) and
alpha_t = (1 + x)^-(t+1), the proof gives (eq. 34, by eq. 36)

    sum_t alpha_t G_t / sum_t alpha_t <= c_T beta gap / sqrt(T - 1) + beta sigma^2 / sqrt(T - 1),
    c_T = 1 / (1 - (1 - 1/T)^T), from 4/3 at T = 2 to 1 / (1 - 1/e) = 1.58 in the limit,

of which eq. 7 is a weaker form: min for mean, 2 for c_T. Under the PL inequality (eq. 8) G_t bounds
squared distances, times mu^2; eq. 9 as printed has the distance itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from metaopt.errors import UserError


@final
@dataclass(frozen=True)
class BasinBounds:
    """For one problem, one start and one T.

    Attributes:
        beta: each L(., xi) is beta-smooth; in units of a loss over a weight squared.
        sigma2: sigma^2 = L(w*) - E inf_w L(w, xi), in units of a loss.
        gap: E[L(w_0) - L(w*)], in units of a loss.
        steps: T, the number of points w_0, ..., w_{T-1}.
        mu: of the PL inequality L(w) - L* <= ||grad L(w)||^2 / (2 mu), for Theorem 3.2.

    Raises:
        UserError: outside the assumptions of the theorems.
    """

    beta: float
    sigma2: float
    gap: float
    steps: int
    mu: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UserError(
                f"expected beta > 0, got {self.beta}: Theorem 3.1 is for beta-smooth losses"
            )
        if not 0 <= self.sigma2 < math.inf or not 0 <= self.gap < math.inf:
            raise UserError(
                f"expected sigma^2 >= 0 and a gap >= 0, got {self.sigma2} and {self.gap}: both are "
                f"differences from a minimum; check L(w*) and inf L(w, xi)"
            )
        if self.steps != int(self.steps) or self.steps < 2:
            raise UserError(
                f"expected T of 2 or more, got {self.steps}: the learning rate has sqrt(T - 1) "
                f"below the line"
            )
        if self.mu is not None and not 0 < self.mu <= self.beta * (1 + 1e-12):
            raise UserError(
                f"expected 0 < mu <= beta = {self.beta}, got {self.mu}: a beta-smooth loss has "
                f"||grad L||^2 <= 2 beta (L - L*), so no larger mu"
            )

    @property
    def learning_rate(self) -> float:
        """eta = 1 / (beta sqrt(T - 1))."""
        return 1 / (self.beta * math.sqrt(self.steps - 1))

    @property
    def weights(self) -> NDArray[np.float64]:
        """alpha_t of eq. 32, ``(T,)``."""
        ratio = 1 + 1 / (self.steps - 1)
        return ratio ** -np.arange(1.0, self.steps + 1)

    @property
    def gap_factor(self) -> float:
        """c_T, which may stand for the 2 of eq. 7."""
        return 1 / (1 - (1 - 1 / self.steps) ** self.steps)

    @property
    def gradient(self) -> float:
        """Eq. 7, on min_t G_t: 2 beta gap / sqrt(T - 1) + beta sigma^2 / sqrt(T - 1)."""
        return self.beta * (2 * self.gap + self.sigma2) / math.sqrt(self.steps - 1)

    @property
    def mean_gradient(self) -> float:
        """Eq. 34 summed up, on the mean of G_t with the weights alpha_t; at most eq. 7."""
        scale = self.beta / math.sqrt(self.steps - 1)
        return scale * (self.gap_factor * self.gap + self.sigma2)

    @property
    def printed_distance(self) -> float:
        """Eqs. 9 and 38 as printed, on min_t E max_g ||g.w_t - w*||: eq. 7 over mu. Not true."""
        return self.gradient / self._mu

    @property
    def squared_distance(self) -> float:
        """What follows from eqs. 7 and 39, on min_t E max_g dist(g.w_t)^2: eq. 7 over mu^2."""
        return self.gradient / self._mu**2

    @property
    def distance(self) -> float:
        """The bound, by Jensen, on min_t E max_g dist(g.w_t), from the nearest minimiser."""
        return math.sqrt(self.squared_distance)

    @property
    def excess(self) -> float:
        """The bound, by eq. 8, on min_t E[L(w_t) - L*]: eq. 7 over 2 mu."""
        return self.gradient / (2 * self._mu)

    @property
    def _mu(self) -> float:
        if self.mu is None:
            raise UserError("expected mu for Theorem 3.2, got none: pass that of the PL inequality")
        return self.mu
