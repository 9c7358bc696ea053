"""m1 (the update network) a tensor at a time, for networks of any size on minibatches.

Each parameter is stepped along two directions. One is Adam's (Kingma and Ba, 2015), m / sqrt(v).
The other, for matrices between layers, is the momentum made orthogonal by Newton-Schulz iterations,
as in Muon (Jordan et al., 2024). Both are scaled so that a step changes what the layer gives by as
much at any width. A small LSTM sees statistics of each tensor and says how long the step is and how
the directions are mixed. To control hand-designed features tensor by tensor is the idea of VeLO
(Metz et al., 2022) and Celo (Moudgil et al., 2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from metaopt.learned.blocks import blocks
from metaopt.learned.fields import LSTMFields
from metaopt.learned.observation import Observation
from metaopt.learned.orthogonal import even_rows, in_blocks
from metaopt.learned.state import Columns
from metaopt.learned.update import UPDATE_RULES, InPlace, RuleState, UpdateConfig, UpdateRule
from metaopt.roles import (
    EMBEDDING,
    HIDDEN,
    KINDS,
    OUTPUT,
    VECTOR,
    Role,
    depth_of,
    placed,
    role_of_shape,
)
from metaopt.symmetry.chain import Layout

MOMENTUM, SQUARE, LONG = 0.9, 0.99, 0.98  # decays of m, v, and of the mean ||g||^2
RATES = {HIDDEN: 0.06, OUTPUT: 0.3, EMBEDDING: 0.06, VECTOR: 0.025}  # where the head gives 0
DECAY = 0.05  # of a step's length, towards 0, where the head gives 0
LONGEST_DECAY = 0.5  # of a weight, in a step
WARM_UP, OPEN_WARM_UP = 30, 20  # steps, where the end is known, and where it is not
OPEN = 30  # steps after which the rate has fallen by the root of 2 where the end is not known
PER_STEP, MOST_STEPS = 32, 8
SMALLEST = 0.05  # part of the usual weights, below which steps shorten no more
DEEPEST = 24  # matrices between layers, from where on steps shorten no more
NONE = 0.01  # part of the usual weights, below which a start counts as one of zeros
SURPRISE = 2.0  # a gradient so many times longer than usual shortens the step
EPS = 1e-24
NUMBERS = ("steps", "momentum_norm", "long", "first_norm", "path")  # kept of each tensor
CHANNELS = 18  # and one more where the depth is seen
OUTPUTS = 4


class Column(NamedTuple):
    """What is kept of each tensor and task, ``(tensors * tasks,)`` each.

    Attributes:
        steps: how many steps it has made.
        momentum: ||m||^2.
        long: the mean ||g||^2, not corrected for its start.
        first: ||w||^2 before the first step.
        path: the sum of the lengths of its steps, times the rate of each.
    """

    steps: Tensor
    momentum: Tensor
    long: Tensor
    first: Tensor
    path: Tensor


@final
class TensorwiseUpdate(InPlace, UpdateRule):
    """m1 a tensor at a time: Adam's direction and orthogonal momentum, mixed and scaled by an LSTM.

    f = -r w(t) ((1 - a) A / sqrt(n) + a O sqrt(max(1, m / n))) - d w for an (m, n) matrix between
    layers, with A = l / sqrt(v), O the orthogonal factor of l, l between the momentum and the
    gradient, and r, a, l and d from the LSTM. For other tensors f = -r w(t) A - d w, without d for
    vectors. w(t) rises in the beginning (:func:`warm_up`). It falls in a line to 0 at
    ``total_steps`` where that is known, else as 1 / sqrt(1 + t / 30). The rows of
    O have one length. f does not depend on the scale of the loss, while entries of gradients are
    far above 1e-12.

    In a network of L matrices between layers, r of these and of vectors has a factor 1 / sqrt(L),
    as a step of each layer adds to those of the others; 1 / sqrt(24) where there are more, as
    such networks have shortcuts. A matrix between layers whose weights are
    smaller than those that torch begins with is stepped as much less (a twentieth at least), as the
    layers behind it are made for small changes. One that begins near 0 is stepped as ever.

    O is what costs. The wider the matrix, the more seldom a step has it, and is as many times
    longer along it then: each second step at a smaller side of 64, each eighth from 256.

    The state is that of the LSTM, five numbers of each tensor, and m and v of each tensor.

    Args:
        config: its fields.
        generator: of the initial weights.
    """

    sees_layers: ClassVar[bool] = False

    def __init__(self, config: TensorwiseConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.sees_depth = config.sees_depth
        self.lstm = config.lstm(CHANNELS + self.sees_depth, OUTPUTS, generator)
        self.lstm.zero_head()
        if config.head_alone:
            for layer in self.lstm.layers:
                layer.requires_grad_(False)

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        columns = len(parameters) * tasks
        numbers = torch.zeros(
            len(NUMBERS), columns, dtype=torch.float32, device=parameters[0].device
        )
        moments = [
            torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
            for p in parameters
            for _ in range(2)
        ]
        return [*self.lstm.init_state(columns), numbers, *moments]

    def columns(self, chain: Layout, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`."""
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        sizes = [tasks] * len(parameters)
        return [
            *self.lstm.columns(sizes),
            Columns("numbers", 1, sizes),
            *(
                Columns(name, owner=index)
                for index in range(len(parameters))
                for name in ("momentum", "square")
            ),
        ]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        own = 2 * len(self.lstm.layers)
        before, gradients, dims = state[own + 1 :], seen.gradients, seen.batch_dims
        momenta = [m.lerp(g, 1 - MOMENTUM) for m, g in zip(before[::2], gradients, strict=True)]
        squares = [
            v.lerp(g.square(), 1 - SQUARE) for v, g in zip(before[1::2], gradients, strict=True)
        ]
        energies = Energies(
            _energies([g.detach() for g in gradients], dims),
            _energies([m.detach() for m in momenta], dims),
            _energies(seen.numbers.parameters, dims),
        )
        facts = _facts(seen)
        column, following, gains = self._gains(facts, energies, state, seen.rate)
        updates = [
            _parts(facts.roles[index], gains, index, gradients[index], m, v).update(w)
            for index, (m, v, w) in enumerate(zip(momenta, squares, seen.parameters, strict=True))
        ]
        pairs = zip(momenta, squares, strict=True)
        return updates, [*following, column, *(tensor for pair in pairs for tensor in pair)]

    def step_(self, seen: Observation, state: RuleState) -> RuleState | None:
        """See :meth:`UpdateRule.step_`; the moments of the state are changed too."""
        own = 2 * len(self.lstm.layers)
        momenta, squares = state[own + 1 :: 2], state[own + 2 :: 2]
        energy, weights = _energies(seen.gradients, 0), _energies(seen.parameters, 0)
        if not bool((energy.sum() + weights.sum()).isfinite()):  # of all, as trust looks at all
            return None
        gradients = list(seen.gradients)
        for block in blocks(gradients, momenta, squares):
            g, m, v = block.parts
            torch._foreach_lerp_(m, g, 1 - MOMENTUM)
            torch._foreach_mul_(v, SQUARE)
            torch._foreach_addcmul_(v, g, g, 1 - SQUARE)
        energies = Energies(energy, _energies(momenta, 0), weights)
        facts = _facts(seen)
        column, following, gains = self._gains(facts, energies, state, seen.rate)
        if seen.rate:  # adding 0 could turn -0.0 into 0.0
            assert seen.as_given is not None
            plain = all(p.dtype == torch.float32 for p in seen.as_given[0])
            if plain and not seen.weight_decay:
                _step_in_blocks(seen, facts.roles, gains, momenta, squares)
            else:
                _step_apart(seen, facts.roles, gains, energies.weights, momenta, squares)
        moments = [tensor for pair in zip(momenta, squares, strict=True) for tensor in pair]
        return [*following, column, *moments]

    def _gains(
        self, facts: Facts, energies: Energies, state: RuleState, factor: float
    ) -> tuple[Tensor, RuleState, Gains]:
        """The numbers of each tensor and the LSTM's state after this step, and what it says."""
        own = 2 * len(self.lstm.layers)
        channels, column = _channels(facts, energies, Column(*state[own]), self.sees_depth)
        output, following = self.lstm(channels, state[:own])
        gains = _gains(facts, energies, column, output, factor)
        # As long as a step would be of a direction whose entries are 1.
        lengths = factor * gains.rate.detach().reshape(-1) * facts.sizes
        column = column._replace(path=column.path + lengths)
        return torch.stack(column), following, gains


