"""m1 (the update network) in the eigenbasis of the curvature: learned K-FAC.

For a layer with augmented weight [W b], let C be the sum of a a^T over samples, where a is the
layer's input with a 1 for the bias, and S the mean Gauss-Newton matrix of the loss in the layer's
output. In the bases of their eigenvectors, S = U diag(s) U^T and C = V diag(c) V^T, the curvature
of the coefficient (i, j) of U^T [W b] V is about k_ij = s_i c_j (Martens and Grosse, 2015). The
step of a coefficient is

    mu m - eta g / (k + lambda max k),

with g the coefficient of the gradient and m that of the last step. One LSTM that all coefficients
of all layers share says lambda, eta and mu.

S is the identity at the outputs, for 1/2 ||Y - F||^2, and below them S_l is
(W_{l+1}^T S_{l+1} W_{l+1}) * E[sigma' sigma'^T], entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from metaopt.checks import check_positive
from metaopt.errors import UserError
from metaopt.learned.fields import LSTMFields
from metaopt.learned.lstm import LSTM, uniform_parameter
from metaopt.learned.observation import Observation, flatten, unflatten
from metaopt.learned.state import Columns
from metaopt.learned.update import UPDATE_RULES, RuleState, UpdateConfig, UpdateRule
from metaopt.symmetry.activations import derivative
from metaopt.symmetry.chain import Layer, LayerChain

CHANNELS = 7
DAMPING, RATE = 0.03, 0.3  # what the LSTM's outputs of 0 stand for
TINY = 1e-300  # of a product of curvatures in float64

ROSE, FELL, BACK = 1.1, 0.5, 1.2  # of trust: it falls where the loss rose by more, and comes back
REVERSED = 4.0  # a step that raised the loss by this factor is taken back
LEAST = 1e-4


class Factors(NamedTuple):
    """The curvature of a layer, decomposed; tensors are float64 and without a graph.

    Attributes:
        left: U, ``(*batch, out, out)``.
        right: V, ``(*batch, in + 1, in + 1)``, or ``in`` without a bias.
        curvature: k, ``(*batch, out, in + 1)``.
    """

    left: Tensor
    right: Tensor
    curvature: Tensor

    def into(self, matrix: Tensor) -> Tensor:
        """Return the coefficients U^T M V of a matrix."""
        return self.left.mT @ matrix @ self.right

    def back(self, coefficients: Tensor) -> Tensor:
        """Return the matrix of coefficients."""
        return self.left @ coefficients @ self.right.mT


@torch.no_grad()
def factors(seen: Observation) -> list[Factors]:
    """Return the decomposed curvature of each layer of a chain, in order.

    Args:
        seen: what is seen of the chain.
    """
    layers = [layer.map(torch.Tensor.detach) for layer in seen.double_layers]
    inputs = [h.detach() for h in seen.double_inputs]
    found: list[Factors] = []
    s: Tensor | None = None
    for m in range(len(layers) - 1, -1, -1):
        layer, h = layers[m], inputs[m]
        z = layer(h)
        slope = derivative(seen.chain.activations[m], z)
        between = slope @ slope.mT / z.shape[-1]
        s = torch.eye(z.shape[-2], dtype=z.dtype, device=z.device) if s is None else s
        s = s * between
        a = h if layer.bias is None else torch.cat((h, torch.ones_like(h[..., :1, :])), dim=-2)
        left, right = _decomposed(s), _decomposed(a @ a.mT)
        curvature = left[0].unsqueeze(-1) * right[0].unsqueeze(-2)
        found.append(Factors(left[1], right[1], curvature))
        s = layer.weight.mT @ s @ layer.weight
    return found[::-1]


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below 0, and eigenvectors; of I where the matrix is not finite."""
    sound = matrix.isfinite().all(dim=-1).all(dim=-1)[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(sound, matrix, identity))
    return values.clamp(min=0.0), vectors


