"""Steppers: what a learned optimizer sees of the parameters of a group, and how it steps them."""

from __future__ import annotations

import cmath
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.element import ElementRule
from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.meta_optimizer import Advanced, MetaOptimizer, StepInput
from metaopt.learned.observation import Observation, SeenLoss
from metaopt.learned.state import Kept, KeptState, State, kept_of
from metaopt.learned.update import InPlace
from metaopt.output_loss import NORM, SOFTMAX, SQUARE, OutputLoss
from metaopt.roles import Role, depth_of, placed, role_of
from metaopt.symmetry.chain import NO_CHAIN, LayerChain, Layout
from metaopt.target import TaskTarget

STEPS_TO_MOVE = 100.0  # so many steps of gradient / Gauss-Newton scale are as long as w
SMALLEST_RMS = 0.03  # of the entries of w that is assumed there, since biases start at 0


class Stepper(ABC):
    """Steps a group of parameters with a meta-optimizer; state goes in and comes out.

    Attributes:
        parameters: those that may be stepped, in order.
        apart: whether each parameter can be stepped without the others.
    """

    parameters: list[nn.Parameter]
    apart: bool = False

    def active(self) -> list[nn.Parameter]:
        """Return the parameters that a step now is made of: all of them, by default."""
        return self.parameters

    def stateful(self) -> list[nn.Parameter]:
        """Return the parameters that have a state once they have been stepped."""
        return self.parameters

    def frozen(self) -> frozenset[str]:
        """Return the names of the parameters where no group may act, because they are frozen."""
        return frozenset()

    def losses(self, seen: ForwardRecord | None) -> Tensor | None:
        """Return the loss of each task in a pass; None, the default, where it is not known.

        Args:
            seen: the record of the pass.
        """
        return None

    @abstractmethod
    def init_state(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> State:
        """Return the state before the first step.

        Args:
            meta: the meta-optimizer, with which alone the state can be used.
            parameters: those that are stepped, in order.
        """

    @abstractmethod
    def kept(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> KeptState:
        """Return where the parts of the state are kept that outlast the optimizer.

        Args:
            meta: the meta-optimizer, with which alone the state can be used.
            parameters: those that are stepped, in order.
        """

    @abstractmethod
    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """Return the parameters after one step, and the next state.

        Args:
            meta: the meta-optimizer.
            now: what the step is made from.
            state: the state before the step; it is not changed.
        """

    def finite_step(
        self, meta: MetaOptimizer, now: StepInput, state: State
    ) -> tuple[Advanced | None, int | Tensor]:
        """Return a step that makes no weight infinite or NaN, and how many steps are left out.

        Args:
            meta: the meta-optimizer.
            now: what the step is made from.
            state: the state before the step; it is not changed.

        Returns:
            The outcome, None where the step would make a weight infinite or NaN; and 1 then, else
            0. Of a batch of tasks the latter is the number of tasks whose weights stay.
        """
        advanced = self.advance(meta, now, state)
        return (advanced, 0) if _finite(advanced.parameters) else (None, 1)

    def step_(self, meta: MetaOptimizer, now: StepInput, state: State) -> State | None:
        """Change the parameters in place, for rules that can.

        Args:
            meta: the meta-optimizer.
            now: what the step is made from.
            state: before the step. It is used up.

        Returns:
            The next state; None where the step was not made, as a gradient is not finite.
        """
        raise NotImplementedError

    def steps_in_place(self, meta: MetaOptimizer) -> bool:
        """Return whether :meth:`step_` can be used.

        Args:
            meta: the meta-optimizer.
        """
        return False

    def functional_form(self) -> Stepper:
        """Return the stepper of the differentiable optimizer, which counts its own steps."""
        return self

    def report(self) -> str:
        """Return where a group acts and where not, in words."""
        return f"{len(self.parameters)} parameters that are stepped without teleportation"


@final
class TaskStepper(Stepper):
    """Steps a batch of tasks: a chain of layers that holds its own data.

    Args:
        target: the tasks.
    """

    def __init__(self, target: TaskTarget) -> None:
        self.target = target
        self.parameters = target.parameters(target.names)
        self.output_loss: OutputLoss = getattr(target.model, "output_loss", SQUARE)
        roles: Sequence[Role] | None = getattr(target.model, "roles", None)
        self.roles = None if roles is None else placed(roles)
        self._exact: dict[str, bool] = {}  # whether an action is exact on the tasks' data

    def init_state(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> State:
        """See :meth:`Stepper.init_state`."""
        return meta.init_state(self.target.chain, parameters)

    def kept(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> KeptState:
        """See :meth:`Stepper.kept`."""
        chain = self.target.chain
        update = kept_of_update(meta, chain, parameters)
        if meta.element is None or not chain.pairs:
            return {"update": update}
        return {"update": update, "element": kept_of_element(meta.element, chain, parameters)}

    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """See :meth:`Stepper.advance`."""
        if meta.update.sees_losses and now.losses is not None:
            now = self._with_loss(now, now.losses.detach())
        steps = getattr(self.target.model, "total_steps", 0) or now.total_steps
        now = now._replace(roles=self.roles, total_steps=steps)
        chain, layer_input = self.target.chain, self.target.layer_input
        return meta.advance(chain, layer_input, now, state, self._teleports(meta))

    def finite_step(
        self, meta: MetaOptimizer, now: StepInput, state: State
    ) -> tuple[Advanced | None, int | Tensor]:
        """See :meth:`Stepper.finite_step`; one task that is lost does not stop the others.

        On a CPU it looks first whether all is finite. Elsewhere that would wait for the device, so
        the count is a tensor there.
        """
        dims, on_cpu = self.target.chain.batch_dims, now.gradients[0].device.type == "cpu"
        if on_cpu and _finite(now.gradients):
            advanced = self.advance(meta, now, state)
            if _finite(advanced.parameters):
                return advanced, 0
            without = torch.zeros(now.gradients[0].shape[:dims], dtype=torch.bool)
        else:  # a step without gradient keeps the state of the lost ones finite
            without = _not_finite(now.gradients, dims)
            gradients = [g.masked_fill(_along(without, g), 0.0) for g in now.gradients]
            advanced = self.advance(meta, now._replace(gradients=gradients), state)
        lost = _not_finite(advanced.parameters, dims)
        if not meta.update.sees_losses:  # one that does may go back to where the loss was finite
            lost = lost | without
        stepped = [
            torch.where(_along(lost, own), own, after)
            for own, after in zip(now.parameters, advanced.parameters, strict=True)
        ]
        moved = torch.zeros_like(lost)
        for own, after in zip(now.parameters, stepped, strict=True):
            moved |= (own != after).flatten(start_dim=dims).any(dim=-1)
        count = (lost | (without & ~moved)).sum()
        return advanced._replace(parameters=stepped), int(count) if on_cpu else count

    def _with_loss(self, now: StepInput, losses: Tensor) -> StepInput:
        """The input with the loss; of a norm L it is that of 1/2 L^2."""
        if self.output_loss is NORM:
            gradients = [losses.reshape(-1, *[1] * (g.dim() - 1)) * g for g in now.gradients]
            return now._replace(loss=SeenLoss(0.5 * losses.square()), gradients=gradients)
        targets: Tensor | None = None
        if self.output_loss is SOFTMAX:
            targets = self.target.model.get_buffer("y")
        return now._replace(loss=SeenLoss(losses, self.output_loss, targets=targets))

    def _teleports(self, meta: MetaOptimizer) -> bool:
        """Whether m2 acts."""
        if meta.element is None or not meta.only_where_exact:
            return True
        if meta.spec.action not in self._exact:
            samples = self.target.samples(None) or 0
            exact = self.target.sites.exact_everywhere(meta.action, samples)
            self._exact[meta.spec.action] = exact
        return self._exact[meta.spec.action]

    def losses(self, seen: ForwardRecord | None) -> Tensor | None:
        """See :meth:`Stepper.losses`; they are what the tasks give."""
        return None if seen is None else seen.output

    def frozen(self) -> frozenset[str]:
        """See :meth:`Stepper.frozen`."""
        return frozen_names(self.target.chain.names, self.parameters)

    def report(self) -> str:
        """See :meth:`Stepper.report`."""
        return self.target.report()


@final
class GradientStepper(Stepper):
    """Steps parameters by m1 (the update network) alone, from their gradients alone.

    The Gauss-Newton scale of such a parameter is not known. It is taken to be 100 times the largest
    norm of its gradient so far, over its own norm. So the first steps are short, and a step that
    overshoots makes the next ones shorter. An m1 that asks for no scale steps all networks so.

    A parameter without a gradient, or a frozen one, is passed over, as torch's optimizers do. It
    has no state until it is stepped for the first time.

    Args:
        parameters: those that may be stepped, in order.
        meta: the meta-optimizer that is going to step them.
        roles: what each parameter is for, where it is known.

    Raises:
        UserError: if its m1 needs a chain of layers.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        meta: MetaOptimizer,
        roles: Sequence[Role] | None = None,
    ) -> None:
        check_loose(meta)
        self.parameters = list(parameters)
        self.roles = placed(map(role_of, parameters) if roles is None else roles)
        real = list(map(as_real, self.parameters))
        # Else m1 has one state for all, which fits these alone.
        self.apart = not real or meta.update.columns(NO_CHAIN, real) is not None
        if not self.apart:
            kept = [i for i, p in enumerate(self.parameters) if p.requires_grad]
            self.parameters = [self.parameters[i] for i in kept]
            self.roles = [self.roles[i] for i in kept]

    def active(self) -> list[nn.Parameter]:
        """See :meth:`Stepper.active`."""
        if not self.apart:
            return self.parameters
        return [p for p in self.parameters if p.requires_grad and p.grad is not None]

    def init_state(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> State:
        """See :meth:`Stepper.init_state`."""
        if not parameters:
            return {}
        state = {"update": meta.update.init_state(NO_CHAIN, list(map(as_real, parameters)))}
        if meta.update.sees_layers:
            state["largest"] = largest_so_far(parameters)
        return state

    def stateful(self) -> list[nn.Parameter]:
        """See :meth:`Stepper.stateful`."""
        return [p for p in self.parameters if p.requires_grad]

    def kept(self, meta: MetaOptimizer, parameters: Sequence[nn.Parameter]) -> KeptState:
        """See :meth:`Stepper.kept`."""
        if not parameters:
            return {}
        update = kept_of_update(meta, NO_CHAIN, parameters)
        if not meta.update.sees_layers:
            return {"update": update}
        return {"update": update, "largest": kept_largest(parameters)}

    def steps_in_place(self, meta: MetaOptimizer) -> bool:
        """See :meth:`Stepper.steps_in_place`."""
        return isinstance(meta.update, InPlace)

    def step_(self, meta: MetaOptimizer, now: StepInput, state: State) -> State | None:
        """See :meth:`Stepper.step_`."""
        assert isinstance(meta.update, InPlace)
        loose = Observation.loose(
            now.parameters, now.gradients, [], self._roles_of(now), now.total_steps
        )
        seen = replace(
            loose,
            as_given=(now.parameters, loose.x),
            rate=now.rate * now.trust,
            weight_decay=now.weight_decay,
            made=now.made,
        )
        following = meta.update.step_(seen, state["update"])
        return None if following is None else {**state, "update": following}

    def _roles_of(self, now: StepInput) -> list[Role]:
        if len(now.parameters) == len(self.parameters):
            return self.roles
        active = set(map(id, self.active()))
        return [r for p, r in zip(self.parameters, self.roles, strict=True) if id(p) in active]

    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """See :meth:`Stepper.advance`."""
        following = dict(state)
        if "largest" in state:
            loose, following["largest"] = loosely(now.parameters, now.gradients, state["largest"])
        else:
            roles, steps = self._roles_of(now), now.total_steps
            loose = Observation.loose(now.parameters, now.gradients, [], roles, steps)
            loose = replace(loose, rate=now.rate * now.trust, made=now.made)
        update, following["update"] = meta.update.propose(loose, state["update"])
        return Advanced(now.updated(update), following, None)


def _finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no entry is infinite or NaN; on a CPU sums are faster to look at, and show it."""
    if tensors[0].device.type == "cpu" and all(cmath.isfinite(t.sum().item()) for t in tensors):
        return True
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _not_finite(tensors: Sequence[Tensor], batch_dims: int) -> Tensor:
    """Which tasks have an entry that is infinite or NaN."""
    each = [(~own.isfinite()).flatten(start_dim=batch_dims).any(dim=-1) for own in tensors]
    return torch.stack(each).any(dim=0)


def _along(tasks: Tensor, like: Tensor) -> Tensor:
    """One entry a task, with dimensions that broadcast over those of a parameter."""
    return tasks.view(*tasks.shape, *[1] * (like.dim() - tasks.dim()))


def check_loose(meta: MetaOptimizer) -> None:
    """Check that an m1 (the update network) can step parameters that are no chain of layers.

    Args:
        meta: the meta-optimizer.

    Raises:
        UserError: if its m1 sees the features of layers.
    """
    if meta.update.sees_features:
        raise UserError(
            "expected an m1 that sees gradients alone for parameters that are no chain of Linear "
            "layers, got one that sees the covariance of features: use another optimizer"
        )


def frozen_names(names: Sequence[str], parameters: Sequence[nn.Parameter]) -> frozenset[str]:
    """Return the names of the parameters that require no gradient."""
    pairs = zip(names, parameters, strict=False)  # a batch of tasks may have others after its own
    return frozenset(name for name, parameter in pairs if not parameter.requires_grad)


def as_real(parameter: Tensor) -> Tensor:
    """Return a complex parameter as pairs of real numbers, and any other as it is."""
    return torch.view_as_real(parameter) if parameter.is_complex() else parameter


def kept_of_update(
    meta: MetaOptimizer, chain: Layout, parameters: Sequence[nn.Parameter]
) -> list[Kept]:
    """Return where the state of m1 is kept: that of each coordinate with its parameter.

    Args:
        meta: the meta-optimizer.
        chain: the layers; ``NO_CHAIN`` where the parameters are none.
        parameters: in order.
    """
    rule, real = meta.update, list(map(as_real, parameters))
    start = partial(rule.init_state, chain, real)
    return kept_of("m1", rule.columns(chain, real), parameters, start)


def kept_of_element(
    rule: ElementRule, chain: LayerChain, parameters: Sequence[nn.Parameter]
) -> list[Kept]:
    """Return where the state of m2 is kept: that of each site with the weight that comes in.

    Args:
        rule: m2.
        chain: the layers.
        parameters: of the chain, in order.
    """
    weights = [layer.weight for layer in chain.layers(parameters)]
    incoming: list[Any] = [weights[pair.incoming] for pair in chain.pairs]
    start = partial(rule.init_state, chain, parameters)
    return kept_of("m2", rule.columns(chain, parameters), incoming, start)


def largest_so_far(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the largest gradient norms before the first step: a scalar 0 for each parameter."""
    return [torch.zeros((), dtype=torch.float32, device=p.device) for p in parameters]


def kept_largest(parameters: Sequence[nn.Parameter]) -> list[Kept]:
    """Return where the largest gradient norms are kept: each with its parameter."""
    return [Kept("largest_gradient", [parameter]) for parameter in parameters]


def share_depth(steppers: Sequence[Stepper]) -> None:
    """Tell those that step from gradients alone how deep all of them are together.

    Matrices that are frozen now do not count.

    Args:
        steppers: of all groups of an optimizer.
    """
    loose = [stepper for stepper in steppers if isinstance(stepper, GradientStepper)]
    deep = depth_of(
        role
        for stepper in loose
        for parameter, role in zip(stepper.parameters, stepper.roles, strict=True)
        if parameter.requires_grad
    )
    for stepper in loose:
        stepper.roles = [role._replace(deep=deep) for role in stepper.roles]


def loosely(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], largest: Sequence[Tensor]
) -> tuple[Observation, list[Tensor]]:
    """Return what is seen of parameters that are no chain, and their largest gradient norms.

    Args:
        parameters: in order.
        gradients: one for each parameter, of its shape.
        largest: the largest norms before this step, a float32 scalar for each parameter.

    Returns:
        What is seen, with a Gauss-Newton scale for each parameter, and the largest norms by now.
        Gradients that are not finite do not count.
    """
    scales, following = [], []
    for parameter, gradient, before in zip(parameters, gradients, largest, strict=True):
        norm = torch.linalg.vector_norm(gradient.detach().float())
        most = torch.maximum(before, torch.where(norm.isfinite(), norm, before))
        smallest = SMALLEST_RMS * max(parameter.numel(), 1) ** 0.5
        size = torch.linalg.vector_norm(parameter.detach().float()).clamp(min=smallest)
        scales.append(STEPS_TO_MOVE * most / size)
        following.append(most)
    return Observation.loose(parameters, gradients, scales), following
