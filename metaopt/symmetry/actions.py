"""The group actions: eq. 78, eq. 79 (exact or damped), GL between two matrices, positive scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.registry import Registry, built
from metaopt.symmetry.action import ALL_DATA, Action
from metaopt.symmetry.activations import Activation, Identity, derivative
from metaopt.symmetry.closed_form import ClosedFormAction, Proposal, SiteMatrices, linear_transport
from metaopt.symmetry.element import Element
from metaopt.symmetry.inputs import pseudo_inverse
from metaopt.symmetry.site import Site

ACTIONS: Registry[Callable[..., Action]] = Registry("action")
"""All group actions by name; ``action=`` of the optimizers and ``--action`` take these names."""


class _ActsLinearly(ClosedFormAction):
    """An action by g on the incoming side and g^-1 on the outgoing, corrected by the inputs."""

    def transport(
        self, element: Element, site: Site, buffers: Mapping[str, Tensor], squares: bool = False
    ) -> dict[str, Tensor]:
        """Transport by the linear part of the action: g^-T on the incoming side, g^T on the other.

        The correction of eq. 79 that keeps the output is left out, and so is the curvature of eq.
        78. See :meth:`Action.transport`.
        """
        return linear_transport(self.exponential(element), site, buffers, squares)


@final
@ACTIONS.register("post_activation")
class PostActivationAction(_ActsLinearly):
    """The action of eq. 78: g acts on the hidden features sigma(W_{m-1} h), after the activation.

        W_{m-1} <- W_{m-1} + [sigma^-1(g sigma(W_{m-1} h)) - W_{m-1} h] h^+,   W_m <- W_m g^-1.

    Here h is the input of the incoming layer, and h^+ its pseudo-inverse. The paper prints (...)
    h^+ without the change, which projects W_{m-1} onto the span of h.
    """

    group = "GL"
    uses_inputs = True
    exact_when = (
        "the activation is bijective and the samples are linearly independent as columns of h, "
        "for which there must be at most as many samples as inputs (one more with a bias), and "
        "the exponential is exact"
    )

    def max_samples(self, site: Site) -> float:
        """Return the number of inputs of the incoming layer, one more if it has a bias, or 0.

        It is 0 if the activation has no inverse, if more than an activation lies between, and if T
        is exponentiated to first order only.
        """
        invertible = site.between is not None and site.between.inverse is not None
        if not site.plain or not invertible or not self.exact_inverse:
            return 0  # to first order, (I - T)(I + T) is not I
        return site.fan_in + site.biased[0]

    def obstacle(self, site: Site) -> str | None:
        """Return that the activation has no inverse on the real line; None if it has one."""
        if site.between is None or site.between.inverse is None:
            return f"{_what_lies_between(site)} has no inverse on the real line"
        return None

    def propose(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return both moved matrices."""
        inverse = _inverse(matrices.activation)
        g = self.exponential(element)
        # sigma^-1(sigma(z)) rather than z: equal in exact arithmetic, and at g = I the
        # difference is then zero bit for bit.
        change = inverse(g.times(matrices.features)) - inverse(matrices.features)
        (w_in,) = matrices.incoming
        moved = w_in + change @ matrices.inputs.pseudo_inverse
        return Proposal([moved], [matrices.after(g)], _all_true(w_in))

    def pull_back_matrices(
        self, matrices: SiteMatrices, v_in: Sequence[Tensor], v_out: Sequence[Tensor]
    ) -> Tensor:
        """Return the gradient with respect to T in closed form.

        With f = sigma(W_{m-1} h): dW_{m-1} = [T f / sigma'(W_{m-1} h)] h^+ and dW_m = -W_m T. See
        :meth:`ClosedFormAction.pull_back_matrices`.
        """
        gradients = derivative(_inverse(matrices.activation), matrices.features)
        moved = (v_in[0] @ matrices.inputs.pseudo_inverse.mT) * gradients
        back = matrices.transposed_weight_out @ matrices.weight_of(v_out[0])
        return moved @ matrices.features.mT - back


