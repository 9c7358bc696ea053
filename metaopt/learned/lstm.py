"""A fast LSTM step for networks with many columns and few hidden units.

``nn.LSTMCell`` has no fused kernel on the CPU. Here a state is ``(hidden, N)`` for N columns, so
that each gate is one contiguous block of the ``(4 hidden, N)`` matrix of gates. tanh(x) =
2 sigmoid(2x) - 1 lets one in-place ``sigmoid_`` compute all four gates. The backward pass is in
closed form. The gates are in the order of ``nn.LSTMCell``, with which the tests compare: i, f, g,
o.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metaopt.learned.state import Columns

BLOCK = 6400  # columns stepped at once: gates of (80, 6400) float32 are 2 MB


def _stepped(
    x: Tensor, h: Tensor, c: Tensor, weight_x: Tensor, weight_h: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h', c', the gates and tanh(c')."""
    gates = torch.addmm(bias.unsqueeze(-1), weight_x, x)
    gates.addmm_(weight_h, h)
    i, f, g, o = gates.chunk(4)
    g.mul_(2)
    gates.sigmoid_()
    g.mul_(2).sub_(1)
    c_next = torch.mul(f, c).addcmul_(i, g)
    tanh_c = c_next.tanh()
    return o * tanh_c, c_next, gates, tanh_c


class _LSTMStep(torch.autograd.Function):
    """One step (x, h, c) -> (h', c'), for x ``(inputs, N)`` and h, c ``(hidden, N)``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        weight_x: Tensor,
        weight_h: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        h_next, c_next, gates, tanh_c = _stepped(x, h, c, weight_x, weight_h, bias)
        ctx.save_for_backward(x, h, c, weight_x, weight_h, gates, tanh_c)
        return h_next, c_next

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
        x, h, c, weight_x, weight_h, gates, tanh_c = ctx.saved_tensors
        i, f, g, o = gates.chunk(4)
        # 1 - s^2 of the two tanh, s (1 - s) of the three sigmoids, written into one buffer.
        grad_gates = _scratch(gates)
        grad_i, grad_f, grad_g, grad_o = grad_gates.chunk(4)
        grad_cell = torch.mul(grad_h, o)
        grad_cell.addcmul_(grad_cell * tanh_c, tanh_c, value=-1).add_(grad_c)
        torch.mul(grad_h, tanh_c, out=grad_o)
        torch.mul(grad_cell, g, out=grad_i)
        torch.mul(grad_cell, c, out=grad_f)
        torch.mul(grad_cell, i, out=grad_g)
        grad_g.addcmul_(grad_g * g, g, value=-1)
        both = slice(0, 2 * h.shape[0])  # i and f
        for grad, gate in ((grad_gates[both], gates[both]), (grad_o, o)):
            grad.mul_(gate)
            grad.addcmul_(grad, gate, value=-1)
        needs = ctx.needs_input_grad
        return (
            weight_x.mT @ grad_gates if needs[0] else None,
            weight_h.mT @ grad_gates if needs[1] else None,
            grad_cell.mul_(f) if needs[2] else None,
            (x @ grad_gates.mT).mT if needs[3] else None,  # faster by a third than its twin
            (h @ grad_gates.mT).mT if needs[4] else None,
            grad_gates.sum(dim=1) if needs[5] else None,
        )


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[torch.dtype, torch.device], Tensor] = {}


_BUFFERS = _Buffers()


def _scratch(like: Tensor) -> Tensor:
    """A buffer of the shape of ``like``, the same memory each time, for values that nobody keeps.

    New memory would cost page faults and cache misses.
    """
    key = like.dtype, like.device
    buffer = _BUFFERS.kept.get(key)
    if buffer is None or buffer.numel() < like.numel():
        buffer = _BUFFERS.kept[key] = torch.empty_like(like).view(-1)
    return buffer[: like.numel()].view(like.shape)


class LSTMLayer(nn.Module):
    """One LSTM layer, which a call steps once.

    Its initial weights are distributed as those of ``nn.LSTMCell``. It has one bias for both of
    that class.

    Args:
        inputs: the number of channels of x.
        hidden: the number of hidden units.
        generator: of the initial weights.

    Attributes:
        plain: whether it computes by plain operations, which ``torch.vmap`` can run.
    """

    plain: bool = False

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(hidden)
        self.weight_x = uniform_parameter((4 * hidden, inputs), bound, generator)
        self.weight_h = uniform_parameter((4 * hidden, hidden), bound, generator)
        self.bias = uniform_parameter((4 * hidden,), bound, generator)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and c after one step, ``(hidden, N)`` each.

        Args:
            x: ``(inputs, N)``.
            h: before the step, ``(hidden, N)``.
            c: before the step, ``(hidden, N)``.
        """
        if self.plain:
            gates = self.weight_x @ x + self.weight_h @ h + self.bias.unsqueeze(-1)
            i, f, g, o = gates.chunk(4)
            following = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * following.tanh(), following
        own = x, h, c, self.weight_x, self.weight_h, self.bias
        if not torch.is_grad_enabled():  # without the bookkeeping of autograd
            return _stepped(*own)[:2]
        result: tuple[Tensor, Tensor] = _LSTMStep.apply(*own)  # type: ignore[no-untyped-call]
        return result


