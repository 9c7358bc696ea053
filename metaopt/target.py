"""What an optimizer moves: a model with its parameters, its sites, its outputs and its loss.

:class:`~metaopt.LearnedOptimizer` and :class:`~metaopt.TeleportingOptimizer` look at a model
through the same object, with the same checks and the same messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metaopt.errors import UserError, shown, unknown
from metaopt.symmetry.action import Action
from metaopt.symmetry.actions import ACTIONS, action_of
from metaopt.symmetry.auto import AUTO, Returns, choose_actions, for_all_data
from metaopt.symmetry.chain import NO_CHAIN, ChainModule, LayerChain
from metaopt.symmetry.finders import Sites, choose_sites, find_sites
from metaopt.symmetry.finders.sites import grouped, shorten
from metaopt.symmetry.functional import (
    LossOnBatch,
    ModuleOutputs,
    NetworkLoss,
    call_with,
)
from metaopt.symmetry.inputs import LayerInput
from metaopt.symmetry.nested import Inputs, samples_in, tensors_in
from metaopt.symmetry.objectives import LossFunction
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.search import GradientAscent, Search
from metaopt.symmetry.site import LeftOut, Site
from metaopt.symmetry.symmetries_found import Symmetries
from metaopt.symmetry.teleportation import ChainOutputs, Outputs
from metaopt.wrappers import unwrapped

Chosen = Sequence[Any]
"""Sites that a user chose: pairs of names (incoming layer, outgoing layer), or sites themselves."""


def are_sites(chosen: Chosen) -> bool:
    """Return whether what a user chose are sites, and not pairs of names.

    Args:
        chosen: what the user gave; an empty sequence is one of pairs.
    """
    if isinstance(chosen, Symmetries):
        return True
    return not isinstance(chosen, str) and any(isinstance(item, Site) for item in chosen)


class Batch(NamedTuple):
    """A batch of data: samples in rows, and what the loss compares the outputs with.

    Attributes:
        x: what the model is called with: a tensor, a tuple or list of arguments, or a mapping of
            them (:mod:`metaopt.symmetry.nested`).
        y: the second argument of the loss function; None where the model computes its loss itself,
            which the loss function then takes out of what the model gives.
    """

    x: Inputs
    y: Any = None


class Target(ABC):
    """A model as an optimizer sees it.

    Attributes:
        model: the module itself.
        sites: all sites where a group can act, and the layers that were left out, with reasons.
        search: the search that a teleportation uses by default.
        needs_batch: whether a batch has to be given for losses, outputs and orbits.
    """

    model: nn.Module
    sites: Sites
    search: Search
    needs_batch: bool

    @property
    def chain(self) -> LayerChain:
        """The model as a chain of layers; ``NO_CHAIN`` if it is none."""
        return NO_CHAIN if isinstance(self.sites.chain, str) else self.sites.chain

    def parameters(self, names: Sequence[str]) -> list[nn.Parameter]:
        """Return the model's parameters of these names, in order."""
        return [self.model.get_parameter(name) for name in names]

    def trainable(self) -> tuple[str, ...]:
        """Return the names of all parameters that require a gradient.

        Raises:
            UserError: if there are none.
        """
        names = tuple(name for name, p in self.model.named_parameters() if p.requires_grad)
        if not names:
            raise UserError(
                "expected a model with parameters that require a gradient, got none: unfreeze some"
            )
        return names

    def acting(
        self, action: str | Action, samples: int | None, returns: Returns
    ) -> tuple[ActingSite, ...]:
        """Return the sites where a group acts on a batch, with the action of each.

        Args:
            action: "auto" (see :func:`~metaopt.symmetry.auto.choose_actions`), or an action or its
                name, which acts wherever it can.
            samples: rows of the batch; None if there is no batch.
            returns: whether further steps are made on the same batch.
        """
        if action == AUTO:
            return choose_actions(self.sites, samples, returns)
        own = action_of(action)
        if own.uses_inputs and self.chain == NO_CHAIN:
            return ()
        return tuple(
            ActingSite(site, own) for site in self.sites.found if own.obstacle(site) is None
        )

    def moving(self, action: str | Action) -> tuple[str, ...]:
        """Return the names of the parameters that an action may move, in order.

        Args:
            action: "auto", an action, or its name.
        """
        if self.chain.pairs:
            return self.chain.names
        if action == AUTO:
            sites = [site for site in self.sites.found if for_all_data(site) is not None]
        else:
            sites = [site for site, _ in self.acting(action, None, Returns.UNKNOWN)]
        names = [name for site in sites for name in site.without_outgoing_bias().parameters]
        return tuple(dict.fromkeys(names))

    @abstractmethod
    def samples(self, x: Inputs | None) -> int | None:
        """Return how many samples a batch has; None if there is no batch.

        Args:
            x: the batch, samples in rows; None if the model needs none.
        """

    @abstractmethod
    def orbit(self, names: Sequence[str], acting: Sequence[ActingSite], x: Inputs | None) -> Orbit:
        """Return the orbit of some parameters: the points that they can be moved to.

        Args:
            names: names of the parameters that move, in order.
            acting: the sites where a group acts, with the actions.
            x: the batch, samples in rows; None if the model needs none.
        """

    @abstractmethod
    def loss(
        self, names: Sequence[str], loss_fn: LossOnBatch | None, batch: Batch | None
    ) -> LossFunction:
        """Return the losses as a function of some parameters.

        Args:
            names: names of the parameters, in order.
            loss_fn: a function from (the model's output, y) to the loss; None if the model has its
                own.
            batch: the batch; None if the model needs none.
        """

    @abstractmethod
    def outputs(self, names: Sequence[str], x: Inputs | None) -> Outputs:
        """Return the outputs in float64 as a function of some parameters.

        Args:
            names: names of the parameters, in order.
            x: the batch, samples in rows; None if the model needs none.
        """

    @abstractmethod
    def report(self) -> str:
        """Return a text that says where a group can act, where not, and why."""

    def obstacles(self, action: Action) -> list[tuple[Site, str]]:
        """Return the sites where an action cannot act, each with the reason in words."""
        return [(site, why) for site in self.sites.found if (why := action.obstacle(site))]

    def check_action(self, action: str | Action, choices: Sequence[str], advice: str) -> None:
        """Check that an action has a site to act at in this model.

        Args:
            action: an action or its name.
            choices: the names that may be given.
            advice: the end of the message: what else to do.

        Raises:
            UserError: for another name, or an action that fits no site.
        """
        if isinstance(action, str) and action not in choices:
            raise UserError(unknown("an action", action, choices))
        if isinstance(action, str) and action not in ACTIONS:
            return
        own = action_of(action)
        name = type(own).__name__
        if own.uses_inputs and isinstance(self.sites.chain, str):
            raise UserError(
                f"expected a chain of Linear layers for {name}, got another model "
                f"({self.sites.chain}): use action='rescaling', or {advice}"
            )
        if own.uses_inputs and not self.chain.pairs:
            raise UserError(
                f"expected a model with two layers or more for {name}, got one: a group acts "
                f"between two layers"
            )
        obstacles = self.obstacles(own)
        free = len(self.sites.found) - len(obstacles)
        if own.uses_inputs and obstacles:
            site, why = obstacles[0]
            raise UserError(
                f"expected sites where {name} can act, got {site.name}, where {why}: {advice}"
            )
        if not free:
            left_out = [LeftOut(site.layers, why) for site, why in obstacles]
            reason = grouped(left_out) or self.sites.why()
            line = f"expected a site for {name}, got none ({reason}): {advice}"
            raise UserError(line, longest=580)


