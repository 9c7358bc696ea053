"""The three actions: eq. 78, eq. 79 (exact or damped), and positive rescaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.action import Candidate, GroupAction, Pair
from metaopt.symmetry.chain import Activation, Layer
from metaopt.symmetry.exponential import Element, Spectral


@final
class PostActivationAction(GroupAction):
    """Eq. 78: g acts on the hidden features sigma(W_{m-1} h), after the activation.

    W_{m-1} <- W_{m-1} + [sigma^-1(g sigma(W_{m-1} h)) - W_{m-1} h] h^+,   W_m <- W_m g^-1.

    The printed form (...) h^+ without the change projects W_{m-1} onto the span of h.
    """

    exact_when = (
        "the activation is bijective and the samples are linearly independent as columns of h, "
        "for which there must be at most as many samples as inputs (one more with a bias), and "
        "the exponential is exact"
    )

    def is_exact(
        self, incoming: Layer, outgoing: Layer, samples: int, activation: Activation
    ) -> bool:
        inputs = incoming.weight.shape[-1] + (incoming.bias is not None)
        inverses = self.exact_inverse  # to first order, (I - T)(I + T) is not I
        return activation.inverse is not None and samples <= inputs and inverses

    def _candidate(self, element: Element, pair: Pair) -> Candidate:
        inverse = _inverse(pair.activation)
        g, g_inverse = self.exponential(element)
        # sigma^-1(sigma(z)) rather than z: equal in exact arithmetic, and at g = I the
        # difference is then zero bit for bit.
        change = inverse(g @ pair.features) - inverse(pair.features)
        return Candidate(
            pair.w_in + change @ pair.layer_input.pseudo_inverse,
            pair.times_inverse(g_inverse),
            _all_true(pair.w_in),
        )

    def _pulled_back(self, pair: Pair, v_in: Tensor, v_out: Tensor) -> Tensor:
        """dW_{m-1} = [T f / sigma'(W_{m-1} h)] h^+ with f = sigma(W_{m-1} h), dW_m = -W_m T."""
        slopes = slope(_inverse(pair.activation), pair.features)
        moved = (v_in @ pair.layer_input.pseudo_inverse.mT) * slopes
        return moved @ pair.features.mT - pair.transposed_weight_out @ pair.of_weight(v_out)


@final
class PreActivationAction(GroupAction):
    """Eq. 79: g acts on the incoming weights, before the activation.

    W_{m-1} <- g W_{m-1},   W_m <- W_m g^-1 + R H^+,   H = sigma(g W_{m-1} h),
    R = W_m sigma(W_{m-1} h) - W_m g^-1 H: the linear action and the smallest correction that
    keeps the output. Biases move along; b_m takes part in the correction.

    ``damping`` > 0 replaces R H^+ by R H^T (H H^T + lambda I)^-1 (or the equal form with H^T H,
    whichever is smaller), lambda = damping times the mean diagonal of H H^T. It trades a defect for
    bounded weights where H is badly conditioned.
    """

    exact_when = (
        "the moved hidden features H are linearly independent as columns, for which there must "
        "be at most as many samples as hidden units (one more with a bias), and damping is 0"
    )

    def __init__(
        self, exponential: str = "exact", max_defect: float = 0.1, damping: float = 0.0
    ) -> None:
        super().__init__(exponential, max_defect)
        if not damping >= 0:
            raise UserError(f"expected a damping of 0 or more, got {damping}: 0 for none")
        self.damping = damping

    def is_exact(
        self, incoming: Layer, outgoing: Layer, samples: int, activation: Activation
    ) -> bool:
        hidden = incoming.weight.shape[-2] + (outgoing.bias is not None)
        return self.damping == 0 and samples <= hidden

    def _candidate(self, element: Element, pair: Pair) -> Candidate:
        g, g_inverse = self.exponential(element)
        hidden = pair.hidden(pair.activation(g @ pair.pre_activations))
        linear = pair.times_inverse(g_inverse)
        residual = pair.w_out @ pair.hidden(pair.features) - linear @ hidden
        if self.damping:
            correction, solved = _damped(residual, hidden, self.damping)
        else:
            correction, solved = residual @ torch.linalg.pinv(hidden), _all_true(hidden)
        return Candidate(g @ pair.w_in, linear + correction, solved)

    def _pulled_back(self, pair: Pair, v_in: Tensor, v_out: Tensor) -> Tensor:
        """dW_{m-1} = T W_{m-1}, dW_m = -W_m T + W_m [T f - sigma'(z) (T z)] H^+, z = W_{m-1} h."""
        z, hidden = pair.pre_activations, pair.hidden(pair.features)
        if self.damping:
            corrected, solved = _damped_adjoint(v_out, hidden, self.damping)
            corrected = torch.where(solved[..., None, None], corrected, 0.0)
        else:
            corrected = v_out @ torch.linalg.pinv(hidden).mT
        back = pair.transposed_weight_out @ corrected
        return (
            v_in @ pair.w_in.mT
            - pair.transposed_weight_out @ pair.of_weight(v_out)
            + back @ pair.features.mT
            - (back * slope(pair.activation, z)) @ z.mT
        )


@final
class RescalingAction(GroupAction):
    """Positive rescaling of hidden units by D = diag(exp(t)).

    W_{m-1} <- D W_{m-1}, b_{m-1} <- D b_{m-1}, W_m <- W_m D^-1. Exact for every
    input, batch or not.
    """

    exact_when = "the activation is positively homogeneous (ReLU, LeakyReLU, identity)"
    diagonal = True

    def is_exact(
        self, incoming: Layer, outgoing: Layer, samples: int, activation: Activation
    ) -> bool:
        return activation.homogeneous

    def _candidate(self, element: Element, pair: Pair) -> Candidate:
        if not pair.activation.homogeneous:
            raise UserError(
                f"expected a positively homogeneous activation for rescaling, got "
                f"{pair.activation}: use the pre-activation action"
            )
        assert not isinstance(element, Spectral)  # act() refuses it
        scale = element.exp()
        weight = pair.w_out[..., : scale.shape[-1]] / scale.unsqueeze(-2)
        outgoing = torch.cat((weight, pair.w_out[..., scale.shape[-1] :]), dim=-1)
        return Candidate(scale.unsqueeze(-1) * pair.w_in, outgoing, _all_true(pair.w_in))

    def _pulled_back(self, pair: Pair, v_in: Tensor, v_out: Tensor) -> Tensor:
        """dW_{m-1} = diag(t) W_{m-1}, dW_m = -W_m diag(t)."""
        outgoing = pair.of_weight(v_out) * pair.transposed_weight_out.mT
        return (v_in * pair.w_in).sum(dim=-1) - outgoing.sum(dim=-2)


def _inverse(activation: Activation) -> Activation:
    if activation.inverse is None:
        raise UserError(
            f"expected a bijective activation for eq. 78, got {activation}: "
            f"use the rescaling or the pre-activation action"
        )
    return activation.inverse


def slope(activation: Activation, at: Tensor) -> Tensor:
    """sigma'(at), entry by entry."""
    with torch.enable_grad():
        points = at.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(activation(points).sum(), points)
    return slopes


def _damped(residual: Tensor, hidden: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """R H^T (H H^T + lambda I)^-1, and which problems could be solved."""
    factor, solved = _damped_factor(hidden, damping)
    if _wide(hidden):
        return torch.cholesky_solve(hidden @ residual.mT, factor).mT, solved
    return torch.cholesky_solve(residual.mT, factor).mT @ hidden.mT, solved


def _damped_adjoint(v: Tensor, hidden: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The adjoint of R -> R H^T (H H^T + lambda I)^-1: V (H H^T + lambda I)^-1 H."""
    factor, solved = _damped_factor(hidden, damping)
    if _wide(hidden):
        return torch.cholesky_solve(v.mT, factor).mT @ hidden, solved
    return torch.cholesky_solve(hidden.mT @ v.mT, factor).mT, solved


def _wide(hidden: Tensor) -> bool:
    """At least as many samples as units."""
    return hidden.shape[-2] <= hidden.shape[-1]


def _damped_factor(hidden: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Cholesky's of H H^T + lambda I, or of the smaller H^T H + lambda I."""
    gram = hidden @ hidden.mT if _wide(hidden) else hidden.mT @ hidden
    scale = hidden.square().sum(dim=(-2, -1)) / hidden.shape[-2]  # mean diagonal of H H^T
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gram = gram + (damping * scale)[..., None, None] * identity
    _, info = torch.linalg.cholesky_ex(gram.detach())
    solved = info == 0
    return torch.linalg.cholesky_ex(torch.where(solved[..., None, None], gram, identity))[0], solved


def _all_true(like: Tensor) -> Tensor:
    return torch.ones(like.shape[:-2], dtype=torch.bool, device=like.device)


ACTIONS: dict[str, Callable[..., GroupAction]] = {
    "post_activation": PostActivationAction,
    "pre_activation": PreActivationAction,
    "rescaling": RescalingAction,
}
"""Every action by name; tests and configs run over this table."""


def make_action(name: str, **options: float | str) -> GroupAction:
    """The action called ``name``.

    Raises:
        UserError: for a name that is not in :data:`ACTIONS`, or an option the action lacks.
    """
    if name not in ACTIONS:
        raise UserError(f"expected an action of {', '.join(ACTIONS)}, got {name!r}: name one")
    try:
        return ACTIONS[name](**options)
    except TypeError as error:
        raise UserError(
            f"expected options of the action {name!r}, got {options}: {error}"
        ) from None
