"""m1 (the update network): the rules for f_t, which is added to the weights (eqs. 16, 17, 19)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from metaopt.checks import check_names
from metaopt.errors import UserError
from metaopt.learned.fields import FlatFields, LSTMFields, RuleConfig
from metaopt.learned.lstm import LSTM
from metaopt.learned.observation import (
    TINY,
    Observation,
    flatten,
    from_task_rows,
    log_sign,
    task_rows,
    unflatten,
)
from metaopt.learned.state import Columns
from metaopt.registry import Registry
from metaopt.symmetry.chain import Layout

RuleState = list[Tensor]
"""The state of one rule, m1 or m2."""


class UpdateRule(nn.Module, ABC):
    """Proposes an update f_t of each parameter; the state goes in and comes out.

    Attributes:
        sees_layers: whether the rule asks for Gauss-Newton scales or features of layers.
        sees_features: whether the rule cannot do without the features of layers.
        sees_losses: whether the rule looks at the loss, which is then taken from the forward pass.
    """

    sees_layers: ClassVar[bool] = True
    sees_features: bool = False
    sees_losses: ClassVar[bool] = False

    @abstractmethod
    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """Return the state before the first step.

        Args:
            chain: the layers; ``NO_CHAIN`` where the parameters are none.
            parameters: in order, with ``chain.batch_dims`` leading dimensions that count tasks.
        """

    def columns(self, chain: Layout, parameters: Sequence[Tensor]) -> list[Columns] | None:
        """Return how each tensor of the state is divided between the parameters.

        A rule that says so can step any part of the parameters by itself, such as those that have a
        gradient now.

        Args:
            chain: as for :meth:`init_state`.
            parameters: as for :meth:`init_state`.

        Returns:
            One entry for each tensor of the state; None, the default, if they are of all parameters
            together.
        """
        return None

    @abstractmethod
    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """Return f_t of each parameter, of its shape, and the next state.

        Args:
            seen: what is seen at w_t.
            state: the state before the step; it is not changed.
        """


class InPlace(ABC):
    """What an update rule can do that also steps in place, at less memory and expense."""

    @abstractmethod
    def step_(self, seen: Observation, state: RuleState) -> RuleState | None:
        """Change the parameters as :meth:`UpdateRule.propose` says, times the rate.

        Args:
            seen: what is seen at w_t, of one network; :attr:`Observation.as_given` has the
                parameters to change.
            state: before the step. It is used up.

        Returns:
            The next state. None where the squares of the gradients or of the weights have no finite
            sum, and nothing was changed.
        """


class UpdateConfig(RuleConfig, ABC):
    """The config of an update rule (m1); a subclass is a frozen dataclass of checked fields."""

    @property
    def only_where_exact(self) -> bool:
        """Whether m2 acts beside this m1 only where its group is exact on all data of a task."""
        return False

    @abstractmethod
    def build(self, generator: torch.Generator) -> UpdateRule:
        """Return the rule, with initial weights that are drawn from the generator."""


UPDATE_RULES: Registry[type[UpdateConfig]] = Registry("update")
"""Configs of the update rules (m1) by name."""


Head = Callable[[Tensor, Tensor, Observation], Tensor]
"""(the LSTM's output, the gradient, what is seen) -> a part of -f; rows ``(coordinates,)``."""


def plain(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """Return a step of the LSTM's own, 0.01 o, that nothing scales."""
    return 0.01 * output


def free(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """Return a step of the LSTM's own that vanishes with the gradient of the parameter.

    It is 0.01 o tanh(100 r) with r the root mean square of gradient / Gauss-Newton scale, so that
    it sets no floor to the loss.
    """
    return output * seen.coordinates([0.01 * torch.tanh(100.0 * r) for r in seen.relative_rms])


def gradient(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """Return a gradient step of at most 0.1, with a learned step size for each coordinate."""
    return 0.1 * torch.tanh(10.0 * gradient * (4.0 * output - 9.0).clamp(max=0.0).exp())


def scaled_gradient(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """Return a gradient step of at most 0.1, with step sizes in units of 1 / Gauss-Newton scale.

    Such step sizes carry over to networks of other widths.
    """
    unit = 10.0 * gradient / seen.coordinates([scale + TINY for scale in seen.gauss_newton_scale])
    size = (4.0 * output - 1.0).clamp(max=3.0).exp()
    return 0.1 * torch.tanh(unit * size)


def spectral_gradient(output: Tensor, gradient: Tensor, seen: Observation) -> Tensor:
    """Return a gradient step of at most 0.1, with step sizes of at most 2 / spectral scale."""
    unit = 10.0 * gradient / seen.coordinates([scale + TINY for scale in seen.spectral_scale])
    size = (4.0 * output - 1.0).clamp(max=math.log(2.0)).exp()
    return 0.1 * torch.tanh(unit * size)


HEADS: dict[str, Head] = {
    "plain": plain,
    "free": free,
    "gradient": gradient,
    "scaled_gradient": scaled_gradient,
    "spectral_gradient": spectral_gradient,
}
"""The parts that an update can be a sum of, by name."""

HEADS_OF_ANY_NETWORK = frozenset({"plain", "gradient"})
"""Heads that use no Gauss-Newton scale, and so need no chain of layers."""


def gradient_alone(seen: Observation) -> list[Tensor]:
    """Return the two channels of the gradient, as in Andrychowicz et al. (2016)."""
    return list(log_sign(flatten(seen.gradients)))


def hidden_covariance(seen: Observation) -> list[Tensor]:
    """Return channels of the gradient times the covariance of the hidden features.

    This is a control. It shows m1 what m2 (the group-element network) sees of C = h h^T, to ask
    whether m1 can then do without a group. For each site the gradient of the outgoing weight is
    multiplied by C from the right, and that of the incoming weight from the left, with C over its
    mean diagonal. A coordinate that has no such side is shown 0.

    Returns:
        Two channels for the outgoing and two for the incoming layers, ``(coordinates,)`` each.
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
"""What m1 can see of a coordinate, by name, with the number of channels of each."""

INPUTS_OF_ANY_NETWORK = frozenset({"gradient"})
"""Inputs that are no features of hidden units, and so need no chain of layers."""


@final
class CoordinatewiseUpdate(UpdateRule):
    """m1 over single coordinates: one LSTM that all share (Andrychowicz et al., 2016).

    f is minus the sum of the heads.

    Args:
        config: its fields; each head gets an output of the LSTM.
        generator: of the initial weights.
    """

    def __init__(self, config: CoordinatewiseUpdateConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.sees_features = "covariance" in config.inputs
        self.inputs = [INPUTS[name][1] for name in config.inputs]
        self.heads = [HEADS[head] for head in config.heads]
        channels = sum(INPUTS[name][0] for name in config.inputs)
        self.lstm = config.lstm(channels, len(config.heads), generator)

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        return self.lstm.init_state(sum(parameter.numel() for parameter in parameters))

    def columns(self, chain: Layout, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`."""
        return self.lstm.columns([parameter.numel() for parameter in parameters])

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
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
    """The config of an m1 over single coordinates.

    Attributes:
        inputs: the inputs of m1 for each weight: "gradient", and for comparison "covariance", the
            gradient times the covariance of the hidden features.
        heads: the parts that the step f is a sum of. "plain" is a step that nothing scales, "free"
            one that vanishes with the gradient. The others are gradient steps with learned step
            sizes: "gradient" absolute, "scaled_gradient" in units of 1 / Gauss-Newton scale,
            "spectral_gradient" in units of 1 / spectral scale.
    """

    inputs: tuple[str, ...] = ("gradient",)
    heads: tuple[str, ...] = ("free", "spectral_gradient")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("inputs", self.inputs, INPUTS)
        check_names("heads", self.heads, HEADS)

    @property
    def needs_chain(self) -> bool:
        """See :attr:`RuleConfig.needs_chain`; for Gauss-Newton scales or features."""
        return not (
            HEADS_OF_ANY_NETWORK.issuperset(self.heads)
            and INPUTS_OF_ANY_NETWORK.issuperset(self.inputs)
        )

    def build(self, generator: torch.Generator) -> CoordinatewiseUpdate:
        """See :meth:`UpdateConfig.build`."""
        return CoordinatewiseUpdate(self, generator)


class LSTMPerTask(nn.Module):
    """The part of a rule that is an LSTM with a column for each task.

    Args:
        lstm: the LSTM.
    """

    def __init__(self, lstm: LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        return self.lstm.init_state(parameters[0].shape[: chain.batch_dims].numel())


@final
class StepSizeUpdate(LSTMPerTask, UpdateRule):
    """m1 as one learned step size for each task, f = -eta_t * gradient, for LSTM(lr,tele).

    eta_t = exp(min(4 o, 4)) / (largest Gauss-Newton scale of the task). The LSTM sees the
    logarithms of the gradient's norm, of that scale and of their ratio, so that it knows no width.

    Args:
        lstm: of three inputs and one output.
    """

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        norm, scale = _task_norm(seen.numbers), _largest_scale(seen.numbers)
        logs = torch.stack((norm + TINY, scale, norm / scale + TINY)).log() / 10.0
        output, following = self.lstm(logs, state)
        rate = (4.0 * output[0]).clamp(max=4.0).exp() / _largest_scale(seen)
        return _scaled(seen, rate), following


@UPDATE_RULES.register("step_size")
@dataclass(frozen=True)
class StepSizeConfig(LSTMFields, UpdateConfig):
    """The config of an m1 that is one learned step size for each task."""

    def build(self, generator: torch.Generator) -> StepSizeUpdate:
        """See :meth:`UpdateConfig.build`."""
        return StepSizeUpdate(self.lstm(3, 1, generator))


@final
class FlatUpdate(LSTMPerTask, UpdateRule):
    """The paper's own m1: one LSTM over all coordinates at once, which fits one network size.

    Args:
        lstm: of as many inputs and outputs as a network has weights.
    """

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        x = flat_gradient(seen.numbers, self.lstm)
        outputs, following = self.lstm(x, state)
        rows = outputs.clamp(-1e7, 1e7).mT
        return from_task_rows(rows, seen.gradients, seen.batch_dims), following


@UPDATE_RULES.register("flat")
@dataclass(frozen=True)
class FlatUpdateConfig(FlatFields, UpdateConfig):
    """The config of an m1 over all coordinates at once, as in the paper."""

    def build(self, generator: torch.Generator) -> FlatUpdate:
        """See :meth:`UpdateConfig.build`."""
        return FlatUpdate(self.lstm(self.coordinates, self.coordinates, generator))


@final
class FlatStepSize(LSTMPerTask, UpdateRule):
    """The paper's own LSTM(lr, .): one LSTM over all coordinates gives a step size eta.

    Here eta = 1e-7 * 50000^sigmoid(output), in [1e-7, 5e-3]. The released code clamps the output to
    that range, outside of which it has no gradient. There one LSTM gives both eta and g; here each
    has its own.

    Args:
        lstm: of as many inputs as a network has weights, and one output.
    """

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        output, following = self.lstm(flat_gradient(seen.numbers, self.lstm), state)
        return _scaled(seen, 1e-7 * 5e4 ** torch.sigmoid(output[0])), following


@UPDATE_RULES.register("flat_step_size")
@dataclass(frozen=True)
class FlatStepSizeConfig(FlatFields, UpdateConfig):
    """The config of an m1 that is one learned step size from all coordinates, as in the paper."""

    def build(self, generator: torch.Generator) -> FlatStepSize:
        """See :meth:`UpdateConfig.build`."""
        return FlatStepSize(self.lstm(self.coordinates, 1, generator))


def flat_gradient(seen: Observation, lstm: LSTM) -> Tensor:
    """Return all gradients of each task as a column, ``(coordinates, tasks)``.

    Args:
        seen: what is seen of a batch of tasks.
        lstm: the LSTM that is going to be given them.

    Raises:
        UserError: if the network has another number of weights than the LSTM was built for.
    """
    column = task_rows(seen.gradients, seen.batch_dims).mT
    if column.shape[0] != lstm.inputs:
        raise UserError(
            f"expected a network of {lstm.inputs} weights for this flat LSTM, got one of "
            f"{column.shape[0]}: use a coordinate-wise meta-optimizer for other sizes"
        )
    return column.contiguous()


def _largest_scale(seen: Observation) -> Tensor:
    """The largest Gauss-Newton scale of each task, ``(tasks,)``."""
    return torch.stack(seen.gauss_newton_scale).amax(dim=0).reshape(-1) + TINY


def _task_norm(seen: Observation) -> Tensor:
    """The norm of the whole gradient of each task, ``(tasks,)``."""
    squares = [g.flatten(start_dim=seen.batch_dims).square().sum(-1) for g in seen.gradients]
    return torch.stack(squares).sum(dim=0).sqrt().reshape(-1)


def _scaled(seen: Observation, rate: Tensor) -> list[Tensor]:
    """-rate * gradient, for a rate ``(tasks,)``."""
    batch = seen.gradients[0].shape[: seen.batch_dims]
    return [-rate.reshape(batch + (1,) * (g.dim() - seen.batch_dims)) * g for g in seen.gradients]
