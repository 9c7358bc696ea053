"""Learned whitening: m1 (the update network) in the eigenbasis of the curvature of each layer.

In the eigenbasis of K-FAC (:mod:`metaopt.learned.kronecker`) the gradient of a layer has
coefficients g and curvatures k. An LSTM that all coefficients share says three dampings lambda_h
and three factors a_h of each, and so three directions -a_h g / (k + lambda_h max k) of each layer.
With the last steps of the layer they span a small subspace, of five directions a layer. In it the
Gauss-Newton model of the loss is exact: J d is computed for each direction d by a forward pass of
tangents, and the step is the minimum of

    <g, d> + 1/2 d^T J^T H J d + nu/2 sum_l k_l ||d_l||^2

over the subspace, with H the Hessian of the loss in the output and k_l the mean curvature of layer
l. Martens and Grosse (2015, sections 6.4 and 7) choose the length of one direction and the momentum
in this way; Levenberg (1944) and Marquardt (1963) solve for all weights at once.

nu and the largest length of a step follow the ratio of what a step has changed to what the model
promised (Conn, Gould and Toint, 2000, chapter 6). A step that raised the loss is taken back, and
another one is made from where it began, with the gradient that is remembered of there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from typing import ClassVar, NamedTuple, final

import torch
from safetensors.torch import load
from torch import Tensor

from metaopt.checks import check_positive
from metaopt.learned.fields import LSTMFields
from metaopt.learned.kronecker import (
    TINY,
    Curvature,
    Factors,
    curvature,
    gradients,
    split,
    spread,
    tangents,
)
from metaopt.learned.lstm import LSTM, uniform_parameter
from metaopt.learned.observation import Observation, SeenLoss, flatten, unflatten
from metaopt.learned.state import Columns
from metaopt.learned.update import (
    UPDATE_RULES,
    CoordinatewiseUpdate,
    CoordinatewiseUpdateConfig,
    RuleState,
    UpdateConfig,
    UpdateRule,
)
from metaopt.output_loss import OutputLoss
from metaopt.symmetry.chain import Layer, LayerChain

CHANNELS = 9
DAMPINGS = (1e-1, 1e-3, 1e-5)  # what the LSTM's outputs of 0 stand for
PAST = 2  # last steps that are directions too
SMALL = 1e-100  # of a curvature; its square is not 0
RIDGE = 1e-9  # of the diagonal of the small problem

GOOD, POOR = 0.5, 0.25  # of the ratio of the change of the loss to what the model promised
EASED, TIGHTENED = 3.0, 4.0  # factors of nu
RELIABLE = 0.75  # of that ratio, for a longer step
CLOSE, ROUNDED = 0.01, 1e-6  # of a gradient to what it is computed to be anew
LONGER, SHORTER = 2.0, 0.5  # factors of the last length
NU = (1e-9, 1e6)  # its range
SHORTEST, FARTHEST = 1e-7, 1.0  # range of the largest length, over that of the weights of its layer
SMALLEST = 0.03  # root mean square of the weights that is assumed there, as biases start at 0
LEAST = 1e-7  # of the loss, for a promise or a change that is no rounding
EXPLAINED = 0.05  # of the gradient, for what the output does not explain

WIDEST = 1024  # units of a layer; above, the decompositions take too long
MOST_ENTRIES = 2**27  # of the tangents of all directions, in float64 1 GiB


class Point(NamedTuple):
    """The place where a step begins, which may be where the last one began; all in float64.

    Attributes:
        layers: the weights.
        gradients: of the layers, in units of the loss.
        losses: ``(tasks,)``.
    """

    layers: Sequence[Layer]
    gradients: Sequence[Layer]
    losses: Tensor


@final
class LearnedWhitening(UpdateRule):
    """m1 that steps in the eigenbasis of the curvature, along directions that an LSTM proposes.

    It sees full batches of chains of Linear layers. What it cannot see so is stepped by another m1,
    over single coordinates: networks that are no chain, batches that change from step to step, and
    layers of more than 1,024 units. That m1 is the one of lstm_update_tele_v1, and is not trained.

    The state is that of the LSTM; the last steps, and the weights and the gradient where the last
    one began, in float64; for each task the number of the step, nu, the largest length of a step,
    the length of the last, the change that was promised, and the loss where it began; and the state
    of the other m1.

    Args:
        config: its fields.
        generator: of the initial weights.
    """

    sees_layers: ClassVar[bool] = True
    sees_losses: ClassVar[bool] = True

    def __init__(self, config: LearnedWhiteningConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        bound = CHANNELS**-0.5
        self.embedding = uniform_parameter((config.hidden, CHANNELS), bound, generator)
        self.embedding_bias = uniform_parameter((config.hidden,), bound, generator)
        self.lstm: LSTM = config.lstm(config.hidden, 2 * len(DAMPINGS) + 1, generator)
        self.lstm.zero_head()
        self.other = _trained_before()

    @property
    def _first(self) -> tuple[float, float]:
        return self.config.first_damping, self.config.first_length

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        other = self.other.init_state(chain, parameters)
        if not chain.names:
            return other
        tasks, device = parameters[0].shape[: chain.batch_dims].numel(), parameters[0].device
        count = sum(parameter.numel() for parameter in parameters)
        begun = torch.tensor(
            [0.0, *self._first, 0.0, 0.0, torch.inf, 1.0],
            dtype=torch.float64,
            device=device,
        )
        past = torch.zeros(PAST + 2, count, dtype=torch.float64, device=device)
        return [*self.lstm.init_state(count), past, begun[:, None].repeat(1, tasks), *other]

    def columns(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`; coefficients belong to the weight of their layer."""
        other = self.other.columns(chain, parameters)
        if not chain.names:
            return other
        coefficients = [
            size
            for layer in chain.layers(parameters)
            for size in ([layer.augmented().numel()] + ([] if layer.bias is None else [0]))
        ]
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        return [
            *self.lstm.columns(coefficients),
            Columns("last_steps", 1, [parameter.numel() for parameter in parameters]),
            Columns("trust_region", 1, [tasks] + [0] * (len(parameters) - 1)),
            *(own._replace(name=f"other_{own.name}") for own in other),
        ]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        if not seen.chain.names:
            return self.other.propose(seen, state)
        width = 2 * len(self.lstm.layers)
        (past, region), other = state[width : width + 2], state[width + 2 :]
        if seen.loss is None or _too_large(seen):
            update, other = self.other.propose(seen, other)
            trust = TrustRegion(*region)
            unknown = trust._replace(loss=torch.full_like(trust.loss, torch.inf))
            return update, [*state[:width], past, torch.stack(unknown), *other]
        update, own = self._step(seen, seen.loss, state[:width], past, region)
        return update, [*own, *other]

    def _step(
        self,
        seen: Observation,
        loss: SeenLoss,
        columns: RuleState,
        past: Tensor,
        region: Tensor,
    ) -> tuple[list[Tensor], RuleState]:
        chain, batch = seen.chain, seen.gradients[0].shape[: seen.batch_dims]
        *last_steps, kept, remembered = (unflatten(row, seen.parameters) for row in past)
        now = chain.parameters(seen.double_layers)
        slopes = chain.parameters(seen.double_gradients)
        x, given = (seen.x, seen.parameters) if seen.as_given is None else seen.as_given[::-1]
        x = x.double()
        if given[0].dtype == torch.float64:
            loss = loss._replace(targets=None)  # nothing is more exact
        losses = _losses(seen, loss, x)
        before = TrustRegion(*region)
        remembered = [before.unit(loss.factor, batch, g) * g for g in remembered]
        crossed = partial(_crossed, (kept, remembered), (now, slopes), batch)
        trust, losses, back = _judged(before, loss, losses, crossed, self._first)
        start, undone = now, bool(back.any())
        if undone:
            start, slopes = _where(back, batch, kept, now), _where(back, batch, remembered, slopes)
            last_steps[0] = [_unless(back, batch, move) for move in last_steps[0]]
        point = Point(chain.layers(start), chain.layers(slopes), losses)
        at = curvature(chain, point.layers, x, loss.kind)
        exact = torch.where(back, trust.exact, float(loss.exact))
        if loss.output_gradient is not None and loss.exact and not undone:
            exact = exact * _explained(point, at, loss.output_gradient)
        if loss.targets is not None:
            point = _computed_anew(point, at, loss.kind, loss.targets.double())
        g = [f.into(own.augmented()) for f, own in zip(at.factors, point.gradients, strict=True)]
        last = [[m.augmented() for m in chain.layers(moves)] for moves in last_steps]
        channels = _channels(at.factors, g, last[0], losses, trust)
        damped, easing, columns = self._proposed(at.factors, g, channels, columns)
        directions = [
            torch.cat((own, *(move.unsqueeze(-3) for move in moves)), dim=-3)
            for own, *moves in zip(damped, *last, strict=True)
        ]
        if seen.absent:
            directions = _staying(seen, directions)
        steps, length, promised = _minimised(point, at, directions, seen, loss, trust, easing)
        moved = chain.parameters(
            [split(own, layer) for own, layer in zip(steps, seen.layers, strict=True)]
        )
        lost = ~(length.isfinite() & (promised > 0))  # by rounding alone a promise can be below 0
        if batch or bool(losses.isfinite().all()):  # else the step is skipped, and counted
            moved = [_unless(lost, batch, f) for f in moved] if bool(lost.any()) else moved
        length, promised = (torch.where(lost, 0.0, own) for own in (length, promised))
        losses = torch.where(losses.isfinite(), losses, torch.inf)
        update = moved
        if undone and seen.rate:  # an undone step is undone wholly, at any rate
            update = [
                _unless(~back, batch, a - b) / seen.rate + f
                for a, b, f in zip(start, now, moved, strict=True)
            ]
        rows = (moved, *last_steps[: PAST - 1], start, slopes)
        following = TrustRegion(
            trust.steps + 1, trust.nu, trust.length, length, promised, losses, exact
        )
        past = torch.stack([flatten(row).detach() for row in rows])
        return update, [*columns, past, torch.stack(following)]

    def _proposed(
        self,
        factors: Sequence[Factors],
        g: Sequence[Tensor],
        channels: Sequence[Tensor],
        columns: RuleState,
    ) -> tuple[list[Tensor], Tensor, RuleState]:
        """The directions of each layer, the factor of nu, and the next state of the LSTM.

        Directions are ``(*batch, dampings, out, in + 1)``.
        """
        x = torch.cat([own.flatten(start_dim=1) for own in channels], dim=1)
        embedded = torch.tanh(torch.addmm(self.embedding_bias.unsqueeze(-1), self.embedding, x))
        outputs, columns = self.lstm(embedded, columns)
        said = torch.tanh(outputs)
        first = said.new_tensor(DAMPINGS).unsqueeze(-1)
        dampings = first * (4.0 * said[: len(DAMPINGS)]).exp()
        weights = (2.0 * said[len(DAMPINGS) : -1]).exp()
        sizes = [own.numel() for own in g]
        damped = []
        for f, own, a, b in zip(
            factors, g, *(torch.split(h, sizes, dim=1) for h in (dampings, weights)), strict=True
        ):
            lam, scale = (head.reshape(-1, *own.shape) for head in (a, b))
            found = f.back(-scale * own / (f.curvature + lam * f.largest + SMALL))
            damped.append(found.movedim(0, -3))
        batch = g[0].shape[:-2]
        means = [own.reshape(*batch, -1).sum(dim=-1) for own in torch.split(outputs[-1], sizes)]
        total = sum(own.shape[-2:].numel() for own in g)
        mean = torch.stack(means).sum(dim=0) / total
        return damped, (3.0 * torch.tanh(mean)).exp().double().reshape(-1), columns


