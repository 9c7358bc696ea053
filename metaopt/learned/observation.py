"""What a meta-optimizer sees of a network at one step, and the scales that make it comparable.

Gradients, weights and features enter the LSTMs as numbers (:attr:`Observation.numbers`), as in
Andrychowicz et al. (2016) and the paper's released code; else a meta-gradient explodes. The step
that m1's heads make of the gradient and of its scales is a function of the weights: a meta-gradient
of second order goes through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metaopt.symmetry.chain import NO_CHAIN, Layer, LayerChain

TINY = 1e-30  # keeps a division by a vanished scale finite in float32


@dataclass(frozen=True)
class Observation:
    """Gradients, weights and layer inputs at w_t."""

    chain: LayerChain
    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    x: Tensor  # (*batch, d_0, samples)
    as_given: tuple[Sequence[Tensor], Tensor] | None = None  # parameters and x before rounding
    scales: Sequence[Tensor] | None = None  # kappa of each parameter that no chain tells

    @classmethod
    def of(
        cls,
        chain: LayerChain,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        x: Tensor,
        second_order: bool = False,
    ) -> Observation:
        """In float32 whatever the dtype of the weights: the networks are float32.

        Detached, unless ``second_order``.
        """
        if not second_order:
            parameters, gradients = (
                [tensor.detach() for tensor in tensors] for tensors in (parameters, gradients)
            )
        return cls(
            chain,
            [parameter.float() for parameter in parameters],
            [gradient.float() for gradient in gradients],
            x.detach().float(),
            (parameters, x.detach()),
        )

    @classmethod
    def loose(
        cls, parameters: Sequence[Tensor], gradients: Sequence[Tensor], scales: Sequence[Tensor]
    ) -> Observation:
        """Of parameters that belong to no chain of layers.

        Args:
            scales: kappa of each, a scalar.
        """
        return cls(
            NO_CHAIN,
            [parameter.detach().float() for parameter in parameters],
            [gradient.detach().float() for gradient in gradients],
            parameters[0].new_empty(0, dtype=torch.float32),
            scales=scales,
        )

    @cached_property
    def numbers(self) -> Observation:
        """The same without its graph: what the LSTMs see."""
        if not any(tensor.requires_grad for tensor in (*self.parameters, *self.gradients)):
            return self
        parameters, gradients = (
            [tensor.detach() for tensor in tensors] for tensors in (self.parameters, self.gradients)
        )
        given = None
        if self.as_given is not None:
            given = ([tensor.detach() for tensor in self.as_given[0]], self.as_given[1])
        return Observation(self.chain, parameters, gradients, self.x, given, self.scales)

    @property
    def batch_dims(self) -> int:
        return self.chain.batch_dims

    @cached_property
    def layers(self) -> list[Layer]:
        """W and b of each layer."""
        return self.chain.layers(self.parameters)

    @cached_property
    def layer_gradients(self) -> list[Layer]:
        """The gradients, in the form of layers."""
        return self.chain.layers(self.gradients)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """h_0 ... h_{L-1}."""
        return self.chain.inputs(self.layers, self.x)

    @cached_property
    def double_layers(self) -> list[Layer]:
        """W and b of each layer in float64, for what cannot bear the rounding of float32."""
        parameters = self.parameters if self.as_given is None else self.as_given[0]
        return self.chain.layers([parameter.double() for parameter in parameters])

    @cached_property
    def double_inputs(self) -> list[Tensor]:
        """h_0 ... h_{L-1} in float64."""
        x = self.x if self.as_given is None else self.as_given[1]
        return self.chain.inputs(self.double_layers, x.double())

    @cached_property
    def curvature(self) -> list[Tensor]:
        """kappa of each parameter, ``(*batch,)``: the scale of the curvature it meets.

        For a weight W_m, ||h_{m-1}||_F^2 prod_{n > m} ||W_n||_F^2; for its bias the same with the
        number of samples instead of ||h_{m-1}||_F^2. An upper bound on the largest eigenvalue of
        its block of the Gauss-Newton matrix of 1/2 ||Y - F||_F^2.
        """
        return self._curvature(_square_norm) if self.scales is None else list(self.scales)

    @cached_property
    def spectral_curvature(self) -> list[Tensor]:
        """The same with :func:`square_spectral_norm` for ||.||_F^2: a tighter bound.

        Where the features are white, ||h||_F^2 is k times the largest eigenvalue of h h^T.
        """
        if self.scales is not None:
            return list(self.scales)
        return self._curvature(square_spectral_norm)

    def _curvature(self, square: Callable[[Tensor], Tensor]) -> list[Tensor]:
        kappas: list[Tensor] = []
        downstream = self.x.new_ones(self.x.shape[: self.batch_dims])
        for layer, h in zip(reversed(self.layers), reversed(self.inputs), strict=True):
            if layer.bias is not None:
                kappas.append(h.shape[-1] * downstream)
            kappas.append(square(h) * downstream)
            downstream = downstream * square(layer.weight)
        return kappas[::-1]

    @cached_property
    def relative_rms(self) -> list[Tensor]:
        """r of each parameter, ``(*batch,)``: the RMS over its entries of gradient / kappa."""
        return [
            _root(gradient.square().mean(dim=tuple(range(self.batch_dims, gradient.dim()))))
            / (kappa + TINY)
            for gradient, kappa in zip(self.gradients, self.curvature, strict=True)
        ]

    def coordinates(self, per_parameter: Sequence[Tensor]) -> Tensor:
        """One value a parameter and problem, ``(*batch,)`` each, spread to all coordinates (N,)."""
        spread = []
        for value, parameter in zip(per_parameter, self.parameters, strict=True):
            trailing = (1,) * (parameter.dim() - self.batch_dims)
            spread.append(value.reshape(value.shape + trailing).expand_as(parameter))
        return flatten(spread)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries of all tensors in one row, (N,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten`, with the shapes of ``like``."""
    pieces = torch.split(row, [tensor.numel() for tensor in like])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def log_sign(values: Tensor, p: float = 10.0) -> tuple[Tensor, Tensor]:
    """The preprocessing of Andrychowicz et al. (2016), appendix A.

    (log|v| / p, sign v) where |v| >= e^-p, else (-1, e^p v); written without a branch.
    """
    magnitude = values.abs().clamp_(min=math.exp(-p)).log_().div_(p)
    direction = (values * math.exp(p)).clamp_(-1.0, 1.0)
    return magnitude, direction


def square_spectral_norm(matrix: Tensor) -> Tensor:
    """||A||_2^2, at most too large by a factor n^(1/8) for the smaller side n: ``(*batch,)``.

    The Schatten-8 norm of the Gram matrix A A^T or A^T A: products alone, no decomposition.
    """
    rows, columns = matrix.shape[-2:]
    gram = matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix
    scale = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    unit = gram / (scale[..., None, None] + TINY)
    squared = unit @ unit
    eighth: Tensor = torch.linalg.matrix_norm(squared @ squared)
    return scale * _root(_root(eighth))


def _root(value: Tensor) -> Tensor:
    """The square root, with a derivative of 0 at 0 instead of NaN."""
    zero = value == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, value).sqrt())


def _square_norm(matrix: Tensor) -> Tensor:
    return matrix.square().sum(dim=(-2, -1))
