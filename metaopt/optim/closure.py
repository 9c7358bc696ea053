"""A user's closure as a loss that a search can evaluate at other weights.

A closure reads the model and leaves gradients in it. So to evaluate it at other weights, they are
written into the model. Weights, gradients and buffers are as they were afterwards, whatever
happens. What else a closure changes, such as a metric that it logs, it changes at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.randomness import same_randomness
from metaopt.replicas import Replicas
from metaopt.symmetry.teleportation import Outputs

STEP = 3e-3
"""How far a central difference reaches, as a fraction of the weights."""


@contextmanager
def restored(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[Callable[[], bool]]:
    """Restore weights, gradients and a model's buffers at the end of a ``with`` block.

    The tensors stay the same objects. The block is given a function that says whether nothing
    was written to the gradients.

    Args:
        model: the model whose buffers are restored.
        parameters: the parameters whose values and gradients are restored.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [
        (p, p.grad, None if p.grad is None else p.grad.clone(), getattr(p.grad, "_version", 0))
        for p in parameters
    ]
    weights = [(p, p.detach().clone()) for p in parameters]

    def untouched() -> bool:
        return all(p.grad is g and getattr(g, "_version", 0) == v for p, g, _, v in gradients)

    try:
        yield untouched
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                _write(buffer, value)
            for parameter, value in weights:
                _write(parameter, value)
            for parameter, gradient, before, _ in gradients:
                parameter.grad = gradient
                if gradient is not None and before is not None:
                    gradient.detach().copy_(before)


def _write(tensor: Tensor, value: Tensor) -> None:
    if not torch.equal(tensor, value):
        tensor.copy_(value)


class _Backward(NamedTuple):
    """What a closure called ``backward`` on.

    Attributes:
        roots: the tensors.
        weights: the gradients that it was given with each; None for 1.
        gradients: what was in ``grad`` of each parameter after the last call.
    """

    roots: list[Tensor]
    weights: list[Tensor | None]
    gradients: list[Tensor | None]


@contextmanager
def _watching(parameters: Sequence[nn.Parameter], keep_graph: bool) -> Iterator[_Backward]:
    """Record the calls of ``backward`` in this thread, and keep their graphs if that is wanted."""
    seen, original, thread = _Backward([], [], []), torch.autograd.backward, get_ident()

    def backward(tensors: Any, grad_tensors: Any = None, *rest: Any, **options: Any) -> None:
        if get_ident() != thread:
            original(tensors, grad_tensors, *rest, **options)
            return
        roots = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        weights = grad_tensors if isinstance(grad_tensors, tuple | list) else [grad_tensors]
        seen.roots.extend(roots)
        seen.weights.extend(weights if len(weights) == len(roots) else [None] * len(roots))
        if keep_graph and rest:
            rest = (True, *rest[1:])
        elif keep_graph:
            options["retain_graph"] = True
        original(tensors, grad_tensors, *rest, **options)
        seen.gradients[:] = [
            None if p.grad is None else p.grad.detach().clone() for p in parameters
        ]

    setattr(torch.autograd, "backward", backward)  # noqa: B010  what mypy takes for a module's own
    try:
        yield seen
    finally:
        setattr(torch.autograd, "backward", original)  # noqa: B010