@UPDATE_RULES.register("tensorwise")
@dataclass(frozen=True)
class TensorwiseConfig(LSTMFields, UpdateConfig):
    """The config of an m1 that steps a tensor at a time, for networks of any size.

    Attributes:
        head_alone: whether the LSTM keeps its random initial weights, and what it says is trained
            alone. These are few meta-parameters, which suits evolution strategies.
        sees_depth: whether the LSTM sees how many matrices between layers there are.
    """

    head_alone: bool = False
    sees_depth: bool = False

    @property
    def needs_chain(self) -> bool:
        """See :attr:`RuleConfig.needs_chain`; no."""
        return False

    def build(self, generator: torch.Generator) -> TensorwiseUpdate:
        """See :meth:`UpdateConfig.build`."""
        return TensorwiseUpdate(self, generator)


def orthogonal(role: Role) -> bool:
    """Return whether the momentum of a parameter is made orthogonal.

    Args:
        role: of the parameter.
    """
    return role.kind == HIDDEN and role.mixes


def warm_up(total_steps: int) -> float:
    """Return over how many steps the rate rises, in a line.

    Args:
        total_steps: of the run; 0 if it is not known. Then it is 20, else a third, and 30 at most.
    """
    return min(WARM_UP, total_steps / 3) if total_steps else OPEN_WARM_UP


