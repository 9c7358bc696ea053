"""Curvature kappa of curves on an orbit (eqs. 80 and 84), and its mean psi over curves (eq. 14)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.measures.curves import derivatives
from metaopt.symmetry import Action, LayerInput, Orbit, chain_orbit
from metaopt.symmetry.actions import action_of
from metaopt.symmetry.finders import as_chain
from metaopt.symmetry.objectives import LossFunction, Objective, per_task_sum
from metaopt.wrappers import unwrapped


def curvature(first: Sequence[Tensor], second: Sequence[Tensor], batch_dims: int = 0) -> Tensor:
    """Compute the curvature kappa of a curve from its derivatives gamma' and gamma'' (eq. 80).

    It is ||a|| / ||gamma'||^2, where a is gamma'' without its part along gamma'. In this form no
    digits cancel.

    Args:
        first: gamma', one tensor a parameter.
        second: gamma'', likewise.
        batch_dims: how many leading dimensions count independent curves.

    Returns:
        ``(*batch,)``; NaN where gamma' is 0.
    """
    across, speed = _across(first, second, batch_dims)
    return _norm(across, batch_dims) / speed


def curvature_rate(
    first: Sequence[Tensor], second: Sequence[Tensor], third: Sequence[Tensor], batch_dims: int = 0
) -> Tensor:
    """Compute the rate d kappa / dt of a curve from its first three derivatives (eq. 84).

    Args:
        first: gamma', one tensor a parameter.
        second: gamma'', likewise.
        third: gamma''', likewise.
        batch_dims: how many leading dimensions count independent curves.

    Returns:
        ``(*batch,)``; NaN where gamma' or kappa is 0.
    """
    across, speed = _across(first, second, batch_dims)
    size = _norm(across, batch_dims)
    along = _dot(first, second, batch_dims)
    # d ||a||^2 / dt = 2 a . gamma''' - 2 (gamma' . gamma'') / ||gamma'||^2 a . gamma''
    turned = _dot(across, third, batch_dims) - along / speed * size.square()
    return turned / (size * speed) - 2 * size * along / speed.square()


def _across(
    first: Sequence[Tensor], second: Sequence[Tensor], batch_dims: int
) -> tuple[list[Tensor], Tensor]:
    """Return gamma'' without its part along gamma', and ||gamma'||^2."""
    speed = _dot(first, first, batch_dims)
    share = _dot(first, second, batch_dims) / speed
    across = [
        b - share.reshape(share.shape + (1,) * (b.dim() - batch_dims)) * a
        for a, b in zip(first, second, strict=True)
    ]
    return across, speed


def _dot(a: Sequence[Tensor], b: Sequence[Tensor], batch_dims: int) -> Tensor:
    return per_task_sum([x * y for x, y in zip(a, b, strict=True)], batch_dims)


def _norm(a: Sequence[Tensor], batch_dims: int) -> Tensor:
    return _dot(a, a, batch_dims).sqrt()


def random_elements(
    orbit: Orbit, parameters: Sequence[Tensor], count: int, generator: torch.Generator
) -> list[list[Tensor]]:
    """Draw elements M of the Lie algebra with normal entries, which are directions of curves.

    The size of M does not matter. kappa belongs to the curve, and not to how fast t runs along it.

    Args:
        orbit: what the curves lie on.
        parameters: where they start; only the shapes are used.
        count: how many elements.
        generator: draws them.

    Returns:
        The values of each M, one tensor a site.

    Raises:
        UserError: for a count below 1.
    """
    if count < 1:
        raise UserError(f"expected 1 curve or more, got {count}: the paper takes 1")
    identity = [zero.values for zero in orbit.identity(parameters)]
    return [
        [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in identity]
        for _ in range(count)
    ]


@dataclass(frozen=True, eq=False)
class Curvature:
    """Curvature as an objective of a teleport: the mean psi of kappa over curves (eq. 14).

    The curves keep their directions M. A search turns this into an objective on its orbit by
    :meth:`on`.

    Attributes:
        elements: the values of M of each curve, one tensor a site; see :meth:`drawn`.

    Example:
        >>> from metaopt import TeleportingOptimizer
        >>> from metaopt.symmetry import GradientAscent, Negated
        >>> model = nn.Sequential(nn.Linear(9, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2))
        >>> x, y, g = torch.rand(8, 9), torch.arange(8) % 2, torch.Generator().manual_seed(0)
        >>> base = torch.optim.SGD(model.parameters(), 0.1)
        >>> optimizer = TeleportingOptimizer(base, model, nn.CrossEntropyLoss(), "post_activation")
        >>> psi = Curvature.drawn(optimizer.orbit(x, y), optimizer.moving, g, curves=2)
        >>> optimizer.search = GradientAscent(objective=Negated(psi))  # psi alone goes up
        >>> bool(optimizer.teleport(x, y).invariance_error() < 1e-4)
        True
    """

    elements: Sequence[Sequence[Tensor]]

    @classmethod
    def drawn(
        cls,
        orbit: Orbit,
        parameters: Sequence[Tensor],
        generator: torch.Generator,
        curves: int = 1,
    ) -> Curvature:
        """Make the objective with random directions.

        Args:
            orbit: what the curves lie on.
            parameters: those that a teleport moves, in order; only their shapes are used.
            generator: draws the directions.
            curves: how many.

        Raises:
            UserError: for fewer than 1 curve.
        """
        return cls(random_elements(orbit, parameters, curves, generator))

    def on(self, orbit: Orbit) -> Objective:
        """Return psi as a function of the points of an orbit.

        Args:
            orbit: what the curves lie on.
        """

        def psi(parameters: Sequence[Tensor], loss: LossFunction) -> Tensor:
            return mean_curvature(orbit, parameters, self.elements)

        return psi


def mean_curvature(
    orbit: Orbit, parameters: Sequence[Tensor], elements: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Compute psi, the mean of kappa over the curves exp(t M) . w at t = 0 (eq. 14).

    It is differentiable in the parameters, and computed in float64.

    Args:
        orbit: what the curves lie on.
        parameters: w, in order.
        elements: the values of M of each curve, one tensor a site. All tasks of a batch share those
            that lack the batch dimensions.

    Returns:
        ``(*batch,)``.

    Raises:
        UserError: for elements of other shapes than the sites'.
    """
    wide = [parameter.double() for parameter in parameters]
    batch_dims = orbit.batch_dims(wide)
    shapes = [zero.values.shape for zero in orbit.identity(wide)]
    _check(elements, shapes, batch_dims)
    each = []
    for element in elements:
        own = [t.expand(shape) for t, shape in zip(element, shapes, strict=True)]
        first, second = derivatives(orbit, wide, own, order=2)
        each.append(curvature(first, second, batch_dims))
    return torch.stack(each).mean(dim=0)


def _check(
    elements: Sequence[Sequence[Tensor]], shapes: Sequence[torch.Size], batch_dims: int
) -> None:
    """Check that each curve has one element a site, of the shape of one task or of the batch."""
    for element in elements or ((),):
        own = [tuple(t.shape) for t in element]
        fits = len(own) == len(shapes) and all(
            shape in (tuple(whole), tuple(whole[batch_dims:]))
            for shape, whole in zip(own, shapes, strict=True)
        )
        if not fits:
            raise UserError(
                f"expected elements of shapes {[tuple(s) for s in shapes]}, one a site, for each "
                f"curve, got {own}: draw them with Curvature.drawn"
            )


def network_curvature(
    model: nn.Module,
    x: Tensor,
    generator: torch.Generator,
    curves: int = 10,
    action: str | Action = "post_activation",
) -> float:
    """Compute the curvature psi of a network on a batch, over random curves (eq. 14).

    A curve moves the weights at all sites of the network together.

    Args:
        model: a chain of Linear layers.
        x: samples in rows. The action is exact only for so many samples as its ``exact_when`` says.
        generator: draws the curves.
        curves: how many.
        action: the group action that moves along a curve. The default is that of eq. 78, for which
            the paper derives the curves.

    Raises:
        UserError: if the model is no chain, has no pair of layers, or does not take ``x``.

    Example:
        >>> model = nn.Sequential(nn.Linear(9, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2))
        >>> psi = network_curvature(model, torch.rand(8, 9), torch.Generator().manual_seed(0))
        >>> psi > 0
        True
    """
    model = unwrapped(model)
    chain = as_chain(model)
    if isinstance(chain, str):
        raise UserError(
            f"expected a chain of Linear layers, whose orbits have curves, got another model "
            f"({chain}): measure its sharpness instead"
        )
    if not chain.pairs:
        raise UserError(
            "expected a model with two layers or more, got one: a group acts between two layers"
        )
    if x.dim() < 2 or not len(x) or x[0].numel() != model.get_parameter(chain.names[0]).shape[-1]:
        raise UserError(
            f"expected samples in rows that the first layer takes, got x of shape "
            f"{tuple(x.shape)}: one row a sample"
        )
    parameters = [parameter.detach().double() for parameter in chain.parameters_of(model)]
    layer_input = LayerInput(x.flatten(1).mT.double())
    orbit = chain_orbit(chain, parameters, layer_input, action_of(action))
    elements = random_elements(orbit, parameters, curves, generator)
    return float(mean_curvature(orbit, parameters, elements))
