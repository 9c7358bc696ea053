"""The base class of group actions that are given by a formula, and the matrices they see.

Each action is written as a *change* of the weights, so that T = 0 moves nothing, bit for bit,
whatever the rank of h.

Arithmetic is float64. A task of the batch whose move cannot be trusted keeps its weights and is
marked ``rejected``. The reasons are NaN or infinity in what comes in, an element too large to
exponentiate, a factorisation that fails, and an output that changes by more than ``max_defect``.
What could become NaN is masked on its way in, because a NaN that is masked on its way out still
reaches the gradient through ``torch.where``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.action import Action, Moved, relative_change
from metaopt.symmetry.activations import Activation, Identity
from metaopt.symmetry.element import EXPONENTIALS, Element, GroupElement, per_task
from metaopt.symmetry.inputs import LayerInput, sound
from metaopt.symmetry.site import MatrixView, Site


class Proposal(NamedTuple):
    """The new matrices of a site in float64, before any task is rejected.

    Attributes:
        incoming, outgoing: augmented weights [W b], one for each view of the site.
        solved: ``(*batch,)`` bool, whether every factorisation succeeded.
    """

    incoming: Sequence[Tensor]
    outgoing: Sequence[Tensor]
    solved: Tensor


class ClosedFormAction(Action):
    """A base class for actions whose new matrices follow from a formula.

    A subclass defines :meth:`propose`. This class reads the matrices, masks what cannot be trusted,
    measures the invariance error, rejects moves, and writes back in the dtype of the weights.
    Gradients with respect to T are differentiated from :meth:`propose`, unless
    :meth:`pull_back_matrices` gives them in closed form.

    Args:
        exponential: how T is exponentiated, a name of ``EXPONENTIALS``.
        max_defect: largest invariance error of a move; a move with a larger one is rejected.
            ``math.inf`` rejects none for its error.

    Attributes:
        diagonal: whether the action takes diagonal elements, ``(*batch, k)``.
    """

    diagonal: ClassVar[bool] = False

    def __init__(self, exponential: str = "exact", max_defect: float = 0.1) -> None:
        if exponential not in EXPONENTIALS:
            raise UserError(
                f"expected an exponential of {', '.join(EXPONENTIALS)}, got {exponential!r}: "
                "name one"
            )
        if not max_defect > 0:
            raise UserError(
                f"expected a positive max_defect, got {max_defect}: inf accepts any error"
            )
        self.exact_inverse = exponential == "exact"
        self._exponential = exponential
        self.max_defect = max_defect

    def exponential(self, element: Element) -> GroupElement:
        """Return g = exp(T), exact or to first order as the action was built."""
        return element.exponential(self._exponential)

    @abstractmethod
    def propose(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return the new matrices of the site.

        Args:
            element: the Lie algebra element T in float64; it is 0 for tasks that are not trusted.
            matrices: the matrices of the site, and its features if the inputs are known.
        """

    def pull_back_matrices(
        self, matrices: SiteMatrices, v_in: Sequence[Tensor], v_out: Sequence[Tensor]
    ) -> Tensor:
        """Return the gradient, with respect to T at T = 0, of <v_in, incoming> + <v_out, outgoing>.

        Args:
            matrices: the matrices of the site.
            v_in: one matrix for each incoming view, of the shape that ``matrices`` has.
            v_out: one matrix for each outgoing view, of the shape that ``matrices`` has.

        Returns:
            The values of a Lie algebra element, float64.
        """
        zero = self._zero(matrices.incoming[0])
        values = zero.values.requires_grad_()
        with torch.enable_grad():
            proposal = self._proposed(zero.with_values(values), matrices)
            pairs = (*zip(proposal.incoming, v_in, strict=True),
                     *zip(proposal.outgoing, v_out, strict=True))  # fmt: skip
            value = torch.stack([(matrix * v).sum() for matrix, v in pairs]).sum()
            (pulled,) = torch.autograd.grad(value, values)
        return pulled

    def identity(self, site: Site, weights: Mapping[str, Tensor]) -> Element:
        """Return the Lie algebra element T = 0 in the form that this action takes, float64."""
        return self._zero(site.incoming[0].read(weights))

    def _zero(self, incoming: Tensor) -> Element:
        width = incoming.shape[-2]
        trailing = (width,) if self.diagonal else (width, width)
        zeros = incoming.new_zeros((*incoming.shape[:-2], *trailing), dtype=torch.float64)
        return Element(zeros, diagonal=self.diagonal)

    def pull_back(
        self,
        gradients: Mapping[str, Tensor],
        site: Site,
        weights: Mapping[str, Tensor],
        inputs: LayerInput | None = None,
    ) -> Element:
        """Return the gradient with respect to T at T = 0; see :meth:`Action.pull_back`."""
        site = site if self._inputs(inputs) else site.without_outgoing_bias()
        matrices = SiteMatrices(site, weights, inputs)
        v_in, v_out = (
            [view.read_augmented(gradients).double() for view in views]
            for views in (site.incoming, site.outgoing)
        )
        pulled = self.pull_back_matrices(matrices, v_in, v_out)
        pulled = torch.where(per_task(matrices.trusted, pulled), pulled, 0.0)
        return Element(pulled, diagonal=self.diagonal)

    def move(
        self,
        element: Element,
        site: Site,
        weights: Mapping[str, Tensor],
        inputs: LayerInput | None = None,
    ) -> Moved:
        """Move the weights of a site by g = exp(T); see :meth:`Action.move`."""
        site = site if self._inputs(inputs) else site.without_outgoing_bias()
        self._check_element(element, site.incoming[0].read(weights).shape[:-1])
        matrices = SiteMatrices(site, weights, inputs, element.bounded())
        if element.values.dtype != torch.float64 or matrices.trusted.dim() or not matrices.trusted:
            wide = element.values.double()
            wide = torch.where(per_task(matrices.trusted, wide), wide, 0.0)
            element = element.with_values(wide)
        proposal = self._proposed(element, matrices)
        # As they will be stored: rounding and overflow count too.
        moved_in, moved_out = (
            [m.to(weights[view.parameter].dtype) for view, m in zip(views, side, strict=True)]
            for views, side in (
                (site.incoming, proposal.incoming),
                (site.outgoing, proposal.outgoing),
            )
        )
        with torch.no_grad():
            error = matrices.invariance_error(moved_in, moved_out)
            kept = matrices.trusted & proposal.solved
            if error is None:
                kept = kept & _all_finite((*moved_in, *moved_out))
            else:
                kept = kept & (error <= self.max_defect)
        new: dict[str, Tensor] = {name: weights[name] for name in site.parameters}
        views, old = (*site.incoming, *site.outgoing), matrices.given
        for view, matrix, stays in zip(views, (*moved_in, *moved_out), old, strict=True):
            view.write_augmented(new, _where(kept, matrix, stays))
        matrices.keep_product(new, kept)
        heads = range(site.head_dims)  # of a task one rejected head is enough to say so
        return Moved(
            new,
            None if error is None else reduce(lambda e, _: e.amax(dim=-1), heads, error),
            reduce(lambda mask, _: mask.any(dim=-1), heads, ~kept),
        )

    def _inputs(self, inputs: LayerInput | None) -> LayerInput | None:
        if inputs is None and self.uses_inputs:
            raise UserError(
                f"expected the input of the site's incoming layer for {type(self).__name__}, got "
                f"none: it is exact on given inputs alone"
            )
        return inputs

    def _proposed(self, element: Element, matrices: SiteMatrices) -> Proposal:
        """Return the proposal; refuse one of other shapes, which would be broadcast."""
        proposal = self.propose(element, matrices)
        sides = (matrices.incoming, matrices.outgoing)
        expected, got = (
            [[tuple(matrix.shape) for matrix in side] for side in pair]
            for pair in (sides, proposal[:2] if isinstance(proposal, Proposal) else ())
        )
        if got != expected:
            raise UserError(
                f"expected {type(self).__name__}.propose() to give a Proposal of matrices of the "
                f"shapes {expected}, incoming and outgoing, got {got or type(proposal).__name__}: "
                f"mend it"
            )
        return proposal

    def _check_element(self, element: Element, units: torch.Size) -> None:
        """Refuse an element of another shape than the units, ``(*batch, k)``, ask for."""
        spectral = element.basis is not None
        shape = units if spectral or self.diagonal else (*units, units[-1])
        if element.diagonal != self.diagonal or element.values.shape != shape:
            raise UserError(
                f"expected an element of shape {tuple(shape)} for a site of width "
                f"{units[-1]}, got {tuple(element.values.shape)}"
                f"{' in a basis' if spectral else ''}: one for each task"
            )


