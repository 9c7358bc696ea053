"""The interface of a group action at a site (appendix E.1).

At a site two layers compute W_m sigma(W_{m-1} h + b_{m-1}) + b_m. An action moves both by a group
element g = exp(T) so that this output stays.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.symmetry.element import Element
from metaopt.symmetry.inputs import LayerInput
from metaopt.symmetry.site import Site

ALL_DATA = math.inf
"""What ``Action.max_samples`` returns for an action that keeps the function on any data."""


class Moved(NamedTuple):
    """The weights that an action proposes at one site, and whether to trust them.

    Attributes:
        weights: new tensors of the site's parameters by name, each of its own dtype.
        invariance_error: ``(*batch,)``, the relative change of the site's output on the inputs,
            measured at the weights as they are stored; None if no inputs were given.
        rejected: ``(*batch,)`` bool, whether a task keeps its weights.
    """

    weights: dict[str, Tensor]
    invariance_error: Tensor | None
    rejected: Tensor


class Action(ABC):
    """A group action at a site, with everything that depends on how the group acts.

    Attributes:
        group: "GL" for invertible matrices, "positive" for positive scales of units.
        exact_when: in words, when the action keeps the network's function.
        uses_inputs: whether :meth:`move` and :meth:`pull_back` need the input of the site's
            incoming layer. Such an action keeps the function on that input alone.
        on_preactivations: whether g acts before the activation, on W_{m-1} h, and not after it.
        linear: whether :meth:`move` multiplies each incoming matrix, its bias included, by g =
            exp(T) and each outgoing one by g^-1, and does nothing else. Several such moves are one,
            and where the action is exact for all data a search does not evaluate the network at
            each point: the gradients there follow from those at the start.
        turns: whether every rotation is in the group, so that a :class:`Turn` may come.
    """

    group: ClassVar[str]
    exact_when: ClassVar[str]
    uses_inputs: ClassVar[bool] = False
    on_preactivations: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    turns: ClassVar[bool] = False

    @abstractmethod
    def max_samples(self, site: Site) -> float:
        """Return the largest batch for which the action is exact at a site, for generic data.

        Args:
            site: where it acts.

        Returns:
            A number of samples; ``math.inf`` if it is exact for all data, 0 if it never is.
        """

    def obstacle(self, site: Site) -> str | None:
        """Return why the action cannot act at a site even approximately; None if it can.

        By default an action that needs no inputs acts only where it is exact.
        """
        if self.uses_inputs or self.max_samples(site):
            return None
        return f"it is exact only where {self.exact_when}"

    @abstractmethod
    def identity(self, site: Site, weights: Mapping[str, Tensor]) -> Element:
        """Return the Lie algebra element T = 0 in the form that this action takes, float64."""

    @abstractmethod
    def move(
        self,
        element: Element,
        site: Site,
        weights: Mapping[str, Tensor],
        inputs: LayerInput | None = None,
    ) -> Moved:
        """Move the weights of a site by g = exp(T), differentiably in T and in the weights.

        Args:
            element: the Lie algebra element T.
            site: where the group acts.
            weights: tensors by name, at least of ``site.parameters``.
            inputs: the input h of the incoming layer at these weights, if it is known.

        Raises:
            UserError: if the element does not fit the site, or the site does not fit the action.
        """

    @abstractmethod
    def pull_back(
        self,
        gradients: Mapping[str, Tensor],
        site: Site,
        weights: Mapping[str, Tensor],
        inputs: LayerInput | None = None,
    ) -> Element:
        """Return the gradient with respect to T, at T = 0, of a function of the weights.

        It is the adjoint of the action's derivative at the identity, applied to the function's
        gradients. It is 0 for a task whose move could not be trusted.

        Args:
            gradients: of the function, with respect to the weights of ``site.parameters``, by name.
            site: where the group acts.
            weights: tensors by name, at least of ``site.parameters``.
            inputs: the input h of the incoming layer at these weights, if it is known.
        """

    def project(self, values: Tensor, site: Site) -> Tensor:
        """Return the part of a T that lies in the Lie algebra of the action's group.

        By default that is all of it.

        Args:
            values: of an element of the form that :meth:`identity` gives.
            site: where the group acts.
        """
        return values

    def transport(
        self, element: Element, site: Site, buffers: Mapping[str, Tensor], squares: bool = False
    ) -> dict[str, Tensor]:
        """Transport averages of gradients, such as momenta, along a move of the weights by exp(T).

        A gradient is a linear function of a change of the weights, and this function stays the
        same. So the gradient moves by the inverse transpose of the move's derivative. An average of
        squared gradients is moved by the squares of the entries of that matrix, which is exact if
        the matrix is diagonal.

        Args:
            element: the Lie algebra element T.
            site: where the group acted.
            buffers: one tensor for each of ``site.parameters``, by name.
            squares: whether they are averages of squared gradients, entry by entry.

        Returns:
            The buffers that change, as new tensors.

        Raises:
            UserError: if the action does not define its transport.
        """
        raise _cannot_transport(self)


def check_transports(action: Action) -> None:
    """Check that an action defines how buffers are transported.

    Args:
        action: the action.

    Raises:
        UserError: if it has no :meth:`Action.transport` of its own.
    """
    if type(action).transport is Action.transport:
        raise _cannot_transport(action)


def _cannot_transport(action: Action) -> UserError:
    return UserError(
        f"expected an action that says how buffers are transported, got "
        f"{type(action).__name__}: use buffers='keep' or 'reset', or write its transport()"
    )


def check_tensors(
    action: Action, method: str, given: Mapping[str, Tensor], known: Mapping[str, Tensor]
) -> None:
    """Check that an action gave tensors for names and of shapes that are known.

    Args:
        action: the action.
        method: the name of the method that gave them.
        given: what it gave, by name.
        known: the tensors before, by name.

    Raises:
        UserError: for another name or shape, which could be broadcast without an error.
    """
    for name, value in given.items():
        shapes = [tuple(t.shape) for t in (value, known.get(name)) if isinstance(t, Tensor)]
        if len(shapes) < 2 or shapes[0] != shapes[1]:
            raise UserError(
                f"expected {type(action).__name__}.{method}() to give tensors of the shapes that "
                f"the parameters of the site have, got {name!r} of "
                f"{' for '.join(map(str, shapes)) or type(value).__name__}: mend it"
            )


def relative_change(before: Tensor, after: Tensor) -> Tensor:
    """Return ||after - before||_F / ||before||_F, ``(*batch,)``; 0 if both are zero."""
    change: Tensor = torch.linalg.matrix_norm(after - before)
    size: Tensor = torch.linalg.matrix_norm(before)
    return change / size.clamp(min=torch.finfo(size.dtype).tiny)
