"""The tasks of section 5.2: regressions with a LeakyReLU network on full batches of random data.

The loss is 1/2 ||Y - W_L sigma(... sigma(W_1 X))||_F^2, without biases. The paper prints the norm
without the square; ``loss="norm"`` gives that. Its released code and its learning rates fit the
squared form, which is the default here. The paper has L = 2 layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt.checks import check_choice, check_whole
from metaopt.errors import UserError
from metaopt.output_loss import NORM, SQUARE
from metaopt.symmetry.activations import Identity, LeakyReLU
from metaopt.symmetry.chain import LayerChain
from metaopt.tasks.batch import TaskBatch, layer_shapes
from metaopt.tasks.seeds import generators

LARGEST = 10**6  # units and samples, far beyond what is trained here
DEEPEST = 1000
STEEPEST = 1e30
LOSSES = ("half_squared", "norm")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
DISTRIBUTIONS: dict[str, Callable[..., Tensor]] = {"uniform": torch.rand, "normal": torch.randn}


class Regression(TaskBatch):
    """A batch of regressions with networks of one shape. Calling it gives the losses ``(B,)``.

    Args:
        weights: W_1 ... W_L, each ``(B, out, in)``; the parameters ``W1``, ``W2``, ... are copies.
        x: the inputs X, ``(B, input, samples)``.
        y: the targets Y, ``(B, output, samples)``.
        slope: of LeakyReLU for negative inputs.
        loss: "half_squared" or "norm".

    Raises:
        UserError: for an unknown loss, or for data or weights that are not finite.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        slope: float = 0.1,
        loss: str = "half_squared",
    ) -> None:
        super().__init__()
        check_choice("a loss", loss, LOSSES)
        named = {f"W{m}": weight for m, weight in enumerate(weights, start=1)}
        for name, tensor in {**named, "X": x, "Y": y}.items():
            if not torch.isfinite(tensor).all():
                raise UserError(
                    f"expected finite data, got NaN or infinity in {name}: clean the data first"
                )
        for name, weight in named.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.depth = len(named)
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.y: Tensor
        self.chain = LayerChain(
            activations=(*[LeakyReLU(slope)] * (self.depth - 1), Identity()),
            biased=(False,) * self.depth,
            batch_dims=1,
        )
        self.loss = loss
        self.output_loss = NORM if loss == "norm" else SQUARE

    def forward(self, step: int = 0) -> Tensor:
        """Return the losses at the present weights, ``(B,)``.

        Args:
            step: ignored, as every step sees all data.
        """
        first, *later = (getattr(self, f"W{m}") for m in range(1, self.depth + 1))
        output = first @ self.x
        for weight, activation in zip(later, self.chain.activations, strict=False):
            output = weight @ activation(output)
        squared: Tensor = (self.y - output).square().sum(dim=(-2, -1))
        if self.loss == "half_squared":
            return 0.5 * squared
        # At a residual of 0 the root has no gradient: masked on its way in, it is 0, not NaN.
        solved = squared == 0
        return torch.where(solved, 0.0, torch.where(solved, 1.0, squared).sqrt())


@dataclass(frozen=True)
class RegressionFamily:
    """The regression tasks of section 5.2: a network of Linear layers and LeakyReLU fits Y to X.

    A seed always gives the same task, whatever it is batched with. The defaults are the paper's.

    Attributes:
        samples: number of samples, the columns of X and Y.
        input: number of inputs of the network, the rows of X.
        hidden: number of units of each hidden layer.
        output: number of outputs of the network, the rows of Y.
        depth: number of layers, 2 or more.
        slope: slope of LeakyReLU for negative numbers.
        loss: "half_squared" for 1/2 ||Y - F(X)||^2, or "norm" for ||Y - F(X)||.
        distribution: distribution of the entries of weights and data, "uniform" on [0, 1) or
            "normal".
        dtype: data type of weights and data, "float32" or "float64".

    Raises:
        UserError: for an unknown name, or a number outside its range.
    """

    samples: int = 20
    input: int = 20
    hidden: int = 20
    output: int = 20
    depth: int = 2
    slope: float = 0.1
    loss: str = "half_squared"
    distribution: str = "uniform"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("samples", "input", "hidden", "output"):
            check_whole(name, getattr(self, name), 1, LARGEST)
        check_whole("depth", self.depth, 2, DEEPEST)
        if not 1 / STEEPEST <= self.slope <= STEEPEST:  # its inverse is one too, in float32
            raise UserError(
                f"expected a positive slope, from {1 / STEEPEST:g} to {STEEPEST:g}, got "
                f"{self.slope}: the paper uses 0.1"
            )
        check_choice("a loss", self.loss, LOSSES)
        check_choice("a distribution", self.distribution, DISTRIBUTIONS)
        check_choice("a dtype", self.dtype, DTYPES)

    @classmethod
    def square(cls, width: int, **options: float | str) -> RegressionFamily:
        """Return the family with samples = input = hidden = output = ``width``.

        Args:
            width: of all four.
            **options: further fields of the family.
        """
        return cls(width, width, width, width, **options)  # type: ignore[arg-type]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes (out, in) of the weights W_1 ... W_L."""
        return layer_shapes(self.input, self.hidden, self.output, self.depth)

    @property
    def coordinates(self) -> int:
        """The number of weights of one task."""
        return sum(out * fan_in for out, fan_in in self.shapes)

    def sample(self, seeds: Iterable[int]) -> Regression:
        """Draw one task a seed, as one batch.

        A seed gives W_1 ... W_L, X and Y, in this order. They are drawn in float32 and then
        converted, so that both dtypes give the same task.

        Args:
            seeds: integers from 0 to 2^63 - 1, at least one.

        Raises:
            UserError: for no seed, or one outside that range.
        """
        drawn = [self._draw(generator) for generator in generators(seeds)]
        *weights, x, y = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
        return Regression(weights, x, y, self.slope, self.loss)

    def _draw(self, generator: torch.Generator) -> list[Tensor]:
        draw = DISTRIBUTIONS[self.distribution]
        shapes = [*self.shapes, (self.input, self.samples), (self.output, self.samples)]
        return [
            draw(shape, generator=generator, dtype=torch.float32).to(DTYPES[self.dtype])
            for shape in shapes
        ]
