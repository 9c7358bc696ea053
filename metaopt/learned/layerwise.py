"""m1 over whole tensors: an LSTM that steers Adam, one column a tensor.

Where gradients are noisy, what a single coordinate sees says little, and an LSTM on each costs
more than the network. Here one LSTM sees how the gradients of a tensor behave over time, and says
how long the step is and how it is mixed from two momenta and the gradient, each over the root mean
square gradient of its coordinate, as in Adam (Kingma and Ba, 2015). Layer-wise control of
hand-designed features is the idea of VeLO (Metz et al., 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from metaopt.chain import LayerChain
from metaopt.learned.lstm import LSTM
from metaopt.learned.observation import Observation
from metaopt.learned.update import State, UpdateRule

RATE = 3e-3  # of Adam, at a head of 0
FAST, SLOW = 0.9, 0.99  # decays of the momenta
SQUARES = (0.9, 0.999)  # decays of the mean square gradients
CHANNELS = 9
EPS = 1e-24  # of a mean square gradient, below it there is no direction


@final
class LayerwiseUpdate(UpdateRule):
    """f = -0.003 exp(3 tanh o_1) (m_fast + o_2 m_slow + o_3 gradient) / sqrt(v); Adam at o = 0.

    Invariant to the scale of the loss. The state holds the step, and momenta and mean squares of
    each parameter.
    """

    sees_layers: ClassVar[bool] = False

    def __init__(self, hidden: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.lstm = LSTM(CHANNELS, hidden, layers, 3, generator)
        self.lstm.zero_head()

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        dims = chain.batch_dims
        columns = sum(parameter.shape[:dims].numel() for parameter in parameters)
        step = torch.zeros(1, device=parameters[0].device)
        moments = [
            torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for parameter in parameters
            for _ in range(4)
        ]
        return [step, *self.lstm.init_state(columns), *moments]

    def propose(self, seen: Observation, state: State) -> tuple[list[Tensor], State]:
        own = 2 * len(self.lstm.layers)
        step, lstm_state, moments = state[0] + 1, state[1 : 1 + own], state[1 + own :]
        parts = [
            _Moments.after(gradient, moments[4 * i : 4 * i + 4], step)
            for i, gradient in enumerate(seen.gradients)
        ]
        columns = [
            part.numbers().channels(parameter, seen.batch_dims, step)
            for part, parameter in zip(parts, seen.numbers.parameters, strict=True)
        ]
        outputs, following = self.lstm(torch.cat(columns, dim=1), lstm_state)
        steered = torch.split(outputs, [column.shape[1] for column in columns], dim=1)
        update = [
            part.step(output, seen.batch_dims) for part, output in zip(parts, steered, strict=True)
        ]
        kept = [moment for part in parts for moment in part.raw]
        return update, [step, *following, *kept]


class _Moments:
    """Momenta and mean squares of one parameter, and what follows from them."""

    def __init__(self, gradient: Tensor, raw: list[Tensor], step: Tensor) -> None:
        self.given = gradient, raw, step
        self.raw = raw
        decays = (FAST, SLOW, *SQUARES)
        fast, slow, recent, long = (
            moment / (1 - decay**step) for moment, decay in zip(raw, decays, strict=True)
        )
        self.recent, self.long = recent, long
        scale = (long + EPS).rsqrt()
        self.fast, self.slow, self.gradient = fast * scale, slow * scale, gradient * scale

    @classmethod
    def after(cls, gradient: Tensor, before: Sequence[Tensor], step: Tensor) -> _Moments:
        """With one more gradient."""
        fast, slow, recent, long = before
        square = gradient.square()
        raw = [
            fast.lerp(gradient, 1 - FAST),
            slow.lerp(gradient, 1 - SLOW),
            recent.lerp(square, 1 - SQUARES[0]),
            long.lerp(square, 1 - SQUARES[1]),
        ]
        return cls(gradient, raw, step)

    def numbers(self) -> _Moments:
        """The same without their graph: what the LSTM sees."""
        gradient, raw, step = self.given
        if not gradient.requires_grad and not any(moment.requires_grad for moment in raw):
            return self
        return _Moments(gradient.detach(), [moment.detach() for moment in raw], step)

    def channels(self, parameter: Tensor, batch_dims: int, step: Tensor) -> Tensor:
        """What the LSTM sees, ``(channels, problems)``."""

        def mean(value: Tensor) -> Tensor:
            return value.flatten(start_dim=batch_dims).mean(dim=-1).reshape(-1)

        fast, slow = mean(self.fast.square()), mean(self.slow.square())
        agree = mean(self.fast * self.slow) / (fast * slow + EPS).sqrt()
        surprise = (
            mean(self.gradient * self.slow) / (mean(self.gradient.square()) * slow + EPS).sqrt()
        )
        trend = (mean(self.recent) + EPS).log() - (mean(self.long) + EPS).log()
        size = (mean(parameter.square()) + 1e-6).log() / 4.0
        entries = parameter.shape[batch_dims:]
        like = torch.ones_like(size)
        vector = like * float(len(entries) == 1)
        many = like * (torch.Size(entries).numel() + 1) ** 0.1 / 3.0
        time = like * step.log10() / 4.0
        return torch.stack(
            (
                fast.sqrt(),
                slow.sqrt(),
                agree,
                surprise,
                trend.clamp(-5, 5),
                size,
                vector,
                many,
                time,
            )
        )

    def step(self, output: Tensor, batch_dims: int) -> Tensor:
        """f, for the LSTM's output ``(3, problems)``."""
        shape = self.fast.shape[:batch_dims] + (1,) * (self.fast.dim() - batch_dims)
        rate, slow, gradient = (row.reshape(shape) for row in output)
        mixed = self.fast + slow * self.slow + gradient * self.gradient
        update: Tensor = -RATE * (3.0 * torch.tanh(rate)).exp() * mixed
        return update
