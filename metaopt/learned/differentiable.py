"""The differentiable form of :class:`LearnedOptimizer`, which ``higher`` runs in meta-training.

``higher`` has no types and is imported here alone. Three of its habits are worked around:

- It asks for second derivatives at each step. The ``step`` here does so only for meta-gradients of
  second order. In any case it keeps the graph of the loss, which the meta-loss needs.
- It deep-copies ``param_groups`` once, which would cut m1 and m2 off. Here they are attributes.
- It keeps the weights of every step. :meth:`Unroll.truncate` drops them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import higher
import torch
from torch import Tensor, nn

from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.meta_optimizer import State, StepInput
from metaopt.learned.optimizer import LearnedOptimizer


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """Computes w_{t+1} as a differentiable function of the meta-parameters and of w_t.

    Args:
        other: the optimizer; its state is copied, and it stays as it is.
        reference_params: the parameters of the model, as ``higher`` gives them.
        **kwargs: options of ``higher``.
    """

    def __init__(
        self, other: LearnedOptimizer, reference_params: Iterable[Tensor], **kwargs: Any
    ) -> None:
        super().__init__(other, reference_params, **kwargs)
        self.meta = other.meta
        self.stepper = other.steppers[0].functional_form()
        order = {id(p): index for index, p in enumerate(other.param_groups[0]["params"])}
        self.order = [order[id(p)] for p in self.stepper.parameters]
        self.seen: ForwardRecord | None = None
        self.losses: Tensor | None = None
        self.rejected = torch.zeros((), dtype=torch.long, device=self.stepper.parameters[0].device)
        self.second_order = False
        self.absent: set[int] = set()  # parameters that the loss of this step does not depend on
        self.learned_state: State = {
            name: [tensor.detach().clone() for tensor in tensors]
            for name, tensors in other.learned_state.items()
        }

    def step(
        self,
        loss: Tensor,
        x: Tensor | None = None,
        output: Tensor | None = None,
        losses: Tensor | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Step the patched model once.

        ``higher`` drops the hook that watches the forward pass of an ordinary network, so what it
        would have seen is given here.

        Args:
            loss: a scalar, the sum over all tasks.
            x: what the network was given, samples in rows.
            output: what the network gave; without it the optimizer's ``loss_fn`` has no effect.
            losses: the loss of each task, ``(tasks,)``, for update rules that look at it.
            **kwargs: none; an option that ``higher`` knows would be dropped silently.

        Returns:
            The parameters after the step, in the model's order.

        Raises:
            TypeError: for any other option.
        """
        if kwargs:
            raise TypeError(f"this optimizer takes a loss, x and output, got {sorted(kwargs)}")
        self.losses = losses
        given = None if output is None else output.detach()
        self.seen = None if x is None else ForwardRecord((x.detach(),), {}, given)
        parameters = list(self._fmodel.fast_params)
        gradients = torch.autograd.grad(
            loss,
            parameters,
            retain_graph=True,
            create_graph=self.second_order,
            allow_unused=True,
        )
        self.absent = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is None}
        filled = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]
        for group, indices in zip(self.param_groups, self._group_to_param_list, strict=True):
            group["params"] = [parameters[index] for index in indices]
        self._update([filled])
        # W of a later layer may be a function of W of an earlier one, moved by a group that acts
        # through the features. A gradient with respect to both must not go through the other.
        stepped = [parameter.view_as(parameter) for parameter in self.param_groups[0]["params"]]
        if not self._track_higher_grads:
            stepped = [parameter.detach().requires_grad_() for parameter in stepped]
        self._fmodel.update_params(stepped)
        return stepped

    def _update(self, grouped_grads: list[list[Tensor]], **kwargs: Any) -> None:
        group = self.param_groups[0]
        parameters = [group["params"][index] for index in self.order]
        now = StepInput(
            parameters,
            [grouped_grads[0][index] for index in self.order],
            self.seen,
            float(group["lr"]),
            self.second_order,
            absent=frozenset(i for i, p in enumerate(parameters) if id(p) in self.absent),
            losses=self.losses,
        )
        advanced = self.stepper.advance(self.meta, now, self.learned_state)
        for index, parameter in zip(self.order, advanced.parameters, strict=True):
            group["params"][index] = parameter
        self.learned_state = advanced.state
        if advanced.teleportation is not None:
            self.rejected = self.rejected + advanced.teleportation.rejected.sum()


higher.register_optim(LearnedOptimizer, DifferentiableLearnedOptimizer)


