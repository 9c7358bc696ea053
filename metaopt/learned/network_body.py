"""An ordinary ``nn.Module`` as a learned optimizer sees it, with the action that fits each step."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.body import Body, Now, added, check_loose, largest_so_far, loosely
from metaopt.learned.loss_curvature import (
    UNKNOWN,
    fingerprint,
    known_curvature,
    measured_curvature,
)
from metaopt.learned.meta_optimizer import Advanced, MetaOptimizer, State
from metaopt.learned.observation import NO_CHAIN, Observation
from metaopt.learned.tape import Pass
from metaopt.learned.trust import trusted, untried
from metaopt.learned.units import Units, inner_inputs
from metaopt.symmetry import LayerInput
from metaopt.symmetry.finders import ChainView, as_chain, find_sites
from metaopt.symmetry.move import NetworkMove
from metaopt.symmetry.rescaling_orbit import RescalingOrbit

AUTO, RESCALING, NONE = "auto", "rescaling", "none"


@final
class NetworkBody(Body):
    """A network on batches of a user's data.

    A chain of Linear layers is seen as in meta-training, curvature of each layer and all; of any
    other network m1 sees gradients alone (:class:`metaopt.learned.body.LooseBody`). Gradients are
    divided by the curvature of the loss in the output, known from ``loss_fn`` or measured where
    the same batch comes twice in a row.

    With "auto", the group of m2 acts where it is exact for the layers and the batch, and the batch
    is the one of the step before: on a batch that stands for others GL would change the function
    on those. Else the units of homogeneous sites are rescaled, which is exact for all data; else
    nothing is teleported.
    """

    def __init__(
        self,
        model: nn.Module,
        meta: MetaOptimizer,
        loss_fn: object,
        action: str,
        sites: Sequence[tuple[str, str]] | None,
    ) -> None:
        self.model = model
        self.sites = find_sites(model, sites)
        self.homogeneous = tuple(site for site in self.sites.found if site.homogeneous)
        self.view = as_chain(model)
        self.meta_action = meta.spec.action
        self.learns_element = meta.element is not None
        self.action = action
        self.known = known_curvature(loss_fn)
        self.counts: Counter[str] = Counter()
        self.layer_input: LayerInput | None = None
        self._check(action, sites is not None, loss_fn)
        if isinstance(self.view, ChainView):
            self.chain, self.names = self.view.chain, self.view.names
        else:
            check_loose(meta)
            trainable = [name for name, p in model.named_parameters() if p.requires_grad]
            self.chain, self.names = NO_CHAIN, tuple(trainable)
        if not self.names:
            raise UserError("expected a model with parameters that require a gradient, got none")
        self.rescales = self.learns_element and action in (AUTO, RESCALING) and self.homogeneous
        self.parameters = [model.get_parameter(name) for name in self.names]
        self.init_state(meta)  # refuses an m2 that cannot do it

    def _check(self, action: str, sites_given: bool, loss_fn: object) -> None:
        check_action(action, loss_fn, self.meta_action)
        if action not in (AUTO, NONE) and not self.learns_element:
            raise UserError(
                f"expected an optimizer with an m2 for action={action!r}, got one without: use "
                f"action='none' or an optimizer that teleports"
            )
        if action == RESCALING and not self.homogeneous:
            raise UserError(
                f"expected a site that can be rescaled, got none ({self.sites.why()}): "
                f"use action='none'"
            )
        chain = self.view.chain if isinstance(self.view, ChainView) else NO_CHAIN
        self.whole = not sites_given and bool(chain.sites)
        if action == "post_activation" and not chain.invertible:
            raise UserError(
                "expected activations with an inverse on the real line, such as LeakyReLU, for "
                "post_activation (eq. 78), got others: use action='auto'"
            )
        if action == self.meta_action and not self.whole:
            why = self.view if isinstance(self.view, str) else "it has a single layer"
            why = "sites were given" if sites_given else why
            raise UserError(
                f"expected a chain of Linear layers for {action}, got another model ({why}): use "
                f"action='auto'"
            )

    def init_state(self, meta: MetaOptimizer) -> State:
        state: State = {"update": meta.update.init_state(self.chain, self.parameters)}
        if self.whole and meta.element is not None and self.action in (AUTO, self.meta_action):
            state["element"] = meta.element.init_state(self.chain, self.parameters)
        if self.rescales and meta.element is not None:
            state["units"] = meta.element.init_units([site.width for site in self.homogeneous])
        if self.chain == NO_CHAIN:
            state["largest"] = largest_so_far(self.parameters)
        return state | {"curvature": [], "batch": [], "trust": [untried()]}

    def advance(self, meta: MetaOptimizer, now: Now, state: State) -> Advanced:
        parameters, seen = now.parameters, now.seen
        state, same = self._met(seen, state)
        trust = float(state["trust"][0][0])
        rate = now.rate * trust
        unit = float(state["curvature"][0]) if state["curvature"] else UNKNOWN
        gradients = [gradient / unit for gradient in now.gradients]
        x = None if seen is None else seen.x
        layer_input = None if x is None else self._layer_input(x, same)
        action = self._choose(layer_input, x is not None, same)
        if layer_input is not None and action == self.meta_action and "element" in state:
            moved = meta.advance(
                self.chain,
                parameters,
                gradients,
                layer_input,
                state,
                now.second_order,
                rate,
                trust,
            )
            return moved._replace(state=state | moved.state)
        following = dict(state)
        if "largest" in state:
            observed, following["largest"] = loosely(parameters, gradients, state["largest"])
        elif layer_input is not None:
            observed = Observation.of(
                self.chain, parameters, gradients, layer_input.original, now.second_order
            )
        else:  # a chain whose input nobody saw
            raise UserError(
                "expected a forward pass of the model that was differentiated before step(), got "
                "none: call the model itself, and backward on what you make of its output"
            )
        update, following["update"] = meta.update.propose(observed, state["update"])
        updated = added(now, update, rate)
        if action != RESCALING or meta.element is None or seen is None or x is None:
            return Advanced(updated, following, None)
        units = self._units(parameters, gradients, seen)
        elements, following["units"] = meta.element.propose_units(units, state["units"])
        moved_to = RescalingOrbit(self.names, self.homogeneous).move(
            updated, [trust * element for element in elements]
        )
        move = NetworkMove(
            self.model, self.names, x, updated, moved_to.parameters, moved_to.refused
        )
        return Advanced(moved_to.parameters, following, move)

    def _met(self, seen: Pass | None, state: State) -> tuple[State, bool]:
        """The state with what this pass tells of the loss, and whether its batch came before."""
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
        """Made once for a batch that stays."""
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
        if self.action == AUTO and self.whole and same and layer_input is not None:
            samples = layer_input.original.shape[-1]
            if self.meta_action in self.sites.exact_on_all(self.chain, samples):
                return self.meta_action, ""
        if self.homogeneous:
            return RESCALING, ""
        return NONE, f"no site can be rescaled, and {self.meta_action} is not exact"

    def _units(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], seen: Pass
    ) -> list[Units]:
        """Of each homogeneous site, at the weights where the gradient was taken."""
        by_name = dict(zip(self.names, parameters, strict=True))
        slopes = dict(zip(self.names, gradients, strict=True))
        inputs = inner_inputs(self.model, self.names, parameters, seen, self.homogeneous)
        return [Units.of(site, by_name, slopes, inputs[site.outgoing]) for site in self.homogeneous]

    def twin(self) -> NetworkBody:
        """Counts its own steps."""
        other = copy.copy(self)
        other.counts, other.layer_input = Counter(), None
        return other

    def report(self) -> str:
        """The sites, the loss's curvature, and how often each action was taken."""
        lines = [self.sites.report()]
        if isinstance(self.view, str):
            lines.append(f"Not a chain of Linear layers ({self.view}): m1 sees gradients alone")
        lines += [f"{what}: {count} steps" for what, count in sorted(self.counts.items())]
        return "\n".join(lines)


def check_action(action: str, loss_fn: object, own: str | None = None) -> None:
    """Raises UserError for an action or a loss_fn that no network takes.

    Args:
        own: the action that m2 was trained for, where there is an m2 and a use for it.
    """
    choices = [AUTO, *([own] if own else []), RESCALING, NONE]
    if action not in choices:
        raise UserError(
            f"expected an action of {', '.join(choices)} for this optimizer, got {action!r}: "
            f"name one"
        )
    if loss_fn is not None and not callable(loss_fn):
        raise UserError(
            f"expected a loss_fn that can be called, got {loss_fn!r}: give the loss, such as "
            f"torch.nn.MSELoss(), or leave it out"
        )
