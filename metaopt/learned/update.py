"""m1: what is added to the weights, f_t (eqs. 16, 17, 19)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError, check_names
from metaopt.learned.fields import FlatFields, LSTMFields, Size
from metaopt.learned.lstm import LSTM
from metaopt.learned.observation import TINY, Observation, flatten, log_sign, unflatten
from metaopt.registry import Registry
from metaopt.symmetry.chain import LayerChain

State = list[Tensor]


class UpdateRule(nn.Module, ABC):
    """Proposes one update a parameter; pure: the state goes in and comes out."""

    sees_layers: ClassVar[bool] = True  # whether it asks for the curvature that a chain tells

    @abstractmethod
    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        """The state before the first step."""

    @abstractmethod
    def propose(self, seen: Observation, state: State) -> tuple[list[Tensor], State]:
        """(f_t of each parameter, next state)."""


class UpdateConfig(ABC):
    """The fields of an update rule (m1). A subclass is a frozen dataclass that checks itself."""

    @property
    def needs_chain(self) -> bool:
        """Whether the rule uses what only a chain of layers tells: curvature or features."""
        return True

    @property
    def one_size(self) -> Size | None:
        """The one size of network that the rule fits; None if it fits any."""
        return None

    @abstractmethod
    def build(self, generator: torch.Generator) -> UpdateRule:
        """The rule with initial weights drawn from the generator."""


UPDATE_RULES: Registry[type[UpdateConfig]] = Registry("update")
"""Configs of the update rules (m1) by name."""


Head = Callable[[Tensor, Tensor, Observation], Tensor]
"""(output of the LSTM, gradient, what is seen) -> its part of -f; all rows of N coordinates."""


def plain(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """A free step that nothing scales."""
    return 0.01 * output


def free(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """A free step that vanishes with the layer's gradient, so that it leaves no floor."""
    return output * seen.coordinates([0.01 * torch.tanh(100.0 * r) for r in seen.relative_rms])