@final
@ACTIONS.register("pre_activation")
class PreActivationAction(_ActsLinearly):
    """The action of eq. 79: g acts on the incoming weights, before the activation.

        W_{m-1} <- g W_{m-1},   W_m <- W_m g^-1 + R H^+,   H = sigma(g W_{m-1} h),
        R = W_m sigma(W_{m-1} h) - W_m g^-1 H.

    This is the linear action with the smallest correction that keeps the output. The incoming bias
    moves along, and the outgoing bias takes part in the correction.

    Args:
        exponential: how T is exponentiated, a name of ``EXPONENTIALS``.
        max_defect: largest invariance error of a move; a move with a larger one is rejected.
        damping: 0 for the exact action. Above 0, R H^+ is replaced by R H^T (H H^T + lambda I)^-1,
            where lambda is ``damping`` times the mean diagonal entry of H H^T. That keeps the
            weights bounded where H is badly conditioned, at the price of an invariance error.
    """

    group = "GL"
    uses_inputs = True
    exact_when = (
        "the moved hidden features H are linearly independent as columns, for which there must "
        "be at most as many samples as hidden units (one more with a bias), and damping is 0"
    )
    on_preactivations = True

    def __init__(
        self, exponential: str = "exact", max_defect: float = 0.1, damping: float = 0.0
    ) -> None:
        super().__init__(exponential, max_defect)
        if not damping >= 0:
            raise UserError(f"expected a damping of 0 or more, got {damping}: 0 for none")
        self.damping = damping

    def max_samples(self, site: Site) -> float:
        """Return the number of hidden units, one more if the outgoing layer has a bias, or 0.

        It is 0 for a damped action, and if more than an activation lies between.
        """
        if not site.plain or site.between is None or self.damping:
            return 0
        return site.width + site.biased[1]

    def propose(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return both moved matrices."""
        g = self.exponential(element)
        (w_in,), (w_out,) = matrices.incoming, matrices.outgoing
        hidden = matrices.with_ones(matrices.activation(g.times(matrices.pre_activations)))
        linear = matrices.after(g)
        residual = w_out @ matrices.with_ones(matrices.features) - linear @ hidden
        if self.damping:
            correction, solved = _damped(residual, hidden, self.damping)
        else:
            correction, solved = residual @ pseudo_inverse(hidden), _all_true(hidden)
        return Proposal([g.times(w_in)], [linear + correction], solved)

    def pull_back_matrices(
        self, matrices: SiteMatrices, v_in: Sequence[Tensor], v_out: Sequence[Tensor]
    ) -> Tensor:
        """Return the gradient with respect to T in closed form.

        With z = W_{m-1} h and f = sigma(z): dW_{m-1} = T W_{m-1} and
        dW_m = -W_m T + W_m [T f - sigma'(z) (T z)] H^+. See
        :meth:`ClosedFormAction.pull_back_matrices`.
        """
        z, hidden = matrices.pre_activations, matrices.with_ones(matrices.features)
        if self.damping:
            corrected, solved = _damped_adjoint(v_out[0], hidden, self.damping)
            corrected = torch.where(solved[..., None, None], corrected, 0.0)
        else:
            corrected = v_out[0] @ pseudo_inverse(hidden).mT
        back = matrices.transposed_weight_out @ corrected
        return (
            v_in[0] @ matrices.incoming[0].mT
            - matrices.transposed_weight_out @ matrices.weight_of(v_out[0])
            + back @ matrices.features.mT
            - (back * derivative(matrices.activation, z)) @ z.mT
        )


class BothSides(_ActsLinearly):
    """g on every incoming matrix and g^-1 on every outgoing one, which needs no features.

    Biases of the incoming side move along. Where several matrices make or use the same features,
    all of them move by the same g.
    """

    linear = True

    def max_samples(self, site: Site) -> float:
        """Return infinity where the action can act, else 0."""
        exact = self.diagonal or self.exact_inverse
        return ALL_DATA if exact and self.obstacle(site) is None else 0

    def propose(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return all moved matrices."""
        if (why := self.obstacle(matrices.site)) is not None:
            raise UserError(
                f"expected a site for {type(self).__name__}, got another one ({why}): use another "
                f"action"
            )
        g = self.exponential(element)
        incoming = [g.times(matrix) for matrix in matrices.incoming]
        outgoing = [matrices.after(g, view) for view in range(len(matrices.outgoing))]
        return Proposal(incoming, outgoing, _all_true(matrices.incoming[0]))

    def pull_back_matrices(
        self, matrices: SiteMatrices, v_in: Sequence[Tensor], v_out: Sequence[Tensor]
    ) -> Tensor:
        """Return the gradient with respect to T: dW_{m-1} = T W_{m-1}, dW_m = -W_m T.

        Of a diagonal T, its diagonal. See :meth:`ClosedFormAction.pull_back_matrices`.
        """
        into = [self._product(v, w) for v, w in zip(v_in, matrices.incoming, strict=True)]
        weights = ([matrices.weight_of(m, i).mT for i, m in enumerate(side)]
                   for side in (matrices.outgoing, v_out))  # fmt: skip
        out_of = [self._product(w, v) for w, v in zip(*weights, strict=True)]
        return torch.stack(into).sum(dim=0) - torch.stack(out_of).sum(dim=0)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=-1) if self.diagonal else a @ b.mT


@final
@ACTIONS.register("linear")
class LinearAction(BothSides):
    """The action of GL between two matrices with nothing between: incoming g W, outgoing W g^-1.

    It is exact for all data.
    """

    group = "GL"
    exact_when = "nothing lies between the two matrices, and the exponential is exact"
    turns = True

    def obstacle(self, site: Site) -> str | None:
        """Return what lies between the matrices; None if nothing does."""
        if site.plain and site.between == Identity():
            return None
        return f"{_what_lies_between(site)} lies between the two layers"


@final
@ACTIONS.register("rescaling")
class RescalingAction(BothSides):
    """The positive rescaling of hidden units by D = diag(exp(t)), which is exact for every input.

        W_{m-1} <- D W_{m-1},   b_{m-1} <- D b_{m-1},   W_m <- W_m D^-1.

    If a batch norm lies between, its weight and bias are scaled instead of the incoming layer,
    since it would undo a scale of that layer. Its running statistics stay.
    """

    group = "positive"
    exact_when = "the activation is positively homogeneous (ReLU, LeakyReLU, identity)"
    diagonal = True

    def obstacle(self, site: Site) -> str | None:
        """Return what positive scales do not pass through; None if there is no such thing."""
        if site.homogeneous:
            return None
        return f"{_what_lies_between(site)} is not positively homogeneous"


def _what_lies_between(site: Site) -> str:
    return ", ".join(site.labels) or str(site.between)


def _inverse(activation: Activation) -> Activation:
    if activation.inverse is None:
        raise UserError(
            f"expected a bijective activation for eq. 78, got {activation}: "
            f"use the rescaling or the pre_activation action"
        )
    return activation.inverse


def _damped(residual: Tensor, hidden: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return R H^T (H H^T + lambda I)^-1, and which tasks could be solved."""
    factor, solved = _damped_factor(hidden, damping)
    if _wide(hidden):
        return torch.cholesky_solve(hidden @ residual.mT, factor).mT, solved
    return torch.cholesky_solve(residual.mT, factor).mT @ hidden.mT, solved


def _damped_adjoint(v: Tensor, hidden: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return V (H H^T + lambda I)^-1 H, the adjoint of R -> R H^T (H H^T + lambda I)^-1."""
    factor, solved = _damped_factor(hidden, damping)
    if _wide(hidden):
        return torch.cholesky_solve(v.mT, factor).mT @ hidden, solved
    return torch.cholesky_solve(hidden.mT @ v.mT, factor).mT, solved


def _wide(hidden: Tensor) -> bool:
    """Return whether there are at least as many samples as units."""
    return hidden.shape[-2] <= hidden.shape[-1]


def _damped_factor(hidden: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor of H H^T + lambda I, or of H^T H + lambda I if that is smaller."""
    gram = hidden @ hidden.mT if _wide(hidden) else hidden.mT @ hidden
    scale = hidden.square().sum(dim=(-2, -1)) / hidden.shape[-2]  # mean diagonal of H H^T
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gram = gram + (damping * scale)[..., None, None] * identity
    _, info = torch.linalg.cholesky_ex(gram.detach())
    solved = info == 0
    return torch.linalg.cholesky_ex(torch.where(solved[..., None, None], gram, identity))[0], solved


def _all_true(like: Tensor) -> Tensor:
    return torch.ones(like.shape[:-2], dtype=torch.bool, device=like.device)


def make_action(name: str, **options: float | str) -> Action:
    """Build the action of a name.

    Args:
        name: a name of :data:`ACTIONS`.
        **options: arguments of the action's class.

    Raises:
        UserError: for an unknown name, or an option that the action does not have.
    """
    build = ACTIONS[name]

    def make() -> Action:
        try:
            return build(**options)
        except TypeError as error:
            raise UserError(
                f"expected options of the action {name!r}, got {options}: {error}"
            ) from None

    return built(f"the action {name!r}", Action, make)  # type: ignore[type-abstract]


def exact_on_batch(site: Site) -> str:
    """Return the text of ``Site.exact`` for a site where no group is exact for all data."""
    most = max(make_action(name).max_samples(site) for name in ACTIONS)
    return f"on a batch of at most {most:g} samples"


def action_of(action: str | Action) -> Action:
    """Return the action of a name, or the action itself if one is given."""
    return action if isinstance(action, Action) else make_action(action)
