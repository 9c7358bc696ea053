"""Make the tables of the study of learned teleportation (section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

from metaopt.evaluation.table import number
from metaopt.tasks import first_seeds
from metaopt.training.run import BEST
from studies.learned_teleportation.baselines import Baselines, steps_to_reach
from studies.learned_teleportation.curves import Curves, measure_checkpoint
from studies.learned_teleportation.meta_seeds import Trained, chosen
from studies.learned_teleportation.scale import TITLES, Scale
from studies.report import markdown


def meta_seed_table(learned: dict[str, list[Trained]], scale: Scale) -> str:
    """Make the table with a line for each training."""
    steps = scale.reported
    far = [t for t in (300, 500) if t <= scale.far]
    headings = [
        "method", "meta-seed", *map(str, steps), *(f"{t}" for t in far),
        f"worst at {steps[-1]}", *(f"worst at {t}" for t in far),
        f"float64 at {steps[-1]}", f"last checkpoint at {steps[-1]}", "median invariance error",
        "skipped",
    ]  # fmt: skip
    rows = []
    for name, runs in learned.items():
        ship = chosen(runs)
        for run in runs:
            label = f"**{run.seed}**" if run is ship else str(run.seed)
            there = [t for t in far if t < len(run.best.losses)]
            blank = ["–"] * (len(far) - len(there))
            rows.append(
                [
                    f"`{name}`",
                    label,
                    *(number(run.best.mean(t)) for t in (*steps, *there)),
                    *blank,
                    *(number(run.best.worst(t)) for t in (steps[-1], *there)),
                    *blank,
                    number(run.double.mean(steps[-1])),
                    number(run.last.mean(steps[-1])),
                    number(run.best.median_defect),
                    str(run.skipped),
                ]
            )
    return markdown(headings, rows)


def method_table(learned: dict[str, list[Trained]], baselines: Baselines, scale: Scale) -> str:
    """Make the table of the chosen learned optimizers and of every baseline at its best rate."""
    steps = scale.reported
    rows = []
    for name in TITLES:
        curves = chosen(learned[name]).best
        rows.append(_method_row(f"`{name}`", "–", curves, steps))
    envelope = baselines.envelope()
    rows.append(["envelope", "all", *(number(float(envelope.losses[t])) for t in steps), "–", "–"])
    for name in baselines.names:
        tuned = baselines.tuned(name)
        rows.append(_method_row(f"`{name}`", f"{tuned.rate:g}", tuned.curves, steps))
    headings = ["method", "rate", *(f"step {t}" for t in steps), "worst at the last", "ms a step"]
    return markdown(headings, rows)


def _method_row(label: str, rate: str, curves: Curves, steps: Sequence[int]) -> list[str]:
    return [
        label,
        rate,
        *(number(curves.mean(t)) for t in steps),
        number(curves.worst(steps[-1])),
        f"{1e3 * curves.seconds:.2f}",
    ]


def reach_table(learned: dict[str, list[Trained]], baselines: Baselines, scale: Scale) -> str:
    """Make the table of steps and seconds that each baseline needs to reach a learned loss.

    The losses are those of LSTM(update,tele) at the marks. Seconds are of one task alone.
    """
    ship = chosen(learned["lstm_update_tele_v1"])
    targets = [ship.best.mean(t) for t in scale.marks]
    one = first_seeds("test", 1)
    alone = measure_checkpoint(
        baselines.out / "learned-alone.npz", ship.folder / BEST, baselines.family, one, scale.steps
    )
    rows = [
        [
            "`lstm_update_tele_v1`",
            *(f"{t} steps, {number(t * alone.seconds)} s" for t in scale.marks),
            f"{1e3 * alone.seconds:.2f}",
        ]
    ]
    for name in baselines.names:
        rate, curves = baselines.race(name, scale.patience)
        seconds = baselines.run(name, rate, one, "alone").seconds
        patience = len(curves.losses) - 1
        cells = []
        for target in targets:
            steps = steps_to_reach(curves, target)
            if steps is None:
                loss = number(curves.mean(patience))
                cells.append(f"not in {patience} ({loss} there)")
            else:
                cells.append(f"{steps} steps, {number(steps * seconds)} s")
        rows.append([f"`{name}`", *cells, f"{1e3 * seconds:.2f}"])
    headings = [
        "method",
        *(
            f"to {number(target)}, its loss at {t}"
            for t, target in zip(scale.marks, targets, strict=True)
        ),
        "ms a step, one problem",
    ]
    return markdown(headings, rows)


def rate_table(baselines: Baselines) -> str:
    """Make the table of losses on validation tasks at the best rate and its neighbours."""
    rows = []
    for name in baselines.names:
        rates = baselines.rates[name]
        at = rates.index(baselines.best_rate(name, baselines.steps))
        around = [
            number(baselines.validation[name, rates[i]].mean(baselines.steps))
            if 0 <= i < len(rates)
            else "–"
            for i in (at - 1, at, at + 1)
        ]
        rows.append([f"`{name}`", f"{rates[at]:g}", " / ".join(around)])
    return markdown(["method", "rate", "loss at the rate below / at it / above"], rows)
