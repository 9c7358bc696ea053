"""m1 (the update network) over whole tensors: an LSTM that steers Adam, a column for each tensor.

Where gradients are noisy, a single coordinate says little, and an LSTM on each costs more than the
network itself. Here one LSTM sees how the gradients of a tensor behave over time. It says how long
the step is, and how it is mixed from two momenta and the gradient. Each of these is over the root
mean square gradient of its coordinate, as in Adam (Kingma and Ba, 2015). To control hand-designed
features layer by layer is the idea of VeLO (Metz et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from metaopt.learned.fields import LSTMFields
from metaopt.learned.observation import Observation, from_task_rows, task_rows
from metaopt.learned.state import Columns
from metaopt.learned.update import UPDATE_RULES, RuleState, UpdateConfig, UpdateRule
from metaopt.symmetry.chain import Layout

RATE = 3e-3  # of Adam, which the rule is where the head gives 0
FAST, SLOW = 0.9, 0.99  # decays of the momenta
SQUARES = (0.9, 0.999)  # decays of the mean square gradients
CHANNELS = 9
MOMENTS = ("momentum", "slow_momentum", "square", "slow_square")
EPS = 1e-24  # of a mean square gradient: below it there is no direction


@final
class LayerwiseUpdate(UpdateRule):
    """m1 over whole tensors: Adam with a step and a mix of momenta that an LSTM sets.

    f = -0.003 exp(3 tanh o_1) (m_fast + o_2 m_slow + o_3 gradient) / sqrt(v), which is Adam where
    o = 0. It does not depend on the scale of the loss. The state is the number of the step of each
    tensor, ``(tensors,)`` on the CPU, that of the LSTM, and two momenta and two mean squares,
    ``(tasks, coordinates)`` each.

    Args:
        config: its fields.
        generator: of the initial weights.
    """

    sees_layers: ClassVar[bool] = False

    def __init__(self, config: LayerwiseConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.lstm = config.lstm(CHANNELS, 3, generator)
        self.lstm.zero_head()

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        coordinates = sum(parameter.numel() for parameter in parameters) // tasks
        device = parameters[0].device
        steps = torch.zeros(len(parameters), dtype=torch.float32)
        moments = [steps.new_zeros(tasks, coordinates, device=device) for _ in range(4)]
        return [steps, *self.lstm.init_state(len(parameters) * tasks), *moments]

    def columns(self, chain: Layout, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`."""
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        sizes = [parameter.numel() // tasks for parameter in parameters]
        return [
            Columns("step", 0, [1] * len(parameters)),
            *self.lstm.columns([tasks] * len(parameters)),
            *(Columns(name, 1, sizes) for name in MOMENTS),
        ]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        own = 2 * len(self.lstm.layers)
        steps, lstm_state = state[0] + 1, state[1 : 1 + own]
        gradient = task_rows(seen.gradients, seen.batch_dims)
        fast, slow, recent, long = state[1 + own :]
        square = gradient.square()
        moments = [
            fast.lerp(gradient, 1 - FAST),
            slow.lerp(gradient, 1 - SLOW),
            recent.lerp(square, 1 - SQUARES[0]),
            long.lerp(square, 1 - SQUARES[1]),
        ]
        sizes = [parameter.shape[seen.batch_dims :].numel() for parameter in seen.parameters]
        corrections = _corrections(steps, sizes, gradient.device)
        directions = _directions(gradient, moments, corrections)
        channels = self._channels(seen, directions, moments, corrections, steps, sizes)
        output, following = self.lstm(channels, lstm_state)
        rate, mix_slow, mix_gradient = _spread(output, sizes)
        mixed = directions[0] + mix_slow * directions[1] + mix_gradient * directions[2]
        update = -RATE * (3.0 * torch.tanh(rate)).exp() * mixed
        pieces = from_task_rows(update, seen.parameters, seen.batch_dims)
        return pieces, [steps, *following, *moments]

    def _channels(
        self,
        seen: Observation,
        directions: Sequence[Tensor],
        moments: Sequence[Tensor],
        corrections: Mapping[float, Tensor],
        steps: Tensor,
        sizes: Sequence[int],
    ) -> Tensor:
        """What the LSTM sees, ``(channels, tensors * tasks)``, without a graph."""
        fast, slow, gradient = (direction.detach() for direction in directions)
        recent, long = (moment.detach() for moment in moments[2:])
        weights = task_rows(seen.numbers.parameters, seen.batch_dims)
        products = torch.stack(
            (
                fast.square(), slow.square(), fast * slow, gradient * slow, gradient.square(),
                recent / corrections[SQUARES[0]], long / corrections[SQUARES[1]],
                weights.square(),
            )
        )  # fmt: skip
        parts = torch.split(products, list(sizes), dim=-1)
        means = [part.mean(dim=-1) if part.numel() else part.sum(dim=-1) for part in parts]
        ff, ss, fs, gs, gg, now, ever, ww = torch.stack(means, dim=1).flatten(start_dim=1)
        like = weights.new_ones(1, len(weights))
        shapes = [parameter.shape[seen.batch_dims :] for parameter in seen.parameters]
        vector = weights.new_tensor([float(len(shape) == 1) for shape in shapes])
        many = weights.new_tensor([(size + 1) ** 0.1 / 3.0 for size in sizes])
        age = steps.log10().to(weights.device)
        return torch.stack(
            (
                ff.sqrt(),
                ss.sqrt(),
                fs / (ff * ss + EPS).sqrt(),
                gs / (gg * ss + EPS).sqrt(),
                ((now + EPS).log() - (ever + EPS).log()).clamp(-5, 5),
                (ww + 1e-6).log() / 4.0,
                (vector.unsqueeze(1) * like).flatten(),
                (many.unsqueeze(1) * like).flatten(),
                (age.unsqueeze(1) * like).flatten() / 4.0,
            )
        )


@UPDATE_RULES.register("layerwise")
@dataclass(frozen=True)
class LayerwiseConfig(LSTMFields, UpdateConfig):
    """The config of an m1 over whole tensors, for ordinary networks."""

    @property
    def needs_chain(self) -> bool:
        """See :attr:`RuleConfig.needs_chain`; no."""
        return False

    def build(self, generator: torch.Generator) -> LayerwiseUpdate:
        """See :meth:`UpdateConfig.build`."""
        return LayerwiseUpdate(self, generator)


def _corrections(steps: Tensor, sizes: Sequence[int], device: torch.device) -> dict[float, Tensor]:
    """1 - decay^t by decay: a scalar, or ``(coordinates,)`` where tensors differ in t.

    They differ where some had no gradient at some steps. Under ``torch.vmap`` nobody can look.
    """
    each = {decay: 1 - decay**steps for decay in (FAST, SLOW, *SQUARES)}
    try:
        same = bool((steps == steps[0]).all())
    except RuntimeError:
        same = False
    if same:
        return {decay: own[0] for decay, own in each.items()}
    return {decay: _repeated(own.to(device), sizes) for decay, own in each.items()}


def _directions(
    gradient: Tensor, moments: Sequence[Tensor], corrections: Mapping[float, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Both momenta and the gradient over the root mean square gradient of each coordinate."""
    fast, slow, _, long = moments
    scale = (long / corrections[SQUARES[1]] + EPS).rsqrt()
    return fast * scale / corrections[FAST], slow * scale / corrections[SLOW], gradient * scale


def _spread(output: Tensor, sizes: Sequence[int]) -> Tensor:
    """The outputs for each tensor and task at all coordinates, ``(outputs, tasks, coordinates)``.

    Args:
        output: ``(outputs, tensors * tasks)``.
        sizes: the number of coordinates of each tensor.
    """
    return _repeated(output.reshape(len(output), len(sizes), -1).mT, sizes)


def _repeated(each: Tensor, sizes: Sequence[int]) -> Tensor:
    """Entries of the last dimension, each as often as its tensor has coordinates.

    Pieces of one entry are copied faster than by an index for each coordinate.
    """
    pieces = zip(torch.split(each, 1, dim=-1), sizes, strict=True)
    return torch.cat([own.expand(*own.shape[:-1], size) for own, size in pieces], dim=-1)
