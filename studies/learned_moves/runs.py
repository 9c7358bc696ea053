"""One training of a stack: AdamW as it is, with a move beside it every few steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.learned_moves.move import Averages, Moment, Proposal, Tensors, moved
from studies.learned_moves.tasks import STEPS, Stack

EVERY = 10
"""Steps from one move to the next; the first is made after the first step."""

LARGEST = 1e3  # a loss that is larger, or not finite, counts as this


@dataclass(frozen=True)
class Setting:
    """How a stack is trained.

    Attributes:
        rate: of AdamW at the start; it falls to 0 in a straight line.
        steps: of AdamW.
        buffers: what becomes of its averages at a move: "transport", "keep" or "reset".
    """

    rate: float
    steps: int = STEPS
    buffers: str = "transport"


def trained(
    stack: Stack, setting: Setting, propose: Proposal | None = None, times: int = 1,
    at: Sequence[float] = (1.0,),
) -> Tensor:  # fmt: skip
    """Train a stack, and return its losses on fresh samples, ``(len(at), times, copies)``.

    Args:
        stack: the copies.
        setting: how.
        propose: says the moves; None for no moves.
        times: how often all copies are there, as for particles of an evolution strategy.
        at: the parts of the steps after which losses are taken.
    """
    weights, fixed = (
        {name: t.repeat(times, *[1] * (t.dim() - 1)) for name, t in stack.tensors(own).items()}
        for own in (True, False)
    )
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(list(weights.values()), setting.rate, weight_decay=0.0)
    batches = stack.batches(times)
    fresh = stack.held_out(times)
    found = []
    ends = [round(part * setting.steps) for part in at]
    for step in range(setting.steps):
        rate = setting.rate * (1 - step / setting.steps)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        torch.autograd.backward(stack.losses(weights, fixed, next(batches)).sum())
        if propose is not None and (step == 1 or (step and step % EVERY == 0)):
            moment = Moment(step / setting.steps, rate)
            _move(stack, optimizer, weights, propose, moment, setting.buffers)
        optimizer.step()
        if step + 1 in ends:
            with torch.no_grad():
                losses = stack.losses(weights, fixed, fresh)
            found.append(losses.nan_to_num(LARGEST).clamp(max=LARGEST).reshape(times, -1))
    return torch.stack(found)


@torch.no_grad()
def _move(
    stack: Stack, optimizer: torch.optim.Optimizer, weights: Tensors, propose: Proposal,
    moment: Moment, buffers: str,
) -> None:  # fmt: skip
    """Move weights, gradients and the optimizer's averages in place."""
    live = torch.stack([w.flatten(1).isfinite().all(dim=1) for w in weights.values()]).all(dim=0)
    if not live.all():  # a copy that diverged has no singular values
        for weight in weights.values():
            weight[~live] = 1e6
    gradients = {name: _finite(w.grad) for name, w in weights.items()}
    state = {name: optimizer.state[w] for name, w in weights.items()}
    first, second = (
        {name: _finite(own[key]) for name, own in state.items()}
        for key in ("exp_avg", "exp_avg_sq")
    )
    averages = Averages(gradients, first, second)
    after, averages = moved(stack.family.orbit, weights, averages, propose, moment)
    for name, weight in weights.items():
        weight.copy_(after[name])
        assert weight.grad is not None
        weight.grad.copy_(averages.gradients[name])
        if buffers == "reset":
            optimizer.state.pop(weight)
        elif buffers == "transport":
            state[name]["exp_avg"].copy_(averages.first[name])
            state[name]["exp_avg_sq"].copy_(averages.second[name])


def _finite(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.nan_to_num()