class SiteMatrices:
    """The matrices of a site in float64, with the features between them if the inputs are known.

    The weights of a task that is not ``trusted`` are 0 here.

    Args:
        site: the site.
        weights: tensors by name, at least of ``site.parameters``.
        inputs: the input of the incoming layer; None if it is not known.
        usable: ``(*batch,)`` bool, which tasks have an element that can be exponentiated; None for
            all.

    Attributes:
        given: the augmented weights of all views as they are, the incoming ones first.
        incoming, outgoing: augmented weights [W b], one for each view of the site.
        trusted: ``(*batch,)`` bool, which tasks have finite weights, inputs and elements.
    """

    def __init__(
        self,
        site: Site,
        weights: Mapping[str, Tensor],
        inputs: LayerInput | None,
        usable: Tensor | None = None,
    ) -> None:
        self.site = site
        views = (*site.incoming, *site.outgoing)
        self.given = [view.read_augmented(weights) for view in views]
        # Of one task the masks below copy nothing, and an action may work in place.
        wide = [m.to(torch.float64, copy=m.dim() == 2) for m in self.given]
        trusted = sound(wide[0]) if usable is None else usable & sound(wide[0])
        for matrix in wide[1:]:
            trusted = trusted & sound(matrix)
        self.layer_input = self._given_input = inputs
        self._weights = weights
        self._moved: Tensor | None = None  # W_{m-1} h after the move
        if inputs is not None:
            seen = inputs if site.incoming[0].bias is None else inputs.with_ones
            trusted = trusted & seen.finite & inputs.finite
            self.layer_input = seen
        self.trusted = trusted
        masked = [_where(trusted, matrix, matrix.new_zeros(())) for matrix in wide]
        self.incoming = masked[: len(site.incoming)]
        self.outgoing = masked[len(site.incoming) :]

    @property
    def activation(self) -> Activation:
        """The activation between the two matrices."""
        return self.site.between or Identity()

    @property
    def inputs(self) -> LayerInput:
        """The input of the incoming layer, with a row of ones below if that layer has a bias."""
        assert self.layer_input is not None  # move() and pull_back() see to it
        return self.layer_input

    @cached_property
    def pre_activations(self) -> Tensor:
        """The pre-activations W_{m-1} h, ``(*batch, k, samples)``."""
        h = self.inputs.h
        if self._given_input is None or self.trusted.dim() or not self.trusted:
            return self.incoming[0] @ h
        names = self.site.incoming[0].parameters
        stored = [self._weights[name] for name in names]
        return self._given_input.product(names[0], stored, lambda: self.incoming[0] @ h)

    def keep_product(self, weights: Mapping[str, Tensor], kept: Tensor) -> None:
        """Let an input that remembers know the moved pre-activations, if they are of ``weights``.

        Args:
            weights: the weights after the move, by name.
            kept: ``(*batch,)`` bool, whether a task moved.
        """
        if self._given_input is None or self._moved is None or kept.dim() or not kept:
            return
        names = self.site.incoming[0].parameters
        self._given_input.keep_product(names[0], [weights[name] for name in names], self._moved)

    @cached_property
    def features(self) -> Tensor:
        """The features sigma(W_{m-1} h), ``(*batch, k, samples)``."""
        return self.activation(self.pre_activations)

    def with_ones(self, features: Tensor) -> Tensor:
        """Return features with a row of ones below if the outgoing layer has a bias."""
        if self.site.outgoing[0].bias is None:
            return features
        return torch.cat((features, torch.ones_like(features[..., :1, :])), dim=-2)

    def weight_of(self, outgoing: Tensor, view: int = 0) -> Tensor:
        """Return the part of an outgoing augmented weight that is not its bias."""
        return outgoing[..., :-1] if self.site.outgoing[view].bias is not None else outgoing

    @property
    def transposed_weight_out(self) -> Tensor:
        """The transposed outgoing weight W_m^T, without the bias."""
        return self.weight_of(self.outgoing[0]).mT

    def after(self, g: GroupElement, view: int = 0) -> Tensor:
        """Return [W_m g^-1, b_m]: the group acts on the weight and not on the bias."""
        outgoing = self.outgoing[view]
        if self.site.outgoing[view].bias is None:
            return g.after(outgoing)
        return torch.cat((g.after(self.weight_of(outgoing, view)), outgoing[..., -1:]), dim=-1)

    def invariance_error(
        self, incoming: Sequence[Tensor], outgoing: Sequence[Tensor]
    ) -> Tensor | None:
        """Return the relative change of the site's output on its inputs, ``(*batch,)``.

        Args:
            incoming: the new incoming matrices.
            outgoing: the new outgoing matrices.

        Returns:
            None if the inputs are not known, or if several matrices make or use the features.
        """
        if self.layer_input is None or len(self.incoming) + len(self.outgoing) > 2:
            return None
        self._moved = incoming[0].double() @ self.layer_input.h
        after = outgoing[0].double() @ self.with_ones(self.activation(self._moved))
        return relative_change(self.outgoing[0] @ self.with_ones(self.features), after)