def _trained_before() -> CoordinatewiseUpdate:
    """The m1 of lstm_update_tele_v1, which stays as it is."""
    rule = CoordinatewiseUpdate(CoordinatewiseUpdateConfig(), torch.Generator())
    rule.load_state_dict(_tensors_before())
    return rule.requires_grad_(False)


@lru_cache
def _tensors_before() -> dict[str, Tensor]:
    file = resources.files("metaopt.learned") / "pretrained" / "lstm_update_tele_v1.safetensors"
    prefix = "meta/update."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in load(file.read_bytes()).items()
        if name.startswith(prefix)
    }


class TrustRegion(NamedTuple):
    """How far the model is trusted, for each task, ``(tasks,)`` each.

    Attributes:
        steps: how many steps were made.
        nu: the damping.
        length: the largest length of a step, over that of the weights of its layer.
        last: the length of the last step.
        promised: by how much the model said that it would lower the loss.
        loss: where the last step began; inf if there is none.
        exact: 1 where that was known to be all of the loss, else 0.
    """

    steps: Tensor
    nu: Tensor
    length: Tensor
    last: Tensor
    promised: Tensor
    loss: Tensor
    exact: Tensor

    def unit(self, factor: float, batch: torch.Size, like: Tensor) -> Tensor:
        """Return the factor of a gradient that is remembered, where losses have ``factor``."""
        own = torch.full_like(self.loss, factor if math.isfinite(factor) else 1.0)
        return spread(own.sqrt(), batch, like)


