"""Section 4.3: does a sharp or a curved minimum have a high validation loss (Table 1)?

Networks that differ in their initial weights alone, trained together; for each, what might predict
its validation loss. Beyond the paper, which reports the list of displacements with the highest
correlation: the list chosen on half of the networks and reported on the other half; rival
predictors; and what each knows beyond the training loss.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from metaopt.errors import UserError
from metaopt.evaluation.figure import usual_style
from metaopt.storage import write_atomically
from metaopt.tasks.data import Dataset
from studies.generalization.association import (
    Correlation,
    coefficient,
    partial_pearson,
    pearson,
    spearman,
)
from studies.generalization.networks import evaluate, initial_weights
from studies.generalization.predictors import (
    LARGEST,
    SCALES,
    Measured,
    Numbers,
    predictors,
    sharpness_at,
)
from studies.generalization.setting import SETTINGS, rows_of
from studies.generalization.training import trained
from studies.report import markdown, write_json, write_text

LOSS, TRAINING = "validation loss", "training loss"


@dataclass(frozen=True)
class CorrelationScale:
    """How much of everything."""

    models: int = 100
    images: int = 50_000
    tested: int = 10_000
    epochs: int = 40
    directions: int = 200
    curves: int = 10
    curved: int = 200
    share: int = 200  # images of each direction
    few: int | None = None  # images of the Hessian; else what the setting says


QUICK = CorrelationScale(10, 2000, 1000, 3, 20, 2, 50, 50, 200)
"""Enough to see that everything runs."""


def correlation(out: Path, dataset: Dataset, scale: CorrelationScale) -> str:
    """Run the study into ``out``, and return its table."""
    setting = SETTINGS[dataset.name]
    train, test = rows_of(dataset, scale.images, scale.tested)
    inputs, classes = train[0].shape[1], int(max(train[1].max(), test[1].max())) + 1
    plan: dict[str, Any] = {"data": dataset.name, "images": len(train[1])}
    sizes = (inputs, *setting.widths, max(classes, 10))
    plan["sizes"], plan["models"] = sizes, scale.models
    scale = replace(scale, few=scale.few or setting.few)
    weights, _ = trained(
        out / f"{dataset.name}-networks.safetensors",
        plan,
        lambda: initial_weights(range(scale.models), sizes),
        train,
        setting.rate,
        range(scale.epochs),
    )
    measured = Measured(
        train,
        scale.directions,
        scale.share,
        scale.few or setting.few,
        scale.curves,
        train[0][: scale.curved],
    )
    path = out / f"{dataset.name}-measures.json"
    numbers = _kept(path, plan, scale)
    ways = predictors(weights, measured) | {
        LOSS: lambda: evaluate(weights, *test)[0].tolist(),
        TRAINING: lambda: evaluate(weights, *train)[0].tolist(),
        "validation accuracy": lambda: evaluate(weights, *test)[1].tolist(),
    }
    numbers = {name: numbers[name] for name in ways if name in numbers}
    for name, measure in ways.items():
        if name not in numbers:
            numbers[name] = measure()
            write_json(path, {"plan": _plan(plan, scale), "numbers": numbers})
    return report(out, dataset.name, {k: np.array(v, dtype=float) for k, v in numbers.items()})


def _plan(plan: dict[str, Any], scale: CorrelationScale) -> dict[str, Any]:
    return {**plan, "scale": asdict(scale), "scales": SCALES, "eigenvalues": LARGEST}


def _kept(path: Path, plan: dict[str, Any], scale: CorrelationScale) -> dict[str, Numbers]:
    """What was measured before, if it was of the same plan."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        found, numbers = kept["plan"], dict(kept["numbers"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"expected measures of this study in {str(path)!r}, got a file that is damaged or "
            f"something else ({type(error).__name__}): remove it to measure anew"
        ) from None
    same = found == json.loads(json.dumps(_plan(plan, scale)))
    return numbers if same else {}


Values = dict[str, NDArray[np.float64]]


def report(out: Path, name: str, values: Values) -> str:
    """Write the table, the picture and the numbers behind them; the table."""
    setting = SETTINGS[name]
    loss, training = values[LOSS], values[TRAINING]
    rows, facts = [], {}
    predicting = {k: v for k, v in values.items() if k not in (LOSS, "validation accuracy")}
    found = {k: _three(v, loss, training, k == TRAINING) for k, v in predicting.items()}
    found |= _chosen(values)
    for predictor, (plain, ranked, beyond) in found.items():
        paper = ""
        if predictor == sharpness_at(setting.finer):
            paper = f"{setting.sharpness:.3f}"
        if predictor == "psi":
            paper = f"{setting.curvature:.3f}"
        rows.append([name, predictor, str(plain), paper, str(ranked), str(beyond or "–")])
        facts[predictor] = {"pearson": plain, "spearman": ranked, "partial": beyond}
    headings = [
        "data", "predictor", "Pearson with the validation loss", "the paper's",
        "Spearman", "Pearson, given the training loss",
    ]  # fmt: skip
    table = markdown(headings, rows)
    write_text(out / "tables" / f"correlation_{name.replace('-', '_')}.md", table)
    write_json(out / f"{name}-correlation.json", facts)
    write_atomically(out / f"correlation-{name}.png", _picture(name, values))
    return table


Three = tuple[Correlation, Correlation, Correlation | None]


def _three(v: NDArray[np.float64], loss: NDArray[np.float64], training: NDArray[np.float64],
           itself: bool) -> Three:  # fmt: skip
    return (
        pearson(v, loss),
        spearman(v, loss),
        None if itself else partial_pearson(v, loss, training),
    )


def _chosen(values: Values) -> dict[str, Three]:
    """phi with the list that is best on one half of the networks, on the other half."""
    loss, training = values[LOSS], values[TRAINING]
    half = np.arange(len(loss)) % 2 == 0
    found = {}
    for here, there, name in ((half, ~half, "even"), (~half, half, "odd")):
        best = max(SCALES, key=partial(_on, values, here))
        own = sharpness_at(best)
        label = f"{own}: best on the {name} half, reported on the other"
        found[label] = _three(values[own][there], loss[there], training[there], False)
    return found


def _on(values: Values, half: NDArray[np.bool_], scale: float) -> float:
    return pearson_of(values[sharpness_at(scale)][half], values[LOSS][half])


def pearson_of(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Without an interval; -1 where there is nothing to correlate."""
    finite = np.isfinite(a) & np.isfinite(b)
    if finite.sum() < 2:
        return -1.0
    return float(np.nan_to_num(coefficient(a[finite], b[finite]), nan=-1.0))


@usual_style()
def _picture(name: str, values: Values) -> bytes:
    """Figures 10 and 11, and the training loss beside them; a point a network."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    shown = (sharpness_at(SETTINGS[name].finer), "psi", TRAINING)
    for axes, predictor in zip(figure.subplots(1, 3, sharey=True), shown, strict=True):
        axes.scatter(values[predictor], values[LOSS], s=9)
        axes.set_xlabel(predictor)
        axes.set_title(f"Pearson {pearson(values[predictor], values[LOSS])}", fontsize=9)
    figure.axes[0].set_ylabel(f"validation loss, {name}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
