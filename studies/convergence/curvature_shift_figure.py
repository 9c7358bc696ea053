"""Draw the picture of the study curvature-shift: Figures 8 and 9, with what the text adds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaopt.evaluation.figure import usual_style
from studies.convergence.outcome import png
from studies.geometry.sections import Section
from studies.geometry.shifts import PlaneCurve, flat_mean, mean_distance, on_sphere, small_shift

Array = NDArray[np.float64]
PRINCIPAL = (1.0, 3.0)


@usual_style()
def picture(
    grid: Array,
    scaled: Mapping[str, Array],
    curves: Mapping[str, Callable[[float], PlaneCurve]],
) -> bytes:
    """Draw the picture as a PNG.

    Args:
        grid: kappa r.
        scaled: mean distance over r on the grid, by curve.
        curves: from kappa to the curve.
    """
    figure = Figure(figsize=(13, 8))
    figure.subplots_adjust(0.06, 0.07, 0.98, 0.95, wspace=0.3, hspace=0.3)
    axes = [figure.add_subplot(2, 3, i, projection="3d" if i == 5 else None) for i in range(1, 7)]
    _plane(axes[0], curves)
    _collapsed(axes[1], grid, scaled)
    _printed(axes[2], curves)
    _dimensions(axes[3], curves["circle"])
    _surface(axes[4])
    _tilts(axes[5])
    return png(figure)


def _plane(ax: Axes, curves: Mapping[str, Callable[[float], PlaneCurve]]) -> None:
    t = torch.linspace(-math.pi / 2, math.pi / 2, 200, dtype=torch.float64)
    for name, make in curves.items():
        points = torch.stack([make(1.0).point(one) for one in t]).numpy()
        ax.plot(points[:, 0], points[:, 1], label=f"{name}, κ = 1")
    circle = on_sphere(0.5, np.linspace(0, 2 * math.pi, 200))
    ax.plot(circle[:, 0], circle[:, 1], "k:", label="all shifts of w0, r = 0.5")
    ax.plot(0, 0, "ko", markersize=4)
    ax.set(aspect="equal", xlabel="w1", ylabel="w2", title="Fig. 8(a): minima and shifts")
    ax.legend(fontsize=7)


def _collapsed(ax: Axes, grid: Array, scaled: Mapping[str, Array]) -> None:
    for name, means in scaled.items():
        ax.semilogx(grid, means, label=name)
    small = grid[grid < 1.5]
    ax.semilogx(small, [small_shift([s], 1.0) for s in small], "k--", label="2/π − (κr)²/(12π)")
    ax.axhline(0.5 + 1 / math.pi, color="tab:blue", linestyle=":", label="limits")
    ax.axhline(1, color="tab:orange", linestyle=":")
    ax.set(xlabel="κ r", ylabel="E dist / r", title="Fig. 8(b, c): one curve for all r")
    ax.legend(fontsize=7)


def _printed(ax: Axes, curves: Mapping[str, Callable[[float], PlaneCurve]]) -> None:
    kappas = np.geomspace(0.1, 10, 20)
    styles = {0.5: "-", 1.0: "--", 2.0: ":"}
    for (name, make), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        for r, style in styles.items():
            means = [mean_distance(make(kappa), r) / r**2 for kappa in kappas]
            ax.loglog(kappas, means, style, color=colour, label=f"{name}, r = {r}")
    ax.set(xlabel="κ", ylabel="E dist / r²", title="as printed, r⁻²: no collapse")
    ax.set_ylim(0.15, 1.8)
    ax.legend(fontsize=7, ncol=2, loc="lower left")


def _dimensions(ax: Axes, circle: Callable[[float], PlaneCurve]) -> None:
    s = np.geomspace(0.05, 5, 20)
    for n in (2, 3, 4, 6):
        means = [mean_distance(circle(one), 1.0, n) / flat_mean(n) for one in s]
        ax.semilogx(s, means, label=f"n = {n}")
    ax.set(xlabel="κ r", ylabel="E dist / that to a plane", title="spheres in n dimensions")
    ax.set_ylim(0.85, 1.6)
    ax.legend(fontsize=7)


def _surface(ax: Axes) -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 25), np.linspace(-1, 1, 25))
    z = (PRINCIPAL[0] * x**2 + PRINCIPAL[1] * y**2) / 2
    ax.plot_surface(x, y, z, alpha=0.35, linewidth=0)  # type: ignore[attr-defined]
    t = torch.linspace(-0.8, 0.8, 60, dtype=torch.float64)
    for angle, tilt in ((0.0, 0.0), (math.pi / 3, 0.0), (0.0, 0.9)):
        section = Section(PRINCIPAL, angle, tilt)
        points = torch.stack([section.point(one) for one in t]).numpy()
        ax.plot(*points.T, label=f"φ = {angle:.2f}, tilt {tilt}: κ = {section.curvature:.2f}")
    ax.set(xlabel="w1", ylabel="w2", title="Fig. 9: a minimum cut by planes")
    ax.legend(fontsize=7, loc="upper left")


def _tilts(ax: Axes) -> None:
    tilts = np.linspace(0, 1.4, 60)
    for angle in (0.0, math.pi / 4, math.pi / 2):
        ax.plot(
            tilts,
            [Section(PRINCIPAL, angle, tilt).curvature for tilt in tilts],
            label=f"φ = {angle:.2f}",
        )
    ax.set(
        xlabel="tilt from the normal, radians",
        ylabel="κ of the cut",
        title="Fig. 9: tilted planes bend more",
    )
    ax.legend(fontsize=7)