@torch.no_grad()
def _channels(
    factors: Sequence[Factors],
    gradients: Sequence[Tensor],
    last: Sequence[Tensor],
    losses: Tensor,
    trust: TrustRegion,
) -> list[Tensor]:
    """What the LSTM sees of the coefficients of each layer, ``(channels, *batch, out, in)``."""
    layers, batch = len(factors), gradients[0].shape[:-2]
    change = torch.where(trust.loss.isinf(), 0.0, 0.5 * (losses / trust.loss).log())
    of_tasks = (
        change.clamp(-2.5, 2.5),
        (1 + trust.steps).log() / 3 - 0.5,
        trust.nu.log() / 10,
        trust.length.clamp(min=1e-9).log() / 5,
    )
    shown = []
    for place, (f, g, m) in enumerate(zip(factors, gradients, last, strict=True)):
        k, most = f.curvature, f.largest
        along = g * f.into(m)  # its sign, and 0 where there is only rounding
        explained = g.square() / ((k + 1e-6 * most) * spread(losses, batch, k) + TINY)
        channels = (
            (k / (most + TINY) + 1e-12).log() / 10 + 1,
            (explained + 1e-12).log() / 10 + 1,
            along / (along.abs() + 1e-6 * along.abs().amax(dim=(-2, -1), keepdim=True) + TINY),
            *(spread(own, batch, k).expand_as(k) for own in of_tasks),
            torch.full_like(k, layers / 4 - 0.5),
            torch.full_like(k, place / max(1, layers - 1) - 0.5),
        )
        shown.append(torch.stack(channels).nan_to_num(0.0, 5.0, -5.0).float())
    return shown