@final
class TaskTarget(Target):
    """A module that holds its own data and says how it is a chain, such as a batch of tasks."""

    needs_batch = False

    def __init__(self, model: ChainModule) -> None:
        self.model = model
        self.search = GradientAscent()  # with which the methods of section 5.2 were tuned
        self.layer_input = LayerInput(model.x)
        parameters = list(model.parameters())
        self.names = tuple(name for name, _ in model.named_parameters())
        names = model.chain.names
        if len(self.names) < len(names) or (
            set(names) <= set(self.names) and names != self.names[: len(names)]
        ):
            raise UserError(
                f"expected the {len(names)} parameters of the chain registered first and in its "
                f"order, got {shorten(', '.join(self.names), 120)}: register them so"
            )
        own = dict(zip(names, self.names, strict=False))
        renamed = LayerChain(
            model.chain.activations,
            model.chain.biased,
            model.chain.batch_dims,
            tuple(own[name] for name in model.chain.names),
        )
        sites = renamed.sites(parameters) if renamed.pairs else ()
        self.sites = Sites(sites, (), renamed if renamed.pairs else "it has no layers")
        self._chain = renamed

    @property
    def chain(self) -> LayerChain:
        """The chain that the module says it is; it has no layers if it is none."""
        return self._chain

    def moving(self, action: str | Action) -> tuple[str, ...]:
        """Return the names of all parameters."""
        return self.names

    def acting(
        self, action: str | Action, samples: int | None, returns: Returns
    ) -> tuple[ActingSite, ...]:
        """Return every site of the chain with the action. See :meth:`Target.acting`.

        The data are the same at each step.
        """
        if action == AUTO:
            return choose_actions(self.sites, self.samples(None), Returns.YES)
        own = action_of(action)
        return tuple(ActingSite(site, own) for site in self.sites.found)

    def samples(self, x: Inputs | None) -> int | None:
        """Return how many samples each task has. See :meth:`Target.samples`."""
        return int(self.layer_input.h.shape[-1])

    def orbit(self, names: Sequence[str], acting: Sequence[ActingSite], x: Inputs | None) -> Orbit:
        """Return the orbit of some parameters on the module's own data.

        See :meth:`Target.orbit`.
        """
        return Orbit(names, acting, self.chain, self.layer_input)

    def loss(
        self, names: Sequence[str], loss_fn: LossOnBatch | None, batch: Batch | None
    ) -> LossFunction:
        """Return the losses that the module computes, ``(*batch,)``. See :meth:`Target.loss`."""
        return lambda values: call_with(self.model, names, values, (), own_buffers=True)

    def outputs(self, names: Sequence[str], x: Inputs | None) -> Outputs:
        """Return the outputs of the chain, ``(*batch, out, samples)``.

        See :meth:`Target.outputs`.
        """
        return ChainOutputs(self.chain, self.layer_input.original)

    def report(self) -> str:
        """Return a text that says where a group can act. See :meth:`Target.report`."""
        return f"{len(self.sites.found)} sites of a chain of layers that holds its data"


