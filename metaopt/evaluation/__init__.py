"""Evaluation: the table of methods, the loop that runs them, tables and pictures of results.

Only ``loss_figure``, ``band_figure`` and ``html_report`` need more than torch and numpy: they need
the extra ``report``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metaopt.evaluation.evaluate import Result, evaluate
from metaopt.evaluation.methods import (
    BASELINES,
    Method,
    default_methods,
    known_methods,
    learned_method,
    register_method,
    resolve,
)
from metaopt.evaluation.per_problem import PerProblemOptimizer
from metaopt.evaluation.results import read_results, save
from metaopt.evaluation.rollout import Trajectory, rollout
from metaopt.evaluation.statistics import GeometricMean, geometric_mean, geometric_means
from metaopt.evaluation.styles import Style, method_styles
from metaopt.evaluation.sweep import best, sweep
from metaopt.evaluation.table import Line, as_text, summarise
from metaopt.extras import extra

if TYPE_CHECKING:
    from metaopt.evaluation.figure import Band, band_figure, loss_figure
    from metaopt.evaluation.report import html_report

__all__ = [
    "BASELINES",
    "Band",
    "GeometricMean",
    "Line",
    "Method",
    "PerProblemOptimizer",
    "Result",
    "Style",
    "Trajectory",
    "as_text",
    "band_figure",
    "best",
    "default_methods",
    "evaluate",
    "geometric_mean",
    "geometric_means",
    "html_report",
    "known_methods",
    "learned_method",
    "loss_figure",
    "method_styles",
    "read_results",
    "register_method",
    "resolve",
    "rollout",
    "save",
    "summarise",
    "sweep",
]

_DRAWING = {
    "Band": "figure",
    "band_figure": "figure",
    "loss_figure": "figure",
    "html_report": "report",
}


def __getattr__(name: str) -> Any:
    """Import the drawing functions when they are first used."""
    if name not in _DRAWING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extra("report"):
        return getattr(import_module(f"{__name__}.{_DRAWING[name]}"), name)