class LSTM(nn.Module):
    """A stack of LSTM layers with a linear head, which a call steps once, for N columns.

    Columns are independent. The state is a list ``[h_1, c_1, h_2, c_2, ...]`` of tensors
    ``(hidden, N)``, which goes in and comes out.

    Args:
        inputs: the number of channels of x.
        hidden: the number of hidden units of each layer.
        layers: the number of layers.
        outputs: the number of outputs of the head.
        generator: of the initial weights.
    """

    def __init__(
        self, inputs: int, hidden: int, layers: int, outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden
        self.layers = nn.ModuleList(
            LSTMLayer(inputs if layer == 0 else hidden, hidden, generator)
            for layer in range(layers)
        )
        bound = 1.0 / math.sqrt(hidden)
        self.head_weight = uniform_parameter((outputs, hidden), bound, generator)
        self.head_bias = uniform_parameter((outputs,), bound, generator)

    def zero_head(self) -> None:
        """Set the head to zero, so that the outputs are 0 until it has learned otherwise."""
        nn.init.zeros_(self.head_weight)
        nn.init.zeros_(self.head_bias)

    def init_state(self, columns: int) -> list[Tensor]:
        """Return the state before the first step: zeros for N ``columns``."""
        return [
            self.head_weight.new_zeros(self.hidden, columns) for _ in range(2 * len(self.layers))
        ]

    def columns(self, sizes: Sequence[int]) -> list[Columns]:
        """Return how the state is divided where the columns belong to several owners.

        Args:
            sizes: the number of columns of each owner.
        """
        names = (f"{kind}{layer}" for layer in range(1, len(self.layers) + 1) for kind in "hc")
        return [Columns(name, 1, sizes) for name in names]

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs ``(outputs, N)`` and the next state.

        Many columns are stepped in blocks that fit the cache.

        Args:
            x: ``(inputs, N)``.
            state: before the step; it is not changed.
        """
        if x.shape[1] <= BLOCK:
            return self._step(x, state)
        blocks = [
            self._step(block, list(states))
            for block, *states in zip(
                *(torch.split(tensor, BLOCK, dim=1) for tensor in (x, *state)), strict=True
            )
        ]
        outputs, states = zip(*blocks, strict=True)
        return torch.cat(outputs, dim=1), [
            torch.cat(tensors, dim=1) for tensors in zip(*states, strict=True)
        ]

    def _step(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        following: list[Tensor] = []
        for layer, h, c in zip(self.layers, state[::2], state[1::2], strict=True):
            x, c_next = layer(x, h, c)
            following += [x, c_next]
        return torch.addmm(self.head_bias.unsqueeze(-1), self.head_weight, x), following


def uniform_parameter(
    shape: tuple[int, ...], bound: float, generator: torch.Generator
) -> nn.Parameter:
    """Return a float32 parameter whose entries are uniform on [-bound, bound).

    Args:
        shape: of the parameter.
        bound: above 0.
        generator: that they are drawn from.
    """
    return nn.Parameter(
        torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    )
