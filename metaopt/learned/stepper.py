"""Steppers: what a learned optimizer sees of the parameters of a group, and how it steps them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.meta_optimizer import Advanced, MetaOptimizer, State, StepInput
from metaopt.learned.observation import Observation
from metaopt.symmetry.chain import NO_CHAIN
from metaopt.target import TaskTarget

STEPS_TO_MOVE = 100.0  # so many steps of gradient / Gauss-Newton scale are as long as w
SMALLEST_RMS = 0.03  # of the entries of w that is assumed there, since biases start at 0


class Stepper(ABC):
    """Steps a group of parameters with a meta-optimizer; state goes in and comes out.

    Attributes:
        parameters: those that are stepped, in order.
        skips_not_finite: whether a step is skipped that would make a weight infinite or NaN.
    """

    parameters: list[nn.Parameter]
    skips_not_finite: bool = True

    @abstractmethod
    def init_state(self, meta: MetaOptimizer) -> State:
        """Return the state before the first step.

        Args:
            meta: the meta-optimizer, with which alone the state can be used.
        """

    @abstractmethod
    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """Return the parameters after one step, and the next state.

        Args:
            meta: the meta-optimizer.
            now: what the step is made from.
            state: the state before the step; it is not changed.
        """

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

    skips_not_finite = False  # tasks are independent, and one that is lost must not stop the others

    def __init__(self, target: TaskTarget) -> None:
        self.target = target
        self.parameters = target.parameters(target.names)

    def init_state(self, meta: MetaOptimizer) -> State:
        """See :meth:`Stepper.init_state`."""
        return meta.init_state(self.target.chain, self.parameters)

    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """See :meth:`Stepper.advance`."""
        return meta.advance(self.target.chain, self.target.layer_input, now, state)

    def report(self) -> str:
        """See :meth:`Stepper.report`."""
        return self.target.report()


@final
class GradientStepper(Stepper):
    """Steps parameters by m1 (the update network) alone, from their gradients alone.

    The Gauss-Newton scale of such a parameter is not known. It is taken to be 100 times the largest
    norm of its gradient so far, over its own norm. So the first steps are short, and a step that
    overshoots makes the next ones shorter. An m1 that asks for no scale steps all networks so.

    Args:
        parameters: those that are stepped, in order.
        meta: the meta-optimizer that is going to step them.

    Raises:
        UserError: if its m1 needs a chain of layers.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], meta: MetaOptimizer) -> None:
        check_loose(meta)
        self.parameters = list(parameters)

    def init_state(self, meta: MetaOptimizer) -> State:
        """See :meth:`Stepper.init_state`."""
        return {
            "update": meta.update.init_state(NO_CHAIN, self.parameters),
            "largest": largest_so_far(self.parameters),
        }

    def advance(self, meta: MetaOptimizer, now: StepInput, state: State) -> Advanced:
        """See :meth:`Stepper.advance`."""
        if meta.update.sees_layers:
            loose, largest = loosely(now.parameters, now.gradients, state["largest"])
        else:
            loose, largest = Observation.loose(now.parameters, now.gradients, []), state["largest"]
        update, following = meta.update.propose(loose, state["update"])
        return Advanced(now.updated(update), {"update": following, "largest": largest}, None)


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


def largest_so_far(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the largest gradient norms before the first step: a scalar 0 for each parameter."""
    return [torch.zeros((), dtype=torch.float32, device=p.device) for p in parameters]


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
        smallest = SMALLEST_RMS * parameter.numel() ** 0.5
        size = torch.linalg.vector_norm(parameter.detach().float()).clamp(min=smallest)
        scales.append(STEPS_TO_MOVE * most / size)
        following.append(most)
    return Observation.loose(parameters, gradients, scales), following