def _judged(
    region: TrustRegion,
    loss: SeenLoss,
    losses: Tensor,
    crossed: Callable[[], Tensor],
    first: tuple[float, float],
) -> tuple[TrustRegion, Tensor, Tensor]:
    """The region after the last step, the losses now, and whose last step is taken back.

    Args:
        region: the one before.
        loss: what is seen of the loss.
        losses: those now.
        crossed: gives the change of the losses by the gradients before and after the step.
        first: nu and the largest length where there is no last step.
    """
    before = region.loss * loss.factor
    before = torch.where(before.isnan(), torch.inf, before)
    fresh = before.isinf()
    change = losses - before
    if not loss.exact or not bool((region.exact > 0).all()):
        unknown = (region.exact <= 0) | (not loss.exact)
        change = torch.where(unknown, crossed(), change)
        losses = losses if loss.exact else torch.where(fresh, losses, before + change)
    promised = region.promised * torch.where(fresh, 1.0, loss.factor)
    least = LEAST * before.abs()
    judged = ~fresh & ((promised > least) | ~(change.abs() <= least))
    ratio = -change / (promised + TINY)
    good, poor = judged & (ratio > GOOD), judged & ~(ratio > POOR)
    nu = torch.where(good, region.nu / EASED, torch.where(poor, region.nu * TIGHTENED, region.nu))
    longer = torch.maximum(region.length, (LONGER * region.last).clamp(max=FARTHEST))
    reliable = judged & (ratio > RELIABLE)
    length = torch.where(reliable, longer, torch.where(poor, SHORTER * region.last, region.length))
    again = fresh & (region.steps > 0)
    nu, length = (
        torch.where(again, own.new_tensor(value), own)
        for own, value in zip((nu, length), first, strict=True)
    )
    known = torch.where(fresh, torch.inf, before)
    back = ~fresh & ~(change <= 0)
    region = region._replace(nu=nu.clamp(*NU), length=length.clamp(min=SHORTEST), loss=known)
    return region, torch.where(back, known, losses), back


