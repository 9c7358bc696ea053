"""Sharpness phi: the mean loss around the weights (eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.measures.around import Points, Surroundings, losses_of
from metaopt.measures.directions import unit_directions
from metaopt.measures.networks import activations
from metaopt.measures.output_loss import of_columns
from metaopt.symmetry.chain import LayerChain
from metaopt.symmetry.finders import ChainView, as_chain
from metaopt.symmetry.loss import LossOnBatch, NetworkLoss
from metaopt.symmetry.mode import evaluating
from metaopt.symmetry.module_level_set import module_loss
from metaopt.symmetry.objectives import LossFunction

DISPLACEMENTS = tuple(0.001 + 0.01 * step for step in range(20))
"""T of appendix F.3: 0.001, 0.011, ..., 0.191."""


class Sharpness:
    """phi as an objective of a teleport: the mean of L(w + t d) over all t and d (eq. 13).

    The directions are frozen, and shared by the problems of a batch.

    Args:
        displacements: t, ``(T,)``.
        directions: d, one tensor a parameter that moves, ``(D, *its shape)`` without batch
            dimensions; see :meth:`drawn`.
        chain: of a network that is one, whose parameters these are: then the first product is
            shared by all displacements, and by all weights on one batch.
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
        """With directions drawn uniformly from the unit sphere.

        Args:
            parameters: of one network, those that move, in order: of a
                :class:`~metaopt.TeleportingOptimizer` its ``moving``.
            displacements: those of the correlation study by default, at which phi is all but the
                loss; as an objective the paper's code takes 0.1 to 0.9.

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
        """``(*batch,)``.

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
        layers, output_loss = self.chain.layers(parameters), of_columns(loss.loss_fn, loss.y)
        return self._around(self.chain, loss.x).losses(layers, output_loss).mean()

    def _around(self, chain: LayerChain, x: Tensor) -> Surroundings:
        """Kept while x is the same tensor, unchanged."""
        if x.is_inference() or torch.is_inference_mode_enabled():
            return Surroundings(chain, x.flatten(1).mT, self.points)
        if self._last is None or self._last[0] is not x or self._last[1] != x._version:
            self._last = x, x._version, Surroundings(chain, x.flatten(1).mT, self.points)
        return self._last[2]


def _rows(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether the first layer takes a sample of ``x`` as one row."""
    return x.dim() > 1 and len(x) > 0 and x[0].numel() == parameters[0].shape[-1]


def sharpness(
    model: nn.Module,
    loss_fn: LossOnBatch,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    displacements: Sequence[float] = DISPLACEMENTS,
    directions: int = 200,
) -> float:
    """phi of a network on a batch, in evaluation mode, over random unit directions (eq. 13).

    A chain of Linear layers takes the fast way, any other model one ``vmap``, or a loop where its
    operations have none. All directions are in memory: as many copies of the parameters.

    Args:
        loss_fn: (the model's output, y) -> scalar loss.
        directions: how many.

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
    if not len(x):
        raise UserError("expected a batch of samples, got none: the loss of none is no number")
    with evaluating(model), torch.no_grad():
        view = as_chain(model)
        if isinstance(view, ChainView):
            loss: LossFunction = NetworkLoss(model, view.names, loss_fn, x, y)
            parameters, chain = view.parameters(model), view.chain
        else:
            trained, loss = module_loss(model, loss_fn, x, y)
            parameters, chain = list(trained), None
        if not parameters:
            raise UserError(
                "expected a model with parameters that need a gradient, got none: unfreeze some"
            )
        objective = Sharpness.drawn(parameters, generator, displacements, directions, chain)
        return float(objective([p.detach() for p in parameters], loss))
