"""``eval_meta.py``: evaluate methods on held-out problems."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from metaopt.cli.common import (
    Parser,
    guarded,
    import_extensions,
    pick_device,
    set_threads,
    take,
)
from metaopt.cli.verify import announced, verify
from metaopt.errors import UserError
from metaopt.evaluation.evaluate import Result, evaluate
from metaopt.evaluation.methods import default_methods, known_methods, resolve
from metaopt.evaluation.results import MANIFEST, RESULTS, STRANGE, previous, read_results, save
from metaopt.evaluation.statistics import FLOOR
from metaopt.evaluation.table import Line, as_text, summarise
from metaopt.extras import MissingExtra, extra
from metaopt.launch import joined, note_start, restarted
from metaopt.storage import locked, remove_leftovers, write_atomically
from metaopt.tasks import PAPER_TEST_SEEDS, RegressionFamily, check_seeds, first_seeds

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
    parser.add_argument(
        "--together",
        type=int,
        default=0,
        help="problems stepped in one batch, 0: all; under torchrun processes share the batches",
    )
    parser.add_switch("--overwrite", "replace the results in --out")
    parser.add_switch("--redraw", "only draw the table, picture and report of --out again")
    parser.add_switch(
        "--verify-results",
        "only make the README's table again, or --methods of it, and say where it differs; "
        "exit code 1 if it does",
    )
    parser.add_switch("--tensorboard", "also write mean log10 losses as TensorBoard scalars")
    parser.add_threads()
    parser.add_device()
    parser.add_import()
    parser.add_timeout(1800.0)  # processes meet once a method, and nothing is kept before the end
    parser.add_class_arguments(RegressionFamily)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, run, save."""
    import_extensions(arguments)
    values = build_parser().parse_args(arguments)
    set_threads(values.threads)
    if values.tensorboard:
        _summary_writer()  # or say now that it is missing
    if values.redraw:
        draw(Path(values.out), drawing(), values.tensorboard)
        return
    names = values.methods  # a string on the command line, perhaps a list in a config
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")] if names else []
    if values.verify_results:
        _check_nothing_else(values)
        if not verify(list(dict.fromkeys(names))):
            raise SystemExit(1)
        return
    family = take(RegressionFamily, values)
    if values.steps < 1:
        raise UserError(f"expected --steps of 1 or more, got {values.steps}: 100 is usual")
    methods = [resolve(name) for name in dict.fromkeys(names or default_methods())]
    seeds = check_seeds(parse_seeds(values.seeds, values.problems), "test")
    out = Path(values.out)
    device = pick_device(values.device)
    asked = f"{names} {family} {seeds} {values.steps} {values.together} {torch.__version__}"
    with joined(device, values.timeout) as ranks, ExitStack() as held:
        ranks.check_same(asked, "command and torch")
        ranks.from_first(lambda: _take(out, values.overwrite or restarted(out), held))
        running = evaluate(methods, family, seeds, values.steps, values.together, ranks, device)
        results = announced(running, len(methods), loud=ranks.first)
        if ranks.first:
            save(out, results, seeds, family, values.steps)
            try:
                pictures = drawing()
            except MissingExtra as missing:
                print(f"without {FIGURE} and {REPORT}: {missing}", file=sys.stderr)
                pictures = {}
            draw(out, pictures, values.tensorboard)


Drawing = Callable[[str, Sequence[Result], Sequence[Line], Mapping[str, Any]], bytes]
"""(title, results, lines of the table, manifest) -> the content of a file."""


def drawing() -> dict[str, Drawing]:
    """What draws the files beside the results: by name, the picture and the report.

    Raises:
        MissingExtra: without the extra ``report``.
    """
    with extra("report"):
        from metaopt.evaluation.figure import loss_figure
        from metaopt.evaluation.report import html_report
    return {
        FIGURE: lambda title, results, lines, manifest: loss_figure(results, title),
        REPORT: html_report,
    }


def draw(out: Path, pictures: dict[str, Drawing], tensorboard: bool = False) -> None:
    """Print the table of the results in a folder, and draw the files that show them.

    Args:
        pictures: what :func:`drawing` gives; of the files that are not in it, old ones are
            removed, as they show other results.

    Raises:
        UserError: if the results are missing or damaged.
    """
    results, manifest = read_results(out)
    try:
        table, drawn = _drawn(results, manifest, pictures)
    except STRANGE as error:
        raise UserError(
            f"expected results of eval_meta.py in {str(out)!r}, got others with right checksums "
            f"({type(error).__name__}): evaluate again"
        ) from None
    for name in (FIGURE, REPORT):
        if name in drawn:
            write_atomically(out / name, drawn[name])
        else:
            (out / name).unlink(missing_ok=True)
    if tensorboard:
        write_curves(out, results)
    print(table)
    for name in (RESULTS, MANIFEST, *drawn):
        print(out / name)


def _drawn(
    results: list[Result], manifest: dict[str, Any], pictures: dict[str, Drawing]
) -> tuple[str, dict[str, bytes]]:
    """The table, and the files' content by name."""
    sizes = manifest["config"]["problem"]
    title = (
        f"Loss on {len(manifest['problem_seeds'])} held-out problems "
        f"({sizes['hidden']} hidden units, {sizes['samples']} samples)"
    )
    lines = summarise(results)
    table = as_text(lines, manifest["config"]["steps"])
    return table, {name: make(title, results, lines, manifest) for name, make in pictures.items()}


def _check_nothing_else(values: Any) -> None:
    """The README's table is of one family, 64 problems, 100 steps, on one CPU process."""
    default = build_parser().get_defaults()
    free = {
        "config",
        "import",
        "methods",
        "threads",
        "out",
        "overwrite",
        "verify_results",
        "timeout",
    }
    other = [k for k, v in values.items() if k not in free and v != default[k]]
    if other:
        raise UserError(
            f"expected --verify-results with --methods and --threads alone, got --{other[0]}: "
            f"leave it out"
        )


def _take(out: Path, overwrite: bool, held: ExitStack) -> bytes:
    """The folder, for this run alone."""
    held.enter_context(locked(out))
    written = (RESULTS, MANIFEST, FIGURE, REPORT)
    remove_leftovers(out, (*written, previous(RESULTS), previous(MANIFEST)))
    if (out / RESULTS).exists() and not overwrite:
        raise UserError(
            f"expected an --out without results, got {str(out)!r}, which holds some: add "
            f"--overwrite or choose another"
        )
    note_start(out)
    return b""


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
        folder = out / "tensorboard" / result.method.name.replace("/", "_")
        with _summary_writer()(str(folder)) as writer:
            logs = result.trajectory.losses.clamp(min=FLOOR).log10().mean(dim=1)
            for step, value in enumerate(logs.tolist()):
                writer.add_scalar("log10_loss", value, step)


def _summary_writer() -> Any:
    """The class ``SummaryWriter``, which needs the package tensorboard."""
    with extra("train"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


entry = guarded(main)
