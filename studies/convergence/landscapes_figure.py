"""Draw the picture of the study landscapes: Figures 2 and 3 from computed networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metaopt.evaluation.figure import usual_style
from studies.convergence.landscapes_wide import Curves, ends
from studies.convergence.outcome import png
from studies.functions.scalar_network import ScalarNetwork

Array = NDArray[np.float64]
COLOURS = {"sharp": "tab:red", "flat": "tab:green"}


class Path(Protocol):
    """The path of a gradient flow."""

    @property
    def t(self) -> Array:
        """Times, ``(T,)``."""

    @property
    def points(self) -> Array:
        """Points at these times, ``(T, 2)``."""

    @property
    def losses(self) -> Array:
        """Losses at these times, ``(T,)``."""


@usual_style()
def picture(
    network: ScalarNetwork,
    flows: Mapping[str, Path],
    rescalings: Mapping[str, float],
    wide: Curves,
) -> bytes:
    """Draw Figures 2 and 3 as a PNG.

    Args:
        network: the one of two weights.
        flows: gradient flows by the name of their start.
        rescalings: g of the sharp and of the flat point.
        wide: curves on the minimum of the network of width 2.
    """
    figure = Figure(figsize=(13, 8))
    figure.subplots_adjust(0.06, 0.08, 0.98, 0.93, wspace=0.3, hspace=0.35)
    axes = [figure.add_subplot(2, 3, i, projection="3d" if i == 1 else None) for i in range(1, 7)]
    points = {name: network.minimizer(g) for name, g in rescalings.items()}
    _surface(axes[0], network, flows)
    _losses(axes[1], flows)
    _slices(axes[2], network, points)
    _minima(axes[3], network, points)
    _followed(axes[4], wide)
    _scatter(axes[5], wide)
    return png(figure)


def _surface(ax: Axes, network: ScalarNetwork, flows: Mapping[str, Path]) -> None:
    g, product = torch.meshgrid(  # along gamma, and across it
        torch.logspace(-0.52, 0.53, 40, dtype=torch.float64),
        torch.linspace(0, 2.5, 30, dtype=torch.float64) * network.product,
        indexing="ij",
    )
    u, v = g * product.sqrt(), product.sqrt() / g
    loss = network(torch.stack((u, v), -1))
    ax.plot_surface(u.numpy(), v.numpy(), loss.numpy(), alpha=0.3)  # type: ignore[attr-defined]
    curve = torch.stack([network.minimizer(one) for one in np.geomspace(0.3, 3.4, 80)])
    ax.plot(curve[:, 0], curve[:, 1], np.zeros(len(curve)), "k", label="γ: the minimum")
    for name, one in flows.items():
        ax.plot(*one.points.T, one.losses, color=COLOURS[name], label=f"flow, {name} end")
    ax.set(xlabel="u", ylabel="v", title="Fig. 2: v σ(u x), loss and γ")
    ax.view_init(elev=40, azim=-120)  # type: ignore[attr-defined]
    ax.legend(fontsize=7)


def _losses(ax: Axes, flows: Mapping[str, Path]) -> None:
    for name, one in flows.items():
        ax.semilogy(one.t, np.maximum(one.losses, 1e-20), color=COLOURS[name], label=name)
    ax.set(xlabel="time", ylabel="loss", title="Fig. 2: loss along the flows", ylim=(1e-20, None))
    ax.legend(fontsize=7)


def _slices(ax: Axes, network: ScalarNetwork, points: Mapping[str, Tensor]) -> None:
    """Along the normal: before, after a rigid shift along it, and after new targets."""
    moved = ScalarNetwork(network.x, 1.3 * network.y)
    s = torch.linspace(-0.4, 0.4, 81, dtype=torch.float64)
    for name, w in points.items():
        normal = w.flip(0) / w.norm()
        line = w + s[:, None] * normal
        colour = COLOURS[name]
        ax.plot(s, network(line), color=colour, label=f"{name}: before")
        ax.plot(s, network(line - 0.1 * normal), ":", color=colour, label="rigid shift")
        ax.plot(s, moved(line), "--", color=colour, label="targets × 1.3")
    ax.axvline(0, color="grey", linewidth=0.8)
    ax.set(
        xlabel="distance from w* along the normal",
        ylabel="loss",
        ylim=(0, 0.4),
        title="Fig. 3(a, b): the dashed curves meet at w*",
    )
    ax.legend(fontsize=6, ncol=2)


def _minima(ax: Axes, network: ScalarNetwork, points: Mapping[str, Tensor]) -> None:
    moved = ScalarNetwork(network.x, 1.3 * network.y)
    g = np.geomspace(0.4, 4, 100)
    for one, style, label in ((network, "k-", "γ"), (moved, "k--", "γ, targets × 1.3")):
        curve = torch.stack([one.minimizer(value) for value in g])
        ax.plot(curve[:, 0], curve[:, 1], style, label=label)
    for name, w in points.items():
        kappa = network.curvature(w)
        ax.plot(*w.tolist(), "o", color=COLOURS[name], label=f"{name}: κ = {kappa:.2f}")
    ax.set(
        xlabel="u",
        ylabel="v",
        xlim=(0, 4),
        ylim=(0, 3),
        title="Fig. 3(c, d): the curved point is farther",
    )
    ax.legend(fontsize=7)


def _followed(ax: Axes, wide: Curves) -> None:
    for i, colour in zip(range(3), ("tab:blue", "tab:orange", "tab:purple"), strict=True):
        for values, style in ((wide.trace, "-"), (wide.kappa, "--"), (wide.input_rise, ":")):
            ax.semilogy(wide.t, values[i] / values[i].mean(), style, color=colour)
    for style, label in (("-", "tr H"), ("--", "κ"), (":", "‖dF/dX‖²")):
        ax.plot([], [], "k" + style, label=label)
    ax.set(
        xlabel="t on γ = exp(tM)·w (eq. 78)",
        ylabel="over its mean on γ",
        title="width 2: three networks (colours)",
    )
    ax.legend(fontsize=7)


def _scatter(ax: Axes, wide: Curves) -> None:
    rise, flat_rise = ends(wide.input_rise, wide.trace)
    trace, flat_trace = ends(wide.trace, wide.trace)
    ax.loglog(trace / flat_trace, rise / flat_rise, ".", label="one network")
    ax.axhline(1, color="grey", linewidth=0.8)
    ax.set(
        xlabel="tr H, sharpest / flattest point of γ",
        ylabel="rise under shifts of X, the same",
        title="width 2: sharper is not always worse",
    )
    ax.legend(fontsize=7)
