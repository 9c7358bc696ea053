"""A small meta-learned rule for the rotation of each teleport, trained through the steps it takes.

At each step w <- g_theta . w, then w <- w - rate dL/dw. A network of two hidden layers maps what is
seen at the point (its angle in h's plane, and J J^T in the frame of h) to theta, and may also give
the rate. It is trained by truncated back-propagation over windows of steps on training members.

Many rules, of different meta-seeds and variants, are trained side by side as one batch: S of them
at once, with weights ``(S, out, in)`` and points ``(S, B, 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.tasks.seeds import first_seeds
from studies.convergence.family_methods import TARGET, score
from studies.functions.families_2d import Family2D, times

Array = NDArray[np.float64]
FEATURES, HIDDEN, OUTPUTS = 7, 16, 3
SPEED = 5.0  # how much faster than the other numbers the logarithm of a fixed rate moves


class Variant(NamedTuple):
    """What a rule may choose."""

    name: str
    rotates: bool
    sets_rate: bool


VARIANTS = (
    Variant("learned rotation, GD", True, False),
    Variant("learned rotation and rate", True, True),
    Variant("learned rate, no teleport", False, True),
)
"""The last one is the control: what the rate alone does."""


@dataclass(frozen=True)
class Training:
    """How the rules are trained.

    Attributes:
        meta_steps: Adam's, with a rate that falls along a cosine.
        window: steps that are differentiated through.
        windows: of one draw of members.
        members: in a batch.
        pool: training members in all.
        every: meta-steps between validations.
        horizon: steps of a validation.
    """

    meta_steps: int = 200
    window: int = 5
    windows: int = 4
    members: int = 32
    pool: int = 1024
    every: int = 50
    horizon: int = 80
    meta_rate: float = 1e-2
    clip: float = 1.0


@dataclass(frozen=True, eq=False)
class Rules:
    """The weights of S rules.

    Attributes:
        weights: W1, b1, W2, b2, W3, b3, each with S in front; and the logarithm of a fixed rate
            over ``SPEED``, ``(S,)``.
        rotates, sets_rate: ``(S,)``, 1 or 0.
    """

    weights: Sequence[Tensor]
    rotates: Tensor
    sets_rate: Tensor

    def outputs(self, features: Tensor) -> Tensor:
        """``(S, B, FEATURES)`` -> ``(S, B, OUTPUTS)``."""
        w1, b1, w2, b2, w3, b3, _ = self.weights
        x = torch.tanh(torch.baddbmm(b1[:, None], features, w1.mT))
        x = torch.tanh(torch.baddbmm(b2[:, None], x, w2.mT))
        return torch.baddbmm(b3[:, None], x, w3.mT)

    def teleport(self, members: Family2D, w: Tensor) -> tuple[Tensor, Tensor]:
        """g_theta . w, and the third output. theta is 0 before training.

        What the network sees is detached, as in the paper's code: no second derivatives.
        """
        sine, cosine, rate = self.outputs(seen(members, w.detach())).unbind(-1)
        angle = torch.atan2(sine, 1 + cosine) * self.rotates[:, None]
        return members.rotate(w, angle), rate

    def step(self, members: Family2D, w: Tensor) -> Tensor:
        """One teleport and one step of gradient descent, ``(S, B, 2)``.

        A rate of its own is exp(o) / (2 tr J J^T), which is 1 / tr H on ellipses for o = 0.
        """
        w, offset = self.teleport(members, w)
        jacobian = members.jacobian(w)
        own = torch.exp(offset.clamp(-6, 6)) / (2 * jacobian.square().sum((-2, -1)))
        fixed = (SPEED * self.weights[-1]).exp()[:, None].expand_as(own)
        rate = torch.where(self.sets_rate[:, None] > 0, own, fixed)
        return w - rate.unsqueeze(-1) * 2 * times(jacobian.mT, members.h(w))

    def run(self, members: Family2D, starts: Tensor, steps: int) -> Tensor:
        """L_t / L_0, ``(steps + 1, S, B)``, without gradients."""
        with torch.no_grad():
            w = starts.expand(len(self.rotates), *starts.shape)
            losses = [members.loss(w)]
            for t in range(steps):
                w = self.step(members, w)
                losses.append(members.loss(w))
                if t % 10 == 9 and bool((losses[-1] <= TARGET * losses[0]).all()):
                    break
        relative = torch.stack(losses) / losses[0]
        rest = relative[-1:].expand(steps + 1 - len(relative), *relative.shape[1:])
        return torch.cat((relative, rest))


def seen(members: Family2D, w: Tensor) -> Tensor:
    """``(..., B, 7)``: with n = h / ||h|| and m at a right angle to it, cos and sin of h's angle,

    log ||h||, the logarithms of n^T P n, m^T P m and det P, P = J J^T, and n^T P m over the root of
    the first two.
    """
    z = members.h(w)
    size = z.norm(dim=-1, keepdim=True).clamp(min=1e-150)
    n = z / size
    m = torch.stack((-n[..., 1], n[..., 0]), -1)
    jacobian = members.jacobian(w)
    jn, jm = times(jacobian.mT, n), times(jacobian.mT, m)
    a, e = (one.square().sum(-1).clamp(min=1e-150) for one in (jn, jm))
    c = (jn * jm).sum(-1) / (a * e).sqrt()
    determinant = (jacobian[..., 0, 0] * jacobian[..., 1, 1]
                   - jacobian[..., 0, 1] * jacobian[..., 1, 0]).square()  # fmt: skip
    logs = [size[..., 0].log().clamp(-4, 4), a.log(), e.log(), determinant.log()]
    return torch.stack((n[..., 0], n[..., 1], c, *(0.5 * one for one in logs)), -1)


def initial(meta_seeds: Sequence[int], rate: float) -> Rules:
    """Make the untrained rules of every variant and meta-seed, variants first.

    They do not rotate yet.

    Args:
        meta_seeds: what the weights are drawn from.
        rate: from which the fixed rate starts.
    """
    sizes = ((HIDDEN, FEATURES), (HIDDEN, HIDDEN), (OUTPUTS, HIDDEN))
    drawn: list[list[Tensor]] = []
    for _ in VARIANTS:
        for seed in meta_seeds:
            generator = torch.Generator().manual_seed(seed)
            drawn.append([])
            for out, fan_in in sizes:
                w = torch.randn(out, fan_in, generator=generator, dtype=torch.float64)
                scale = 0.0 if out == OUTPUTS else 1 / math.sqrt(fan_in)
                drawn[-1] += [scale * w, torch.zeros(out, dtype=torch.float64)]
            drawn[-1].append(torch.tensor(math.log(rate) / SPEED, dtype=torch.float64))
    weights = [torch.stack(tensors) for tensors in zip(*drawn, strict=True)]
    count = len(meta_seeds)
    rotates = torch.tensor([float(v.rotates) for v in VARIANTS]).double().repeat_interleave(count)
    sets = torch.tensor([float(v.sets_rate) for v in VARIANTS]).double().repeat_interleave(count)
    return Rules(weights, rotates, sets)


def trained(
    family: type[Family2D],
    validation: tuple[Family2D, Tensor],
    rules: Rules,
    training: Training,
) -> tuple[Rules, Array]:
    """Each rule as it was at its best on the validation members, and those scores, ``(S,)``.

    The meta-loss of a window is the mean of log(L_t / L_0 + 1e-8) over its steps and members. Each
    rule's gradient is clipped, and left out where it is not finite.
    """
    weights = [tensor.clone().requires_grad_() for tensor in rules.weights]
    current = Rules(weights, rules.rotates, rules.sets_rate)
    adam = torch.optim.Adam(weights, lr=training.meta_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, training.meta_steps)
    best = [tensor.detach().clone() for tensor in weights]
    scores = score(current.run(*validation, training.horizon))
    batches = _batches(family, training)
    w = first = torch.empty(0)
    for meta_step in range(training.meta_steps):
        members, starts = batches[meta_step // training.windows % len(batches)]
        if meta_step % training.windows == 0:
            w = starts.expand(len(rules.rotates), *starts.shape)
            first = members.loss(starts)
        logs = []
        for _ in range(training.window):
            w = current.step(members, w)
            logs.append((members.loss(w) / first).clamp(max=1e6).add(1e-8).log())
        adam.zero_grad()
        torch.stack(logs).mean(dim=(0, 2)).sum().backward()  # type: ignore[no-untyped-call]
        _clip(weights, training.clip)
        adam.step()
        schedule.step()
        w = torch.where(w.isfinite() & (w.abs() < 1e3), w, starts).detach()
        if meta_step % training.every == training.every - 1:
            now = score(current.run(*validation, training.horizon))
            better = torch.from_numpy(now < scores)
            best = [
                _where(better, own.detach(), old) for own, old in zip(weights, best, strict=True)
            ]
            scores = np.minimum(scores, now)
    return Rules(best, rules.rotates, rules.sets_rate), scores


def _batches(family: type[Family2D], training: Training) -> list[tuple[Family2D, Tensor]]:
    seeds = first_seeds("training", training.pool)
    size = training.members
    return [family.drawn(seeds[i : i + size]) for i in range(0, len(seeds), size)]


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *(1,) * (yes.dim() - 1)), yes, no)


def _clip(weights: Sequence[Tensor], limit: float) -> None:
    """Each rule's gradient to a norm of at most ``limit``, or to 0 where it is not finite."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    squares = [g.reshape(len(g), -1).square().sum(1) for g in gradients]
    norm = torch.stack(squares).sum(0).sqrt()
    finite = norm.isfinite()
    scale = torch.where(finite, limit / norm.clamp(min=limit), 0.0)
    for g in gradients:
        shaped = scale.reshape(-1, *(1,) * (g.dim() - 1))
        g.copy_(torch.where(finite.reshape(shaped.shape), g * shaped, 0.0))
