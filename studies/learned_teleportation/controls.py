"""Why learned teleportation wins: the same optimizer with one thing changed at a time.

    python -m studies.controls --out runs/controls [--quick]

There are two kinds of controls. *Ablations*: the trained optimizer steps, but its T is changed
(zero, random of the same size, cut off after five steps, from a formula). *Trained*: meta-trained
anew with the same budget, with a group of m2's features left out, with a formula in place of m2, or
with m1 alone given the covariance and as many weights as m1 and m2 have together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from metaopt.cli.common import set_threads
from metaopt.cli.recipes import Recipe, load_recipe
from metaopt.errors import UserError
from metaopt.evaluation.table import number
from metaopt.learned.baselines import GradientDirection, Whitening
from metaopt.learned.checkpoint import load_meta_optimizer
from metaopt.learned.element import ElementRule
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import RegressionFamily, first_seeds
from metaopt.training.run import BEST
from studies.command import add_jobs, study_parser
from studies.learned_teleportation.ablation import Ablation
from studies.learned_teleportation.curves import Build, Curves, checksum, file_name, measure
from studies.learned_teleportation.meta_seeds import chosen, measured
from studies.learned_teleportation.scale import Quick, Scale
from studies.learned_teleportation.training_pool import seeded, train_all
from studies.report import markdown, write_text

SIZES = (0.03, 0.1, 0.3)
"""Fractions of whitening a step, and norms of the gradient's direction, that are tried."""

Change = Callable[[ElementRule], ElementRule]


def _whitening(size: float) -> Change:
    return lambda rule: Whitening(size)


def _direction(size: float) -> Change:
    return lambda rule: GradientDirection(size)


ABLATIONS: dict[str, Change] = {
    "as trained": lambda rule: rule,
    "T = 0": lambda rule: Ablation(rule, steps=0),
    "random T of the same size": lambda rule: Ablation(rule, random=1),
    "T = 0 after 5 steps": lambda rule: Ablation(rule, steps=5),
    **{f"T whitens by {size:g}": _whitening(size) for size in SIZES},
    **{f"T follows the gradient norm, size {size:g}": _direction(size) for size in SIZES},
}
"""Ablations by name: what takes the place of the trained m2 (the group-element network)."""


def trained_controls() -> dict[str, Recipe]:
    """Return recipes of ``lstm_update_tele_v1`` with one thing changed, by name."""
    base = load_recipe("lstm_update_tele_v1")

    def change(**fields: object) -> Recipe:
        return replace(base, networks=replace(base.networks, **fields))  # type: ignore[arg-type]

    features = base.networks.features
    return {
        "lstm_update_tele_v1": base,
        **{
            f"without {name}": change(features=tuple(f for f in features if f != name))
            for name in features
        },
        **{f"{name} alone": change(features=(name,)) for name in features},
        "no m2": change(element="none"),
        "no m2, m1 sees the covariance, as many weights": change(
            element="none", inputs=("gradient", "covariance"), hidden=30
        ),
        **{
            f"m2 whitens by {size:g}": change(element="whitening", element_size=size)
            for size in SIZES
        },
        **{
            f"m2 follows the gradient norm, size {size:g}": change(
                element="gradient_direction", element_size=size
            )
            for size in SIZES
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, then train the controls and measure all of them."""
    parser = study_parser("controls", __doc__)
    add_jobs(parser)
    parser.add_argument("--seeds", type=int, default=3, help="meta-seeds of each trained control")
    parser.add_argument(
        "--trajectories", type=int, default=240, help="of each; more change little (default: 240)"
    )
    values = parser.parse_args(arguments)
    for name in ("jobs", "seeds", "trajectories"):
        if getattr(values, name) < 1:
            raise UserError(
                f"expected --{name} of 1 or more, got {getattr(values, name)}: give a whole number"
            )
    set_threads(values.threads)
    scale = replace(Quick() if values.quick else Scale(), meta_seeds=values.seeds)
    controls(Path(values.out), scale, values.jobs, values.trajectories)


def controls(out: Path, scale: Scale, jobs: int, trajectories: int) -> None:
    """Run the whole study, or what of it is not in ``out`` yet, and print its tables."""
    recipes = {
        name: scale.recipe(recipe.with_budget(trajectories))
        for name, recipe in trained_controls().items()
    }
    folders = {
        name: seeded(file_name(name), recipe, range(scale.meta_seeds), out / "runs")
        for name, recipe in recipes.items()
    }
    train_all([job for name in folders for job in folders[name]], jobs)
    family = RegressionFamily()
    test = first_seeds("test", scale.problems)
    learned = {
        name: measured(
            name, [f for _, f in runs], out / "curves" / file_name(name), family, test, scale.steps
        )
        for name, runs in folders.items()
    }
    steps = scale.reported
    rows = []
    for name, runs in learned.items():
        at = [sorted(run.best.mean(t) for run in runs) for t in steps]
        medians = [number(float(np.median(losses))) for losses in at]
        spread = f"{number(at[-1][0])} to {number(at[-1][-1])}"
        score = float(np.median([run.score for run in runs]))
        rows.append([name, *medians, spread, f"{score:.2f}", str(sum(r.skipped for r in runs))])
    headings = [
        "meta-trained", *(f"step {t}" for t in steps), "meta-seeds at the last",
        "validation score", "skipped",
    ]  # fmt: skip
    trained = markdown(headings, rows)

    best = chosen(learned["lstm_update_tele_v1"]).folder / BEST
    rows = [
        [name, *(number(curves.mean(t)) for t in steps), number(curves.worst(steps[-1]))]
        for name, curves in ablated(best, out / "curves" / "replaced", family, test, scale).items()
    ]
    headings = ["in the trained optimizer", *(f"step {t}" for t in steps), "worst at the last"]
    for name, text in {"trained": trained, "replaced": markdown(headings, rows)}.items():
        write_text(out / "tables" / f"{name}.md", text)
        print(text)


def ablated(
    checkpoint: Path, out: Path, family: RegressionFamily, test: Sequence[int], scale: Scale
) -> dict[str, Curves]:
    """Return the curves of a trained optimizer under each ablation of its m2, by name."""

    def changed(change: Change) -> Build:
        meta = load_meta_optimizer(checkpoint)
        assert meta.element is not None
        meta.element = change(meta.element)
        return lambda problem: LearnedOptimizer(problem, meta)

    return {
        name: measure(
            out / f"{file_name(name)}.npz",
            f"{checksum(checkpoint)} {name}",
            changed(change),
            family,
            test,
            scale.steps,
        )
        for name, change in ABLATIONS.items()
    }