def linear_move(g: GroupElement, site: Site, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the weights of a site: incoming W to g W, and outgoing W to W g^-1.

    Nothing is checked and nothing is rejected, as it is in :meth:`ClosedFormAction.move`.

    Args:
        g: the group element, float64.
        site: where it acts.
        weights: tensors by name, at least of ``site.parameters``.

    Returns:
        The weights that change, as new tensors.
    """
    site = site.without_outgoing_bias()
    moved = {name: weights[name] for name in site.parameters}

    def put(view: MatrixView, act: Callable[[Tensor], Tensor]) -> None:
        old = view.read(weights)
        # Scales are float64, so their products are, too.
        view.write(moved, act(old if g.diagonal else old.double()).to(old.dtype))

    for view in site.incoming:
        put(view, g.times)
        if view.bias is not None:
            put(view.bias, g.times)
    for view in site.outgoing:
        put(view, g.after)
    return moved


def linear_transport(
    g: GroupElement, site: Site, buffers: Mapping[str, Tensor], squares: bool = False
) -> dict[str, Tensor]:
    """Transport gradients for an action that maps incoming W to g W, and outgoing W to W g^-1.

    Args:
        g: the group element.
        site: where it acted.
        buffers: one tensor for each of ``site.parameters``, by name.
        squares: whether they are averages of squared gradients.

    Returns:
        The buffers that change, as new tensors.
    """
    g = g.squared() if squares else g
    site = site.without_outgoing_bias()  # which no such action moves
    moved = {name: buffers[name] for name in site.parameters}
    for view in site.incoming:
        old = view.read_augmented(buffers)
        wide = old if g.diagonal else old.double()  # scales are float64: so is their product
        view.write_augmented(moved, g.dual_times(wide).to(old.dtype))
    for view in site.outgoing:
        old = view.read(buffers)
        wide = old if g.diagonal else old.double()
        view.write(moved, g.dual_after(wide).to(old.dtype))
    return moved


def _where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return ``new`` for the tasks of the mask, ``(*batch,)``, and ``old`` for the others."""
    if mask.dim() or not mask:
        return torch.where(mask[..., None, None], new, old)
    return new  # one task: a copy would cost as much as the rest of its move


def _all_finite(matrices: Sequence[Tensor]) -> Tensor:
    finite = [(matrix * 0).sum(dim=(-2, -1)) == 0 for matrix in matrices]  # else it is NaN
    return torch.stack(finite).all(dim=0)
