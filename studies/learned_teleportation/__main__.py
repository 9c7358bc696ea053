"""Figure 6 with the evidence: learned methods over meta-seeds against tuned baselines.

    python -m studies.learned_teleportation --out runs/study [--quick]

Trains every method of Figure 6 with several meta-seeds, and the paper's own configuration; measures
all on the same test problems; tunes baselines on validation problems. Runs and curves are kept in
--out, so it goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaopt.cli.common import guarded, set_threads
from metaopt.cli.recipes import load_recipe
from metaopt.errors import UserError
from metaopt.evaluation.figure import Band, band_figure
from metaopt.storage import write_atomically
from metaopt.tasks import RegressionFamily, first_seeds
from studies.command import add_jobs, study_parser
from studies.learned_teleportation.baselines import Baselines
from studies.learned_teleportation.meta_seeds import Trained, measured
from studies.learned_teleportation.scale import TITLES, Quick, Scale
from studies.learned_teleportation.tables import (
    meta_seed_table,
    method_table,
    rate_table,
    reach_table,
)
from studies.learned_teleportation.training_pool import seeded, train_all
from studies.recipes import PAPER, SHIPPED
from studies.report import over_seeds, write_json, write_text

EQ79 = "lstm_update_tele_eq79"
NAMED = {"kfac": "K-FAC by hand", "levenberg_marquardt": "Levenberg-Marquardt"}
"""Baselines with curves of their own in the figure, beside gradient descent."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, then train, measure and draw."""
    parser = study_parser("learned_teleportation", __doc__)
    parser.set_defaults(out="runs/study")
    add_jobs(parser)
    values = parser.parse_args(arguments)
    if values.jobs < 1:
        raise UserError(
            f"expected --jobs of 1 or more, got {values.jobs}: one for each core is usual"
        )
    set_threads(values.threads)
    study(Path(values.out), Quick() if values.quick else Scale(), values.jobs)


def study(out: Path, scale: Scale, jobs: int) -> None:
    """Run the whole study, or what of it is not in ``out`` yet."""
    methods = (*SHIPPED, EQ79, *(PAPER if scale.paper_seeds else ()))
    recipes = {name: scale.recipe(load_recipe(name)) for name in methods}
    if scale.long is not None:
        long = load_recipe("lstm_update_tele_v1").with_budget(scale.long)
        recipes[f"lstm_update_tele_v1 x{scale.long}"] = long
    seeds = {
        name: range(scale.paper_seeds if name in PAPER else scale.meta_seeds) for name in recipes
    }
    runs = {
        name: seeded(name.replace(" ", "_"), recipe, seeds[name], out / "runs")
        for name, recipe in recipes.items()
    }
    train_all([job for name in runs for job in runs[name]], jobs)

    family = RegressionFamily()
    test = first_seeds("test", scale.problems)
    learned = {
        name: measured(
            name,
            [folder for _, folder in folders],
            out / "curves" / name.replace("/", "-"),
            family,
            test,
            scale.steps if name in PAPER else scale.far,
        )
        for name, folders in runs.items()
    }
    validation = first_seeds("validation", scale.validation, offset=1000)
    baselines = Baselines(
        out / "curves" / "hand-made",
        family,
        validation,
        test,
        scale.steps,
        scale.baselines,
        scale.rates,
    )
    _figures(out, scale, learned, baselines)
    tables = {
        "meta_seeds": meta_seed_table(learned, scale),
        "methods": method_table(learned, baselines, scale),
        "reach": reach_table(learned, baselines, scale),
        "rates": rate_table(baselines),
    }
    for name, text in tables.items():
        write_text(out / "tables" / f"{name}.md", text)
        print(text)
    facts = {
        name: [
            {
                "seed": run.seed,
                "score": run.score,
                "skipped": run.skipped,
                "folder": str(run.folder.relative_to(out)),
            }
            for run in trained
        ]
        for name, trained in learned.items()
    }
    write_json(out / "runs.json", facts)
    print(", ".join(str(path) for path in (*sorted(out.glob("*.png")), out / "tables")))


def _figures(
    out: Path, scale: Scale, learned: dict[str, list[Trained]], baselines: Baselines
) -> None:
    def band(name: str, title: str) -> Band:
        curves = [run.best.means[: scale.steps + 1] for run in learned[name]]
        return over_seeds(title, curves)._replace(method=name.rpartition("/")[2])

    def single(label: str, curve: NDArray[np.float64], method: str = "") -> Band:
        return Band(label, curve, curve, curve, method=method)

    without_learning = [
        single("GD", baselines.tuned("gd").curves.means, "gd"),
        single("envelope of baselines", baselines.envelope().losses),
        *(
            single(title, baselines.tuned(name).curves.means, name)
            for name, title in NAMED.items()
            if name in baselines.names
        ),
    ]
    problems = f"{scale.problems} test problems"
    figure6 = [*(band(name, title) for name, title in TITLES.items()), *without_learning]
    title = f"Median meta-seed, between the best and the worst of {scale.meta_seeds}; {problems}"
    write_atomically(out / "figure6.png", band_figure(figure6, title))
    if not scale.paper_seeds:
        return
    paper = [*(band(name, name.removeprefix("paper/")) for name in PAPER), without_learning[0]]
    title = f"The paper's configuration, {scale.paper_seeds} meta-seeds; {problems}"
    write_atomically(out / "paper.png", band_figure(paper, title))


if __name__ == "__main__":
    sys.exit(guarded(main)())
