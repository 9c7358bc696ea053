"""The differentiable form of :class:`LearnedOptimizer` under ``higher``.

``higher`` has no types and is imported here alone. Three of its ways are worked around:

- It asks for second derivatives at each step whenever it tracks; this one's ``step`` does only
  where it is of second order, and keeps the graph of the loss for the meta-loss in any case.
- It deep-copies ``param_groups`` once, which would cut m1 and m2 off; they are attributes.
- It keeps the weights of every step while tracking; :meth:`Unroll.truncate` drops them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import higher
import torch
from torch import Tensor, nn

from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.meta_optimizer import State
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.learned.stepper import StepInput


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """w_{t+1} as a differentiable function of the meta-parameters and of w_t."""

    def __init__(
        self, other: LearnedOptimizer, reference_params: Iterable[Tensor], **kwargs: Any
    ) -> None:
        super().__init__(other, reference_params, **kwargs)
        self.meta = other.meta
        self.stepper = other.steppers[0].functional_form()
        order = {id(p): index for index, p in enumerate(other.param_groups[0]["params"])}
        self.order = [order[id(p)] for p in self.stepper.parameters]
        self.seen: ForwardRecord | None = None
        self.rejected = torch.zeros((), dtype=torch.long, device=self.stepper.parameters[0].device)
        self.second_order = False
        self.learned_state: State = {
            name: [tensor.detach().clone() for tensor in tensors]
            for name, tensors in other.learned_state.items()
        }

    def step(
        self,
        loss: Tensor,
        x: Tensor | None = None,
        output: Tensor | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """One step of the patched model, from the summed loss.

        Args:
            x, output: what an ordinary network was given and gave, since ``higher`` drops the hook
                that would see; a ``loss_fn`` is of use with the output alone.
        """
        if kwargs:
            raise TypeError(f"this optimizer takes a loss, x and output, got {sorted(kwargs)}")
        given = None if output is None else output.detach()
        self.seen = None if x is None else ForwardRecord((x.detach(),), {}, given)
        parameters = list(self._fmodel.fast_params)
        gradients = torch.autograd.grad(
            loss, parameters, retain_graph=True, create_graph=self.second_order
        )
        for group, indices in zip(self.param_groups, self._group_to_param_list, strict=True):
            group["params"] = [parameters[index] for index in indices]
        self._update([list(gradients)])
        stepped: list[Tensor] = self.param_groups[0]["params"]
        if not self._track_higher_grads:
            stepped = [parameter.detach().requires_grad_() for parameter in stepped]
        self._fmodel.update_params(stepped)
        return stepped

    def _update(self, grouped_grads: list[list[Tensor]], **kwargs: Any) -> None:
        group = self.param_groups[0]
        now = StepInput(
            [group["params"][index] for index in self.order],
            [grouped_grads[0][index] for index in self.order],
            self.seen,
            float(group["lr"]),
            self.second_order,
        )
        advanced = self.stepper.advance(self.meta, now, self.learned_state)
        for index, parameter in zip(self.order, advanced.parameters, strict=True):
            group["params"][index] = parameter
        self.learned_state = advanced.state
        if advanced.teleportation is not None:
            self.rejected = self.rejected + advanced.teleportation.rejected.sum()


higher.register_optim(LearnedOptimizer, DifferentiableLearnedOptimizer)


class Unroll:
    """A network in the course of differentiable optimisation."""

    def __init__(self, network: Any, optimizer: DifferentiableLearnedOptimizer) -> None:
        self.network = network
        self.optimizer = optimizer
        self.steps = 0

    def losses(self) -> Tensor:
        """The losses of a problem at the current weights, (B,)."""
        losses: Tensor = self.network(self.steps)
        return losses

    def step(self, losses: Tensor) -> None:
        """w_t -> w_{t+1}, from the losses at w_t."""
        self.optimizer.step(losses.sum())
        self.steps += 1

    def truncate(self) -> None:
        """Cut the graph here: later losses are not differentiated through earlier steps."""
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
    """The model and its optimizer, patched by ``higher``, starting from their present state.

    Args:
        second_order: whether the meta-gradient goes through the inner gradients.
    """
    with higher.innerloop_ctx(model, optimizer, copy_initial_weights=True) as (network, optimized):
        optimized.second_order = second_order
        yield Unroll(network, optimized)