@final
class ModuleTarget(Target):
    """Any ``nn.Module``, on batches of a user's data.

    Args:
        model: the module, or a wrapper of it: losses and outputs are those of the module inside.
        sites: pairs of names (incoming layer, outgoing layer) to use, instead of all sites; or
            sites of :func:`metaopt.symmetries`.
    """

    needs_batch = True

    def __init__(self, model: nn.Module, sites: Chosen | None = None) -> None:
        self.model = unwrapped(model)
        everything = find_sites(self.model)
        self._chain = everything.chain
        if sites is None:
            self.sites = everything
        elif are_sites(sites):
            self.sites = _given_sites(self.model, sites)
        else:
            self.sites = choose_sites(self.model, everything, sites)
        # Without a bound some networks are lost.
        self.search = GradientAscent(max_ratio=2.0, steps_per_gradient=5)

    @property
    def whole_chain(self) -> LayerChain:
        """The module as a chain of layers, or ``NO_CHAIN``, whichever sites were given."""
        return NO_CHAIN if isinstance(self._chain, str) else self._chain

    @property
    def no_chain(self) -> str:
        """Why the module is not a chain of layers; empty if it is one."""
        return self._chain if isinstance(self._chain, str) else ""

    @property
    def homogeneous(self) -> tuple[Site, ...]:
        """The sites whose units can be rescaled, which keeps the function on all data."""
        return tuple(site for site in self.sites.found if site.homogeneous)

    def columns(self, x: Inputs) -> Tensor:
        """Return a batch in the form that a chain of Linear layers takes, a sample a column.

        Args:
            x: the batch, samples in rows.

        Raises:
            UserError: if the rows do not fit the first layer.
        """
        expected = self.model.get_parameter(self.chain.names[0]).shape[1]
        rows = next(iter(tensors_in(x)), None)  # of a chain's one argument
        if rows is None or rows.dim() < 2 or rows[:1].numel() not in (0, expected):
            got = "none" if rows is None else f"one of shape {tuple(rows.shape)}"
            raise UserError(
                f"expected a batch of rows with {expected} entries for an action that needs the "
                f"features, got {got}: use action='rescaling'"
            )
        return rows.flatten(1).mT

    def samples(self, x: Inputs | None) -> int | None:
        """Return how many rows a batch has. See :meth:`Target.samples`."""
        return None if x is None else samples_in(x)

    def orbit(self, names: Sequence[str], acting: Sequence[ActingSite], x: Inputs | None) -> Orbit:
        """Return the orbit of some parameters on a batch. See :meth:`Target.orbit`."""
        if x is None or not any(action.uses_inputs for _, action in acting):
            return Orbit(names, acting)
        return Orbit(names, acting, self.chain, LayerInput(self.columns(x)))

    def loss(
        self, names: Sequence[str], loss_fn: LossOnBatch | None, batch: Batch | None
    ) -> LossFunction:
        """Return the loss on a batch, a scalar. See :meth:`Target.loss`."""
        x, y = given(batch)
        assert loss_fn is not None  # check_loss_fn() sees to it
        return NetworkLoss(self.model, names, loss_fn, x, y)

    def outputs(self, names: Sequence[str], x: Inputs | None) -> Outputs:
        """Return the outputs in evaluation mode, as one row. See :meth:`Target.outputs`."""
        assert x is not None
        return ModuleOutputs(self.model, tuple(names), x)

    def report(self) -> str:
        """Return a text that says where a group can act. See :meth:`Target.report`."""
        return self.sites.report()