def _crossed(
    before: tuple[Sequence[Tensor], Sequence[Tensor]],
    after: tuple[Sequence[Tensor], Sequence[Tensor]],
    batch: torch.Size,
) -> Tensor:
    """The change of any loss between two weights, from the gradients at both: the trapezoid rule.

    Args:
        before: weights and gradients.
        after: weights and gradients.
        batch: the dimensions of tasks.
    """
    parts = [
        (0.5 * (g + later) * (there - here)).detach().flatten(start_dim=len(batch)).sum(dim=-1)
        for here, g, there, later in zip(*before, *after, strict=True)
    ]
    return torch.stack(parts).sum(dim=0).reshape(-1)


def _explained(point: Point, at: Curvature, output_gradient: Tensor) -> float:
    """1 where the gradient of the weights is that of the output, and 0 where the loss has more."""
    own = gradients(point.layers, at, output_gradient)
    gap, size = 0.0, 0.0
    for given, layer in zip(point.gradients, own, strict=True):
        gap += float((given.augmented() - layer).square().sum())
        size += float(layer.square().sum())
    return float(gap <= EXPLAINED**2 * size)


def _staying(seen: Observation, directions: Sequence[Tensor]) -> list[Tensor]:
    """Directions, with 0 for the parameters that stay where they are."""
    moves = [
        torch.full_like(own, float(place not in seen.absent))
        for place, own in enumerate(seen.as_given[0] if seen.as_given else seen.parameters)
    ]
    masks = [layer.augmented().double() for layer in seen.chain.layers(moves)]
    return [own * mask.unsqueeze(-3) for own, mask in zip(directions, masks, strict=True)]


