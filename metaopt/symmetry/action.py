"""The interface of a group action at a site (appendix E.1).

At a site the pair of layers computes W_m sigma(W_{m-1} h + b_{m-1}) + b_m. An action moves both
layers by a group element g = exp(T) so that this output stays. Each action is written as a
*change* of the weights, so that T = 0 moves nothing, bit for bit, whatever the rank of h.

Arithmetic is float64. A problem of the batch whose move cannot be trusted keeps its weights and
is marked ``refused``: NaN or infinity in what comes in, an element too large to exponentiate, a
factorisation that fails, or an output that changes by more than ``max_defect``. What could
become NaN is masked on its way in, because a NaN masked on its way out still reaches the
gradient through ``torch.where``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.chain import Activation, Layer
from metaopt.symmetry.exponential import (
    EXPONENTIALS,
    MAX_DIRECTION,
    MAX_ELEMENT,
    Element,
    Spectral,
)

MAX_SIZE = 1e50  # Frobenius norm of W and h above which float64 products could overflow


class LayerInput:
    """h, the input of an incoming layer, with what is computed from it once.

    Keep the object while h stays the same: the pseudo-inverse is made once and reused.
    """

    def __init__(self, h: Tensor) -> None:
        self.original = h
        self.finite = _sound(h)
        self.h = torch.where(self.finite[..., None, None], h.double(), 0.0)

    @cached_property
    def with_ones(self) -> LayerInput:
        """h with a row of ones below, which carries the bias."""
        return LayerInput(torch.cat((self.h, torch.ones_like(self.h[..., :1, :])), dim=-2))

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """h^+, ``(*batch, samples, features)``."""
        inverse: Tensor = torch.linalg.pinv(self.h)
        return inverse

    def for_layer(self, layer: Layer) -> LayerInput:
        """This input as the layer sees it: with a row of ones where it has a bias."""
        return self if layer.bias is None else self.with_ones


class Move(NamedTuple):
    """What an action proposes for one site."""

    incoming: Layer
    outgoing: Layer
    defect: Tensor  # (*batch,) relative change of the pair's output, at the weights as stored
    refused: Tensor  # (*batch,) bool: this problem keeps its layers


class Candidate(NamedTuple):
    """What a concrete action computes, in float64, before anything is refused."""

    incoming: Tensor  # joined [W b] of the incoming layer
    outgoing: Tensor
    solved: Tensor  # (*batch,) bool: every factorisation succeeded


class GroupAction(ABC):
    """A group acting on the two layers of a site. Concrete actions are final."""

    exact_when: ClassVar[str]
    diagonal: ClassVar[bool] = False  # whether elements are (*batch, k) instead of (*batch, k, k)

    def __init__(self, exponential: str = "exact", max_defect: float = 0.1) -> None:
        if exponential not in EXPONENTIALS:
            raise UserError(
                f"expected an exponential of {', '.join(EXPONENTIALS)}, got {exponential!r}: "
                "name one"
            )
        if not max_defect > 0:
            raise UserError(
                f"expected a positive max_defect, got {max_defect}: inf refuses no defect"
            )
        self.exact_inverse = exponential == "exact"
        self._exponential = EXPONENTIALS[exponential]
        self.max_defect = max_defect

    def exponential(self, element: Element) -> tuple[Tensor, Tensor]:
        """(g, g^-1)."""
        if not isinstance(element, Spectral):
            return self._exponential(element)
        if self.exact_inverse:
            return element.exponential()
        return self._exponential(element.dense())

    @abstractmethod
    def is_exact(
        self, incoming: Layer, outgoing: Layer, samples: int, activation: Activation
    ) -> bool:
        """``exact_when`` as a predicate on shapes and activation (for data in general position)."""

    @abstractmethod
    def _candidate(self, element: Element, pair: Pair) -> Candidate: ...

    def _pulled_back(self, pair: Pair, v_in: Tensor, v_out: Tensor) -> Tensor:
        """The gradient in T at T = 0 of <v_in, W_{m-1}> + <v_out, W_m>; an action may know it."""
        width = pair.w_in.shape[-2]
        trailing = (width,) if self.diagonal else (width, width)
        element = pair.w_in.new_zeros((*pair.w_in.shape[:-2], *trailing), requires_grad=True)
        with torch.enable_grad():
            candidate = self._candidate(element, pair)
            value = (candidate.incoming * v_in).sum() + (candidate.outgoing * v_out).sum()
            (pulled,) = torch.autograd.grad(value, element)
        return pulled

    def pull_back(
        self,
        gradients: tuple[Layer, Layer],
        incoming: Layer,
        outgoing: Layer,
        layer_input: LayerInput,
        activation: Activation,
    ) -> Tensor:
        """The gradient in T at T = 0 of a function of both layers, from its gradients in them.

        The adjoint of the action's derivative at the identity, in closed form where the action
        has one. 0 where a move could not be trusted.

        Args:
            gradients: of the incoming and of the outgoing layer.

        Returns:
            ``(*batch, k, k)``, or ``(*batch, k)`` if ``diagonal``; float64.
        """
        sound = torch.ones(
            incoming.weight.shape[:-2], dtype=torch.bool, device=layer_input.h.device
        )
        pair = Pair(incoming, outgoing, layer_input, activation, sound)
        v_in, v_out = (gradient.joined().double() for gradient in gradients)
        pulled = self._pulled_back(pair, v_in, v_out)
        return torch.where(per_problem(pair.trusted, pulled), pulled, 0.0)

    def act(
        self,
        element: Element,
        incoming: Layer,
        outgoing: Layer,
        layer_input: LayerInput,
        activation: Activation,
    ) -> Move:
        """Move both layers by g = exp(element); the layers keep their dtype.

        Args:
            element: T in the Lie algebra, ``(*batch, k, k)``, or ``(*batch, k)`` if ``diagonal``.
            incoming: layer m-1, weight ``(*batch, k, features)``.
            outgoing: layer m, weight ``(*batch, out, k)``.
            layer_input: h, ``(*batch, features, samples)``, at these weights.
            activation: sigma between the two.

        Raises:
            UserError: if the element does not fit the site's width, or the activation the action.
        """
        width = incoming.weight.shape[-2]
        batch = incoming.weight.shape[:-2]
        spectral = isinstance(element, Spectral)
        values = element.values if isinstance(element, Spectral) else element
        vector = spectral or self.diagonal
        expected = (*batch, width) if vector else (*batch, width, width)
        if values.shape != expected or (spectral and self.diagonal):
            raise UserError(
                f"expected an element of shape {expected} for a site of width {width}, "
                f"got {tuple(values.shape)}{' in spectral form' if spectral else ''}"
            )
        detached = values.detach().double()
        if vector:
            largest = MAX_DIRECTION if spectral else MAX_ELEMENT
            small = detached.abs().amax(dim=-1) <= largest
        else:
            small = torch.linalg.matrix_norm(detached) <= MAX_ELEMENT
        pair = Pair(incoming, outgoing, layer_input, activation, small)
        values = torch.where(per_problem(pair.trusted, values), values.double(), 0.0)
        element = element._replace(values=values) if isinstance(element, Spectral) else values
        candidate = self._candidate(element, pair)
        # As they will be stored: rounding and overflow count too.
        moved_in = candidate.incoming.to(incoming.weight.dtype)
        moved_out = candidate.outgoing.to(outgoing.weight.dtype)
        with torch.no_grad():
            after = moved_out.double() @ pair.hidden(activation(moved_in.double() @ pair.h))
            defect = relative_change(pair.w_out @ pair.hidden(pair.features), after)
            refused = ~(pair.trusted & candidate.solved & (defect <= self.max_defect))
        return Move(
            keep_where(refused, incoming, unjoined(moved_in, incoming)),
            keep_where(refused, outgoing, unjoined(moved_out, outgoing)),
            defect,
            refused,
        )


class Pair:
    """Both layers of a site as joined float64 matrices, and their inputs with rows of ones.

    Weights of a problem that is not ``trusted`` are 0 here.
    """

    def __init__(
        self,
        incoming: Layer,
        outgoing: Layer,
        layer_input: LayerInput,
        activation: Activation,
        sound: Tensor,
    ) -> None:
        self.layer_input = layer_input.for_layer(incoming)
        self.h = self.layer_input.h
        self.activation = activation
        w_in, w_out = incoming.joined().double(), outgoing.joined().double()
        self.trusted = (
            sound & self.layer_input.finite & layer_input.finite & _sound(w_in) & _sound(w_out)
        )
        mask = self.trusted[..., None, None]
        self.w_in, self.w_out = torch.where(mask, w_in, 0.0), torch.where(mask, w_out, 0.0)
        self.outgoing_biased = outgoing.bias is not None

    @cached_property
    def pre_activations(self) -> Tensor:
        """W_{m-1} h, ``(*batch, k, samples)``."""
        return self.w_in @ self.h

    @cached_property
    def features(self) -> Tensor:
        """sigma(W_{m-1} h), ``(*batch, k, samples)``."""
        return self.activation(self.pre_activations)

    def hidden(self, features: Tensor) -> Tensor:
        """Hidden features as the outgoing layer sees them: with ones where it has a bias."""
        if not self.outgoing_biased:
            return features
        return torch.cat((features, torch.ones_like(features[..., :1, :])), dim=-2)

    def of_weight(self, outgoing: Tensor) -> Tensor:
        """The part of a joined outgoing layer that is not its bias."""
        return outgoing[..., :-1] if self.outgoing_biased else outgoing

    @property
    def transposed_weight_out(self) -> Tensor:
        """W_m^T, without the bias."""
        return self.of_weight(self.w_out).mT

    def times_inverse(self, g_inverse: Tensor) -> Tensor:
        """[W_m g^-1, b_m]: the group acts on the weight alone."""
        if not self.outgoing_biased:
            return self.w_out @ g_inverse
        return torch.cat((self.of_weight(self.w_out) @ g_inverse, self.w_out[..., -1:]), dim=-1)


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """||after - before||_F / ||before||_F, shape ``(*batch,)``; 0 for two zero outputs."""
    change: Tensor = torch.linalg.matrix_norm(after - before)
    size: Tensor = torch.linalg.matrix_norm(before)
    return change / size.clamp(min=torch.finfo(size.dtype).tiny)


def _sound(matrix: Tensor) -> Tensor:
    """No NaN and nothing whose products overflow, ``(*batch,)``."""
    size: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1))
    return size < MAX_SIZE  # NaN: False


def per_problem(value: Tensor, like: Tensor) -> Tensor:
    """One value a problem, ``(*batch,)``, shaped to broadcast against ``like``."""
    return value.reshape(value.shape + (1,) * (like.dim() - value.dim()))


def unjoined(matrix: Tensor, like: Layer) -> Layer:
    """The layer of a joined matrix [W b]."""
    return Layer(matrix) if like.bias is None else Layer(matrix[..., :-1], matrix[..., -1])


def keep_where(kept: Tensor, old: Layer, new: Layer) -> Layer:
    """``old`` for the problems that are ``kept``, ``(*batch,)``, ``new`` for the others."""
    weight = torch.where(kept[..., None, None], old.weight, new.weight)
    if old.bias is None or new.bias is None:
        return Layer(weight)
    return Layer(weight, torch.where(kept[..., None], old.bias, new.bias))