def target_of(model: nn.Module, sites: Chosen | None = None) -> Target:
    """Return a model as an optimizer sees it.

    Wrappers that compute the same are seen through; see :mod:`metaopt.wrappers`.

    Args:
        model: any ``nn.Module``, or a :class:`~metaopt.symmetry.ChainModule` such as a batch of
            tasks, which holds its own data.
        sites: pairs of names (incoming layer, outgoing layer) of a module to use, instead of all;
            or sites of :func:`metaopt.symmetries`.

    Raises:
        UserError: if the module has sites of its own, if one of ``sites`` was not found, or for
            modules and parameters that cannot be moved (:func:`check_parameters`).
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected an nn.Module, got {type(model).__name__}: give the model itself")
    inner = unwrapped(model)
    if isinstance(inner, ChainModule):
        if sites is not None:
            raise UserError(
                f"expected no sites for a batch of tasks, which has its own, got {sites!r}: "
                f"leave them out"
            )
        return TaskTarget(inner)
    _check_module(inner)
    check_parameters(inner.named_parameters())
    return ModuleTarget(inner, sites)


def _given_sites(model: nn.Module, chosen: Chosen) -> Sites:
    """Return sites that a user gave as the sites of a module.

    Raises:
        UserError: if one of them is of another model.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for site in chosen:
        if not isinstance(site, Site):
            raise UserError(
                f"expected sites of metaopt.symmetries(), got {shown(site)}: give sites alone, or "
                f"pairs of names alone"
            )
        if missing := [name for name in site.parameters if name not in names]:
            raise UserError(
                f"expected sites of this model, got {site.name}, whose {missing[0]} it does not "
                f"have: call metaopt.symmetries() on the model that is trained"
            )
    left_out = chosen.left_out if isinstance(chosen, Symmetries) else ()
    return Sites(tuple(chosen), left_out, "sites were given")