def _minimised(
    start: Point,
    at: Curvature,
    directions: Sequence[Tensor],
    seen: Observation,
    loss: SeenLoss,
    trust: TrustRegion,
    easing: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The step of each layer, its length and the promised change, ``(tasks,)`` each.

    The meta-gradient goes through the directions and through nu. It does not go through the rest of
    the small problem, whose solution is a minimum.
    """
    batch = seen.gradients[0].shape[: seen.batch_dims]
    counts = [own.shape[-3] for own in directions]
    with torch.no_grad():
        j = tangents(start.layers, at, directions)
        hj = loss.kind.product(at.outputs.unsqueeze(-3), j)
        model = j.flatten(start_dim=-2) @ hj.flatten(start_dim=-2).mT
        slopes, blocks = [], []
        for own, g, f in zip(directions, start.gradients, at.factors, strict=True):
            flat = own.detach().flatten(start_dim=-2)
            slopes.append((flat @ g.augmented().detach().flatten(start_dim=-2)[..., None])[..., 0])
            blocks.append(f.curvature.mean(dim=(-2, -1))[..., None, None] * (flat @ flat.mT))
        slope = torch.cat(slopes, dim=-1)
        metric = _block_diagonal(blocks)
    damped = model + spread(trust.nu * easing, batch, model) * metric
    size = damped.detach().diagonal(dim1=-2, dim2=-1).clamp(min=TINY).rsqrt()
    ridge = RIDGE * torch.eye(size.shape[-1], dtype=size.dtype, device=size.device)
    unit = damped * size[..., None] * size[..., None, :] + ridge
    solution, _ = torch.linalg.solve_ex(unit, -(slope * size)[..., None])
    c = solution[..., 0] * size
    steps = [
        (own * part[..., None, None]).sum(dim=-3)
        for own, part in zip(directions, c.split(counts, dim=-1), strict=True)
    ]
    with torch.no_grad():
        lengths = [
            _norm(step)
            / _norm(layer.augmented()).clamp(min=SMALLEST * step.shape[-2:].numel() ** 0.5)
            for step, layer in zip(steps, start.layers, strict=True)
        ]
        length = torch.stack(lengths).amax(dim=0).reshape(-1)
        scale = (trust.length / (length + TINY)).clamp(max=1.0)
        c = c.detach() * spread(scale, batch, c) * seen.rate
        quadratic = 0.5 * (model @ c[..., None])[..., 0]
        promised = -((slope + quadratic) * c).sum(dim=-1).reshape(-1)
    return [step * spread(scale, batch, step) for step in steps], length * scale, promised


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Matrices in a row as one block-diagonal matrix, for each task."""
    total = sum(own.shape[-1] for own in blocks)
    whole = blocks[0].new_zeros(*blocks[0].shape[:-2], total, total)
    begin = 0
    for own in blocks:
        end = begin + own.shape[-1]
        whole[..., begin:end, begin:end] = own
        begin = end
    return whole


def _losses(seen: Observation, loss: SeenLoss, x: Tensor) -> Tensor:
    """The loss of each task, in float64; where targets are known it is computed from them anew."""
    if loss.targets is None:
        return loss.values.double().reshape(-1)
    with torch.no_grad():
        outputs = seen.chain.output(seen.double_layers, x)
        terms = loss.kind.terms(outputs, loss.targets.double())
    return terms.sum(dim=(-2, -1)).reshape(-1)


def _computed_anew(point: Point, at: Curvature, loss: OutputLoss, targets: Tensor) -> Point:
    """The point with gradients from the targets, where those that are given are their rounding.

    In float32 the gradient p - y of a cross entropy is rounding once p is within 1e-7 of y. A
    gradient that somebody has changed, such as by clipping, stays as it is.
    """
    of_output = loss.gradient(at.outputs, targets)
    anew = gradients(point.layers, at, of_output)
    kept, downstream = [], ROUNDED * at.outputs.shape[-1] ** 0.5
    for layer, given, own, a in zip(
        point.layers[::-1], point.gradients[::-1], anew[::-1], at.inputs[::-1], strict=True
    ):
        allowed = CLOSE * _norm(own) + downstream * _norm(a)
        near = (_norm(given.augmented() - own) <= allowed)[..., None, None]
        kept.append(split(torch.where(near, own, given.augmented()), given))
        downstream = downstream * _norm(layer.weight)
    return point._replace(gradients=kept[::-1])


def _too_large(seen: Observation) -> bool:
    """Whether the decompositions or the tangents would take too long, or too much memory."""
    widths = [n for layer in seen.layers for n in layer.weight.shape[-2:]]
    outputs = [layer.weight.shape[-2] for layer in seen.layers]
    directions = (len(DAMPINGS) + PAST) * len(seen.layers)
    tasks = seen.gradients[0].shape[: seen.batch_dims].numel()
    return (
        max(widths) > WIDEST or tasks * directions * max(outputs) * seen.x.shape[-1] > MOST_ENTRIES
    )


def _norm(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1))
    return norm


def _where(
    chosen: Tensor, batch: torch.Size, one: Sequence[Tensor], other: Sequence[Tensor]
) -> list[Tensor]:
    """The tensors of one for the chosen tasks, and of the other elsewhere."""
    return [torch.where(spread(chosen, batch, b), a, b) for a, b in zip(one, other, strict=True)]


def _unless(tasks: Tensor, batch: torch.Size, own: Tensor) -> Tensor:
    """The tensor, with 0 for some tasks."""
    return torch.where(spread(tasks, batch, own), 0.0, own)


@UPDATE_RULES.register("whitened")
@dataclass(frozen=True)
class LearnedWhiteningConfig(LSTMFields, UpdateConfig):
    """The config of an m1 in the eigenbasis of the curvature.

    Attributes:
        first_damping: nu before the first step.
        first_length: the largest length of the first step, over that of the weights of its layer.
    """

    first_damping: float = 1.0
    first_length: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_damping", "first_length"):
            check_positive(name, getattr(self, name), getattr(type(self), name))

    @property
    def only_where_exact(self) -> bool:
        """See :attr:`UpdateConfig.only_where_exact`: this m1 does well without m2 elsewhere."""
        return True

    def build(self, generator: torch.Generator) -> LearnedWhitening:
        """See :meth:`UpdateConfig.build`."""
        return LearnedWhitening(self, generator)