def period(role: Role) -> int:
    """Return at each how many steps the momentum of a matrix is made orthogonal.

    Args:
        role: of the matrix.
    """
    return min(MOST_STEPS, max(1, min(role.rows, role.fan_in) // PER_STEP))


class Facts(NamedTuple):
    """What stays the same over a run.

    Attributes:
        roles: of the parameters.
        batch: the dimensions that count tasks.
        dims: how many dimensions each parameter has beside them.
        total_steps: of the run; 0 if it is not known.
        made: steps of the run before this one, if they are known; else its oldest tensor says.
        deep: how many matrices are between layers.
        rows: channels that stay, ``(channels, tensors * tasks)``: the logarithms of the fan-in and
            of the number of entries, the kind, whether it is made orthogonal, and its place.
        scales: the fan-in over the number of entries, ``(tensors * tasks,)``.
        sizes: the length of a step of rate 1 along a direction whose entries are 1.
        rates: of a step where the head gives 0, ``(tensors * tasks,)``.
        hidden: 1 for matrices between layers, 0 for the others.
    """

    roles: Sequence[Role]
    batch: torch.Size
    dims: Sequence[int]
    total_steps: int
    made: int | None
    deep: int
    rows: Tensor
    scales: Tensor
    sizes: Tensor
    rates: Tensor
    hidden: Tensor


class Energies(NamedTuple):
    """Sums of squares of each tensor and task, ``(tensors * tasks,)`` each.

    Attributes:
        gradients: of the gradients.
        momenta: of the momenta after this step.
        weights: of the weights before it.
    """

    gradients: Tensor
    momenta: Tensor
    weights: Tensor


class Gains(NamedTuple):
    """What is said of each tensor, ``(tensors, *batch)`` each.

    Attributes:
        rate: the length of the step.
        begun: what corrects both moments for their start.
        mix: the part of the orthogonal direction.
        look: how far the momentum is moved to the gradient.
        decay: the part of the weights that is taken away.
        steps: how many steps have been made, with this one.
        dims: how many dimensions each parameter has beside those that count tasks.
    """

    rate: Tensor
    begun: Tensor
    mix: Tensor
    look: Tensor
    decay: Tensor
    steps: Tensor
    dims: Sequence[int]


def _facts(seen: Observation) -> Facts:
    dims = seen.batch_dims
    shapes = [parameter.shape for parameter in seen.parameters]
    roles = seen.roles or placed(role_of_shape(shape[dims:]) for shape in shapes)
    batch = shapes[0][:dims]
    entries = [max(shape[dims:].numel(), 1) for shape in shapes]
    deep = roles[0].deep or depth_of(roles)
    fixed = [
        [math.log(role.fan_in) / 4 for role in roles],
        [math.log(n) / 8 for n in entries],
        *([float(role.kind == kind) for role in roles] for kind in KINDS[:3]),
        [float(orthogonal(role)) for role in roles],
        [index / len(roles) for index in range(len(roles))],
        [role.fan_in / n for role, n in zip(roles, entries, strict=True)],
        [(n / _width(role)) ** 0.5 for role, n in zip(roles, entries, strict=True)],
        [_rate(role, deep) for role in roles],
        [float(role.kind == HIDDEN) for role in roles],
    ]
    rows = seen.parameters[0].new_tensor(fixed).repeat_interleave(batch.numel(), dim=1)
    own = [len(shape) - dims for shape in shapes]
    return Facts(roles, batch, own, seen.total_steps, seen.made, deep, rows[:-4], *rows[-4:])


def _rate(role: Role, deep: int) -> float:
    """The usual rate. What is done to one of many layers adds to what is done to the others."""
    usual = RATES[role.kind]
    factor = min(max(deep, 1), DEEPEST) ** -0.5
    return usual if role.kind in (OUTPUT, EMBEDDING) else usual * factor


def _width(role: Role) -> float:
    """What divides the square of a step's entries: the fan-in of a matrix."""
    return role.fan_in if role.kind in (HIDDEN, OUTPUT) else 1.0


def _channels(
    facts: Facts, energies: Energies, column: Column, sees_depth: bool
) -> tuple[Tensor, Column]:
    """What the LSTM sees, ``(channels, tensors * tasks)``, and the numbers after this step."""
    energy, momentum, size = energies
    steps, count, b = column.steps + 1, len(facts.roles), MOMENTUM
    first = torch.where(column.steps == 0, size, column.first)
    long = LONG * column.long + (1 - LONG) * energy
    mean = long / (1 - LONG**steps)
    # ||m'||^2 = b^2 ||m||^2 + 2 b (1 - b) m.g + (1 - b)^2 ||g||^2 gives m.g without a pass.
    product = (momentum - b * b * column.momentum - (1 - b) ** 2 * energy) / (2 * b * (1 - b))
    turning = product / (energy * column.momentum + EPS).sqrt()
    turning = torch.where(column.momentum > 0, turning, 0.0)  # else there is only rounding
    signal = momentum / ((1 - b**steps) ** 2 * mean + EPS)
    known = float(facts.total_steps > 0)
    run = _of_run(facts, steps)
    progress = (run / max(facts.total_steps, 1)).clamp(max=1.0) * known
    channels = (
        turning.clamp(-1, 1),
        _log(signal, -8, 2),
        _log(energy / (mean + EPS), -5, 5),
        _log(_whole(energy, count) / (_whole(mean, count) + EPS), -5, 5),
        _log(size * facts.scales, -8, 8) / 2,
        _log(size / (first + EPS), -5, 5),
        _log(column.path.square() / (first + EPS), -8, 8) / 2,
        *facts.rows,
        steps.log10() / 3,
        progress,
        torch.full_like(steps, known),
        torch.full_like(steps, math.log10(max(facts.total_steps, 1)) / 4),
    )
    if sees_depth:
        channels = (*channels, torch.full_like(steps, math.log1p(facts.deep) / 4))
    return torch.stack(channels), Column(steps, momentum, long, first, column.path)


def _gains(
    facts: Facts, energies: Energies, column: Column, output: Tensor, factor: float
) -> Gains:
    steps, count = column.steps, len(facts.roles)
    total, run = facts.total_steps, _of_run(facts, steps)
    rise = (steps / warm_up(total)).clamp(max=1.0)
    fall = (1 - (run - 1) / total).clamp(min=0.0) if total else (1 + run / OPEN) ** -0.5
    # Where gradients grow at once, a step before was too long.
    mean = _whole(column.long / (1 - LONG**steps), count)
    surprise = (mean + EPS) / (_whole(energies.gradients, count) + EPS)
    trust = (SURPRISE * surprise.sqrt()).clamp(max=1.0)
    rate = rise * fall * trust * _factor(output[0]) * facts.rates
    # Over the weights of torch's usual start, uniform up to 1 / sqrt(fan-in).
    first, now = ((3 * own * facts.scales).sqrt() for own in (column.first, energies.weights))
    part = torch.maximum(first, now).clamp(SMALLEST, 1.0)
    rate = torch.where((facts.hidden > 0) & (first > NONE), rate * part, rate)
    weights = energies.weights.sqrt() + EPS
    decay = DECAY * _factor(output[3]) * rate * facts.sizes / weights
    longest = LONGEST_DECAY / max(factor, 1.0)
    decay = torch.where(energies.momenta > 0, decay.clamp(max=longest), 0.0)
    # Both moments are corrected for their start: A = l sqrt(1 - b^t) / (1 - b^t) / sqrt(v).
    begun = (1 - SQUARE**steps).sqrt() / (1 - MOMENTUM**steps)
    mix, look = torch.sigmoid(output[1]), torch.sigmoid(output[2] - 2)
    shape = (count, *facts.batch)
    rate, begun, mix, look = (own.reshape(shape) for own in (rate, begun, mix, look))
    decay, steps = decay.reshape(shape), steps.reshape(shape)
    return Gains(rate, begun, mix, look, decay, steps, facts.dims)


def _factor(output: Tensor) -> Tensor:
    """A factor between e^-3 and e^3, 1 at 0."""
    return (3 * torch.tanh(output / 3)).exp()


def _step_in_blocks(
    seen: Observation,
    roles: Sequence[Role],
    gains: Gains,
    momenta: Sequence[Tensor],
    squares: Sequence[Tensor],
) -> None:
    """Add f to the parameters, all in float32; with plain numbers, in few passes over memory."""
    assert seen.as_given is not None
    parameters, gradients = seen.as_given[0], seen.gradients
    rate, begun, mix, look, decay, steps = torch.stack(gains[:6]).tolist()
    kept, scales = [], []
    for index, role in enumerate(roles):
        turned = orthogonal(role)
        scale = seen.rate * rate[index] * begun[index] / _width(role) ** 0.5
        scales.append(scale * (1 - mix[index]) if turned else scale)
        kept.append(1.0 if role.kind == VECTOR else 1 - seen.rate * decay[index])
        every = period(role)
        if turned and (int(steps[index]) + role.place) % every == 0:
            ahead = torch.lerp(momenta[index], gradients[index], look[index])
            length = _reach(role) * rate[index] * mix[index]
            parameters[index].mul_(kept[index])
            parameters[index].sub_(_turned(role, ahead, 0), alpha=seen.rate * length)
            kept[index] = 1.0
    for block in blocks(parameters, gradients, momenta, squares):
        w, g, m, v = block.parts
        roots = torch._foreach_add(v, EPS)
        torch._foreach_sqrt_(roots)
        if any(kept[index] != 1.0 for index in block.owners):
            torch._foreach_mul_(w, [kept[index] for index in block.owners])
        # l is (1 - look) m + look g.
        of_m = [-scales[index] * (1 - look[index]) for index in block.owners]
        of_g = [-scales[index] * look[index] for index in block.owners]
        torch._foreach_addcdiv_(w, m, roots, of_m)
        torch._foreach_addcdiv_(w, g, roots, of_g)


def _step_apart(
    seen: Observation,
    roles: Sequence[Role],
    gains: Gains,
    weights: Tensor,
    momenta: Sequence[Tensor],
    squares: Sequence[Tensor],
) -> None:
    """Add f to parameters of any dtype, with weight decay; one after another."""
    assert seen.as_given is not None
    steps = gains.steps.tolist()
    for index, parameter in enumerate(seen.as_given[0]):
        gradient, m, v = seen.gradients[index], momenta[index], squares[index]
        parts = _parts(roles[index], gains, index, gradient, m, v, int(steps[index]))
        update = parts.update(seen.parameters[index])
        if seen.weight_decay:
            length = torch.linalg.vector_norm(update) / (weights[index].sqrt() + EPS)
            update.sub_(seen.weight_decay * length * seen.parameters[index])
        parameter.add_(update.to(parameter.dtype), alpha=seen.rate)


def _reach(role: Role) -> float:
    """How long a step along an orthogonal direction is at a rate and a mix of 1."""
    return period(role) * math.sqrt(max(1.0, role.rows / role.fan_in))


def _turned(role: Role, ahead: Tensor, batch: int) -> Tensor:
    """A momentum made orthogonal, of the shape of its parameter."""
    flat = ahead.flatten(batch + 1) if ahead.dim() > batch + 2 else ahead
    if role.transposed:
        flat = flat.mT
    found = even_rows(in_blocks(flat))
    return (found.mT if role.transposed else found).reshape(ahead.shape)


class Parts(NamedTuple):
    """The parts of f = -(numerator / root + orthogonal) - decay w of one parameter.

    Attributes:
        numerator: between the momentum and the gradient.
        root: sqrt(v) over the length of the step, so that the length costs no pass of its own.
        orthogonal: the orthogonal direction times its length; None where there is none.
        decay: the part of w that is taken away; None for vectors.
    """

    numerator: Tensor
    root: Tensor
    orthogonal: Tensor | None
    decay: Tensor | None

    def update(self, weights: Tensor) -> Tensor:
        """Return f.

        Args:
            weights: w.
        """
        step = self.numerator / self.root
        if self.orthogonal is not None:
            step = step + self.orthogonal
        if self.decay is not None:
            step = step + self.decay * weights
        return -step


def _parts(
    role: Role,
    gains: Gains,
    index: int,
    gradient: Tensor,
    momentum: Tensor,
    square: Tensor,
    step: int | None = None,
) -> Parts:
    """The parts of f of a parameter; without the number of the step, for any number."""
    batch = gains.rate.shape[1:]
    alike = batch + (1,) * gains.dims[index]
    rate, begun, mix, look, decay, steps = (own[index].reshape(alike) for own in gains[:6])
    ahead = torch.lerp(momentum, gradient, look)
    scale = rate * begun / _width(role) ** 0.5
    taken = None if role.kind == VECTOR else decay
    if not orthogonal(role):
        return Parts(ahead, _root(square, scale), None, taken)
    every = period(role)
    root = _root(square, scale * (1 - mix))
    if step is not None and (step + role.place) % every:
        return Parts(ahead, root, None, taken)
    found = _turned(role, ahead, len(batch))
    length = _reach(role) * rate * mix
    if step is None and every > 1:
        length = torch.where((steps + role.place) % every == 0, length, 0.0)
    return Parts(ahead, root, length * found, taken)


def _root(square: Tensor, scale: Tensor) -> Tensor:
    """sqrt(v + EPS) / scale; inf where the scale is 0."""
    factor = scale.clamp(min=1e-15).square().reciprocal()
    start = torch.where(scale == 0, torch.inf, EPS * factor)
    return torch.addcmul(start, square, factor).sqrt()


def _energies(tensors: Sequence[Tensor], dims: int) -> Tensor:
    """The sums of squares of each tensor and task, ``(tensors * tasks,)``, tensor by tensor."""
    if dims == 0 and tensors[0].device.type == "cpu":  # on a CPU a norm takes five times as long
        flat = [tensor.reshape(-1) for tensor in tensors]
        return torch.stack([torch.dot(own, own) for own in flat])
    if dims == 0:
        return torch.stack(torch._foreach_norm(list(tensors))).square()
    return torch.cat([tensor.flatten(dims).square().sum(dim=-1).reshape(-1) for tensor in tensors])


def _whole(energies: Tensor, count: int) -> Tensor:
    """The sums over all tensors of each task, at each tensor."""
    return energies.reshape(count, -1).sum(dim=0).repeat(count)


def _of_run(facts: Facts, steps: Tensor) -> Tensor:
    """The steps of the run, at each tensor: a tensor that was frozen at first has made fewer."""
    count = len(facts.roles)
    most = steps.reshape(count, -1).amax(dim=0).repeat(count)
    return most if facts.made is None else most.clamp(min=facts.made + 1)


def _log(value: Tensor, low: float, high: float) -> Tensor:
    return (value + EPS).log().clamp(low, high)