class StepSettings(NamedTuple):
    """How coefficients are stepped: numbers, or one tensor ``(tasks, out, in)`` for each layer.

    Attributes:
        damping: lambda, as a fraction of the largest curvature of the layer.
        rate: eta.
        momentum: mu.
    """

    damping: Sequence[Tensor | float]
    rate: Sequence[Tensor | float]
    momentum: Sequence[Tensor | float]


class Coefficients(NamedTuple):
    """What a step is made from, in the eigenbasis; a tensor ``(*batch, out, in)`` for each layer.

    Attributes:
        decomposed: the curvature.
        gradients: with their graph.
        momenta: the last step; 0 for tasks whose loss rose.
    """

    decomposed: Sequence[Factors]
    gradients: Sequence[Tensor]
    momenta: Sequence[Tensor]


class WhitenedUpdate(UpdateRule):
    """m1 that steps coefficients in the eigenbasis of the curvature, with two safeguards.

    A step is scaled down where the quadratic model says that it would change the loss by more than
    a quarter. Trust is a factor of the steps of a task. Where the loss rose by a tenth since the
    last step, trust is halved and the momentum dropped; elsewhere it comes back. A step after which
    the loss is over four times as large is taken back.

    The state is that of the LSTM, the last step of each parameter, and for each task the number of
    the step, trust and the last loss.

    Args:
        first_trust: trust before the first step.
        lstm: that sees the coefficients; None for a rule without.
    """

    sees_layers: ClassVar[bool] = True
    sees_features = True
    sees_losses: ClassVar[bool] = True

    def __init__(self, first_trust: float, lstm: LSTM | None = None) -> None:
        super().__init__()
        self.first_trust = first_trust
        self.lstm = lstm

    def init_state(self, chain: LayerChain, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        tasks, device = parameters[0].shape[: chain.batch_dims].numel(), parameters[0].device
        count = sum(parameter.numel() for parameter in parameters)
        begun = torch.tensor([0.0, self.first_trust, torch.inf], dtype=torch.float64, device=device)
        return [
            *([] if self.lstm is None else self.lstm.init_state(count)),
            torch.zeros(count, dtype=torch.float64, device=device),
            begun[:, None].repeat(1, tasks),
        ]

    def columns(self, chain: LayerChain, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`; coefficients belong to the weight of their layer."""
        coefficients = [
            size
            for layer in chain.layers(parameters)
            for size in ([layer.augmented().numel()] + ([] if layer.bias is None else [0]))
        ]
        tasks = parameters[0].shape[: chain.batch_dims].numel()
        return [
            *([] if self.lstm is None else self.lstm.columns(coefficients)),
            Columns("last_step", 0, [parameter.numel() for parameter in parameters]),
            Columns("trust", 1, [tasks] + [0] * (len(parameters) - 1)),
        ]

    def _settings(
        self, shown: Coefficients, losses: Tensor, before: Tensor, count: Tensor, state: RuleState
    ) -> tuple[StepSettings, RuleState]:
        """How the coefficients are stepped, and the next state of the LSTM.

        Losses, those at the step before, and numbers of steps are ``(tasks,)``.
        """
        raise NotImplementedError

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        own, (last, of_tasks) = state[:-2], state[-2:]
        batch = seen.gradients[0].shape[: seen.batch_dims]
        count, trust, before = of_tasks
        decomposed = factors(seen)
        gradients = [
            f.into(layer.augmented())
            for f, layer in zip(decomposed, seen.double_gradients, strict=True)
        ]
        last_steps = unflatten(last, seen.parameters)
        moves = seen.chain.layers(last_steps)
        losses = _losses(seen, gradients, decomposed).reshape(-1)
        if seen.losses_before is not None:
            before = seen.losses_before.double().reshape(-1)
        rose = losses > ROSE * before
        reverse = losses > REVERSED * before
        momenta = [
            torch.where(_spread(rose, batch, f.curvature), 0.0, f.into(move.augmented()))
            for f, move in zip(decomposed, moves, strict=True)
        ]
        shown = Coefficients(decomposed, gradients, momenta)
        settings, following = self._settings(shown, losses, before, count, own)
        steps = [
            mu * m - eta * g / (f.curvature + lam * _largest(f.curvature) + TINY)
            for g, m, f, lam, eta, mu in zip(gradients, momenta, decomposed, *settings, strict=True)
        ]
        trust = torch.where(rose, (FELL * trust).clamp(min=LEAST), (BACK * trust).clamp(max=1.0))
        trust = torch.where(before.isinf(), of_tasks[1], trust)
        factor = trust * _bounded(steps, decomposed, losses)
        updates = seen.chain.parameters(
            [
                _split(f.back(step) * _spread(factor, batch, step), layer)
                for f, step, layer in zip(decomposed, steps, seen.layers, strict=True)
            ]
        )
        updates = [
            torch.where(_spread(reverse, batch, f), -back, f)
            for f, back in zip(updates, last_steps, strict=True)
        ]
        # A step that is taken back leads to where the loss was; what comes next starts there.
        count, known = count + 1, torch.where(reverse, before, losses)
        moved = flatten([torch.where(_spread(reverse, batch, f), 0.0, f) for f in updates])
        return updates, [*following, moved, torch.stack((count, trust, known))]


@final
class KroneckerFactored(WhitenedUpdate):
    """K-FAC by hand: the same step with one damping, rate and momentum for all coefficients.

    Args:
        config: its fields.
    """

    def __init__(self, config: KroneckerFactoredConfig) -> None:
        super().__init__(config.first_trust)
        self.config = config

    def _settings(
        self, shown: Coefficients, losses: Tensor, before: Tensor, count: Tensor, state: RuleState
    ) -> tuple[StepSettings, RuleState]:
        own, layers = self.config, len(shown.decomposed)
        values = own.kfac_damping, own.kfac_rate, own.kfac_momentum
        return StepSettings(*([value] * layers for value in values)), []


@final
class LearnedWhitening(WhitenedUpdate):
    """Learned K-FAC: an LSTM that all coefficients share says damping, rate and momentum.

    Args:
        config: its fields.
        generator: of the initial weights.
    """

    def __init__(self, config: LearnedWhiteningConfig, generator: torch.Generator) -> None:
        bound = CHANNELS**-0.5
        embedding = uniform_parameter((config.hidden, CHANNELS), bound, generator)
        embedding_bias = uniform_parameter((config.hidden,), bound, generator)
        super().__init__(config.first_trust, config.lstm(config.hidden, 3, generator))
        self.embedding, self.embedding_bias = embedding, embedding_bias
        self.lstm: LSTM
        self.lstm.zero_head()

    def _settings(
        self, shown: Coefficients, losses: Tensor, before: Tensor, count: Tensor, state: RuleState
    ) -> tuple[StepSettings, RuleState]:
        channels = _channels(shown, losses, before, count)
        x = torch.cat([own.flatten(start_dim=1) for own in channels], dim=1)
        embedded = torch.tanh(torch.addmm(self.embedding_bias.unsqueeze(-1), self.embedding, x))
        outputs, following = self.lstm(embedded, state)
        a, b, c = (unflatten(row, [own[0] for own in channels]) for row in outputs)
        return StepSettings(
            [DAMPING * (4.0 * torch.tanh(own)).exp() for own in a],
            [RATE * (2.0 * torch.tanh(own)).exp() for own in b],
            [torch.sigmoid(2.0 * own) for own in c],
        ), following


@dataclass(frozen=True)
class TrustFields:
    """The field that all rules in the eigenbasis share.

    Attributes:
        first_trust: trust before the first step; 1 is none too little.
    """

    first_trust: float = 0.2

    def __post_init__(self) -> None:
        check_positive("first_trust", self.first_trust, type(self).first_trust)


@UPDATE_RULES.register("whitened")
@dataclass(frozen=True)
class LearnedWhiteningConfig(TrustFields, LSTMFields, UpdateConfig):
    """The config of an m1 over the coefficients in the eigenbasis of the curvature."""

    def __post_init__(self) -> None:
        TrustFields.__post_init__(self)
        LSTMFields.__post_init__(self)

    def build(self, generator: torch.Generator) -> LearnedWhitening:
        """See :meth:`UpdateConfig.build`."""
        return LearnedWhitening(self, generator)


@UPDATE_RULES.register("kfac")
@dataclass(frozen=True)
class KroneckerFactoredConfig(TrustFields, UpdateConfig):
    """The config of K-FAC by hand.

    Attributes:
        kfac_damping: lambda, as a fraction of the largest curvature of a layer.
        kfac_rate: eta, the length of a step in units of a Newton step.
        kfac_momentum: mu, the part of the last step that is made again.
    """

    kfac_damping: float = 0.03
    kfac_rate: float = 0.3
    kfac_momentum: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kfac_damping", "kfac_rate"):
            check_positive(name, getattr(self, name), getattr(type(self), name))
        if not 0 <= self.kfac_momentum < 1:
            raise UserError(
                f"expected a kfac_momentum in [0, 1), got {self.kfac_momentum}: the default is 0.5"
            )

    def build(self, generator: torch.Generator) -> KroneckerFactored:
        """See :meth:`UpdateConfig.build`."""
        return KroneckerFactored(self)


def _losses(
    seen: Observation, gradients: Sequence[Tensor], decomposed: Sequence[Factors]
) -> Tensor:
    """The loss of each task; where nobody says it, what the last layer alone can take away."""
    if seen.losses is not None:
        return seen.losses.double()
    k = decomposed[-1].curvature
    reach = gradients[-1].detach().square() / (k + 1e-6 * _largest(k) + TINY)
    return 0.5 * reach.sum(dim=(-2, -1))


@torch.no_grad()
def _channels(of: Coefficients, losses: Tensor, before: Tensor, count: Tensor) -> list[Tensor]:
    """What the LSTM sees of the coefficients of each layer, ``(channels, *batch, out, in)``."""
    change = torch.where(before.isinf(), 0.0, 0.5 * (losses / before).log()).clamp(-2.5, 2.5)
    age = (1 + count).log() / 3 - 0.5
    layers = len(of.decomposed)
    batch = of.gradients[0].shape[:-2]
    depth = float(layers) / 4 - 0.5
    shown = []
    for place, (f, g, m) in enumerate(zip(*of, strict=True)):
        k, most = f.curvature, _largest(f.curvature)
        explained = g.square() / ((k + 1e-6 * most) * _spread(losses, batch, k) + TINY)
        where = float(place) / max(1, layers - 1) - 0.5
        shown.append(
            torch.stack(
                (
                    (k / (most + TINY) + 1e-12).log() / 10 + 1,
                    (explained + 1e-12).log() / 10 + 1,
                    torch.sign(g * m),
                    _spread(change, batch, k).expand_as(k),
                    _spread(age, batch, k).expand_as(k),
                    torch.full_like(k, depth),
                    torch.full_like(k, where),
                )
            )
            .nan_to_num(0.0, 5.0, -5.0)
            .float()
        )
    return shown


@torch.no_grad()
def _bounded(steps: Sequence[Tensor], decomposed: Sequence[Factors], losses: Tensor) -> Tensor:
    """What keeps the quadratic term of the model at a quarter of the loss, ``(tasks,)``."""
    terms = [
        (f.curvature * step.square()).sum(dim=(-2, -1))
        for f, step in zip(decomposed, steps, strict=True)
    ]
    term = 0.5 * torch.stack(terms).sum(dim=0).reshape(-1)
    return (losses / (4 * term + TINY)).sqrt().clamp(max=1.0)


def _largest(k: Tensor) -> Tensor:
    return k.amax(dim=(-2, -1), keepdim=True)


def _spread(of_tasks: Tensor, batch: torch.Size, like: Tensor) -> Tensor:
    """A number for each task with dimensions of 1, so that it broadcasts with ``like``."""
    return of_tasks.reshape(*batch, *[1] * (like.dim() - len(batch)))


def _split(augmented: Tensor, layer: Layer) -> Layer:
    """An augmented weight as weight and bias."""
    if layer.bias is None:
        return Layer(augmented)
    return Layer(augmented[..., :-1], augmented[..., -1])
