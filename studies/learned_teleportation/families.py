"""One learned optimizer on tasks unlike those it was trained on.

    python -m studies.families --out runs/families [--checkpoint PATH] [--quick]

Other widths, more hidden units than inputs and fewer, fewer samples, another slope, normal data,
and deeper networks; beside it Adam at the best of nine rates and its default for each family,
chosen on validation problems of that family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from metaopt.cli.common import set_threads
from metaopt.evaluation.table import number
from metaopt.learned.checkpoint import pretrained_path
from metaopt.tasks import FAMILIES, first_seeds
from studies.command import study_parser
from studies.learned_teleportation.baselines import RATES, Baselines
from studies.learned_teleportation.curves import file_name, measure_checkpoint
from studies.report import markdown, write_text

BASELINES = ("adam", "levenberg_marquardt")
DENSE = 8000  # residuals times hidden units, up to which Levenberg-Marquardt is run: it is slow
NARROW = 32  # hidden units up to which 16 problems are measured; 4 above


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, then measure and print the table."""
    parser = study_parser("families", __doc__)
    parser.add_argument(
        "--checkpoint", type=str, default="", help="default: the shipped lstm_update_tele"
    )
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    checkpoint = Path(values.checkpoint or pretrained_path("lstm_update_tele"))
    table = families(Path(values.out), checkpoint, values.quick)
    write_text(Path(values.out) / "tables" / "families.md", table)
    print(table)


def families(out: Path, checkpoint: Path, quick: bool) -> str:
    """Make the table with a line for each family: the learned optimizer, and baselines beside it.

    Args:
        out: the folder that keeps the curves.
        checkpoint: of the learned optimizer.
        quick: whether to take few tasks and steps.
    """
    rows = []
    for name, family in tqdm(FAMILIES.items(), unit="family"):
        if quick and family.hidden > NARROW:
            continue
        problems = 2 if quick else 16 if family.hidden <= NARROW else 4
        steps, far = (5, 8) if quick else (100, 300)
        test = first_seeds("test", problems)
        folder = out / "curves" / file_name(name)
        learned = measure_checkpoint(folder / "learned.npz", checkpoint, family, test, far)
        baselines = Baselines(
            folder,
            family,
            first_seeds("validation", problems, offset=1000),
            test,
            steps,
            BASELINES if family.samples * family.output * family.hidden <= DENSE else BASELINES[:1],
            (0.1, 1.0) if quick else RATES[5:],  # 3e-3 to 30
        )
        baselines_at = [
            number(baselines.tuned(baseline).curves.mean(steps)) for baseline in baselines.names
        ]
        rows.append(
            [
                name.replace("_", " "),
                number(learned.mean(0)),
                *(number(learned.mean(t)) for t in (steps // 5, steps // 2, steps, far)),
                number(learned.worst(far)),
                number(learned.median_defect),
                str(learned.refused),
                *[*baselines_at, "–"][: len(BASELINES)],
            ]
        )
    headings = [
        "family", "start", *(f"step {t}" for t in (steps // 5, steps // 2, steps, far)),
        f"worst at {far}", "median invariance error", "rejected", f"Adam at {steps}",
        f"Levenberg-Marquardt at {steps}",
    ]  # fmt: skip
    return markdown(headings, rows)
