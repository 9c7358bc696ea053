"""Write the table and the picture of the teleport study (Figure 4)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from metaopt.evaluation.figure import usual_style
from metaopt.storage import write_atomically
from studies.report import markdown, write_text

NONE = "no teleport"
Array = NDArray[np.float64]


def final(result: dict[str, Any], variant: str, what: str) -> Array:
    """At the last epoch, ``(seeds,)``."""
    last: Array = curves(result, variant, what)[-1]
    return last


def curves(result: dict[str, Any], variant: str, what: str) -> Array:
    """From the moment of the teleport on, ``(epochs + 1, seeds)``."""
    names = list(result["variants"])
    log = [result["at"], *result["after"]]
    table = np.array([epoch[what] for epoch in log], dtype=float)
    by_variant: Array = table.reshape(len(log), -1, len(names))[:, :, names.index(variant)]
    return by_variant


def paired(ours: Array, theirs: Array) -> str:
    """Mean difference over seeds with Student's 95 % interval."""
    difference = ours - theirs
    mean = float(difference.mean())
    if len(difference) < 2 or not np.isfinite(difference).all():
        return f"{mean:+.4f}"
    scale = max(float(stats.sem(difference)), 1e-300)
    low, high = stats.t.interval(0.95, len(difference) - 1, loc=mean, scale=scale)
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def report(out: Path, name: str, result: dict[str, Any]) -> str:
    """Write the table and the picture; the table."""
    rows = []
    for variant in result["variants"]:
        facts = result["facts"][variant]
        loss = final(result, variant, "test")
        teleport = variant.split(":")[0]
        against = ["", "", ""]
        if variant != NONE:
            against[0] = paired(loss, final(result, NONE, "test"))
        if variant not in (NONE, *(v for v in result["variants"] if ":" in v)):
            for place, control in ((1, "random g"), (2, "warm restart")):
                other = final(result, f"{teleport}: {control}", "test")
                against[place] = paired(loss, other)
        rows.append(
            [
                name,
                variant,
                _spread(final(result, variant, "train")),
                _spread(loss),
                *against,
                _change(facts),
                f"{_mean(facts, 'rise'):+.4f}",
                f"{_mean(facts, 'defect'):.1e}",
                f"{_mean(facts, 'moved'):.1e}",
            ]
        )
    headings = [
        "data", "variant", "training loss", "test loss", "less no teleport", "less random g",
        "less warm restart", "measure before → after", "rise in loss", "invariance error",
        "moved",
    ]  # fmt: skip
    table = markdown(headings, rows)
    write_text(out / "tables" / f"teleport_{name.replace('-', '_')}.md", table)
    write_atomically(out / f"teleport-{name}.png", _picture(name, result))
    return table


def _spread(values: Array) -> str:
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.4f} ± {deviation:.4f}"


def _mean(facts: list[dict[str, Any]], name: str) -> float:
    values = [fact[name] for fact in facts]
    return float(np.mean([np.nan if value is None else value for value in values]))


def _change(facts: list[dict[str, Any]]) -> str:
    before, after = _mean(facts, "before"), _mean(facts, "after")
    return "" if np.isnan(before) else f"{before:.4g} → {after:.4g}"


@usual_style()
def _picture(name: str, result: dict[str, Any]) -> bytes:
    """Mean training (solid) and test (dashed) losses from the teleport on."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    start = int(result["plan"]["at"])
    for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("phi", "psi"), strict=True):
        teleports = [v for v in result["variants"] if v.startswith(measure) and ":" not in v]
        controls = [f"{measure} down, guarded: {c}" for c in ("random g", "warm restart")]
        shown = [NONE, *teleports, *controls]
        for index, variant in enumerate(shown):
            for what, style in (("train", "-"), ("test", "--")):
                means = curves(result, variant, what).mean(axis=1)
                epochs = np.arange(start, start + len(means))
                label = variant if what == "train" else None
                axes.plot(epochs, means, style, color=f"C{index}", label=label, linewidth=1.2)
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_title("training loss solid, test loss dashed", fontsize=9)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel(f"loss, {name}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
