"""Tasks of small networks with biases, trained on minibatches of data from a random teacher.

They are like the training of ordinary networks in what the regressions of section 5.2 lack: noise
from minibatches, features of unequal variance, losses that cannot reach zero, and initial weights
of the size that torch gives its layers. Learned optimizers for ordinary networks train on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.checks import check_choice, check_not_negative, check_whole
from metaopt.symmetry.chain import LayerChain
from metaopt.tasks.batch import TaskBatch, layer_shapes
from metaopt.tasks.regression import DEEPEST, LARGEST
from metaopt.tasks.seeds import generators

KINDS = ("classification", "regression")
NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": lambda z: functional.leaky_relu(z, 0.1),
    "tanh": torch.tanh,
    "gelu": functional.gelu,
}
TEACHER_WIDTH = 32


class MinibatchTasks(TaskBatch):
    """A batch of networks of one architecture, each with its own weights and its own data.

    Calling it with the number of a step gives the losses ``(B,)`` on the minibatch of that step.

    Args:
        family: what the tasks were drawn from; it says the architecture and the loss.
        weights: one tensor a layer, ``(B, out, in)``.
        biases: one tensor a layer, ``(B, out)``.
        data: ``(B, samples, input)``.
        targets: ``(B, samples, output)`` for regression, classes ``(B, samples)`` otherwise.
    """

    def __init__(
        self,
        family: MinibatchFamily,
        weights: list[Tensor],
        biases: list[Tensor],
        data: Tensor,
        targets: Tensor,
    ) -> None:
        super().__init__()
        self.family = family
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
            self.register_parameter(f"W{index}", nn.Parameter(weight))
            self.register_parameter(f"b{index}", nn.Parameter(bias))
        self.register_buffer("data", data)
        self.register_buffer("targets", targets)
        self.register_buffer("x", data.new_zeros(len(data), 1, 1))  # no chain, so no input of one
        self.data: Tensor
        self.targets: Tensor
        self.chain = LayerChain((), (), batch_dims=1)

    def forward(self, step: int = 0) -> Tensor:
        """Return the mean losses on the minibatch of a step, ``(B,)``.

        The minibatches are consecutive slices of the data, taken in turn. A last one that would be
        shorter is left out.

        Args:
            step: the number of the step, from 0.
        """
        size = self.family.minibatch
        start = step % (self.family.samples // size) * size
        h = self.data[:, start : start + size].mT
        targets = self.targets[:, start : start + size]
        activation = NONLINEAR[self.family.activation]
        layers = self.family.depth
        for index in range(1, layers + 1):
            weight, bias = getattr(self, f"W{index}"), getattr(self, f"b{index}")
            z = weight @ h + bias.unsqueeze(-1)
            if index == layers:
                h = z
            elif self.family.residual and z.shape == h.shape:
                h = h + activation(z)
            else:
                h = activation(z)
        if self.family.kind == "classification":
            return functional.cross_entropy(h, targets, reduction="none").mean(dim=-1)
        return (h.mT - targets).square().mean(dim=(-2, -1))


@dataclass(frozen=True)
class MinibatchFamily:
    """A distribution of small networks on minibatches of data that a random teacher has labelled.

    Attributes:
        kind: "classification" (cross entropy) or "regression" (mean squared error).
        input: features of a sample.
        hidden: units of each hidden layer.
        output: classes, or outputs of a regression.
        depth: the number of layers, 2 or more.
        samples: the size of the data set.
        minibatch: samples of a step.
        activation: "relu", "leaky_relu" (of slope 0.1), "tanh" or "gelu".
        residual: whether a hidden layer of equal widths adds its input to its output.
        weight_scale: the size of the initial weights, as a multiple of that in ``torch.nn.Linear``.
        data_scale: root mean square of the inputs.
        decay: the i-th principal direction of the inputs has a standard deviation of i^-decay.
        noise: standard deviation of the noise on the teacher's answers, as a multiple of theirs.

    Raises:
        UserError: for an unknown name, or a number outside its range.
    """

    kind: str = "classification"
    input: int = 32
    hidden: int = 16
    output: int = 10
    depth: int = 3
    samples: int = 1024
    minibatch: int = 32
    activation: str = "relu"
    residual: bool = False
    weight_scale: float = 1.0
    data_scale: float = 1.0
    decay: float = 0.5
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_choice("a kind", self.kind, KINDS)
        check_choice("an activation", self.activation, NONLINEAR)
        for name, least, most in (
            ("input", 1, LARGEST),
            ("hidden", 1, LARGEST),
            ("output", 2 if self.kind == "classification" else 1, LARGEST),
            ("depth", 2, DEEPEST),
            ("samples", 2, LARGEST),
            ("minibatch", 1, self.samples),
        ):
            check_whole(name, getattr(self, name), least, most)
        for name in ("weight_scale", "data_scale", "decay", "noise"):
            check_not_negative(name, getattr(self, name))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes (out, in) of the weights W_1 ... W_L."""
        return layer_shapes(self.input, self.hidden, self.output, self.depth)

    @property
    def coordinates(self) -> int:
        """The number of weights and biases of one task."""
        return sum(out * (fan_in + 1) for out, fan_in in self.shapes)

    def sample(self, seeds: Iterable[int]) -> MinibatchTasks:
        """Draw one task a seed, as one batch.

        Args:
            seeds: integers from 0 to 2^63 - 1, at least one.

        Raises:
            UserError: for no seed, or one outside that range.
        """
        drawn = [self._draw(generator) for generator in generators(seeds)]
        weights, biases = (
            [torch.stack(layer) for layer in zip(*layers, strict=True)]
            for layers in ([d[0] for d in drawn], [d[1] for d in drawn])
        )
        data, targets = torch.stack([d[2] for d in drawn]), torch.stack([d[3] for d in drawn])
        return MinibatchTasks(self, weights, biases, data, targets)

    def _draw(
        self, generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) * 2 - 1

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        weights = [
            self.weight_scale * uniform(out, fan_in) / fan_in**0.5 for out, fan_in in self.shapes
        ]
        biases = [self.weight_scale * uniform(out) / fan_in**0.5 for out, fan_in in self.shapes]
        deviations = torch.arange(1, self.input + 1).pow(-self.decay)
        mixing = torch.linalg.qr(normal(self.input, self.input))[0] * deviations
        data = normal(self.samples, self.input) @ mixing.mT + 0.3 * mixing @ normal(self.input)
        data = data / data.square().mean().sqrt()
        inner = torch.tanh(2.0 * data @ normal(self.input, TEACHER_WIDTH) / self.input**0.5)
        answers = inner @ normal(TEACHER_WIDTH, self.output)
        answers = answers / answers.std(dim=0, unbiased=False).clamp(min=1e-6)
        answers = answers + self.noise * normal(self.samples, self.output)
        targets = answers.argmax(dim=1) if self.kind == "classification" else answers
        return weights, biases, self.data_scale * data, targets
