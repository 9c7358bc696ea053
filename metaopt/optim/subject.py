"""What is teleported: a problem that is its own data, or a network on batches of a user's data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

from torch import Tensor, nn
from torch.func import functional_call

from metaopt.errors import UserError
from metaopt.learned.optimizer import ChainModel
from metaopt.symmetry import (
    ACTIONS,
    GroupAction,
    LayerInput,
    PostActivationAction,
    RescalingAction,
    Teleported,
    make_action,
)
from metaopt.symmetry.finders import ChainView, as_chain, find_sites
from metaopt.symmetry.loss import LossOnBatch, NetworkLoss
from metaopt.symmetry.move import Judge, NetworkMove
from metaopt.symmetry.objectives import LossFunction
from metaopt.symmetry.orbit import ChainOrbit, Orbit
from metaopt.symmetry.rescaling_orbit import RescalingOrbit
from metaopt.symmetry.search import Climb, GradientAscent, Search

AUTO = "auto"


class Batch(NamedTuple):
    """Samples in rows, and what belongs to them."""

    x: Tensor
    y: Tensor


def batch_of(x: Tensor | None, y: Tensor | None) -> Batch | None:
    """None unless both are given."""
    return None if x is None or y is None else Batch(x, y)


class Subject(ABC):
    """Has parameters, an orbit and a loss, on a batch where it needs one."""

    names: tuple[str, ...]  # of the parameters that can move, in order
    search: Search  # by default

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """Those called ``names``."""

    @abstractmethod
    def orbit(self, batch: Batch | None) -> Orbit:
        """Where they can move to."""

    @abstractmethod
    def loss(self, batch: Batch | None) -> LossFunction:
        """As a function of them."""

    @abstractmethod
    def moved(
        self, orbit: Orbit, batch: Batch | None, before: list[Tensor], climb: Climb
    ) -> Teleported:
        """The teleportation from one point to another."""

    @abstractmethod
    def report(self) -> str:
        """Which groups act where, and what was left out; for people."""


@final
class ProblemSubject(Subject):
    """A problem of ``metaopt.tasks``, or any batched module with a ``chain`` and its ``x``."""

    search = GradientAscent()  # with which the methods of section 5.2 were tuned

    def __init__(self, model: ChainModel, module: nn.Module, action: str | GroupAction) -> None:
        self.module = module
        self.chain = model.chain
        self.layer_input = LayerInput(model.x)
        named = "post_activation" if action == AUTO else action
        self.action = named if isinstance(named, GroupAction) else make_action(named)
        self.names = tuple(name for name, _ in module.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        return list(self.module.parameters())

    def orbit(self, batch: Batch | None) -> ChainOrbit:
        return ChainOrbit(self.chain, self.layer_input, self.action)

    def loss(self, batch: Batch | None) -> LossFunction:
        return lambda values: functional_call(
            self.module, dict(zip(self.names, values, strict=True)), ()
        )

    def moved(
        self, orbit: Orbit, batch: Batch | None, before: list[Tensor], climb: Climb
    ) -> Teleported:
        assert isinstance(orbit, ChainOrbit)
        return orbit.teleportation(before, climb.parameters, climb.refused)

    def report(self) -> str:
        return f"{len(self.chain.sites)} sites of a chain, under {type(self.action).__name__}"


@final
class NetworkSubject(Subject):
    """Any ``nn.Module`` of one input.

    With "auto", positive rescaling acts at every site where it is exact for all data; where there
    is none, GL, if it is exact at every site for the batch at hand (eq. 78, else eq. 79), which
    takes a chain of Linear layers. (The other way round, a last batch of 4 rows would be moved by
    GL, and the output on the rest of the data changed by 30 %.)

    Args:
        sites: the (incoming, outgoing) layers to use; all that are found by default.
    """

    search = GradientAscent(most_ratio=2.0)  # without a bound some networks are lost

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossOnBatch,
        action: str | GroupAction,
        sites: Sequence[tuple[str, str]] | None,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.sites = find_sites(model, sites)
        self.homogeneous = tuple(site for site in self.sites.found if site.homogeneous)
        self.view = "sites were given" if sites is not None else as_chain(model)
        self.asked = action
        self.action = None if action == AUTO else action
        if isinstance(self.action, str):
            self.action = make_action(self.action)
        if isinstance(self.action, GroupAction):
            self._check(self.action)
        elif not self.homogeneous and not self._chained():
            raise UserError(
                f"expected a model with a place for a group to act, got none ({self.sites.why()}): "
                f"use the optimizer without teleportation"
            )
        if isinstance(self.view, ChainView):
            self.names = self.view.names
        else:
            own = dict.fromkeys(n for s in self.homogeneous for n in (*s.multiplied, s.divided))
            self.names = tuple(own)

    def _chained(self) -> bool:
        """Whether GL has a place to act."""
        return isinstance(self.view, ChainView) and bool(self.view.chain.sites)

    def _check(self, action: GroupAction) -> None:
        if isinstance(action, RescalingAction):
            if not self.homogeneous:
                raise UserError(
                    f"expected a site that can be rescaled, got none ({self.sites.why()}): "
                    f"use another action"
                )
        elif isinstance(self.view, str):
            raise UserError(
                f"expected a chain of Linear layers for {type(action).__name__}, got another "
                f"model ({self.view}): use action='rescaling'"
            )
        elif not self.view.chain.sites:
            raise UserError(
                f"expected a model with two layers or more for {type(action).__name__}, got one: "
                f"a group acts between two layers"
            )
        elif isinstance(action, PostActivationAction) and not self.view.chain.invertible:
            raise UserError(
                "expected activations with an inverse on the real line, such as LeakyReLU, for "
                "PostActivationAction (eq. 78), got others: use action='pre_activation'"
            )

    def parameters(self) -> list[nn.Parameter]:
        return [self.model.get_parameter(name) for name in self.names]

    def orbit(self, batch: Batch | None) -> Orbit:
        x = _given(batch).x
        action = self.action if isinstance(self.action, GroupAction) else self.chosen(x)
        if isinstance(action, RescalingAction):
            return RescalingOrbit(self.names, self.homogeneous)
        assert isinstance(self.view, ChainView)
        columns = x.flatten(1).mT
        expected = self.model.get_parameter(self.view.names[0]).shape[1]
        if columns.shape[0] != expected:
            raise UserError(
                f"expected a batch of rows with {expected} entries for {type(action).__name__}, "
                f"got {columns.shape[0]}: use action='rescaling'"
            )
        return ChainOrbit(self.view.chain, LayerInput(columns), action)

    def chosen(self, x: Tensor) -> GroupAction:
        """By the policy of "auto", for this batch."""
        if self.homogeneous:
            return make_action("rescaling")
        if isinstance(self.view, ChainView):
            exact = self.sites.exact_on_all(self.view.chain, x.shape[0])
            for name in ("post_activation", "pre_activation"):
                if name in exact:
                    return make_action(name)
        raise UserError(
            f"expected a batch for which a group action is exact, got one of {x.shape[0]} samples: "
            f"use fewer ({self.sites.report()})".replace("\n", "; ")
        )

    def loss(self, batch: Batch | None) -> LossFunction:
        x, y = _given(batch)
        return NetworkLoss(self.model, self.names, self.loss_fn, x, y)

    def judge(self, x: Tensor, start: Sequence[Tensor]) -> Judge:
        """Of the change of the output on ``x`` from where the parameters are ``start``."""
        return Judge(self.model, self.names, x, start)

    def moved(
        self, orbit: Orbit, batch: Batch | None, before: list[Tensor], climb: Climb
    ) -> Teleported:
        return NetworkMove(
            self.model, self.names, _given(batch).x, before, climb.parameters, climb.refused
        )

    def report(self) -> str:
        return self.sites.report()


def make_subject(
    model: nn.Module,
    loss_fn: LossOnBatch | None,
    action: str | GroupAction,
    sites: Sequence[tuple[str, str]] | None,
) -> Subject:
    """The one that fits the model.

    Raises:
        UserError: for options that do not fit it.
    """
    if isinstance(action, str) and action not in (AUTO, *ACTIONS):
        raise UserError(
            f"expected an action of {AUTO}, {', '.join(ACTIONS)}, got {action!r}: name one"
        )
    if loss_fn is not None and not callable(loss_fn):
        raise UserError(
            f"expected a loss_fn that can be called, got {loss_fn!r}: give a function of the "
            f"model's output and y"
        )
    if isinstance(model, ChainModel):
        if sites is not None:
            raise UserError(
                f"expected no sites for a problem, which has its own, got {list(sites)}: leave "
                f"them out"
            )
        return ProblemSubject(model, model, action)
    if loss_fn is None:
        raise UserError(
            f"expected a loss_fn for a {type(model).__name__}, got none: give a function of the "
            f"model's output and y"
        )
    return NetworkSubject(model, loss_fn, action, sites)


def _given(batch: Batch | None) -> Batch:
    if batch is None:
        raise UserError(
            "expected a batch to teleport on, got none: call teleport(x, y), or "
            "step(batch=(x, y)) with a schedule"
        )
    return batch
