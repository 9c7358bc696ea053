"""The stepper of ordinary networks: what a learned optimizer sees of an ``nn.Module``."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.curved_module import CurvedModule, curved
from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.loss_curvature import (
    UNKNOWN,
    is_square,
    known_curvature,
    measured_curvature,
)
from metaopt.learned.meta_optimizer import Advanced, MetaOptimizer, StepInput
from metaopt.learned.observation import SeenLoss
from metaopt.learned.state import Columns, Kept, KeptState, State, kept_of
from metaopt.learned.stepper import (
    Stepper,
    check_loose,
    frozen_names,
    kept_largest,
    kept_of_element,
    kept_of_update,
    largest_so_far,
    loosely,
)
from metaopt.learned.trust import trusted, untried
from metaopt.learned.units import Units, inner_inputs
from metaopt.output_loss import KINDS, SQUARE, Recognised, in_columns, recognise
from metaopt.replicas import ALONE, Replicas
from metaopt.symmetry import LayerInput, RescalingAction, Teleportation
from metaopt.symmetry.auto import AUTO, Returns, choose_actions, fingerprint
from metaopt.symmetry.chain import NO_CHAIN, Layout
from metaopt.symmetry.finders.trace import LAYERS
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.site import named
from metaopt.target import ModuleTarget, check_loss_fn

RESCALING, NONE = "rescaling", "none"
OF_THE_LOSS = ("curvature", "batch", "trust", "energy", "kind")
"""Parts of a state that say what was seen of the loss, and of which batch."""

CONFIRMED = 1  # part "kind": 0 is any loss, 1 a squared error, above are those of KINDS

NO_BATCH = torch.zeros(0, dtype=torch.float64)
"""The fingerprint where there is no batch of the step before."""


class Met(NamedTuple):
    """What a forward pass says of the loss.

    Attributes:
        state: the state with it.
        same: whether the batch is the one of the step before.
        alone: whether no other pass went into the same gradients.
        found: the loss, if it was recognised.
    """

    state: State
    same: bool = False
    alone: bool = False
    found: Recognised | None = None


@final
class ModuleStepper(Stepper):
    """Steps any ``nn.Module`` on batches of a user's data, with the action that fits each step.

    A chain of Linear layers is seen as in meta-training, with the Gauss-Newton scales of its
    layers. Of any other network m1 (the update network) sees the curvature, if it asks for losses
    and the network is small (:mod:`metaopt.learned.curved_module`), or gradients alone, as
    :class:`~metaopt.learned.stepper.GradientStepper` has it. Gradients are divided by the curvature
    of the loss in the output. It is known from ``loss_fn``, or measured where the same batch comes
    twice in a row. The factors of f and T are multiplied by trust (:mod:`metaopt.learned.trust`).

    With "auto", m2 (the group-element network) acts by the rules of
    :func:`~metaopt.symmetry.auto.choose_actions`. There are two groups whose elements it can
    propose: the one that it was trained for, and positive scales of units. A batch is taken to
    return where it is the one of the step before.

    Args:
        target: the network, with the sites where a group may act.
        meta: the meta-optimizer that is going to step it.
        loss_fn: the loss, where it is known; see :class:`~metaopt.LearnedOptimizer`.
        action: "auto", "none", "rescaling", or the action that m2 was trained for.

    Attributes:
        chain: the network as a chain of layers; ``NO_CHAIN`` where it is none.
        names: of the parameters, in order.
        homogeneous: the sites that can be rescaled.
        counts: how many steps were taken with each action.

    Raises:
        UserError: for an action or a loss that does not fit the model, a model without trainable
            parameters, or a meta-optimizer that cannot step it.
    """

    def __init__(
        self,
        target: ModuleTarget,
        meta: MetaOptimizer,
        loss_fn: object,
        action: str,
    ) -> None:
        self.target = target
        modules = target.model.named_modules()
        layers = {name for name, module in modules if isinstance(module, LAYERS)}
        self.homogeneous = tuple(  # m2 must see the features, which are what a layer is given
            site for site in target.homogeneous if site.layers[1] in layers
        )
        self.meta_action = meta.spec.action
        self.learns_element = meta.element is not None
        self.action = action
        self.known = known_curvature(loss_fn)
        self.counts: Counter[str] = Counter()
        self._rescaling = RescalingAction()
        self.layer_input: LayerInput | None = None
        self.curved = CurvedModule()
        check_loss_fn(loss_fn)
        self._check(action)
        self.chain = target.whole_chain  # given sites restrict where a group acts alone
        if self.chain.names:
            self.names = self.chain.names
        else:
            check_loose(meta)
            self.names = target.trainable()
            self.curved = curved(target.model, self.names, meta)
        self.rescales = self.learns_element and action in (AUTO, RESCALING) and self.homogeneous
        self.parameters = target.parameters(self.names)
        check_real(self.parameters, self.names)
        self.init_state(meta, self.parameters)  # refuses an m2 that cannot do it

    def _check(self, action: str) -> None:
        choices = (AUTO, self.meta_action, RESCALING, NONE)
        if action in choices and action not in (AUTO, NONE) and not self.learns_element:
            raise UserError(
                f"expected an optimizer with an m2 for action={action!r}, got one without: use "
                f"action='none' or an optimizer that teleports"
            )
        self.target.check_action(action, choices, "leave the action out")
        self.whole = bool(self.target.chain.pairs)  # whether m2's own group has a place to act

    def init_state(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> State:
        """See :meth:`Stepper.init_state`.

        Part "last" is the last output and its gradient; it is not kept with the optimizer's state.
        """
        state: State = {"update": meta.update.init_state(self.layout, parameters)}
        if self._moves_whole and meta.element is not None:
            state["element"] = meta.element.init_state(self.chain, parameters)
        if self.rescales and meta.element is not None:
            state["units"] = meta.element.init_units([site.width for site in self.homogeneous])
        if self.chain == NO_CHAIN:
            state["largest"] = largest_so_far(parameters)
        unmeasured = torch.zeros((), dtype=torch.float64)
        return state | {
            "curvature": [unmeasured], "batch": [NO_BATCH], "trust": [untried()],
            "energy": [unmeasured], "kind": [unmeasured], "last": []
        }  # fmt: skip

    def kept(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> KeptState:
        """See :meth:`Stepper.kept`."""
        rule = meta.element
        parts = {"update": kept_of_update(meta, self.layout, parameters)}
        if self._moves_whole and rule is not None:
            parts["element"] = kept_of_element(rule, self.chain, parameters)
        if self.rescales and rule is not None:
            widths = [site.width for site in self.homogeneous]
            owners = self.target.parameters([s.incoming[0].parameter for s in self.homogeneous])
            start = partial(rule.init_units, widths)
            columns = [Columns(f"{index}", 1, widths) for index in range(len(start()))]
            parts["units"] = kept_of("m2_unit", columns, owners, start)
        if self.chain == NO_CHAIN:
            parts["largest"] = kept_largest(parameters)
        return parts | {name: [Kept(name, parameters[:1])] for name in OF_THE_LOSS}

    def frozen(self) -> frozenset[str]:
        """See :meth:`Stepper.frozen`."""
        return frozen_names(self.names, self.parameters)

    @property
    def layout(self) -> Layout:
        """How m1 sees the parameters: as layers of a chain, or of the module, or as none."""
        return self.chain if self.curved.layout is None else self.curved.layout

    @property
    def _moves_whole(self) -> bool:
        """Whether m2's own group may act."""
        return self.whole and self.action in (AUTO, self.meta_action)

    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """See :meth:`Stepper.advance`."""
        seen = now.seen
        replicas = ALONE if seen is None else seen.replicas
        x = None if seen is None else seen.x
        if x is not None and self.chain != NO_CHAIN:
            x = replicas.rows(x)
        before = state
        met = self._met(seen, x, state, meta.update.sees_losses)
        state, same = met.state, met.same
        unit = float(state["curvature"][0]) or UNKNOWN
        gradients = list(torch._foreach_div(list(now.gradients), unit))
        now = now._replace(gradients=gradients, trust=float(state["trust"][0][0]))
        if meta.update.sees_losses:
            now = _with_loss(now, before, met, seen)
        layer_input = None if x is None else self._layer_input(x, same)
        alone = meta.only_where_exact and now.loss is not None
        action = self._choose(layer_input, x is not None, same, alone)
        if layer_input is not None and action == self.meta_action and "element" in state:
            moved = meta.advance(self.chain, layer_input, now, state)
            return moved._replace(state=state | moved.state)
        following = dict(state)
        if "largest" in state:
            loose, following["largest"] = loosely(now.parameters, gradients, state["largest"])
            observed = self.curved.observed(loose, now, seen)
        elif layer_input is not None:
            observed = now.observed(self.chain, layer_input)
        elif now.rate == 0:  # as tools step once to see what state there is
            return Advanced([p.clone() for p in now.parameters], following, None)
        else:  # a chain whose input nobody saw
            raise UserError(
                "expected a forward pass of the model that was differentiated before step(), got "
                "none: call the model itself, and backward on what you make of its output"
            )
        update, following["update"] = self.curved.proposed(meta.update, observed, state["update"])
        updated = now.updated(update)
        if action != RESCALING or meta.element is None or seen is None or x is None:
            return Advanced(updated, following, None)
        units = self._units(now, seen)
        elements, following["units"] = meta.element.propose_units(units, state["units"])
        acting = [ActingSite(site, self._rescaling) for site in self.homogeneous]
        point = Orbit(self.names, acting).move(updated, now.scaled(elements, self.homogeneous))
        outputs = self.target.outputs(self.names, x)
        move = Teleportation(outputs, updated, point.parameters, point.rejected)
        return Advanced(point.parameters, following, move)

    def _met(
        self, seen: ForwardRecord | None, x: Tensor | None, state: State, recognises: bool
    ) -> Met:
        """The state with what this pass says of the loss, and what is known of it.

        Under DDP it is what the passes of all processes say, and the same in each.
        """
        if seen is None or x is None:
            return Met(state | {"batch": [NO_BATCH], "last": []})
        replicas = seen.replicas
        mark = fingerprint(x)
        if replicas and self.chain == NO_CHAIN:
            mark = torch.cat(replicas.gather(mark))
        last, output, gradient = state["last"], seen.output, seen.output_gradient
        measured = bool(last) and output is not None and last[0].shape == output.shape
        flags = [seen.alone, output is not None, gradient is not None, measured]
        alone, has_output, differentiated, measured = _all(replicas, flags)
        same = alone and torch.equal(mark, state["batch"][0])
        curvature = state["curvature"][0]
        if self.known is not None and has_output:
            assert output is not None
            own = self.known(output, gradient) / replicas.size  # DDP's loss is the mean of theirs
            curvature = replicas.largest(torch.tensor(own, dtype=torch.float64))
        known_square = self.known is not None and self.known.square
        kind = torch.tensor(float(CONFIRMED if known_square else 0), dtype=torch.float64)
        following: State = {"batch": [mark], "curvature": [curvature], "last": []}
        if not has_output or not differentiated:
            return Met(state | following, same, alone)
        assert output is not None
        assert gradient is not None
        if self.known is None:
            following["last"] = [output, gradient]
            if same and measured:
                before = (last[0], last[1])
                now = measured_curvature(before, (output, gradient), float(curvature), replicas)
                following["curvature"] = [torch.tensor(now, dtype=torch.float64)]
                known = float(state["kind"][0]) == CONFIRMED
                square = is_square(before, (output, gradient), now, known, replicas)
                kind = torch.tensor(float(CONFIRMED if square else 0), dtype=torch.float64)
            elif same:
                kind = state["kind"][0]
        following["kind"] = [kind]
        energy = (gradient.double() / replicas.size).square().sum()
        following["energy"] = [0.5 * replicas.sum(energy).cpu()]
        following["trust"] = [trusted(state["trust"][0], gradient, same, replicas)]
        # Two passes have shown a squared error, and the pass before was not recognised either.
        square = same and float(state["kind"][0]) == float(kind) == CONFIRMED
        recognises = recognises and not (known_square or square)
        found = _recognised_by_all(output, gradient, replicas) if recognises else None
        if found is None:
            return Met(state | following, same, alone)
        following["curvature"] = [torch.tensor(found.unit, dtype=torch.float64)]
        following["energy"] = [torch.tensor(found.value * found.unit**2, dtype=torch.float64)]
        following["kind"] = [torch.tensor(float(KINDS.index(found.loss) + 2), dtype=torch.float64)]
        return Met(state | following, same, alone, found)

    def _layer_input(self, x: Tensor, same: bool) -> LayerInput | None:
        """The batch as the chain's input; the same object again for a batch that stays."""
        if self.chain == NO_CHAIN:
            return None
        columns = x.reshape(-1, self.parameters[0].shape[1]).mT
        kept = self.layer_input
        if kept is None or not (same and torch.equal(kept.original, columns)):
            self.layer_input = LayerInput(columns)
        return self.layer_input

    def _choose(self, layer_input: LayerInput | None, seen: bool, same: bool, alone: bool) -> str:
        chosen, why = NONE, "no m2" if not self.learns_element else f"action={self.action!r}"
        if self.learns_element and self.action != NONE:
            chosen, why = self._fitting(layer_input, seen, same)
            if alone and self.action == AUTO and chosen == RESCALING:
                chosen, why = NONE, f"{self.meta_action} is not exact, and m1 does well without"
        self.counts[chosen if chosen != NONE else f"no teleportation ({why})"] += 1
        return chosen

    def _fitting(self, layer_input: LayerInput | None, seen: bool, same: bool) -> tuple[str, str]:
        if not seen:
            return NONE, "no differentiated forward pass was seen"
        if self.action == self.meta_action:
            return self.meta_action, ""
        samples = None
        if self.action == AUTO and layer_input is not None:
            samples = layer_input.original.shape[-1]
        returns = Returns.YES if same else Returns.NO
        acting = choose_actions(self.target.sites, samples, returns, (self.meta_action, RESCALING))
        if acting and acting[0].action.uses_inputs:
            return self.meta_action, ""
        if self.homogeneous:
            return RESCALING, ""
        return NONE, f"no site can be rescaled, and {self.meta_action} is not exact"

    def _units(self, now: StepInput, seen: ForwardRecord) -> list[Units]:
        """What m2 sees of each homogeneous site, at the weights of the gradients."""
        weights, own = named(self.names, now.parameters), named(self.names, now.gradients)
        inputs = inner_inputs(self.target.model, self.names, now.parameters, seen, self.homogeneous)
        units = [Units.of(site, weights, own, inputs[site.layers[1]]) for site in self.homogeneous]
        return [of._replace(features=seen.replicas.sum(of.features)) for of in units]

    def functional_form(self) -> ModuleStepper:
        """See :meth:`Stepper.functional_form`."""
        other = copy.copy(self)
        other.counts, other.layer_input = Counter(), None
        other.curved = copy.copy(self.curved)
        other.curved.steps = [0, 0]
        return other

    def report(self) -> str:
        """Return the sites, what m1 sees, and how often each action was taken."""
        lines = [self.target.report()]
        if self.target.no_chain:
            lines.append(f"Not a chain of Linear layers ({self.target.no_chain}): {self.curved}")
        lines += [f"{what}: {count} steps" for what, count in sorted(self.counts.items())]
        return "\n".join(lines)


