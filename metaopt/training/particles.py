"""Particles: copies of tasks, each stepped with meta-parameters of its own.

An evolution strategy compares particles whose meta-parameters (the weights of m1 and m2) differ.
Where the rules allow it, all particles are one batch of tasks, whose losses and gradients are
computed together. ``torch.vmap`` over the particles then makes the steps.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaopt.errors import UserError, cut
from metaopt.evaluation.rollout import rollout
from metaopt.learned.lstm import LSTMLayer
from metaopt.learned.meta_optimizer import MetaOptimizer, StepInput
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.roles import Role, placed
from metaopt.symmetry import LayerInput
from metaopt.tasks import TaskBatch
from metaopt.tasks.module_tasks import LOSS, ModuleTasks


class Particles(ABC):
    """Copies of the tasks of a batch, ``copies * B`` in all; number c * B + b is of task b."""

    @abstractmethod
    def advance(self, theta: Sequence[Tensor], start: int, count: int) -> tuple[Tensor, Tensor]:
        """Step all particles, each with its own meta-parameters.

        Args:
            theta: the trained meta-parameters, ``(particles, *shape)`` each.
            start: number of the first step; tasks of minibatches choose the minibatch by it.
            count: how many steps, K.

        Returns:
            The losses after each step, ``(K, particles)``, and the number of rejected
            teleportations.
        """

    @abstractmethod
    def held_out(self, count: int) -> Tensor:
        """Return the losses on the first batches of the validation split, ``(1, particles)``.

        Args:
            count: how many batches.
        """

    @abstractmethod
    def restart(self, indices: Sequence[int]) -> None:
        """Set some particles back to the initial weights of their tasks.

        Args:
            indices: of the particles.
        """


def particles(problem: TaskBatch, optimizer: LearnedOptimizer, copies: int) -> Particles:
    """Return particles that start at the weights of a batch of tasks.

    Args:
        problem: the batch of B tasks, which does not change.
        optimizer: a fresh optimizer of the batch, which does not change.
        copies: how many particles each task has.
    """
    meta = optimizer.meta
    if meta.element is None and not meta.update.sees_losses:
        try:
            return Together(problem, meta, copies)
        except RuntimeError as error:  # torch.vmap cannot run the rule
            warnings.warn(
                f"the particles are stepped one by one, as torch.vmap cannot run the update rule: "
                f"{cut(' '.join(str(error).split()), 150)}",
                stacklevel=2,
            )
    return OneByOne(problem, meta, copies)


@final
class Together(Particles):
    """All particles as one batch of tasks, for rules that ``torch.vmap`` can run.

    Args:
        problem: the batch of tasks.
        meta: the meta-optimizer, which has no m2.
        copies: how many particles each task has.

    Raises:
        RuntimeError: if ``torch.vmap`` cannot run the rule.
    """

    def __init__(self, problem: TaskBatch, meta: MetaOptimizer, copies: int) -> None:
        chosen = [b for _ in range(copies) for b in range(problem.batch)]
        self.tasks = problem.select(chosen)
        self.initial = {k: v.detach().clone() for k, v in self.tasks.state_dict().items()}
        self.optimizer = _EachItsOwn(self.tasks, meta)

    def advance(self, theta: Sequence[Tensor], start: int, count: int) -> tuple[Tensor, Tensor]:
        """Step all particles together. See :meth:`Particles.advance`."""
        self.optimizer.use(theta)
        run = rollout(self.tasks, self.optimizer, count, measure_invariance=False, first_step=start)
        return run.losses[1:], run.rejected.sum()

    def held_out(self, count: int) -> Tensor:
        """See :meth:`Particles.held_out`."""
        return _held_out(self.tasks, count)

    @torch.no_grad()
    def restart(self, indices: Sequence[int]) -> None:
        """See :meth:`Particles.restart`."""
        for name, value in self.tasks.state_dict().items():
            value[list(indices)] = self.initial[name][list(indices)]
        self.optimizer.restart(indices)


def _held_out(tasks: TaskBatch, count: int) -> Tensor:
    if not isinstance(tasks, ModuleTasks):
        raise UserError(
            f"expected pes_held_out=0 for tasks without a validation split, got {count}: set it to "
            "0, or name tasks that have one by --task"
        )
    return tasks.measure("validation", count)[LOSS].unsqueeze(0)


class _Step(nn.Module):
    """The step of one particle as a module, whose parameters are those of the rule."""

    def __init__(self, meta: MetaOptimizer, tasks: TaskBatch) -> None:
        super().__init__()
        self.meta = copy.deepcopy(meta)
        self.chain, self.total_steps = tasks.chain, tasks.total_steps
        roles: Sequence[Role] | None = getattr(tasks, "roles", None)
        self.roles = None if roles is None else placed(roles)
        for module in self.meta.modules():
            if isinstance(module, LSTMLayer):
                module.plain = True

    def forward(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        absent: frozenset[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        now = StepInput(
            [parameter.unsqueeze(0) for parameter in parameters],
            [gradient.unsqueeze(0) for gradient in gradients],
            absent=absent,
            roles=self.roles,
            total_steps=self.total_steps,
        )
        own: dict[str, Any] = {"update": list(state)}
        advanced = self.meta.advance(self.chain, LayerInput(x.unsqueeze(0)), now, own)
        return [value.squeeze(0) for value in advanced.parameters], advanced.state["update"]


@final
class _EachItsOwn(torch.optim.Optimizer):
    """Steps each task of a batch with meta-parameters of its own."""

    def __init__(self, tasks: TaskBatch, meta: MetaOptimizer) -> None:
        super().__init__(list(tasks.parameters()), {})
        self.tasks = tasks
        self.module = _Step(meta, tasks).requires_grad_(False)
        trained = [name for name, p in meta.named_parameters() if p.requires_grad]
        self.names = [f"meta.{name}" for name in trained]
        one = [parameter.detach()[:1] for parameter in tasks.parameters()]
        start = self.module.meta.init_state(tasks.chain, one)["update"]
        self.start = [tensor.detach() for tensor in start]
        particles = len(tasks.x)
        self.held = [tensor.expand(particles, *tensor.shape).clone() for tensor in self.start]
        own = dict(meta.named_parameters())
        self.theta = [own[name].detach().expand(particles, *own[name].shape) for name in trained]
        with torch.no_grad():
            self._advanced([torch.zeros_like(p) for p in tasks.parameters()], frozenset())

    def use(self, theta: Sequence[Tensor]) -> None:
        self.theta = list(theta)

    def restart(self, indices: Sequence[int]) -> None:
        for held, start in zip(self.held, self.start, strict=True):
            held[list(indices)] = start

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            raise ValueError("expected a closure, got none: call step(closure)")
        with torch.enable_grad():
            loss = closure()
        parameters = list(self.tasks.parameters())
        absent = frozenset(i for i, p in enumerate(parameters) if p.grad is None)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        stepped, self.held = self._advanced(gradients, absent)
        for parameter, value in zip(parameters, stepped, strict=True):
            parameter.copy_(value)
        return loss

    def _advanced(
        self, gradients: Sequence[Tensor], absent: frozenset[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        def one(
            theta: list[Tensor],
            parameters: list[Tensor],
            gradients: list[Tensor],
            x: Tensor,
            state: list[Tensor],
        ) -> tuple[list[Tensor], list[Tensor]]:
            values = dict(zip(self.names, theta, strict=True))
            made: tuple[list[Tensor], list[Tensor]] = functional_call(
                self.module, values, (parameters, gradients, x, state, absent)
            )
            return made

        parameters = [parameter.detach() for parameter in self.tasks.parameters()]
        stepped: tuple[list[Tensor], list[Tensor]] = torch.vmap(one)(
            self.theta, parameters, list(gradients), self.tasks.x, self.held
        )
        return stepped


@final
class OneByOne(Particles):
    """Each particle with an optimizer of its own, one after another, for any rule.

    Args:
        problem: the batch of tasks.
        meta: the meta-optimizer.
        copies: how many particles each task has.
    """

    def __init__(self, problem: TaskBatch, meta: MetaOptimizer, copies: int) -> None:
        self.problem, self.meta = problem.select(range(problem.batch)), meta
        self.runs = [self._fresh(b) for _ in range(copies) for b in range(problem.batch)]

    def _fresh(self, index: int) -> tuple[TaskBatch, LearnedOptimizer]:
        tasks = self.problem.select([index % self.problem.batch])
        return tasks, LearnedOptimizer(tasks, copy.deepcopy(self.meta))

    def advance(self, theta: Sequence[Tensor], start: int, count: int) -> tuple[Tensor, Tensor]:
        """Step the particles one by one. See :meth:`Particles.advance`."""
        losses, rejected = [], []
        for index, (tasks, optimizer) in enumerate(self.runs):
            own = [p for p in optimizer.meta.parameters() if p.requires_grad]
            with torch.no_grad():
                for parameter, value in zip(own, theta, strict=True):
                    parameter.copy_(value[index])
            before = optimizer.skipped
            run = rollout(tasks, optimizer, count, measure_invariance=False, first_step=start)
            lost = optimizer.skipped > before  # its weights stayed, and the rule is not finite
            losses.append(run.losses[1:].masked_fill(torch.tensor(lost), torch.nan))
            rejected.append(run.rejected.sum())
        return torch.cat(losses, dim=1), torch.stack(rejected).sum()

    def held_out(self, count: int) -> Tensor:
        """See :meth:`Particles.held_out`."""
        return torch.cat([_held_out(tasks, count) for tasks, _ in self.runs], dim=1)

    def restart(self, indices: Sequence[int]) -> None:
        """See :meth:`Particles.restart`."""
        for index in indices:
            self.runs[index] = self._fresh(index)