class Place(NamedTuple):
    """Where a run is.

    Attributes:
        tensors: the weights and the optimizer's state.
        buffers: those that forward passes change, by name.
        steps: how many steps were taken.
        rejected: how many teleportations were rejected.
    """

    tensors: list[Tensor]
    buffers: dict[str, Tensor]
    steps: int
    rejected: Tensor


class Unroll:
    """A network that is being optimised differentiably, with its optimizer.

    Args:
        network: the model, patched by ``higher``.
        optimizer: the optimizer's differentiable form.
    """

    def __init__(self, network: Any, optimizer: DifferentiableLearnedOptimizer) -> None:
        self.network = network
        self.optimizer = optimizer
        self.steps = 0

    def losses(self) -> Tensor:
        """Return the losses of a batch of tasks at the current weights, ``(tasks,)``."""
        losses: Tensor = self.network(self.steps)
        return losses

    def step(self, losses: Tensor) -> None:
        """Step from w_t to w_{t+1}.

        Args:
            losses: those at w_t, ``(tasks,)``, with their graph.
        """
        self.optimizer.step(losses.sum(), losses=losses.detach())
        self.steps += 1

    def advance(self, count: int) -> list[Tensor]:
        """Take some steps, and return the losses after each, ``(tasks,)`` each.

        Args:
            count: how many steps, 1 or more.
        """
        after: list[Tensor] = []
        losses = self.losses()
        for _ in range(count):
            self.step(losses)
            losses = self.losses()
            after.append(losses)
        return after

    def without_graph(self, count: int, every: int) -> tuple[list[Tensor], list[Place]]:
        """Take some steps whose graphs are dropped.

        Args:
            count: how many steps.
            every: steps between two places.

        Returns:
            The losses after each step, and the places before steps 0, ``every``, 2 ``every``, ...
        """
        second_order, self.optimizer.second_order = self.optimizer.second_order, False
        after: list[Tensor] = []
        places: list[Place] = []
        before = self._changing()  # as the pass at the present weights finds them
        losses = self.losses()
        for step in range(count):
            if step % every == 0:
                places.append(self.place()._replace(buffers=before))
            self.step(losses)
            self.truncate()
            before = self._changing()
            losses = self.losses()
            after.append(losses.detach())
        self.optimizer.second_order = second_order
        return after, places

    def tensors(self) -> list[Tensor]:
        """Return the weights and the optimizer's state, in an order that stays."""
        state = self.optimizer.learned_state
        return [*self.network.fast_params, *(t for name in sorted(state) for t in state[name])]

    def place(self) -> Place:
        """Return where the run is, without its graph."""
        held = [tensor.detach() for tensor in self.tensors()]
        return Place(held, self._changing(), self.steps, self.optimizer.rejected)

    def _changing(self) -> dict[str, Tensor]:
        """Copies of the buffers that a forward pass changes, by name."""
        with torch.no_grad():
            return {n: self.network.get_buffer(n).clone() for n in self.network.changing()}

    def go_to(self, place: Place) -> list[Tensor]:
        """Go back to where the run was, and return its weights and state as leaves of a new graph.

        Args:
            place: what :meth:`place` returned.
        """
        leaves = [
            tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in place.tensors
        ]
        count = len(self.network.fast_params)
        self.network._fast_params.clear()
        self.network.update_params(leaves[:count])
        left = iter(leaves[count:])
        state = self.optimizer.learned_state
        self.optimizer.learned_state = {n: [next(left) for _ in state[n]] for n in sorted(state)}
        with torch.no_grad():
            for name, value in place.buffers.items():
                self.network.get_buffer(name).copy_(value)
        self.steps, self.optimizer.rejected = place.steps, place.rejected
        return leaves

    def truncate(self) -> None:
        """Cut the graph here, so that later losses do not depend on earlier steps."""
        current = [p.detach().requires_grad_() for p in self.network.fast_params]
        self.network._fast_params.clear()
        self.network.update_params(current)
        self.optimizer.learned_state = {
            name: [tensor.detach() for tensor in tensors]
            for name, tensors in self.optimizer.learned_state.items()
        }


@contextmanager
def differentiable(
    model: nn.Module, optimizer: LearnedOptimizer, second_order: bool = False
) -> Iterator[Unroll]:
    """Patch a model and its optimizer by ``higher``, starting from their present state.

    Neither of them changes.

    Args:
        model: what the optimizer steps.
        optimizer: an optimizer of that model, with one group of parameters.
        second_order: whether a meta-gradient goes through the gradients that are stepped on.

    Yields:
        The patched pair.
    """
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=True) as (network, optimized):
        optimized.second_order = second_order
        yield Unroll(network, optimized)
