"""Train one network on images by one optimizer, with or without a teleport, and keep the run."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from metaopt.errors import UserError
from metaopt.optim import TeleportingOptimizer
from metaopt.optim.buffers import reset
from metaopt.randomness import same_randomness
from metaopt.symmetry import make_action
from metaopt.symmetry.search import GradientAscent
from metaopt.tasks.data import batches
from studies.report import write_json
from studies.searches.fixed_ascent import FixedAscent
from studies.searches.random_move import RandomMove
from studies.steps import step_on

Pair = tuple[Tensor, Tensor]
"""Images as rows of standardized pixels, ``(n, pixels)``, and classes ``(n,)``."""

VERSION = 2  # of what a run's file says: seconds are without the study's own measures
WIDTHS = (16, 10, 10)  # appendix G.2
SLOPE = 0.1

BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}
"""The standard optimizers of section 5.1 by name, each made from parameters and a rate."""


@dataclass(frozen=True)
class Teleport:
    """What is done once to the weights or the optimizer's buffers, and when.

    Attributes:
        action: "pre_activation" (eq. 79), "rescaling", or "none" for a reset of the buffers alone.
        buffers: "keep", "reset" or "transport".
        epoch: at whose start.
        random: the control, a random g of the same size.
        minibatches, samples, iterations: of the search, as in section 5.1.
        size: of its first steps, a Frobenius norm of T.
        growth: to the power of 1 / minibatches, the bound on the growth of the squared gradient
            norm of each, so that all together can pass it a little; without one rescaling goes to
            10^5 times, from where training does not come back.
        rate: of the paper's unguarded search, in the place of size and growth.
        steps_per_gradient: of the search, where it has to evaluate the network at each point.
    """

    action: str
    buffers: str = "keep"
    epoch: int = 1
    random: bool = False
    minibatches: int = 8
    samples: int = 200
    iterations: int = 10
    size: float = 0.1
    growth: float = 4.0
    rate: float | None = None
    steps_per_gradient: int = 10


@dataclass(frozen=True)
class Plan:
    """All that a run depends on, but for the images."""

    optimizer: str
    rate: float
    seed: int
    epochs: int
    teleport: Teleport | None = None
    minibatch: int = 20

    def file_name(self, data: str) -> str:
        """Distinct for each plan and data."""
        facts = {"plan": asdict(self), "data": data, "version": VERSION}
        text = json.dumps(facts, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.optimizer}-{self.seed}-{digest}.json"


@dataclass(frozen=True)
class Run:
    """What came of it; index t is after t epochs.

    Attributes:
        train, test: losses over all images.
        accuracy: on the test images.
        seconds: of training and teleports, without evaluation.
        teleport_seconds: of the teleport phase.
        gradient_norms: squared, before and after the teleport, on its minibatches together.
        defect: largest change of the output by a teleport, on its minibatch.
        undone: teleports undone because of it.
        moved: of the weights by all teleports, over their norm.
    """

    train: list[float]
    test: list[float]
    accuracy: list[float]
    seconds: list[float]
    teleport_seconds: float = 0.0
    gradient_norms: tuple[float, float] | None = None
    defect: float = 0.0
    undone: int = 0
    moved: float = 0.0


def run(plan: Plan, train: Pair, test: Pair, folder: Path, data: str) -> Run:
    """Train as planned, or read the run if it is in the folder already.

    Args:
        plan: what to do.
        train: images and classes to train on.
        test: images and classes to measure on.
        folder: where the run is kept.
        data: says which images these are; part of the name of the file.
    """
    path = folder / plan.file_name(data)
    if path.exists():
        try:
            return _read(path)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"expected a run of this study in {str(path)!r}, got a file that is damaged or "
                f"something else ({type(error).__name__}): remove it to train anew"
            ) from None
    result = _train(plan, train, test)
    write_json(path, {"plan": asdict(plan), "data": data, "run": asdict(result)})
    return result


def _read(path: Path) -> Run:
    """The inverse of what ``write_json`` makes of a run, where NaN is null."""
    facts: dict[str, Any] = json.loads(path.read_text())["run"]
    for name in ("train", "test"):
        facts[name] = [math.nan if value is None else value for value in facts[name]]
    if facts["gradient_norms"] is not None:
        norms = (math.nan if value is None else value for value in facts["gradient_norms"])
        facts["gradient_norms"] = tuple(norms)
    if facts["defect"] is None:
        facts["defect"] = math.nan
    return Run(**facts)


def network(seed: int, inputs: int) -> nn.Sequential:
    """Make the network of section 5.1: three layers without biases, LeakyReLU between."""
    with same_randomness(seed):
        layers: list[nn.Module] = []
        for width in WIDTHS:
            layers += [nn.Linear(inputs, width, bias=False), nn.LeakyReLU(SLOPE)]
            inputs = width
        return nn.Sequential(*layers[:-1])


def epoch_of_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, drawn: Iterable[Pair]
) -> Iterator[Tensor]:
    """Take a step on each minibatch, and yield the cross entropy before it."""
    for x, y in drawn:
        yield step_on(optimizer, partial(_cross_entropy, model, x, y), again=False)


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x), y)


def _train(plan: Plan, train: Pair, test: Pair) -> Run:
    model = network(plan.seed, train[0].shape[1])
    base = BASES[plan.optimizer](list(model.parameters()), lr=plan.rate)
    order = torch.Generator().manual_seed(plan.seed)
    curves: list[tuple[float, float, float, float]] = [(*_losses(model, train, test), 0.0)]
    facts: dict[str, Any] = {}
    seconds = 0.0
    for epoch in range(plan.epochs):
        if plan.teleport is not None and plan.teleport.epoch == epoch:
            facts = _teleport(plan.teleport, model, base, train, plan.seed)
            seconds += facts["teleport_seconds"]
        start = time.perf_counter()
        for _ in epoch_of_steps(model, base, batches(train, plan.minibatch, order)):
            pass
        seconds += time.perf_counter() - start
        curves.append((*_losses(model, train, test), seconds))
    train_losses, test_losses, accuracy, times = ([*column] for column in zip(*curves, strict=True))
    return Run(train_losses, test_losses, accuracy, times, **facts)


def _teleport(
    teleport: Teleport, model: nn.Module, base: torch.optim.Optimizer, train: Pair, seed: int
) -> dict[str, Any]:
    if teleport.action == "none":
        start = time.perf_counter()
        reset(base, list(model.parameters()))
        return {"teleport_seconds": time.perf_counter() - start}
    drawn = batches(train, teleport.samples, torch.Generator().manual_seed(10**7 + seed))
    chosen = [pair for _, pair in zip(range(teleport.minibatches), drawn, strict=False)]
    x, y = (torch.cat(side) for side in zip(*chosen, strict=True))
    before = _square_norm(model, x, y)
    origin = parameters_to_vector(model.parameters()).detach().clone()
    start = time.perf_counter()
    growth = teleport.growth ** (1 / teleport.minibatches)
    each = teleport.steps_per_gradient
    search: Any = GradientAscent(
        teleport.iterations, teleport.size, max_ratio=growth, steps_per_gradient=each
    )
    limit = 0.1
    if teleport.rate is not None:
        search = FixedAscent(teleport.iterations, teleport.rate, steps_per_gradient=each)
        limit = float("inf")
    if teleport.random:
        search = RandomMove(search, torch.Generator().manual_seed(10**6 + seed))
    action = make_action(teleport.action, max_defect=limit)
    optimizer = TeleportingOptimizer(
        base,
        model,
        functional.cross_entropy,
        action,
        search=search,
        buffers=teleport.buffers,
        max_defect=limit,
    )
    moves = optimizer.teleport_on(chosen)
    seconds = time.perf_counter() - start
    end = parameters_to_vector(model.parameters()).detach()
    return {
        "gradient_norms": (before, _square_norm(model, x, y)),
        "defect": max(float(move.invariance_error()) for move in moves),
        "undone": optimizer.undone,
        "moved": float((end - origin).norm() / origin.norm()),
        "teleport_seconds": seconds,
    }


def _square_norm(model: nn.Module, x: Tensor, y: Tensor) -> float:
    loss = functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return float(sum(g.square().sum() for g in gradients))


@torch.no_grad()
def _losses(model: nn.Module, train: Pair, test: Pair) -> tuple[float, float, float]:
    """(training loss, test loss, test accuracy)."""
    outputs = model(train[0]), model(test[0])
    losses = [
        functional.cross_entropy(output, y).item()
        for output, (_, y) in zip(outputs, (train, test), strict=True)
    ]
    accuracy = (outputs[1].argmax(dim=1) == test[1]).double().mean().item()
    return losses[0], losses[1], accuracy


def seconds_per_step(runs: Sequence[Run], images: int, plan: Plan) -> float:
    """The median over runs, without their teleports."""
    steps = plan.epochs * -(-images // plan.minibatch)
    each = sorted((run.seconds[-1] - run.teleport_seconds) / steps for run in runs)
    return each[len(each) // 2]
