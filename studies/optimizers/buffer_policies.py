"""Appendix G.1 (Figure 12): momenta after a teleport, and AdaGrad's own norm as the objective.

A 5-6-7-8 network on 4 samples, ||Y - F||_F, full batches, one teleport at epoch 5 by eq. 79, which
is exact here. The paper gives the rates of its teleports, and none of the optimizers: those are
chosen from a grid on other problems, without a teleport.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt.evaluation.figure import Band, band_figure
from metaopt.evaluation.rollout import rollout
from metaopt.optim import TeleportingOptimizer
from metaopt.storage import write_atomically
from metaopt.symmetry.objectives import MetricNorm
from metaopt.symmetry.search import GradientAscent
from metaopt.tasks import Regression, first_seeds
from studies.optimizers.image_runs import BASES
from studies.report import markdown, write_json, write_text
from studies.searches.fixed_ascent import FixedAscent

WIDTHS = (5, 6, 7, 8)
SAMPLES = 4
EPOCHS = 100
TELEPORT_AT = 5
SHOWN = (TELEPORT_AT, 10, 30, EPOCHS)
RATES = tuple(float(f"{rate:.1g}") for rate in 10 ** np.arange(-4, 0.5, 0.5))
PAPER = {"2": FixedAscent(10, 1.2e-5), "A": FixedAscent(10, 7.5e-3)}
GUARDED = GradientAscent(10, 0.1)

Search = Any  # (orbit, parameters, loss) -> SearchResult


def problems(seeds: Sequence[int]) -> Regression:
    """One problem a seed, uniform on [0, 1)."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        shapes = [*zip(WIDTHS[1:], WIDTHS[:-1], strict=True)]
        shapes += [(WIDTHS[0], SAMPLES), (WIDTHS[-1], SAMPLES)]
        drawn.append([torch.rand(shape, generator=generator) for shape in shapes])
    *weights, x, y = (torch.stack(tensors) for tensors in zip(*drawn, strict=True))
    return Regression(weights, x, y, loss="norm")


def losses(
    base: str, rate: float, seeds: Sequence[int], search: Search = None, buffers: str = "keep",
    metric: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """Train on some tasks, and return the loss of each epoch, ``(EPOCHS + 1, tasks)``.

    Args:
        base: the name of the optimizer.
        rate: its learning rate.
        seeds: of the tasks.
        search: of the teleport; None for no teleport.
        buffers: what becomes of the optimizer's buffers at the teleport.
        metric: whether it climbs ||grad L||_A, with A as it is at the teleport.
    """
    problem = problems(seeds)
    own = BASES[base](list(problem.parameters()), lr=rate)
    optimizer = TeleportingOptimizer(own, problem, action="pre_activation", buffers=buffers)
    before = rollout(problem, optimizer, TELEPORT_AT, measure_invariance=False).losses
    if search is not None:
        parameters = list(problem.parameters())
        gradients = torch.autograd.grad(problem().sum(), parameters)
        if metric:
            search = replace(search, objective=MetricNorm.of(own, parameters, gradients))
        optimizer.search = search
        optimizer.teleport()
    after = rollout(problem, optimizer, EPOCHS - TELEPORT_AT, measure_invariance=False).losses
    return torch.cat((before[:-1], after)).numpy()


def best_rate(base: str, count: int) -> float:
    """The lowest mean final loss on validation problems, without a teleport."""
    seeds = first_seeds("validation", count)
    return min(
        RATES, key=lambda rate: float(np.nan_to_num(losses(base, rate, seeds)[-1].mean(), nan=1e9))
    )


def momentum(rate: float, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Figure 12a: three policies of the momentum."""
    runs = {"no teleport": losses("momentum", rate, seeds)}
    for title, search in (("paper's search", PAPER["2"]), ("guarded search", GUARDED)):
        for policy in ("transport", "keep", "reset"):
            runs[f"{title}, {policy}"] = losses("momentum", rate, seeds, search, policy)
    return runs


def adagrad(rate: float, seeds: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Figure 12b: two objectives."""
    runs = {"no teleport": losses("adagrad", rate, seeds)}
    for norm in ("2", "A"):
        for title, search in (("paper's search", PAPER[norm]), ("guarded search", GUARDED)):
            name = f"{title}, max ||grad L||_{norm}"
            runs[name] = losses("adagrad", rate, seeds, search, metric=norm == "A")
    return runs


STUDIES: dict[str, Callable[[float, Sequence[int]], dict[str, NDArray[np.float64]]]] = {
    "momentum": momentum,
    "adagrad": adagrad,
}
"""The two studies by name, which is also that of their optimizer."""


def buffer_study(out: Path, name: str, seeds: int) -> str:
    """Run one of them on test problems, at the best rate and at a tenth of it; the table."""
    tuned = best_rate(name, 8)
    rows, facts = [], {}
    for rate in (tuned, tuned / 10):
        runs = STUDIES[name](rate, first_seeds("test", seeds))
        facts[f"{rate:g}"] = {title: curves.T.tolist() for title, curves in runs.items()}
        bands = [
            Band(title, np.exp(np.log(curves).mean(axis=1)), curves.min(axis=1), curves.max(axis=1))
            for title, curves in runs.items()
        ]
        title = f"{name} at rate {rate:g}: geometric mean of {seeds} problems, and the range"
        write_atomically(_made(out) / f"{name}-{rate:g}.png", band_figure(bands, title))
        plain = runs["no teleport"]
        for variant, curves in runs.items():
            ratios = np.log(curves[-1] / plain[-1])
            rows.append(
                [
                    f"{rate:g}",
                    variant,
                    *(f"{np.exp(np.log(curves[t]).mean()):.4g}" for t in SHOWN),
                    f"{curves[-1].max():.4g}",
                    f"{np.exp(ratios.mean()):.3g}",
                    f"{(ratios < 0).sum()} of {len(ratios)}",
                ]
            )
    headings = [
        "rate", "variant", *(f"epoch {t}" for t in SHOWN), "worst",
        "over no teleport", "lower than it",
    ]  # fmt: skip
    table = markdown(headings, rows)
    write_text(out / "tables" / f"{name}.md", table)
    write_json(out / f"{name}.json", {"epochs": EPOCHS, "losses": facts})
    return table


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
