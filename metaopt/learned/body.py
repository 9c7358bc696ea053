"""What a learned optimizer steps: parameters that it sees together, and how it sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from metaopt.errors import UserError
from metaopt.learned.meta_optimizer import Advanced, MetaOptimizer, State
from metaopt.learned.observation import NO_CHAIN, Observation
from metaopt.learned.tape import Pass
from metaopt.symmetry import LayerInput
from metaopt.symmetry.chain import LayerChain

STEPS_TO_MOVE = 100.0  # steps of the first gradient, each of 1 / kappa, that are as long as w
SMALLEST_RMS = 0.03  # of the entries of w there; biases start at 0


class Now(NamedTuple):
    """What a step is made from."""

    parameters: Sequence[Tensor]  # in the order of the body's
    gradients: Sequence[Tensor]
    seen: Pass | None = None  # the forward pass that was differentiated, where there is one
    rate: float = 1.0  # factor of f_t
    second_order: bool = False
    absent: frozenset[int] = frozenset()  # indices of parameters without a gradient: f = 0


class Body(ABC):
    """Parameters, and one step of them; pure: state goes in and comes out."""

    parameters: list[nn.Parameter]

    @abstractmethod
    def init_state(self, meta: MetaOptimizer) -> State:
        """The state before the first step; tensors of floating point or whole numbers."""

    @abstractmethod
    def advance(self, meta: MetaOptimizer, now: Now, state: State) -> Advanced:
        """One step."""

    def twin(self) -> Body:
        """For a differentiable twin, whose steps are not those of the optimizer."""
        return self

    def report(self) -> str:
        """Where a group acts and where not, for people."""
        return f"{len(self.parameters)} parameters that are stepped without teleportation"


@final
class ProblemBody(Body):
    """A problem of ``metaopt.tasks``: a chain of layers that holds its data."""

    def __init__(self, parameters: Sequence[nn.Parameter], chain: LayerChain, x: Tensor) -> None:
        self.parameters = list(parameters)
        self.chain = chain
        self.layer_input = LayerInput(x)

    def init_state(self, meta: MetaOptimizer) -> State:
        return meta.init_state(self.chain, self.parameters)

    def advance(self, meta: MetaOptimizer, now: Now, state: State) -> Advanced:
        return meta.advance(
            self.chain,
            now.parameters,
            now.gradients,
            self.layer_input,
            state,
            now.second_order,
            now.rate,
        )

    def report(self) -> str:
        return f"{len(self.chain.sites)} sites of a chain of layers that holds its data"


@final
class LooseBody(Body):
    """Parameters of which nothing is known but their gradients: m1 alone.

    kappa of a parameter is 100 times its largest gradient norm so far over its own norm, so that
    the first steps are short of it, and one that overshoots makes the next ones shorter. An m1 that
    asks for no kappa steps any network so.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], meta: MetaOptimizer) -> None:
        check_loose(meta)
        self.parameters = list(parameters)

    def init_state(self, meta: MetaOptimizer) -> State:
        return {
            "update": meta.update.init_state(NO_CHAIN, self.parameters),
            "largest": largest_so_far(self.parameters),
        }

    def advance(self, meta: MetaOptimizer, now: Now, state: State) -> Advanced:
        if meta.update.sees_layers:
            loose, largest = loosely(now.parameters, now.gradients, state["largest"])
        else:
            loose, largest = Observation.loose(now.parameters, now.gradients, []), state["largest"]
        update, following = meta.update.propose(loose, state["update"])
        return Advanced(
            added(now, update, now.rate), {"update": following, "largest": largest}, None
        )


def check_loose(meta: MetaOptimizer) -> None:
    """Raises UserError if m1 needs a chain of layers."""
    if "covariance" in meta.spec.inputs and meta.spec.update == "coordinatewise":
        raise UserError(
            "expected an m1 that sees gradients alone for parameters that are no chain of Linear "
            "layers, got one that sees the covariance of features: use another optimizer"
        )


def largest_so_far(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of no gradient yet."""
    return [torch.zeros((), dtype=torch.float32, device=p.device) for p in parameters]


def loosely(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], largest: Sequence[Tensor]
) -> tuple[Observation, list[Tensor]]:
    """What is seen of parameters that are no chain, and their largest gradient norms by now."""
    scales, following = [], []
    for parameter, gradient, before in zip(parameters, gradients, largest, strict=True):
        norm = torch.linalg.vector_norm(gradient.detach().float())
        most = torch.maximum(before, torch.where(norm.isfinite(), norm, before))
        smallest = SMALLEST_RMS * parameter.numel() ** 0.5
        size = torch.linalg.vector_norm(parameter.detach().float()).clamp(min=smallest)
        scales.append(STEPS_TO_MOVE * most / size)
        following.append(most)
    return Observation.loose(parameters, gradients, scales), following


def added(now: Now, update: Sequence[Tensor], rate: float) -> list[Tensor]:
    """w + rate f, in the dtype of w; w itself where there was no gradient."""
    return [
        parameter if index in now.absent else parameter + (rate * step).to(parameter.dtype)
        for index, (parameter, step) in enumerate(zip(now.parameters, update, strict=True))
    ]
