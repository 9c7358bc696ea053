"""Derivatives of curves gamma(t) = exp(t M) . w on an orbit at t = 0 (appendix E.4).

For every action they come from forward-mode differentiation of the orbit itself. For eq. 78 at one
site there is also a closed form. As printed, eqs. 91 and 93 lack the factor 1 / j! of the Taylor
series of sigma^-1. With s_j its j-th derivative at A = sigma(V X),

    gamma'   of V: [(M A) s_1] X^+
    gamma''  of V: [(M^2 A) s_1 + (M A)^2 s_2] X^+
    gamma''' of V: [(M^3 A) s_1 + 3 (M A)(M^2 A) s_2 + (M A)^3 s_3] X^+

where the paper has 2, 6 and 6 in the place of 1, 3 and 1. For LeakyReLU s_2 = s_3 = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import jvp

from metaopt.errors import UserError
from metaopt.symmetry import LayerInput
from metaopt.symmetry.activations import Activation
from metaopt.symmetry.chain import Layer
from metaopt.symmetry.orbit import Orbit

Curve = Callable[[Tensor], tuple[Tensor, ...]]
"""A function from t, a scalar, to parameters in order."""


def derivatives(
    orbit: Orbit, parameters: Sequence[Tensor], elements: Sequence[Tensor], order: int
) -> list[list[Tensor]]:
    """Compute the derivatives of a curve on an orbit, differentiably in ``parameters`` and in M.

    Args:
        orbit: the orbit of the parameters.
        parameters: w, in float64 for accuracy.
        elements: the values of M at each site, in the shapes of ``orbit.identity``. All sites move
            together.
        order: the highest derivative.

    Returns:
        gamma', gamma'', ..., each with one tensor a parameter.
    """

    def points(t: Tensor) -> tuple[Tensor, ...]:
        moved = orbit.elements(parameters, [t * element for element in elements])
        return tuple(orbit.move(parameters, moved).parameters)

    start = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    found = []
    curve: Curve = points
    for _ in range(order):
        curve = _differentiated(curve)
        found.append(list(curve(start)))
    return found


def _differentiated(curve: Curve) -> Curve:
    def slope(t: Tensor) -> tuple[Tensor, ...]:
        tangents: tuple[Tensor, ...] = jvp(curve, (t,), (torch.ones_like(t),))[1]
        return tangents

    return slope


def post_activation_derivatives(
    element: Tensor,
    incoming: Layer,
    outgoing: Layer,
    layer_input: LayerInput,
    activation: Activation,
) -> list[list[Tensor]]:
    """Compute gamma', gamma'' and gamma''' of two layers under eq. 78, in closed form and float64.

    Args:
        element: M, ``(*batch, k, k)``.
        incoming: the layer V, with its bias if it has one.
        outgoing: the layer U, with its bias if it has one.
        layer_input: X, what the incoming layer is given.
        activation: sigma, between the two layers.

    Returns:
        For each order, the derivatives of the incoming layer's tensors and then of the outgoing
        layer's.

    Raises:
        UserError: for an activation without an inverse.
    """
    inverse = activation.inverse
    if inverse is None:
        raise UserError(
            f"expected a bijective activation for eq. 78, got {activation}: differentiate the "
            f"orbit of another action"
        )
    seen = layer_input if incoming.bias is None else layer_input.with_ones
    a = activation(incoming.augmented().double() @ seen.h)
    first, second, third = _slopes(inverse, a)
    ma = element @ a
    mma = element @ ma
    mmma = element @ mma
    changes = (
        ma * first,
        mma * first + ma.square() * second,
        mmma * first + 3 * ma * mma * second + ma.pow(3) * third,
    )
    u = outgoing.weight.double()
    found = []
    for sign, change in zip((-1, 1, -1), changes, strict=True):
        u = u @ element
        augmented = change @ seen.pseudo_inverse
        into = [augmented] if incoming.bias is None else [augmented[..., :-1], augmented[..., -1]]
        bias = [] if outgoing.bias is None else [torch.zeros_like(outgoing.bias).double()]
        found.append([*into, sign * u, *bias])
    return found


def _slopes(function: Activation, at: Tensor) -> list[Tensor]:
    """Return the first three derivatives of an elementwise function, differentiable in ``at``."""
    with torch.enable_grad():
        value = at if at.requires_grad else at.detach().requires_grad_()
        point, slopes = value, []
        result = function(point)
        for _ in range(3):
            if not result.requires_grad:
                result = torch.zeros_like(point)
            else:
                (result,) = torch.autograd.grad(
                    result.sum(), point, create_graph=True, materialize_grads=True
                )
            slopes.append(result)
    return slopes if at.requires_grad else [slope.detach() for slope in slopes]
