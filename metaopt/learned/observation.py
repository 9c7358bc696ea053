"""What a meta-optimizer sees of a network at one step, and the scales that make it comparable.

Gradients, weights and features enter the LSTMs without their graph (:attr:`Observation.numbers`),
as in Andrychowicz et al. (2016) and in the paper's released code. Otherwise a meta-gradient
explodes. The step that m1 (the update network) makes of a gradient and of its scale is a function
of the weights, and a meta-gradient of second order goes through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.learned.chain_pass import ChainPass
from metaopt.learned.kronecker import Pass, moments, passed
from metaopt.learned.module_layout import ModuleLayout
from metaopt.learned.network_pass import NetworkPass
from metaopt.output_loss import SQUARE, OutputLoss
from metaopt.roles import Role
from metaopt.symmetry.chain import NO_CHAIN, Layer, LayerChain, Layout
from metaopt.symmetry.inputs import Eigen, LayerInput

TINY = 1e-30  # keeps a division by a vanished scale finite in float32


class SeenLoss(NamedTuple):
    """What is known of the loss of each task, in the unit of its curvature in the output; detached.

    Attributes:
        values: the losses, ``(tasks,)``.
        kind: what they are as a function of the output.
        exact: whether they are known to be that.
        factor: of a loss that is remembered of the step before, where the unit was another one: the
            square of the quotient of the units. It is inf where there is none to compare with.
        targets: of the outputs, ``(*batch, out, samples)``, if they are known.
        output_gradient: of the losses in the outputs, ``(*batch, out, samples)``, if it is known.
    """

    values: Tensor
    kind: OutputLoss = SQUARE
    exact: bool = True
    factor: float = 1.0
    targets: Tensor | None = None
    output_gradient: Tensor | None = None


@dataclass(frozen=True)
class Observation:
    """The gradients, the weights and the layers' inputs at w_t, in float32.

    Attributes:
        chain: the layers; ``NO_CHAIN`` where the parameters are none.
        parameters: in the order weight, bias, weight, ...; each with leading batch dimensions, one
            network for each index.
        gradients: of the loss, summed over the batch; one for each parameter, of its shape.
        x: the chain's input, ``(*batch, d_0, samples)``; empty without a chain.
        as_given: the parameters and x in the dtype that they came in.
        given_scales: the Gauss-Newton scale of each parameter, ``(*batch,)``, where no chain says
            it.
        loss: what is known of the loss, if it is of the same data as at the step before, or if
            there was none before.
        rate: the factor that f is going to be multiplied by.
        absent: places of the parameters that stay where they are, whatever f is.
        given_gradients: the gradients in the dtype that they came in.
        roles: what each parameter is for, where it is known.
        total_steps: how many steps the run is going to have; 0 if it is not known.
        made: how many of them were made before, if it is known.
        weight_decay: by how much of the length of f the weights are drawn to 0, for rules that step
            in place.
        given_input: the chain's input with what was computed from it, if it is kept.
        module: how the parameters are layers, where they are no chain.
        module_pass: the pass of the module, where it was differentiated.
    """

    chain: LayerChain
    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    x: Tensor
    as_given: tuple[Sequence[Tensor], Tensor] | None = None
    given_scales: Sequence[Tensor] | None = None
    loss: SeenLoss | None = None
    rate: float = 1.0
    absent: frozenset[int] = frozenset()
    given_gradients: Sequence[Tensor] | None = None
    roles: Sequence[Role] | None = None
    total_steps: int = 0
    made: int | None = None
    weight_decay: float = 0.0
    given_input: LayerInput | None = None
    module: ModuleLayout | None = None
    module_pass: NetworkPass | None = None

    @classmethod
    def of(
        cls,
        chain: LayerChain,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        x: Tensor,
        second_order: bool = False,
        loss: SeenLoss | None = None,
        rate: float = 1.0,
        absent: frozenset[int] = frozenset(),
        roles: Sequence[Role] | None = None,
        total_steps: int = 0,
        given_input: LayerInput | None = None,
    ) -> Observation:
        """Return what is seen of a chain of layers.

        It is float32 whatever the dtype of the weights is, since m1 and m2 are.

        Args:
            chain: the layers.
            parameters: of the chain, in order.
            gradients: one for each parameter, of its shape.
            x: the chain's input, ``(*batch, d_0, samples)``.
            second_order: whether the parameters and gradients keep their graph.
            loss: what is known of the loss, with gradients in its unit.
            rate: the factor that f is going to be multiplied by.
            absent: places of the parameters that stay where they are.
            roles: what each parameter is for, where it is known.
            total_steps: how many steps the run is going to have; 0 if it is not known.
            given_input: the chain's input with what was computed from it, if it is kept.
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
            loss=loss,
            rate=rate,
            absent=absent,
            given_gradients=gradients,
            roles=roles,
            total_steps=total_steps,
            given_input=given_input,
        )

    @classmethod
    def loose(
        cls,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        scales: Sequence[Tensor],
        roles: Sequence[Role] | None = None,
        total_steps: int = 0,
    ) -> Observation:
        """Return what is seen of parameters that are no chain of layers; it has no graph.

        Args:
            parameters: in order.
            gradients: one for each parameter, of its shape.
            scales: the Gauss-Newton scale of each, a scalar; none for an m1 that asks for none.
            roles: what each parameter is for, where it is known.
            total_steps: how many steps the run is going to have; 0 if it is not known.
        """
        return cls(
            NO_CHAIN,
            [parameter.detach().float() for parameter in parameters],
            [gradient.detach().float() for gradient in gradients],
            parameters[0].new_empty(0, dtype=torch.float32),
            given_scales=scales,
            roles=roles,
            total_steps=total_steps,
        )

    @cached_property
    def numbers(self) -> Observation:
        """The same without its graph, which is what the LSTMs see."""
        if not any(tensor.requires_grad for tensor in (*self.parameters, *self.gradients)):
            return self
        parameters, gradients = (
            [tensor.detach() for tensor in tensors] for tensors in (self.parameters, self.gradients)
        )
        given = None
        if self.as_given is not None:
            given = ([tensor.detach() for tensor in self.as_given[0]], self.as_given[1])
        return Observation(
            self.chain,
            parameters,
            gradients,
            self.x,
            given,
            self.given_scales,
            given_input=self.given_input,
        )

    @property
    def batch_dims(self) -> int:
        """How many leading dimensions of each parameter count independent tasks."""
        return self.chain.batch_dims

    @property
    def layout(self) -> Layout:
        """How the parameters are layers: as a chain, or as those of a module."""
        return self.chain if self.module is None else self.module

    @cached_property
    def layers(self) -> list[Layer]:
        """The weight and bias of each layer."""
        return self.layout.layers(self.parameters)

    @cached_property
    def layer_gradients(self) -> list[Layer]:
        """The gradients of the weight and bias of each layer."""
        return self.chain.layers(self.gradients)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """What each layer is given, h_0 ... h_{L-1}, ``(*batch, features, samples)`` each."""
        return self.chain.inputs(self.layers, self.x)

    @property
    def parameters_given(self) -> Sequence[Tensor]:
        """The parameters as they were before any rounding."""
        return self.parameters if self.as_given is None else self.as_given[0]

    @property
    def gradients_given(self) -> Sequence[Tensor]:
        """The gradients as they were before any rounding."""
        return self.gradients if self.given_gradients is None else self.given_gradients

    @cached_property
    def double_layers(self) -> list[Layer]:
        """The weight and bias of each layer in float64, as they were before any rounding."""
        return self.chain.layers([parameter.double() for parameter in self.parameters_given])

    @cached_property
    def double_gradients(self) -> list[Layer]:
        """The gradients of each layer in float64, as they were before any rounding."""
        return self.chain.layers([gradient.double() for gradient in self.gradients_given])

    @cached_property
    def input(self) -> LayerInput:
        """The chain's input, as it was before any rounding."""
        if self.given_input is not None:
            return self.given_input
        return LayerInput(self.x if self.as_given is None else self.as_given[1])

    @cached_property
    def passed(self) -> Pass:
        """The forward pass in float64, without a graph, of what there was before any rounding."""
        return passed(self.chain, self.double_layers, self.input)

    @cached_property
    def network_pass(self) -> NetworkPass:
        """The same with its derivatives, or that of the module."""
        if self.module_pass is not None:
            return self.module_pass
        return ChainPass(
            self.chain, self.double_layers, self.input, self.passed, lambda: self.moments
        )

    @cached_property
    def moments(self) -> list[Eigen]:
        """The second moments of each layer's input, with a 1 for the bias, decomposed."""
        return moments(self.chain, self.passed, self.input)

    @cached_property
    def double_inputs(self) -> list[Tensor]:
        """What each layer is given in float64, computed from what there was before any rounding."""
        x = self.x if self.as_given is None else self.as_given[1]
        return self.chain.inputs(self.double_layers, x.double())

    @cached_property
    def gauss_newton_scale(self) -> list[Tensor]:
        """The Gauss-Newton scale of each parameter, ``(*batch,)``.

        It is an upper bound on the largest eigenvalue of the parameter's block of the Gauss-Newton
        matrix of 1/2 ||Y - F||_F^2. For a weight W_m it is
        ||h_{m-1}||_F^2 prod_{n > m} ||W_n||_F^2. For its bias the number of samples stands for
        ||h_{m-1}||_F^2.
        """
        return self._scale(_square_norm) if self.given_scales is None else list(self.given_scales)

    @cached_property
    def spectral_scale(self) -> list[Tensor]:
        """A tighter Gauss-Newton scale of each parameter, ``(*batch,)``.

        It has :func:`square_spectral_norm` in place of ||.||_F^2. Where the k features are white,
        ||h||_F^2 is k times the largest eigenvalue of h h^T.
        """
        if self.given_scales is not None:
            return list(self.given_scales)
        return self._scale(square_spectral_norm)

    def _scale(self, square: Callable[[Tensor], Tensor]) -> list[Tensor]:
        scales: list[Tensor] = []
        downstream = self.x.new_ones(self.x.shape[: self.batch_dims])
        for layer, h in zip(reversed(self.layers), reversed(self.inputs), strict=True):
            if layer.bias is not None:
                scales.append(h.shape[-1] * downstream)
            scales.append(square(h) * downstream)
            downstream = downstream * square(layer.weight)
        return scales[::-1]

    @cached_property
    def relative_rms(self) -> list[Tensor]:
        """The root mean square of gradient / scale over each parameter, ``(*batch,)``."""
        return [
            _root(gradient.square().mean(dim=tuple(range(self.batch_dims, gradient.dim()))))
            / (scale + TINY)
            for gradient, scale in zip(self.gradients, self.gauss_newton_scale, strict=True)
        ]

    def coordinates(self, per_parameter: Sequence[Tensor]) -> Tensor:
        """Return the value of its parameter at each coordinate, ``(coordinates,)``.

        Args:
            per_parameter: a value for each parameter and task, ``(*batch,)`` each.
        """
        spread = []
        for value, parameter in zip(per_parameter, self.parameters, strict=True):
            trailing = (1,) * (parameter.dim() - self.batch_dims)
            spread.append(value.reshape(value.shape + trailing).expand_as(parameter))
        return flatten(spread)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return all entries of all tensors in one row, ``(coordinates,)``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return a row as tensors: the inverse of :func:`flatten`.

    Args:
        row: ``(coordinates,)``.
        like: tensors of the shapes to give.
    """
    pieces = row.split_with_sizes([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def task_rows(tensors: Sequence[Tensor], batch_dims: int) -> Tensor:
    """Return all entries of each task in one row, ``(tasks, coordinates)``.

    Args:
        tensors: in order.
        batch_dims: how many leading dimensions of each count tasks.
    """
    tasks = tensors[0].shape[:batch_dims].numel()
    return torch.cat([tensor.reshape(tasks, -1) for tensor in tensors], dim=1)


def from_task_rows(rows: Tensor, like: Sequence[Tensor], batch_dims: int) -> list[Tensor]:
    """Return rows as tensors: the inverse of :func:`task_rows`.

    Args:
        rows: ``(tasks, coordinates)``.
        like: tensors of the shapes to give.
        batch_dims: how many leading dimensions of each count tasks.
    """
    pieces = torch.split(rows, [tensor.shape[batch_dims:].numel() for tensor in like], dim=1)
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def log_sign(values: Tensor, p: float = 10.0) -> tuple[Tensor, Tensor]:
    """Return a logarithm and a sign of each value, which are what an LSTM is given of it.

    They are (log|v| / p, sign v) where |v| >= e^-p, and (-1, e^p v) elsewhere: the preprocessing of
    Andrychowicz et al. (2016), appendix A.

    Args:
        values: of any shape.
        p: above 0; values below e^-p are shown linearly.

    Returns:
        Two tensors of the shape of ``values``.
    """
    magnitude = values.abs().clamp(min=math.exp(-p)).log_().div_(p)  # vmap has no clamp_
    direction = (values * math.exp(p)).clamp(-1.0, 1.0)
    return magnitude, direction


def square_spectral_norm(matrix: Tensor) -> Tensor:
    """Return an upper bound on the square of the largest singular value of a matrix, ``(*batch,)``.

    It is too large by a factor of n^(1/8) at most, with n the smaller side. It is the Schatten-8
    norm of the Gram matrix A A^T or A^T A, which takes products alone and no decomposition.

    Args:
        matrix: A, ``(*batch, rows, columns)``.
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
