"""A network seen as a chain of layers, with sites between them where a group can act.

The chain is stateless: it knows how many layers there are, which carry a bias and which
activation follows each, and computes with parameters that are handed to it. Every tensor may
have leading batch dimensions (independent networks); a sample is a *column*, as in the paper:
h_m = sigma(W_m h_{m-1} + b_m), with h_0 of shape ``(*batch, d_0, samples)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Activation(Protocol):
    """An elementwise activation, with what a symmetry needs to know of it."""

    @property
    def inverse(self) -> Activation | None:
        """sigma^-1, or None where sigma is not a bijection of the real line."""

    @property
    def homogeneous(self) -> bool:
        """Whether sigma(c z) = c sigma(z) for every c > 0."""

    def __call__(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LeakyReLU:
    """sigma(z) = z for z > 0, slope * z otherwise; ReLU at slope 0, the identity at slope 1."""

    slope: float = 0.1

    @property
    def inverse(self) -> LeakyReLU | None:
        return LeakyReLU(1.0 / self.slope) if self.slope > 0 else None

    @property
    def homogeneous(self) -> bool:
        return True

    def __call__(self, z: Tensor) -> Tensor:
        return functional.leaky_relu(z, self.slope)


@dataclass(frozen=True)
class Identity:
    """sigma(z) = z."""

    @property
    def inverse(self) -> Identity:
        return self

    @property
    def homogeneous(self) -> bool:
        return True

    def __call__(self, z: Tensor) -> Tensor:
        return z


class Layer(NamedTuple):
    """One affine layer: W_m and, where it has one, b_m."""

    weight: Tensor  # (*batch, out, in)
    bias: Tensor | None = None  # (*batch, out)

    def __call__(self, h: Tensor) -> Tensor:
        """W h + b, shape ``(*batch, out, samples)``."""
        z = self.weight @ h
        return z if self.bias is None else z + self.bias.unsqueeze(-1)

    def joined(self) -> Tensor:
        """[W b], ``(*batch, out, in + 1)``; W alone where there is no bias."""
        if self.bias is None:
            return self.weight
        return torch.cat((self.weight, self.bias.unsqueeze(-1)), dim=-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Layer:
        """The layer with ``function`` applied to each of its tensors."""
        return Layer(function(self.weight), None if self.bias is None else function(self.bias))


class Site(NamedTuple):
    """A place where a group acts: between layer ``incoming`` (W_{m-1}) and ``outgoing`` (W_m)."""

    incoming: int
    outgoing: int


@dataclass(frozen=True)
class LayerChain:
    """Layers in order. ``activations[m]`` follows layer m; ``biased[m]`` says if it has a bias."""

    activations: tuple[Activation, ...]
    biased: tuple[bool, ...]
    batch_dims: int = 0

    def __post_init__(self) -> None:
        if len(self.activations) != len(self.biased):
            raise ValueError(
                f"expected as many activations as layers ({len(self.biased)}), "
                f"got {len(self.activations)}: give one activation for each layer"
            )

    @property
    def sites(self) -> tuple[Site, ...]:
        """Each consecutive pair of layers."""
        return tuple(Site(m, m + 1) for m in range(len(self.activations) - 1))

    @property
    def invertible(self) -> bool:
        """Whether every activation between two layers has an inverse on the real line."""
        return all(activation.inverse is not None for activation in self.activations[:-1])

    def layers(self, parameters: Sequence[Tensor]) -> list[Layer]:
        """The parameters, in the order weight, bias, weight, ..., as layers."""
        remaining = iter(parameters)
        return [
            Layer(next(remaining), next(remaining) if biased else None) for biased in self.biased
        ]

    def parameters(self, layers: Sequence[Layer]) -> list[Tensor]:
        """The inverse of :meth:`layers`."""
        return [tensor for layer in layers for tensor in layer if tensor is not None]

    def inputs(self, layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
        """h_0 ... h_{L-1}: what each layer is given, ``(*batch, features, samples)``."""
        inputs = [x]
        for layer, activation in zip(layers[:-1], self.activations[:-1], strict=True):
            inputs.append(activation(layer(inputs[-1])))
        return inputs

    def output(self, layers: Sequence[Layer], x: Tensor) -> Tensor:
        """h_L, ``(*batch, out, samples)``."""
        return self.activations[-1](layers[-1](self.inputs(layers, x)[-1]))
