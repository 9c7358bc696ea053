"""Small networks of many kinds on full batches: the relatives of what people fit every day."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaopt.checks import check_choice, check_positive, check_whole
from metaopt.output_loss import SOFTMAX, SQUARE
from metaopt.symmetry.activations import Activation, Elementwise, Identity, LeakyReLU
from metaopt.symmetry.chain import LayerChain
from metaopt.tasks.batch import TaskBatch, layer_shapes
from metaopt.tasks.seeds import generators

ACTIVATIONS: dict[str, Activation] = {
    "relu": LeakyReLU(0.0),
    "leaky_relu": LeakyReLU(0.1),
    "steep_leaky_relu": LeakyReLU(0.3),
    "tanh": Elementwise("Tanh", torch.tanh),
    "gelu": Elementwise("GELU", F.gelu),
    "sigmoid": Elementwise("Sigmoid", torch.sigmoid),
    "softplus": Elementwise("Softplus", F.softplus),
    "silu": Elementwise("SiLU", F.silu),
}
"""Activations of hidden layers by name."""

LOSSES = {"half_squared": SQUARE, "cross_entropy": SOFTMAX}
"""Losses by name."""

LARGEST = 10**6


class Networks(TaskBatch):
    """A batch of networks of one shape on their data. Calling it gives the losses, ``(B,)``.

    Args:
        weights: W_1 ... W_L, each ``(B, out, in)``.
        biases: b_1 ... b_L, each ``(B, out)``; none for a network without.
        x: the inputs, ``(B, input, samples)``.
        y: the targets, ``(B, output, samples)``.
        activation: that follows each layer but the last.
        loss: "half_squared" for 1/2 ||Y - F||^2, or "cross_entropy" for the sum of the cross
            entropies of the columns, of which Y has probabilities.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        activation: Activation,
        loss: str = "half_squared",
    ) -> None:
        super().__init__()
        for m, weight in enumerate(weights):
            self.register_parameter(f"W{m + 1}", nn.Parameter(weight.clone()))
            if biases:
                self.register_parameter(f"b{m + 1}", nn.Parameter(biases[m].clone()))
        self.register_buffer("x", x)
        self.register_buffer("y", y)
        self.y: Tensor
        self.output_loss = LOSSES[loss]
        depth = len(weights)
        self.chain = LayerChain(
            activations=(*[activation] * (depth - 1), Identity()),
            biased=(bool(biases),) * depth,
            batch_dims=1,
        )

    def forward(self, step: int = 0) -> Tensor:
        """Return the losses at the present weights, ``(B,)``.

        Args:
            step: ignored, as every step sees all data.
        """
        layers = self.chain.layers([getattr(self, name) for name in self.chain.names])
        output = self.chain.output(layers, self.x)
        return self.output_loss.terms(output, self.y).sum(dim=(-2, -1))


@dataclass(frozen=True)
class NetworkFamily:
    """Networks of Linear layers with torch's initial weights, on full batches of data.

    The targets are those of another such network, times ``teacher``, plus noise. For the cross
    entropy the largest of a column is its class. A seed always gives the same task, whatever it is
    batched with.

    Attributes:
        input: inputs of a sample.
        hidden: units of each hidden layer.
        output: outputs.
        depth: number of layers, 1 or more.
        samples: number of samples.
        activation: of the hidden layers, one of :data:`ACTIVATIONS`.
        bias: whether layers have a bias.
        mixed: whether the inputs are mixed by a random matrix, so that they are correlated.
        data_scale: standard deviation of the inputs before that.
        weight_scale: factor of torch's initial weights.
        teacher: factor of the other network's outputs.
        noise: standard deviation of the noise.
        loss: "half_squared" or "cross_entropy"; both are sums over samples.
        dtype: "float32" or "float64".
    """

    input: int = 12
    hidden: int = 24
    output: int = 3
    depth: int = 3
    samples: int = 72
    activation: str = "relu"
    bias: bool = True
    mixed: bool = False
    data_scale: float = 1.0
    weight_scale: float = 1.0
    teacher: float = 1.0
    noise: float = 0.1
    loss: str = "half_squared"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("input", "hidden", "output", "depth", "samples"):
            check_whole(name, getattr(self, name), 1, LARGEST)
        check_choice("an activation", self.activation, ACTIVATIONS)
        check_choice("a loss", self.loss, LOSSES)
        check_positive("data_scale", self.data_scale, 1.0)
        check_positive("weight_scale", self.weight_scale, 1.0)

    @property
    def coordinates(self) -> int:
        """The number of weights of one task."""
        shapes = layer_shapes(self.input, self.hidden, self.output, self.depth)
        return sum(out * (fan_in + self.bias) for out, fan_in in shapes)

    def sample(self, seeds: Iterable[int]) -> Networks:
        """Draw one task a seed, as one batch.

        Args:
            seeds: integers from 0 to 2^63 - 1, at least one.
        """
        drawn = [self._draw(generator) for generator in generators(seeds)]
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        *parameters, x, y = (torch.stack(own).to(dtype) for own in zip(*drawn, strict=True))
        weights, biases = parameters[: self.depth], parameters[self.depth :]
        return Networks(weights, biases, x, y, ACTIVATIONS[self.activation], self.loss)

    def _draw(self, generator: torch.Generator) -> list[Tensor]:
        own, teacher = (self._network(generator) for _ in range(2))
        x = torch.randn(self.input, self.samples, generator=generator) * self.data_scale
        if self.mixed:
            mixing = torch.randn(self.input, self.input, generator=generator)
            x = mixing @ x / self.input**0.5
        noise = torch.randn(self.output, self.samples, generator=generator)
        h, biases = x, teacher[self.depth :]
        for m, weight in enumerate(teacher[: self.depth]):
            h = h if m == 0 else ACTIVATIONS[self.activation](h)
            h = weight @ h + (biases[m].unsqueeze(-1) if biases else 0.0)
        scale = h.std() if h.numel() > 1 else h.abs().max()
        y = self.teacher * h / (scale + 1e-12) + self.noise * noise
        if self.loss == "cross_entropy":
            y = F.one_hot(y.argmax(dim=0), self.output).to(y.dtype).mT
        return [*(self.weight_scale * p for p in own), x, y]

    def _network(self, generator: torch.Generator) -> list[Tensor]:
        """Weights, then biases, distributed as those of ``nn.Linear``."""

        def uniform(*shape: int, fan_in: int) -> Tensor:
            bound = fan_in**-0.5
            return torch.empty(shape).uniform_(-bound, bound, generator=generator)

        shapes = layer_shapes(self.input, self.hidden, self.output, self.depth)
        weights = [uniform(out, fan_in, fan_in=fan_in) for out, fan_in in shapes]
        biases = [uniform(out, fan_in=fan_in) for out, fan_in in shapes] if self.bias else []
        return weights + biases
