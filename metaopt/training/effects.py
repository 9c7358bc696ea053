"""Fields of a training config that can have no effect, which are refused before a run begins."""

from __future__ import annotations

from metaopt.errors import UserError, shown
from metaopt.registry import defaults
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.spec import TrainingSpec


def check_effects(spec: TrainingSpec) -> None:
    """Check that no field asks for something that the run never does.

    Args:
        spec: how the networks are trained, and on which tasks.

    Raises:
        UserError: for a field of another estimator, ``shortest`` above the steps or without tasks
            that have it, ``recompute`` of at least a window, or ``pes_staggered`` where no part of
            a batch ever has two windows and two tasks.
    """
    _check_estimator_fields(spec)
    _check_shortest(spec)
    window = min(spec.window, spec.steps)
    recompute = getattr(spec.gradient_estimator, "recompute", 0)
    if recompute >= window:
        raise UserError(
            f"expected recompute below the {window} steps of a window, got {recompute}, which "
            "takes each step twice and saves no memory: lower it, or set it to 0"
        )
    if getattr(spec.gradient_estimator, "pes_staggered", False):
        _check_staggered(spec)


def _check_estimator_fields(spec: TrainingSpec) -> None:
    used = defaults(type(spec.gradient_estimator))
    for config in ESTIMATORS.values():
        for name, default in defaults(config).items():
            if name not in used and getattr(spec, name, default) != default:
                owners = [key for key, c in ESTIMATORS.items() if name in defaults(c)]
                raise UserError(
                    f"expected fields of the estimator {shown(spec.estimator)}, got "
                    f"{name}={shown(getattr(spec, name))}, a field of {' and '.join(owners)}: "
                    "leave it out, or choose another estimator"
                )


def _check_shortest(spec: TrainingSpec) -> None:
    if spec.shortest and not hasattr(spec.tasks, "shortest"):
        raise UserError(
            f"expected shortest=0 for problems={shown(spec.problems)}, whose trajectories have "
            f"--steps steps each, got {spec.shortest}: leave it out, or train on tasks by --task"
        )
    if spec.shortest > spec.steps:
        raise UserError(
            f"expected shortest of at most the {spec.steps} steps of a trajectory, got "
            f"{spec.shortest}: lower it, or raise --steps"
        )


def _check_staggered(spec: TrainingSpec) -> None:
    one_window = spec.steps <= spec.window
    most = spec.tasks.most(spec.batch)
    parts = spec.shards(1)  # several processes at the start can make more of them
    if one_window or (most is not None and most <= parts):
        got = "one window" if one_window else "one task in each part of a batch"
        advice = "a smaller --window" if one_window else "a larger --batch_size or --micro_batch"
        raise UserError(
            f"expected two windows and two tasks or more for pes_staggered, got {got}: leave it "
            f"out, or give {advice}"
        )
