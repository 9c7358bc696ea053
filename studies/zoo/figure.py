"""The figure of the zoo: one panel an activation, the loss against steps."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from metaopt.evaluation.figure import usual_style
from metaopt.evaluation.styles import STYLES
from metaopt.extras import extra
from studies.zoo.cells import ACTIVATIONS, Cell
from studies.zoo.report import Kept, score
from studies.zoo.rivals import Contender


def zoo_figure(
    measured: Mapping[Cell, Kept], contenders: Mapping[str, Contender], learned: str
) -> bytes:
    """Return a PNG: the geometric mean of loss over start of each method, one panel an activation.

    Args:
        measured: what was measured.
        contenders: the methods.
        learned: the name of the learned optimizer, which is drawn thick.
    """
    with extra("report"):
        from matplotlib import pyplot as plt
    with usual_style():
        figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True)
        for axis, activation in zip(axes.flat, ACTIVATIONS, strict=True):
            own = [kept for cell, kept in measured.items() if cell.activation == activation]
            for name in contenders:
                curves = [_curve(kept, name) for kept in own if name in kept]
                if curves:
                    mean = np.exp(np.mean(curves, axis=0))
                    look: dict[str, Any] = STYLES[name].line if name in STYLES else {}
                    look = {key: value for key, value in look.items() if key != "marker"}
                    width = 2.5 if name == learned else 1.2
                    axis.semilogy(mean, label=name, linewidth=width, **look)
            axis.set_title(f"{activation} ({len(own)} cells)")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        for axis in axes[:, 0]:
            axis.set_ylabel("loss over its start")
        drawn = [axis for axis in axes.flat if axis.lines]
        if drawn:
            drawn[0].legend(fontsize=7)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        plt.close(figure)
    return buffer.getvalue()


def _curve(kept: Kept, name: str) -> Any:
    """log(loss / start) of the best setting at step 100."""
    best = min(kept[name].values(), key=lambda run: score(kept, run, "100"))
    curve = np.array([np.inf if v is None else v for v in best["curve"]], dtype=float)
    return np.minimum(curve - curve[0], 50.0)
