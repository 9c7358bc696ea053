"""Learned whitening: m1 (the update network) in the eigenbasis of the curvature of each layer.

In the eigenbasis of K-FAC (:mod:`metaopt.learned.kronecker`) the gradient of a layer has
coefficients g and curvatures k. An LSTM that all coefficients share says three dampings lambda_h
and three factors a_h of each, and so three directions -a_h g / (k + lambda_h max k) of each layer.
With the last steps of the layer they span a small subspace, of five directions a layer. The minimum
of an exact model of the loss there (:mod:`metaopt.learned.subspace`) is where conjugate gradients
begin, which go on towards the minimum over all weights (:mod:`metaopt.learned.refinement`). Martens
and Grosse (2015, sections 6.4 and 7) choose the length of one direction and the momentum in this
way; Levenberg (1944) and Marquardt (1963) solve for all weights at once, and Martens (2010) by
conjugate gradients.

The damping and the largest length of a step follow how well the model has foretold the last one
(:mod:`metaopt.learned.trust_region`). A step that raised the loss is taken back, and another one is
made from where it began, with the gradient that is remembered of there.

What is computed for each coefficient is computed for those of all layers at once, in one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch
from torch import Tensor

from metaopt.checks import check_positive, check_whole
from metaopt.learned.checkpoint_files import META, named_checkpoint
from metaopt.learned.coefficients import CHANNELS, channels_of, mean_of_tasks
from metaopt.learned.curved_place import CurvedPlace
from metaopt.learned.fields import LSTMFields
from metaopt.learned.judgement import Judgement
from metaopt.learned.kinks import with_momentum
from metaopt.learned.kronecker import split
from metaopt.learned.lstm import LSTM, uniform_parameter
from metaopt.learned.observation import Observation, SeenLoss, flatten, unflatten
from metaopt.learned.place import LAST, NOW, OF_A_POINT, PAST, by_coordinate
from metaopt.learned.refinement import Step, limited, refined
from metaopt.learned.state import Columns
from metaopt.learned.subspace import lengths
from metaopt.learned.trust_region import Judged, first_trust, region_of, trusts_of
from metaopt.learned.update import (
    UPDATE_RULES,
    CoordinatewiseUpdate,
    CoordinatewiseUpdateConfig,
    RuleState,
    UpdateConfig,
    UpdateRule,
)
from metaopt.symmetry.chain import Layout

DAMPINGS = (1e-1, 1e-3, 1e-5)  # what the LSTM's outputs of 0 stand for
SCALES = (4.0,) * len(DAMPINGS) + (2.0,) * len(DAMPINGS)  # of its outputs, in powers of e
SMALL = 1e-100  # of a curvature; its square is not 0

MOST_ITERATIONS = 1000
CHEAP_TO_COPY = 2**17  # entries of a tensor of the LSTM's state
WIDEST = 1024  # units of a layer; above, the decompositions take too long
MOST_ENTRIES = 2**27  # of the tangents of all directions, in float64 1 GiB


@final
class LearnedWhitening(UpdateRule):
    """m1 that steps in the eigenbasis of the curvature, along directions that an LSTM proposes.

    It sees full batches: of chains of Linear layers in closed form, and of other small networks by
    autograd (:mod:`metaopt.learned.module_pass`). What it cannot see so is stepped by another m1,
    over single coordinates: batches that change from step to step, large networks, and chains with
    layers of more than 1,024 units. That m1 is the one of lstm_update_tele_v1, and is not trained.

    The state is that of the LSTM; the last steps, and the weights, the gradient and that of
    penalties where the last one began, in float64; for each task the number of the step, nu, the
    largest length of a step, the length of the last, the change that was promised, the loss
    where it began; how many steps with momentum are to come, and the lowest loss of these; and the
    state of the other m1.

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

    def init_state(self, chain: Layout, parameters: Sequence[Tensor]) -> RuleState:
        """See :meth:`UpdateRule.init_state`."""
        other = self.other.init_state(chain, parameters)
        if not chain.names:
            return other
        tasks, device = parameters[0].shape[: chain.batch_dims].numel(), parameters[0].device
        count = sum(parameter.numel() for parameter in parameters)
        begun = region_of([first_trust(*self._first)] * tasks, device)
        past = torch.zeros(PAST + OF_A_POINT, count, dtype=torch.float64, device=device)
        return [*self.lstm.init_state(count), past, *begun, *other]

    def columns(self, chain: Layout, parameters: Sequence[Tensor]) -> list[Columns]:
        """See :meth:`UpdateRule.columns`; coefficients belong to the weight of their layer."""
        other = self.other.columns(chain, parameters)
        if not chain.names:
            return other
        of_tasks = [parameters[0].shape[: chain.batch_dims].numel()] + [0] * (len(parameters) - 1)
        return [
            *self.lstm.columns(chain.coefficients(parameters)),
            Columns("last_steps", 1, [parameter.numel() for parameter in parameters]),
            Columns("trust_region", 1, of_tasks),
            Columns("coasting", 1, of_tasks),
            *(own._replace(name=f"other_{own.name}") for own in other),
        ]

    def propose(self, seen: Observation, state: RuleState) -> tuple[list[Tensor], RuleState]:
        """See :meth:`UpdateRule.propose`."""
        if not seen.layout.names:
            return self.other.propose(seen, state)
        width = 2 * len(self.lstm.layers)
        past, *region = state[width : width + 3]
        other = state[width + 3 :]
        if seen.loss is None or _too_large(seen):
            update, other = self.other.propose(seen, other)
            unknown = [trust._replace(loss=math.inf) for trust in trusts_of(*region)]
            return update, [*state[:width], past, *region_of(unknown, past.device), *other]
        # Without a graph inference mode takes an eighth of the time off; then the state is copied.
        # The pass of a module is differentiated.
        small = seen.module is None and state[0].numel() <= CHEAP_TO_COPY
        fast = small and not torch.is_grad_enabled()
        with torch.inference_mode() if fast else nullcontext():
            row, own = self._step(seen, seen.loss, state[:width], past, region)
        row, *own = (tensor.clone() if tensor.is_inference() else tensor for tensor in (row, *own))
        return unflatten(row, seen.parameters), [*own, *other]

    def _step(
        self,
        seen: Observation,
        loss: SeenLoss,
        columns: RuleState,
        past: Tensor,
        region: Sequence[Tensor],
    ) -> tuple[Tensor, RuleState]:
        """f of all parameters in one row, and the next state."""
        if seen.parameters_given[0].dtype == torch.float64:
            loss = loss._replace(targets=None)  # nothing is more exact
        known = Judgement.of(seen, loss, past, trusts_of(*region), self._first)
        verdicts = known.verdicts
        if known.settled:
            none = [0.0] * len(verdicts)
            still, following = torch.zeros_like(known.rows[NOW]), known.following(none, none, 0.0)
            past = torch.cat((still.unsqueeze(0), known.rows[: PAST - 1], known.rows[NOW:]))
            return still, [*columns, past, *region_of(following, past.device)]
        rows, place, at = known.begun(seen)
        here = CurvedPlace.of(seen, loss, known, place, at)
        damped, easing, columns = self._proposed(here, verdicts, columns)
        nu = easing * easing.new_tensor([verdict.trust.nu for verdict in verdicts])
        step, system = here.minimum(damped, nu), here.system(nu)
        step = refined(system, step, self.config.cg_iterations)
        if any(known.coasting):
            d = system.masked(with_momentum(step.d, here.row(LAST), known.coasting))
            step = Step(d, system.pushed(d.detach()))
        parts = lengths(here.bases.parts(step.d), place.row(NOW), seen.batch_dims)
        longest = [verdict.trust.length for verdict in verdicts]
        d, promised, far = limited(system, step, parts, longest, seen.rate)
        following = known.following(far, promised, seen.rate)
        steps = map(split, here.matrices(d), seen.layers)
        moved = flatten(seen.layout.parameters(list(steps)))
        lost = [not trust.promised for trust in following]
        # One task of a loss that is not finite is skipped by the optimizer, and counted.
        if any(lost) and (here.batch or math.isfinite(verdicts[0].loss)):
            moved = torch.where(by_coordinate(lost, here.batch, seen), 0.0, moved)
        update = moved
        if known.undone and seen.rate:  # an undone step is undone wholly, at any rate
            undone = (rows[NOW] - known.rows[NOW]) / seen.rate
            update = torch.where(known.back(seen), undone, 0.0) + moved
        past = torch.cat((moved.unsqueeze(0), rows[: PAST - 1], rows[NOW:])).detach()
        return update, [*columns, past, *region_of(following, past.device)]

    def _proposed(
        self, here: CurvedPlace, verdicts: Sequence[Judged], columns: RuleState
    ) -> tuple[list[Tensor], Tensor, RuleState]:
        """The directions of each layer, the factor of nu, and the next state of the LSTM."""
        flat = torch.cat([own.flatten(start_dim=1) for own in here.coefficients], dim=1)
        last, g = flat[LAST], flat[-1]
        shown, relative, most = channels_of(here.curvatures, last, g, verdicts)
        embedded = torch.tanh(torch.addmm(self.embedding_bias.unsqueeze(-1), self.embedding, shown))
        outputs, columns = self.lstm(embedded, columns)
        said = torch.tanh(outputs[:-1])
        dampings, weights = torch.addcmul(*_heads(said.device), said).exp().chunk(2)
        found = weights * (-g / (most + SMALL)) / (relative + dampings)
        sizes = [own.numel() for own in here.curvatures]
        damped = [
            part.view(-1, *shape)
            for part, shape in zip(
                found.split_with_sizes(sizes, dim=1), here.bases.shapes, strict=True
            )
        ]
        easing = (3.0 * torch.tanh(mean_of_tasks(outputs[-1], sizes, len(verdicts)))).exp()
        return here.directions(damped), easing.double(), columns


