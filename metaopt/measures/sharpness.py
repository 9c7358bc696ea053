"""Sharpness phi of eq. 13: the mean loss at points around the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.measures.around import Points, Surroundings, losses_of
from metaopt.measures.column_loss import of_columns
from metaopt.measures.directions import unit_directions
from metaopt.measures.networks import activations
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.finders import as_chain
from metaopt.symmetry.functional import (
    LossOnBatch,
    NetworkLoss,
    evaluating,
    module_loss,
)
from metaopt.symmetry.nested import Inputs, samples_in
from metaopt.symmetry.objectives import LossFunction
from metaopt.wrappers import unwrapped

DISPLACEMENTS = tuple(0.001 + 0.01 * step for step in range(20))
"""The displacements T of appendix F.3: 0.001, 0.011, ..., 0.191."""


class Sharpness:
    """Sharpness as an objective of a teleport: the mean of L(w + t d) over all t and d (eq. 13).

    The directions stay the same, and the tasks of a batch share them.

    Args:
        displacements: t, ``(T,)``.
        directions: d: for each parameter that moves a tensor ``(D, *shape of the parameter)``,
            without batch dimensions; see :meth:`drawn`.
        chain: the layers, if the parameters are those of a chain. The first product is then
            computed once for all displacements, and for all weights on one batch.
    """

    def __init__(
        self,
        displacements: Tensor,
        directions: Sequence[Tensor],
        chain: LayerChain | None = None,
    ) -> None:
        self.points = Points(displacements, directions)
        self.chain = chain
        self._last: tuple[Tensor, int, Surroundings] | None = None

    @classmethod
    def drawn(
        cls,
        parameters: Sequence[Tensor],
        generator: torch.Generator,
        displacements: Sequence[float] = DISPLACEMENTS,
        directions: int = 200,
        chain: LayerChain | None = None,
    ) -> Sharpness:
        """Make the objective with directions that are uniform on the unit sphere.

        Args:
            parameters: those of one network that a teleport moves, in order: ``moving`` of a
                :class:`~metaopt.TeleportingOptimizer`.
            generator: draws the directions.
            displacements: t. The default is that of the paper's correlation study, where phi is
                almost the loss itself. As an objective, the paper's code takes 0.1 to 0.9.
            directions: how many.
            chain: the layers, if the parameters are those of a chain.

        Raises:
            UserError: for no displacement or direction, or a displacement that is not finite.
        """
        t = torch.tensor(list(displacements), dtype=torch.float64)
        if t.dim() != 1 or not len(t) or not t.isfinite().all():
            raise UserError(
                f"expected displacements, one finite number or more, got {list(displacements)}: "
                f"those of the paper are 0.001, 0.011, ..., 0.191"
            )
        drawn = unit_directions(parameters, directions, generator)
        return cls(t.to(parameters[0].device), drawn, chain)

    def __call__(self, parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
        """Compute phi, differentiably in the parameters.

        Args:
            parameters: w, in the order of the directions.
            loss: a function of a list of parameters.

        Returns:
            ``(*batch,)``.

        Raises:
            UserError: if the directions do not fit the parameters.
        """
        directions = self.points.directions
        shapes, own = ([tuple(t.shape) for t in side] for side in (directions, parameters))
        fits = len(shapes) == len(own) and all(
            mine[len(mine) - len(shape) + 1 :] == shape[1:]
            for shape, mine in zip(shapes, own, strict=True)
        )
        if not fits:
            raise UserError(
                f"expected parameters for directions of shapes {shapes}, got {own}: draw them for "
                f"the parameters that move"
            )
        if self.chain is None or not isinstance(loss, NetworkLoss) or not _rows(loss.x, parameters):
            per_point = sum(parameter.numel() for parameter in parameters)
            if isinstance(loss, NetworkLoss):
                per_point += activations(loss.model, loss.x)
            return losses_of(loss, parameters, self.points, per_point).mean(dim=(0, 1))
        layers, column_loss = self.chain.layers(parameters), of_columns(loss.loss_fn, loss.y)
        return self._around(self.chain, loss.x).losses(layers, column_loss).mean()

    def _around(self, chain: LayerChain, x: Tensor) -> Surroundings:
        """Return what computes the losses; it is kept while x is the same tensor, unchanged."""
        if x.is_inference() or torch.is_inference_mode_enabled():
            return Surroundings(chain, x.flatten(1).mT, self.points)
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = x, x._version, Surroundings(chain, x.flatten(1).mT, self.points)
        return self._last[2]


def _rows(x: Inputs, parameters: Sequence[Tensor]) -> bool:
    """Return whether the first layer takes a sample of ``x`` as one row."""
    if not isinstance(x, Tensor):
        return False
    return x.dim() > 1 and len(x) > 0 and x[0].numel() == parameters[0].shape[-1]


def sharpness(
    model: nn.Module,
    loss_fn: LossOnBatch,
    x: Inputs,
    y: Any,
    generator: torch.Generator,
    displacements: Sequence[float] = DISPLACEMENTS,
    directions: int = 200,
) -> float:
    """Compute the sharpness phi of a network on a batch, over random unit directions (eq. 13).

    phi is the mean of the loss at w + t d over all displacements t and directions d. A chain of
    Linear layers is fastest. Other models go through ``torch.func.vmap``, or through a loop if they
    have operations that ``vmap`` cannot batch. All directions are in memory at once, which takes as
    many copies of the parameters.

    Args:
        model: any module; it is called in evaluation mode.
        loss_fn: (what the model gives, y) -> scalar.
        x: what the model is called with: a tensor of samples, a tuple of arguments or a mapping.
        y: the targets; None where the model computes its loss.
        generator: draws the directions.
        displacements: t.
        directions: how many directions.

    Raises:
        UserError: for no displacement, direction or trainable parameter.

    Example:
        >>> model = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> x, y = torch.rand(8, 9), torch.arange(8) % 2
        >>> g = torch.Generator().manual_seed(0)
        >>> phi = sharpness(model, nn.CrossEntropyLoss(), x, y, g, directions=3)
        >>> 0 < phi < 2
        True
    """
    model = unwrapped(model)
    if not samples_in(x):
        raise UserError("expected a batch of samples, got none: pass one or more")
    with evaluating(model), torch.no_grad():
        read = as_chain(model)
        chain = None if isinstance(read, str) else read
        if chain is None:
            parameters, loss = module_loss(model, loss_fn, x, y)
        else:
            parameters = chain.parameters_of(model)
            loss = NetworkLoss(model, chain.names, loss_fn, x, y)
        if not parameters:
            raise UserError(
                "expected a model with parameters that need a gradient, got none: unfreeze some"
            )
        objective = Sharpness.drawn(parameters, generator, displacements, directions, chain)
        return float(objective([p.detach() for p in parameters], loss))
