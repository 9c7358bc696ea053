"""``eval_meta.py``: evaluate methods on held-out problems."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from metaopt.cli.common import Parser, guarded, set_threads, take
from metaopt.errors import UserError
from metaopt.evaluation.evaluate import (
    RESULTS,
    Result,
    evaluate,
    write_manifest,
    write_results,
)
from metaopt.evaluation.figure import loss_figure
from metaopt.evaluation.methods import default_methods, known_methods, resolve
from metaopt.evaluation.report import html_report
from metaopt.evaluation.statistics import FLOOR
from metaopt.evaluation.table import as_text, summarise
from metaopt.learned.checkpoint import write_atomically
from metaopt.problems import PAPER_TEST_SEEDS, RegressionFamily, first_seeds

FIGURE = "loss.png"
REPORT = "report.html"


def build_parser() -> Parser:
    """The problem family's fields are flags too."""
    parser = Parser(
        prog="eval_meta.py",
        description="Evaluate methods on the same held-out problems, from the same start.",
    )
    parser.add_argument("--config", action="config", help="a YAML file of these flags")
    parser.add_argument(
        "--methods",
        type=str | list[str],
        default="",
        help="comma-separated names, name@rate, or paths of .safetensors checkpoints; default: "
        f"all learned ones and gd. Known: {', '.join(known_methods())}",
    )
    parser.add_argument(
        "--seeds",
        type=str | int | list[int],
        default="",
        help="comma-separated problem seeds in [0, 10^6), or 'paper' for the paper's five",
    )
    parser.add_argument(
        "--problems",
        type=int,
        default=64,
        help="without --seeds: the first N test problems",
    )
    parser.add_argument("--steps", type=int, default=100, help="inner steps of each method")
    parser.add_argument("--out", type=str, default="runs/eval", help="folder of the results")
    parser.add_switch("--overwrite", "replace the results in --out")
    parser.add_switch("--tensorboard", "also write mean log10 losses as TensorBoard scalars")
    parser.add_threads()
    parser.add_class_arguments(RegressionFamily)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, run, save."""
    values = build_parser().parse_args(arguments)
    set_threads(values.threads)
    family = take(RegressionFamily, values)
    if values.steps < 1:
        raise UserError(f"expected --steps of 1 or more, got {values.steps}: 100 is usual")
    names = values.methods  # a string on the command line, perhaps a list in a config
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")] if names else []
    methods = [resolve(name) for name in dict.fromkeys(names or default_methods())]
    seeds = parse_seeds(values.seeds, values.problems)
    out = Path(values.out)
    if (out / RESULTS).exists() and not values.overwrite:
        raise UserError(
            f"expected an --out without results, got {values.out!r}, which holds some: add "
            f"--overwrite or choose another"
        )
    out.mkdir(parents=True, exist_ok=True)

    results: list[Result] = []
    for result in evaluate(methods, family, seeds, values.steps):
        results.append(result)
        done = f"evaluated {result.method.name} ({len(results)} of {len(methods)})"
        print(done, file=sys.stderr, flush=True)
    write_results(out, results, seeds)  # first: what is drawn can be drawn again
    write_manifest(out, results, seeds, family, values.steps)
    lines = summarise(results)
    title = (
        f"Loss on {len(seeds)} held-out problems "
        f"({family.hidden} hidden units, {family.samples} samples)"
    )
    picture = loss_figure(results, title)
    write_atomically(out / FIGURE, picture)
    subtitle = f"{values.steps} steps from a mean loss of {results[0].losses[0].mean():.4g}."
    write_atomically(out / REPORT, html_report(title, subtitle, lines, values.steps, picture))
    if values.tensorboard:
        write_curves(out, results)
    print(as_text(lines, values.steps))
    for name in (RESULTS, "manifest.json", FIGURE, REPORT):
        print(out / name)


def parse_seeds(asked: str | int | list[int], problems: int) -> list[int]:
    """The seeds a user asks for; the ranges are checked where problems are drawn.

    Raises:
        UserError: if they are no whole numbers.
    """
    if asked == "paper":
        return list(PAPER_TEST_SEEDS)
    text = ",".join(map(str, asked)) if isinstance(asked, list) else str(asked)
    if not text:
        return list(first_seeds("test", problems))
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UserError(
            f"expected --seeds as whole numbers separated by commas, got {text!r}: as in 0,5,7"
        ) from None


def write_curves(out: Path, results: Sequence[Result]) -> None:
    """TensorBoard scalars: mean log10 loss over problems, a run a method."""
    for result in results:
        with SummaryWriter(
            str(out / "tensorboard" / result.method.name.replace("/", "_"))
        ) as writer:
            logs = result.trajectory.losses.clamp(min=FLOOR).log10().mean(dim=1)
            for step, value in enumerate(logs.tolist()):
                writer.add_scalar("log10_loss", value, step)


entry = guarded(main)