def gradient(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """A bounded gradient step with a learned step size a coordinate."""
    return 0.1 * torch.tanh(10.0 * gradient * (4.0 * output - 9.0).clamp(max=0.0).exp())


def scaled_gradient(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """The same, with the step size in units of 1 / kappa, which carries over to other widths."""
    unit = 10.0 * gradient / seen.coordinates([kappa + TINY for kappa in seen.curvature])
    size = (4.0 * output - 1.0).clamp(max=3.0).exp()
    return 0.1 * torch.tanh(unit * size)


def spectral_gradient(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """The same, in units of one over the largest curvature of the layer's block, at most two."""
    unit = 10.0 * gradient / seen.coordinates([kappa + TINY for kappa in seen.spectral_curvature])
    size = (4.0 * output - 1.0).clamp(max=math.log(2.0)).exp()
    return 0.1 * torch.tanh(unit * size)


HEADS: dict[str, Head] = {
    "plain": plain,
    "free": free,
    "gradient": gradient,
    "scaled_gradient": scaled_gradient,
    "spectral_gradient": spectral_gradient,
}
"""The parts an update can be a sum of."""

HEADS_OF_ANY_NETWORK = frozenset({"plain", "gradient"})
"""Heads that use no curvature, and so need no chain of layers."""


def gradient_alone(seen: Observation) -> list[Tensor]:
    """log_sign of the gradient, as in Andrychowicz et al. (2016)."""
    return list(log_sign(flatten(seen.gradients)))


def hidden_covariance(seen: Observation) -> list[Tensor]:
    """What m2 sees of C = h h^T, in m1's coordinates: a control, can m1 do without g?

    log_sign of the gradient times C over its mean diagonal, on the side of the hidden units
    (0 where a coordinate has none), for the outgoing and the incoming layer of each site.
    """
    incoming, outgoing = (
        [layer.map(torch.zeros_like) for layer in seen.layer_gradients] for _ in range(2)
    )
    for site in seen.chain.pairs:
        h = seen.inputs[site.outgoing]
        c = h @ h.mT
        c = c / (c.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + TINY)
        below, above = seen.layer_gradients[site.incoming], seen.layer_gradients[site.outgoing]
        incoming[site.incoming] = incoming[site.incoming]._replace(weight=c @ below.weight)
        outgoing[site.outgoing] = outgoing[site.outgoing]._replace(weight=above.weight @ c)
    rows = [flatten(seen.chain.parameters(layers)) for layers in (outgoing, incoming)]
    return [channel for row in rows for channel in log_sign(row)]


INPUTS: dict[str, tuple[int, Callable[[Observation], list[Tensor]]]] = {
    "gradient": (2, gradient_alone),
    "covariance": (4, hidden_covariance),
}
"""What m1 sees of each coordinate, by name, with its number of channels."""

INPUTS_OF_ANY_NETWORK = frozenset({"gradient"})
"""Inputs that are no features of hidden units, and so need no chain of layers."""


@final
class CoordinatewiseUpdate(UpdateRule):
    """One LSTM shared by all coordinates (Andrychowicz et al., 2016); f is minus a sum of heads."""

    def __init__(
        self,
        hidden: int,
        layers: int,
        inputs: Sequence[str],
        heads: Sequence[str],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.inputs = [INPUTS[name][1] for name in inputs]
        self.heads = [HEADS[head] for head in heads]
        channels = sum(INPUTS[name][0] for name in inputs)
        self.lstm = LSTM(channels, hidden, layers, len(heads), generator)

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        return self.lstm.init_state(sum(parameter.numel() for parameter in parameters))

    def propose(self, seen: Observation, state: State) -> tuple[list[Tensor], State]:
        gradient = flatten(seen.gradients)
        channels = [channel for see in self.inputs for channel in see(seen.numbers)]
        outputs, following = self.lstm(torch.stack(channels), state)
        parts = [
            head(output, gradient, seen) for head, output in zip(self.heads, outputs, strict=True)
        ]
        step = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
        return unflatten(-step, seen.parameters), following


@UPDATE_RULES.register("coordinatewise")
@dataclass(frozen=True)
class CoordinatewiseUpdateConfig(LSTMFields, UpdateConfig):
    """m1 over single coordinates.

    Attributes:
        inputs: what m1 sees of a coordinate: "gradient", and as a control "covariance".
        heads: parts of f: "plain", "free", "gradient", "scaled_gradient", "spectral_gradient".
    """

    inputs: tuple[str, ...] = ("gradient",)
    heads: tuple[str, ...] = ("free", "spectral_gradient")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("inputs", self.inputs, INPUTS)
        check_names("heads", self.heads, HEADS)

    @property
    def needs_chain(self) -> bool:
        return not (
            HEADS_OF_ANY_NETWORK.issuperset(self.heads)
            and INPUTS_OF_ANY_NETWORK.issuperset(self.inputs)
        )

    def build(self, generator: torch.Generator) -> CoordinatewiseUpdate:
        return CoordinatewiseUpdate(self.hidden, self.layers, self.inputs, self.heads, generator)


@final
class StepSizeUpdate(UpdateRule):
    """f = -eta_t * gradient with one learned step size a problem, for LSTM(lr,tele).

    eta_t = exp(min(4 o, 4)) / max_m kappa_m; the LSTM sees the logarithms of the gradient's norm,
    of that curvature and of their ratio, so it knows no width.
    """

    def __init__(self, hidden: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.lstm = LSTM(3, hidden, layers, 1, generator)

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        return self.lstm.init_state(parameters[0].shape[: chain.batch_dims].numel())

    def propose(self, seen: Observation, state: State) -> tuple[list[Tensor], State]:
        norm, kappa = _batch_norm(seen.numbers), _largest_curvature(seen.numbers)
        logs = torch.stack((norm + TINY, kappa, norm / kappa + TINY)).log() / 10.0
        output, following = self.lstm(logs, state)
        rate = (4.0 * output[0]).clamp(max=4.0).exp() / _largest_curvature(seen)
        return _scaled(seen, rate), following


@UPDATE_RULES.register("step_size")
@dataclass(frozen=True)
class StepSizeConfig(LSTMFields, UpdateConfig):
    """m1 as one learned step size a problem."""

    def build(self, generator: torch.Generator) -> StepSizeUpdate:
        return StepSizeUpdate(self.hidden, self.layers, generator)


@final
class FlatUpdate(UpdateRule):
    """The paper's own: one LSTM over all coordinates at once; it fits one problem size only."""

    def __init__(
        self, hidden: int, layers: int, coordinates: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.lstm = LSTM(coordinates, hidden, layers, coordinates, generator)

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        return self.lstm.init_state(parameters[0].shape[: chain.batch_dims].numel())

    def propose(self, seen: Observation, state: State) -> tuple[list[Tensor], State]:
        x = flat_gradient(seen.numbers, self.lstm)
        outputs, following = self.lstm(x, state)
        columns = outputs.clamp(-1e7, 1e7).mT.split(
            [gradient.shape[seen.batch_dims :].numel() for gradient in seen.gradients], dim=1
        )
        return [
            column.reshape(gradient.shape)
            for column, gradient in zip(columns, seen.gradients, strict=True)
        ], following


@UPDATE_RULES.register("flat")
@dataclass(frozen=True)
class FlatUpdateConfig(FlatFields, UpdateConfig):
    """m1 over all coordinates at once, as in the paper."""

    def build(self, generator: torch.Generator) -> FlatUpdate:
        return FlatUpdate(self.hidden, self.layers, self.coordinates, generator)


@final
class FlatStepSize(UpdateRule):
    """The paper's own LSTM(lr, .): one LSTM over all coordinates gives eta in [1e-7, 5e-3].

    The released code clamps the output to that range, where it has no gradient outside, and lets
    one LSTM give both eta and g; here eta is 1e-7 * 50000^sigmoid(output), and each has its own.
    """

    def __init__(
        self, hidden: int, layers: int, coordinates: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.lstm = LSTM(coordinates, hidden, layers, 1, generator)

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> State:
        return self.lstm.init_state(parameters[0].shape[: chain.batch_dims].numel())

    def propose(self, seen: Observation, state: State) -> tuple[list[Tensor], State]:
        output, following = self.lstm(flat_gradient(seen.numbers, self.lstm), state)
        return _scaled(seen, 1e-7 * 5e4 ** torch.sigmoid(output[0])), following


@UPDATE_RULES.register("flat_step_size")
@dataclass(frozen=True)
class FlatStepSizeConfig(FlatFields, UpdateConfig):
    """m1 as one learned step size from all coordinates at once, as in the paper."""

    def build(self, generator: torch.Generator) -> FlatStepSize:
        return FlatStepSize(self.hidden, self.layers, self.coordinates, generator)


def flat_gradient(seen: Observation, lstm: LSTM) -> Tensor:
    """All gradients of a problem in one column, ``(coordinates, B)``.

    Raises:
        UserError: if the network has another number of coordinates than the LSTM was built for.
    """
    rows = torch.cat([g.flatten(start_dim=seen.batch_dims) for g in seen.gradients], dim=-1)
    column = rows.reshape(-1, rows.shape[-1]).mT
    if column.shape[0] != lstm.inputs:
        raise UserError(
            f"expected a network of {lstm.inputs} weights for this flat LSTM, got one of "
            f"{column.shape[0]}: use a coordinate-wise meta-optimizer for other sizes"
        )
    return column.contiguous()


def _largest_curvature(seen: Observation) -> Tensor:
    """The largest kappa of each problem, (B,)."""
    return torch.stack(seen.curvature).amax(dim=0).reshape(-1) + TINY


def _batch_norm(seen: Observation) -> Tensor:
    """The norm of the whole gradient of each problem, (B,)."""
    squares = [g.flatten(start_dim=seen.batch_dims).square().sum(-1) for g in seen.gradients]
    return torch.stack(squares).sum(dim=0).sqrt().reshape(-1)


def _scaled(seen: Observation, rate: Tensor) -> list[Tensor]:
    """-rate * gradient, rate of shape (B,)."""
    batch = seen.gradients[0].shape[: seen.batch_dims]
    return [-rate.reshape(batch + (1,) * (g.dim() - seen.batch_dims)) * g for g in seen.gradients]