def check_real(parameters: Sequence[Tensor], names: Sequence[str]) -> None:
    """Check that no parameter is complex.

    Args:
        parameters: in order.
        names: their names.

    Raises:
        UserError: if one is.
    """
    for parameter, name in zip(parameters, names, strict=True):
        if parameter.is_complex():
            raise UserError(
                f"expected real parameters for an optimizer that looks at layers, got {name} of "
                f"{parameter.dtype}: use lstm_layerwise"
            )


def _with_loss(now: StepInput, before: State, met: Met, seen: ForwardRecord | None) -> StepInput:
    """The step's input with the loss, where it is of the same data as before, or the first.

    It is 1/2 ||dL/dF||^2 in units of the curvature, which is the squared error, unless another loss
    was recognised. Without a unit it is not known.
    """
    state, found = met.state, met.found
    unit, first = float(state["curvature"][0]), met.alone and not before["batch"][0].numel()
    gradient = None if seen is None else seen.output_gradient
    if not unit or not (met.same or first) or gradient is None:
        return now
    unit_before, kind, kind_before = (
        float(own[name][0])
        for own, name in ((before, "curvature"), (state, "kind"), (before, "kind"))
    )
    compares = met.same and unit_before > 0 and (kind == kind_before or max(kind, kind_before) < 2)
    assert seen is not None
    loss = SeenLoss(
        state["energy"][0] / unit**2,
        exact=kind >= CONFIRMED,
        factor=(unit_before / unit) ** 2 if compares else math.inf,
        output_gradient=None if seen.replicas else in_columns(gradient.detach()).double() / unit,
    )
    if found is not None:  # whose value is the same in any unit
        factor = 1.0 if compares else math.inf
        loss = loss._replace(kind=found.loss, targets=found.targets, factor=factor)
    return now._replace(loss=loss, trust=1.0)


def _recognised_by_all(output: Tensor, gradient: Tensor, replicas: Replicas) -> Recognised | None:
    """The loss that all processes recognise with one unit, with the sum of its values."""
    own = recognise(output, gradient)
    if not replicas:
        return own
    kind = KINDS.index(SQUARE if own is None else own.loss)
    unit, value = (0.0, 0.0) if own is None else (own.unit, own.value)
    told = torch.stack(replicas.gather(torch.tensor([kind, unit, value]).double()))
    kinds, units, values = told.unbind(dim=1)
    if own is None or not (kinds == kind).all() or units.max() > (1 + 1e-3) * units.min():
        return None
    targets = replicas.rows(own.targets.mT).mT
    return Recognised(own.loss, float(units.mean()) / replicas.size, float(values.sum()), targets)


def _all(replicas: Replicas, flags: Sequence[bool]) -> list[bool]:
    """Whether each flag is set in all processes."""
    if not replicas:
        return list(flags)
    gathered = replicas.gather(torch.tensor(flags))
    return [bool(flag) for flag in torch.stack(gathered).all(dim=0)]