def _check_module(model: nn.Module) -> None:
    """Check that the parameters of a module can be replaced in a call."""
    for name, module in model.named_modules():
        where = f" in {name}" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"expected an nn.Module whose parameters can be replaced in a call, got a "
                f"ScriptModule{where}: give the module that was scripted or traced"
            )
        if type(module).__name__ == "FullyShardedDataParallel":
            raise UserError(
                f"expected whole parameters, got a FullyShardedDataParallel module{where}, which "
                f"shards them: use DistributedDataParallel"
            )


MOVABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of parameters that an optimizer of this library moves; and the complex ones."""


def check_parameters(named: Iterable[tuple[str, Tensor]]) -> None:
    """Check that parameters can be moved: they hold whole, dense, real or complex numbers.

    Parameters that need no gradient are not moved. They may be of any dtype, and on any device that
    holds data.

    Args:
        named: pairs (name, parameter); for parameters without a model the names are any words.

    Raises:
        UserError: for the first that cannot be; the message names it and says what to do.
    """
    first: tuple[str, Tensor] | None = None
    for name, parameter in named:
        if reason := _obstacle(parameter):
            what, advice = reason
            raise UserError(f"expected parameters to move, got {name}, {what}: {advice}")
        if not parameter.requires_grad:
            continue
        if first is not None and parameter.device != first[1].device:
            raise UserError(
                f"expected all parameters on one device, got {first[0]} on {first[1].device} and "
                f"{name} on {parameter.device}: move the model to one, or build an optimizer for "
                f"the parameters of each"
            )
        first = first or (name, parameter)


def _obstacle(parameter: Tensor) -> tuple[str, str] | None:
    """Return what keeps a parameter from being moved and what to do about it, or None."""
    if is_lazy(parameter):
        return "which is not initialized yet", "run a batch through the model first"
    if hasattr(parameter, "device_mesh"):  # a DTensor, of FSDP2 or of tensor parallelism
        return "a DTensor, whose entries several processes share", "use DistributedDataParallel"
    if parameter.is_meta:
        return "which is on the meta device and holds no data", "initialize the model on a device"
    if not parameter.requires_grad:
        return None
    if parameter.layout != torch.strided:
        return f"of the sparse layout {parameter.layout}", "make it dense, or freeze it"
    if parameter.dtype not in MOVABLE and not parameter.is_complex():
        return f"of dtype {parameter.dtype}", "convert it to float32, or freeze it"
    if parameter.is_inference():
        return "made in inference mode", "build the model outside of torch.inference_mode()"
    return None


def check_loss_fn(loss_fn: object) -> None:
    """Check that a loss function can be called; None passes.

    Args:
        loss_fn: what a user gave.

    Raises:
        UserError: if it cannot be called.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise UserError(
            f"expected a loss_fn that can be called, got {loss_fn!r}: give a function of the "
            f"model's output and y, such as torch.nn.MSELoss(), or leave it out"
        )


def as_batch(batch: object) -> Batch:
    """Return a batch that a user gave, in one of the forms that are taken.

    Args:
        batch: a pair (x, y), or a mapping of the arguments of a model that computes its loss.

    Raises:
        UserError: for anything else.
    """
    if isinstance(batch, Mapping):
        return Batch(batch)
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(*batch)
    raise UserError(
        f"expected a batch of two, (x, y), got {type(batch).__name__}: call step(batch=(x, y)), "
        f"with y=None where the model computes its loss"
    )


def given(batch: Batch | None) -> Batch:
    """Return the batch that a user gave.

    Args:
        batch: the batch, or None.

    Raises:
        UserError: if there is none.
    """
    if batch is None:
        raise UserError(
            "expected a batch to teleport on, got none: call teleport(x, y), or "
            "step(batch=(x, y)) with a schedule"
        )
    return batch