def _trained_before() -> CoordinatewiseUpdate:
    """The m1 of lstm_update_tele_v1, which stays as it is."""
    rule = CoordinatewiseUpdate(CoordinatewiseUpdateConfig(), torch.Generator())
    rule.load_state_dict(_tensors_before())
    return rule.requires_grad_(False)


@lru_cache
def _tensors_before() -> dict[str, Tensor]:
    return named_checkpoint("lstm_update_tele_v1").under(f"{META}update.")


@lru_cache
@torch.inference_mode(False)
def _heads(device: torch.device) -> tuple[Tensor, Tensor]:
    """What the LSTM's outputs of 0 stand for, and their scales, in powers of e; in a column."""
    first = [math.log(damping) for damping in DAMPINGS] + [0.0] * len(DAMPINGS)
    return torch.tensor(first, device=device)[:, None], torch.tensor(SCALES, device=device)[:, None]


def _too_large(seen: Observation) -> bool:
    """Whether the decompositions or the tangents would take too long, or too much memory."""
    if seen.module is not None:  # which was looked at before its pass was given
        return False
    shapes = [layer.weight.shape for layer in seen.layers]
    tasks, widest = shapes[0][: seen.batch_dims].numel(), max(shape[-2] for shape in shapes)
    directions = (len(DAMPINGS) + PAST) * len(shapes)
    return (
        max(widest, max(shape[-1] for shape in shapes)) > WIDEST
        or tasks * directions * widest * seen.x.shape[-1] > MOST_ENTRIES
    )


@UPDATE_RULES.register("whitened")
@dataclass(frozen=True)
class LearnedWhiteningConfig(LSTMFields, UpdateConfig):
    """The config of an m1 in the eigenbasis of the curvature.

    Attributes:
        first_damping: nu before the first step.
        first_length: the largest length of the first step, over that of the weights of its layer.
        cg_iterations: how many iterations of conjugate gradients go on from the minimum in the
            subspace.
    """

    first_damping: float = 1.0
    first_length: float = 0.3
    cg_iterations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_damping", "first_length"):
            check_positive(name, getattr(self, name), getattr(type(self), name))
        check_whole("cg_iterations", self.cg_iterations, 0, MOST_ITERATIONS)

    @property
    def only_where_exact(self) -> bool:
        """See :attr:`UpdateConfig.only_where_exact`: this m1 does well without m2 elsewhere."""
        return True

    def build(self, generator: torch.Generator) -> LearnedWhitening:
        """See :meth:`UpdateConfig.build`."""
        return LearnedWhitening(self, generator)