@final
class ClosureLoss:
    """The loss of a closure as a function of some parameters, differentiable twice.

    Its gradient is what the closure's last ``backward`` left, so before it is clipped. For the
    second derivative the graph of that ``backward`` is kept. Where it cannot be differentiated
    again, as that of a compiled model, the second derivative is a central difference of gradients.
    Each evaluation draws the same random numbers. Use it inside of :func:`restored`.

    Args:
        closure: computes the loss, and leaves its gradient in the parameters.
        parameters: the parameters, in the order in which values are passed.
        everything: all parameters whose gradients the closure may leave.
        replicas: the processes that evaluate it together; the loss is their mean. Their gradients
            are taken to be averaged already, as DDP does.
    """

    def __init__(
        self,
        closure: Callable[[], Any],
        parameters: Sequence[nn.Parameter],
        everything: Sequence[nn.Parameter],
        replicas: Replicas,
    ) -> None:
        self.closure, self.replicas = closure, replicas
        self.parameters, self.everything = list(parameters), list(everything)
        self.seed = torch.random.initial_seed()
        self.twice_differentiable = True
        self._known: list[tuple[list[Tensor], Tensor, list[Tensor]]] = []  # the first and the last

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar."""
        loss: Tensor = _Loss.apply(self, *values)  # type: ignore[no-untyped-call]
        return loss

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the loss and its gradients at some values.

        Args:
            values: one tensor for each parameter.
        """
        for known in self._known:
            if all(map(torch.equal, known[0], values)):
                return known[1:]
        loss, seen = self._evaluate(values)
        gradients = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self.parameters, seen.gradients, strict=True)
        ]
        kept = [value.detach().clone() for value in values]
        self._known = [*self._known[:1], (kept, self.replicas.mean(loss), gradients)]
        return self._known[-1][1:]

    def _evaluate(
        self, values: Sequence[Tensor], keep_graph: bool = False
    ) -> tuple[Tensor, _Backward]:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                _write(parameter, value)
        for parameter in self.everything:
            parameter.grad = None
        with (
            same_randomness(self.seed),
            torch.enable_grad(),
            _watching(self.parameters, keep_graph) as seen,
        ):
            loss = number(self.closure()).to(self.parameters[0].device)
        if not seen.roots:  # it computes gradients in a way of its own
            seen.gradients[:] = [
                None if p.grad is None else p.grad.detach().clone() for p in self.parameters
            ]
        return loss, seen

    def product(self, values: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
        """Return the Hessian times a direction.

        Args:
            values: where, one tensor for each parameter.
            direction: one tensor for each parameter.
        """
        if self.twice_differentiable:
            try:
                seen = self._evaluate(values, keep_graph=True)[1]
                return self._differentiated(seen, direction)
            except RuntimeError:  # such as of an operation without second derivative; what is the
                self.twice_differentiable = False  # closure's own comes again below
        size = _norm(direction)
        if not 0 < size < float("inf"):
            return [torch.zeros_like(d) for d in direction]
        step = STEP * (_norm(values) or 1.0) / size
        ahead, behind = (
            self.at([v + sign * step * d for v, d in zip(values, direction, strict=True)])[1]
            for sign in (1, -1)
        )
        return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]

    def _differentiated(self, seen: _Backward, direction: Sequence[Tensor]) -> list[Tensor]:
        """The product from the graph of a closure's backward; the mean over the processes."""
        if not seen.roots:
            raise RuntimeError("no call of backward was seen")
        options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                seen.roots, self.parameters, seen.weights, create_graph=True, **options
            )
            products = torch.autograd.grad(gradients, self.parameters, direction, **options)
        return [self.replicas.mean(product) for product in products]


def number(loss: Any) -> Tensor:
    """Return the loss that a closure returned as a scalar without graph.

    Args:
        loss: what it returned.

    Raises:
        UserError: if it is not one number.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().reshape(())
    if isinstance(loss, int | float):
        return torch.tensor(float(loss), dtype=torch.float64)
    got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
    raise UserError(
        f"expected a closure that returns its loss, one number, at a step that teleports, got "
        f"{getattr(got, '__name__', got)}: return the loss that it called backward() on"
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)  # NaN does not equal itself


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([t.detach().double().square().sum() for t in tensors]).sum().sqrt())


class _Loss(torch.autograd.Function):
    """The loss; its gradient is a :class:`_Gradient`."""

    @staticmethod
    def forward(ctx: Any, loss: ClosureLoss, *values: Tensor) -> Tensor:
        ctx.loss = loss
        ctx.save_for_backward(*values)
        return loss.at(values)[0].clone()  # what is kept must not have this node, which has it

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _Gradient.apply(ctx.loss, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, *(outer[0] * gradient for gradient in gradients)


class _Gradient(torch.autograd.Function):
    """The gradients of the loss."""

    @staticmethod
    def forward(ctx: Any, loss: ClosureLoss, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.loss = loss
        ctx.save_for_backward(*values)
        return tuple(gradient.clone() for gradient in loss.at(values)[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *direction: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.loss.product(ctx.saved_tensors, direction)


@final
class ClosureOutputs(Outputs):
    """The loss of a closure at the two ends of a move, in place of the outputs of the model.

    It is recorded, since the closure is not to be called again later.

    Args:
        loss: the loss of the closure.
        start: the parameters before the move.
        end: the parameters after it.
    """

    def __init__(self, loss: ClosureLoss, start: Sequence[Tensor], end: Sequence[Tensor]) -> None:
        self._ends = [(list(values), loss.at(values)[0]) for values in (end, start)]

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the loss at one of the two ends, ``(1, 1)``."""
        for values, loss in self._ends:
            if all(map(_same, values, parameters)):
                return loss.double().reshape(1, 1)
        raise UserError(
            "expected the weights before or after the move of a closure, got others: give "
            "step(batch=(x, y)) to compare outputs anywhere"
        )

    def on(self, x: Tensor) -> Outputs:
        """Refuse, as a closure has its own data.

        Args:
            x: other data.

        Raises:
            UserError: always.
        """
        raise UserError(
            "expected no data for a move that a closure led, got some: give step(batch=(x, y)) to "
            "compare outputs on other data"
        )
