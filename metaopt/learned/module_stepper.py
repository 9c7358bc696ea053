"""The stepper of ordinary networks: what a learned optimizer sees of an ``nn.Module``."""

from __future__ import annotations

import copy
from collections import Counter
from typing import final

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.loss_curvature import UNKNOWN, known_curvature, measured_curvature
from metaopt.learned.meta_optimizer import Advanced, MetaOptimizer, State, StepInput
from metaopt.learned.observation import Observation
from metaopt.learned.stepper import Stepper, check_loose, largest_so_far, loosely
from metaopt.learned.trust import trusted, untried
from metaopt.learned.units import Units, inner_inputs
from metaopt.symmetry import LayerInput, RescalingAction, Teleportation
from metaopt.symmetry.auto import AUTO, Returns, choose_actions, fingerprint
from metaopt.symmetry.chain import NO_CHAIN
from metaopt.symmetry.finders.trace import LAYERS
from metaopt.symmetry.orbit import ActingSite, Orbit
from metaopt.symmetry.site import named
from metaopt.target import ModuleTarget, check_loss_fn

RESCALING, NONE = "rescaling", "none"


@final
class ModuleStepper(Stepper):
    """Steps any ``nn.Module`` on batches of a user's data, with the action that fits each step.

    A chain of Linear layers is seen as in meta-training, with the Gauss-Newton scales of its
    layers. Of any other network m1 (the update network) sees gradients alone, as
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
        check_loss_fn(loss_fn)
        self._check(action)
        self.chain = target.whole_chain  # given sites restrict where a group acts alone
        if self.chain.names:
            self.names = self.chain.names
        else:
            check_loose(meta)
            self.names = target.trainable()
        self.rescales = self.learns_element and action in (AUTO, RESCALING) and self.homogeneous
        self.parameters = target.parameters(self.names)
        self.init_state(meta)  # refuses an m2 that cannot do it

    def _check(self, action: str) -> None:
        choices = (AUTO, self.meta_action, RESCALING, NONE)
        if action in choices and action not in (AUTO, NONE) and not self.learns_element:
            raise UserError(
                f"expected an optimizer with an m2 for action={action!r}, got one without: use "
                f"action='none' or an optimizer that teleports"
            )
        self.target.check_action(action, choices, "leave the action out")
        self.whole = bool(self.target.chain.pairs)  # whether m2's own group has a place to act

    def init_state(self, meta: MetaOptimizer) -> State:
        """See :meth:`Stepper.init_state`."""
        state: State = {"update": meta.update.init_state(self.chain, self.parameters)}
        if self.whole and meta.element is not None and self.action in (AUTO, self.meta_action):
            state["element"] = meta.element.init_state(self.chain, self.parameters)
        if self.rescales and meta.element is not None:
            state["units"] = meta.element.init_units([site.width for site in self.homogeneous])
        if self.chain == NO_CHAIN:
            state["largest"] = largest_so_far(self.parameters)
        return state | {"curvature": [], "batch": [], "trust": [untried()]}

    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """See :meth:`Stepper.advance`."""
        seen = now.seen
        x = None if seen is None else seen.x
        state, same = self._met(seen, state)
        trust = float(state["trust"][0][0])
        unit = float(state["curvature"][0]) if state["curvature"] else UNKNOWN
        gradients = [gradient / unit for gradient in now.gradients]
        now = now._replace(gradients=gradients, rate=now.rate * trust)
        layer_input = None if x is None else self._layer_input(x, same)
        action = self._choose(layer_input, x is not None, same)
        if layer_input is not None and action == self.meta_action and "element" in state:
            moved = meta.advance(self.chain, layer_input, now, state, trust)
            return moved._replace(state=state | moved.state)
        following = dict(state)
        if "largest" in state:
            observed, following["largest"] = loosely(now.parameters, gradients, state["largest"])
        elif layer_input is not None:
            observed = Observation.of(
                self.chain, now.parameters, gradients, layer_input.original, now.second_order
            )
        else:  # a chain whose input nobody saw
            raise UserError(
                "expected a forward pass of the model that was differentiated before step(), got "
                "none: call the model itself, and backward on what you make of its output"
            )
        update, following["update"] = meta.update.propose(observed, state["update"])
        updated = now.updated(update)
        if action != RESCALING or meta.element is None or seen is None or x is None:
            return Advanced(updated, following, None)
        units = self._units(now, seen)
        elements, following["units"] = meta.element.propose_units(units, state["units"])
        acting = [ActingSite(site, self._rescaling) for site in self.homogeneous]
        point = Orbit(self.names, acting).move(
            updated, [element.scaled(trust) for element in elements]
        )
        outputs = self.target.outputs(self.names, x)
        move = Teleportation(outputs, updated, point.parameters, point.rejected)
        return Advanced(point.parameters, following, move)

    def _met(self, seen: ForwardRecord | None, state: State) -> tuple[State, bool]:
        """The state with what this pass says of the loss, and whether its batch came before."""
        if seen is None or seen.x is None:
            return state | {"batch": []}, False
        mark = fingerprint(seen.x)
        same = seen.alone and bool(state["batch"]) and torch.equal(mark, state["batch"][0])
        curvature = state["curvature"]
        output, gradient = seen.output, seen.output_gradient
        if self.known is not None and output is not None:
            curvature = [torch.tensor(self.known(output), dtype=torch.float64)]
        if output is None or gradient is None:
            return state | {"curvature": curvature, "batch": [mark]}, same
        before = state["batch"][1:]
        if self.known is None and same and before and before[0].shape == output.shape:
            now = measured_curvature(
                (before[0].to(output.device), before[1].to(output.device)),
                (output, gradient),
                float(curvature[0]) if curvature else None,
            )
            curvature = [] if now is None else [torch.tensor(now, dtype=torch.float64)]
        trust = trusted(state["trust"][0], gradient, same)
        following = {"curvature": curvature, "batch": [mark, output, gradient], "trust": [trust]}
        return state | following, same

    def _layer_input(self, x: Tensor, same: bool) -> LayerInput | None:
        """The batch as the chain's input; the same object again for a batch that stays."""
        if self.chain == NO_CHAIN:
            return None
        columns = x.reshape(-1, self.parameters[0].shape[1]).mT
        kept = self.layer_input
        if kept is None or not (same and torch.equal(kept.original, columns)):
            self.layer_input = LayerInput(columns)
        return self.layer_input

    def _choose(self, layer_input: LayerInput | None, seen: bool, same: bool) -> str:
        chosen, why = NONE, "no m2" if not self.learns_element else f"action={self.action!r}"
        if self.learns_element and self.action != NONE:
            chosen, why = self._fitting(layer_input, seen, same)
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
        return [Units.of(site, weights, own, inputs[site.layers[1]]) for site in self.homogeneous]

    def functional_form(self) -> ModuleStepper:
        """See :meth:`Stepper.functional_form`."""
        other = copy.copy(self)
        other.counts, other.layer_input = Counter(), None
        return other

    def report(self) -> str:
        """Return the sites, what m1 sees, and how often each action was taken."""
        lines = [self.target.report()]
        if self.target.no_chain:
            lines.append(
                f"Not a chain of Linear layers ({self.target.no_chain}): m1 sees gradients alone"
            )
        lines += [f"{what}: {count} steps" for what, count in sorted(self.counts.items())]
        return "\n".join(lines)
