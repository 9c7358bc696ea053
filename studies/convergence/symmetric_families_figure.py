"""Draw the picture of the study symmetric-families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metaopt.evaluation.figure import usual_style
from studies.convergence.family_methods import TARGET, Method
from studies.convergence.learned_rotation import VARIANTS, Rules
from studies.convergence.outcome import png
from studies.functions.families_2d import Family2D

Array = NDArray[np.float64]
SHOWN = (
    "GD",
    "momentum",
    "teleport often, GD",
    "teleport always, rate 1/λ0",
    "Newton",
    *(variant.name for variant in VARIANTS),
)


class Results(Protocol):
    """The results on one family."""

    @property
    def members(self) -> Family2D:
        """The test members of the family."""

    @property
    def starts(self) -> Tensor:
        """Where each run starts, ``(B, 2)``."""

    @property
    def methods(self) -> Sequence[Method]:
        """The methods, as tuned."""

    @property
    def losses(self) -> Mapping[str, Array]:
        """``(steps + 1, runs)``."""

    @property
    def steps(self) -> Mapping[str, Array]:
        """To the target, ``(..., B)``."""

    @property
    def rules(self) -> Rules:
        """The learned methods."""


@usual_style()
def picture(compared: Mapping[str, Results]) -> bytes:
    """A PNG, one row a family."""
    figure = Figure(figsize=(15, 9))
    figure.subplots_adjust(0.05, 0.07, 0.98, 0.95, wspace=0.45, hspace=0.3)
    for row, (name, one) in enumerate(compared.items()):
        axes = [figure.add_subplot(2, 3, 3 * row + column) for column in (1, 2, 3)]
        _losses(axes[0], name, one)
        _steps(axes[1], name, one)
        _paths(axes[2], name, one)
    return png(figure)


def _losses(ax: Axes, name: str, one: Results) -> None:
    for i, method in enumerate(SHOWN):
        median = np.nanmedian(np.maximum(one.losses[method], 1e-16), axis=1)
        end = np.argmax(median <= TARGET) if (median <= TARGET).any() else len(median) - 1
        t = np.arange(len(median))[: end + 1]
        ax.loglog(t + 1, median[: end + 1], color=f"C{i}", label=method,
                  linewidth=2.2 if i >= 5 else 1.2)  # fmt: skip
    ax.axhline(TARGET, color="grey", linewidth=0.8)
    ax.set(xlabel="step + 1", ylabel="loss / initial loss, median", title=name)
    ax.set_ylim(TARGET / 20, 3)
    ax.minorticks_off()
    ax.legend(fontsize=6)


def _steps(ax: Axes, name: str, one: Results) -> None:
    """Medians; of learned rules, of each meta-seed."""
    names = list(one.steps)
    most = max(len(losses) for losses in one.losses.values())
    for i, method in enumerate(names):
        steps = np.atleast_2d(one.steps[method])
        medians = np.quantile(steps, 0.5, axis=1, method="inverted_cdf")
        shown = np.where(np.isfinite(medians), medians, 2.0 * most)
        ax.semilogx(shown, np.full(len(shown), -i), "o", color=f"C{i % 10}")
        ax.annotate(f"{np.isfinite(steps).mean():.0%}", (3.0 * most, -i), fontsize=7, va="center")
    ax.minorticks_off()
    ax.set_yticks([-i for i in range(len(names))], names, fontsize=7)
    ax.axvline(most - 1, color="grey", linewidth=0.8)
    ax.set(
        xlabel="steps to 1e-6, median; right of the line: not reached",
        xlim=(0.8, 6.0 * most),
        title=f"{name}: share that reaches it on the right",
    )


def _paths(ax: Axes, name: str, one: Results) -> None:
    """On the first test member on which it works: gradient descent, and first teleports."""
    column = int(np.argmin(np.isinf(one.steps["GD"])))
    members, start = one.members.take(torch.tensor([column])), one.starts[column : column + 1]
    descent = next(method for method in one.methods if method.name == "GD")
    w, plain = start, [start[0]]
    for _ in range(60):
        w = w - (descent.rate or 0.0) * members.gradient(w)
        plain.append(w[0])
    steepest = members.steepest(start)
    learned = one.rules.teleport(members, start.expand(len(one.rules.rotates), 1, 2))[0].detach()
    turns = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    points = members.rotate(start.expand(200, 1, 2), turns[:, None])[:, 0]
    ax.plot(points[:, 0], points[:, 1], color="grey", label="orbit of the start")
    path = torch.stack(plain)
    ax.plot(path[:, 0], path[:, 1], ".-", color="C0", label="GD", markersize=3)
    ax.plot(*start[0].tolist(), "ks", label="start")
    ax.plot(*steepest[0].tolist(), "^", color="C3", label="steepest point")
    count = len(learned) // len(VARIANTS)
    for i, marker in ((0, "o"), (1, "*")):
        own = learned[i * count : (i + 1) * count, 0]
        ax.plot(own[:, 0], own[:, 1], marker, label=VARIANTS[i].name, alpha=0.7)
    ax.plot(*members.inverse(torch.zeros_like(start))[0].tolist(), "k+", label="minimum")
    low, high = points.amin(0), points.amax(0)
    margin = 0.05 * (high - low)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set(xlabel="w1", ylabel="w2", title=f"{name}: first teleports, one test member")
    ax.legend(fontsize=6)
