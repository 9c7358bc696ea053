"""The two-layer regression of section 5.2: L(W1, W2) = 1/2 ||Y - W2 sigma(W1 X)||_F^2.

The paper prints the norm itself; its released code, and its learning rates, fit the squared
form, which is the default here (``loss="norm"`` gives the printed one).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt.chain import Identity, LayerChain, LeakyReLU
from metaopt.errors import UserError

LOSSES = ("half_squared", "norm")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class TwoLayerRegression(nn.Module):
    """A batch of independent problems; calling it gives their losses, shape ``(B,)``."""

    def __init__(
        self,
        w1: Tensor,  # (B, hidden, input)
        w2: Tensor,  # (B, output, hidden)
        x: Tensor,  # (B, input, samples)
        y: Tensor,  # (B, output, samples)
        slope: float = 0.1,
        loss: str = "half_squared",
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise UserError(f"expected a loss of {', '.join(LOSSES)}, got {loss!r}: name one")
        for name, tensor in (("W1", w1), ("W2", w2), ("X", x), ("Y", y)):
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"expected finite data, got NaN or infinity in {name}: clean the data first"
                )
        self.W1 = nn.Parameter(w1.clone())
        self.W2 = nn.Parameter(w2.clone())
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.x: Tensor
        self.y: Tensor
        self.chain = LayerChain(
            activations=(LeakyReLU(slope), Identity()), biased=(False, False), batch_dims=1
        )
        self.loss = loss

    @property
    def batch(self) -> int:
        """The number of problems, B."""
        return self.x.shape[0]

    def forward(self) -> Tensor:
        residual = self.y - self.W2 @ self.chain.activations[0](self.W1 @ self.x)
        squared = residual.square().sum(dim=(-2, -1))
        if self.loss == "half_squared":
            return 0.5 * squared
        # At a residual of 0 the root has no gradient: masked on its way in, it is 0, not NaN.
        solved = squared == 0
        return torch.where(solved, 0.0, torch.where(solved, 1.0, squared).sqrt())


@dataclass(frozen=True)
class TwoLayerFamily:
    """Draws problems; the same seed always gives the same problem, whatever it is batched with.

    Attributes:
        samples: columns of X and Y.
        input: rows of X.
        hidden: hidden units.
        output: rows of Y.
        slope: of LeakyReLU, for negative inputs.
        loss: "half_squared" or "norm".
        dtype: "float32" or "float64".
    """

    samples: int = 20
    input: int = 20
    hidden: int = 20
    output: int = 20
    slope: float = 0.1
    loss: str = "half_squared"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("samples", "input", "hidden", "output"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"expected a positive size, got {name}={getattr(self, name)}: "
                    f"use 1 or more for each of samples, input, hidden and output"
                )
        if not 0 < self.slope < float("inf"):
            raise UserError(f"expected a positive slope, got {self.slope}: the paper uses 0.1")
        if self.loss not in LOSSES:
            raise UserError(f"expected a loss of {', '.join(LOSSES)}, got {self.loss!r}: name one")
        if self.dtype not in DTYPES:
            raise UserError(f"expected a dtype of {', '.join(DTYPES)}, got {self.dtype!r}")

    @classmethod
    def square(cls, width: int, **options: float | str) -> TwoLayerFamily:
        """The family with samples = input = hidden = output = ``width``."""
        return cls(width, width, width, width, **options)  # type: ignore[arg-type]

    @property
    def coordinates(self) -> int:
        """The number of weights of one problem."""
        return self.hidden * (self.input + self.output)

    def sample(self, seeds: Iterable[int]) -> TwoLayerRegression:
        """One problem a seed: W1, W2, X, Y uniform on [0, 1), drawn in that order.

        Drawn in float32 and then converted, so that a float64 problem is the same problem.
        """
        drawn = [self._draw(seed) for seed in seeds]
        if not drawn:
            raise UserError("expected at least one problem seed, got none: name a seed")
        w1, w2, x, y = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
        return TwoLayerRegression(w1, w2, x, y, self.slope, self.loss)

    def _draw(self, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            (self.hidden, self.input),
            (self.output, self.hidden),
            (self.input, self.samples),
            (self.output, self.samples),
        )
        return tuple(
            torch.rand(shape, generator=generator, dtype=torch.float32).to(DTYPES[self.dtype])
            for shape in shapes
        )
