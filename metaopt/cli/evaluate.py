"""``eval_meta.py``: compare optimizers on test tasks that no learned optimizer has seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metaopt.checks import check_whole
from metaopt.cli.common import (
    Parser,
    guarded,
    parse,
    pick_device,
    set_threads,
    take,
)
from metaopt.cli.verify import announced, verify
from metaopt.errors import UserError, cut, shown
from metaopt.evaluation.curves import remove_curves, summary_writer, write_curves
from metaopt.evaluation.evaluate import Result, evaluate
from metaopt.evaluation.methods import default_methods, known_methods, resolve
from metaopt.evaluation.results import (
    MANIFEST,
    RESULTS,
    previous,
    read_results,
    save,
    understood,
)
from metaopt.evaluation.table import Line, as_text, summarise
from metaopt.extras import MissingExtra, extra
from metaopt.launch import joined, note_start, restarted
from metaopt.storage import locked, remove_leftovers, write_atomically
from metaopt.tasks import (
    PAPER_TEST_SEEDS,
    RegressionFamily,
    TaskFamily,
    check_seeds,
    check_task,
    first_seeds,
)
from metaopt.tasks.module_tasks import Singles
from metaopt.tasks.named_task import named_task

FIGURE = "loss.png"
DEFAULT_ON_TASKS = ("lstm_layerwise", "adamw", "adamw_cosine")
REPORT = "report.html"


def build_parser() -> Parser:
    """Return the parser of ``eval_meta.py``; the fields of the task family are flags too."""
    parser = Parser(
        prog="eval_meta.py",
        description="Compare optimizers, called methods, on regression tasks that no learned "
        "optimizer was trained on. All start from the same weights. Writes results.jsonl, "
        "manifest.json, loss.png and report.html into --out, and prints a table of losses.",
    )
    # Processes meet once a method, and nothing is kept before the end: the timeout is long.
    parser.add_run("runs/eval", "results", timeout=1800.0)
    parser.add_flag(
        "--methods",
        "",
        "methods to compare, separated by commas: a name, name@rate to set the learning rate, "
        "or the path of a .safetensors checkpoint of your own; all learned methods and gd by "
        f"default. Names: {', '.join(known_methods())}",
        str | list[str],
    )
    parser.add_flag(
        "--seeds",
        "",
        "seeds of the test tasks, in [0, 10^6) and separated by commas, or 'paper' for the "
        "paper's five; by default those of the first --problems test tasks",
        str | int | list[int],
    )
    parser.add_flag(
        "--problems",
        64,
        "number of test tasks where no --seeds are given: those of seeds 0, 1, 2, ...",
    )
    parser.add_flag(
        "--task",
        "",
        "package.module:Name of a metaopt.tasks.Task of your own to evaluate on, in place of "
        "section 5.2's tasks",
    )
    parser.add_flag(
        "--eval_batches",
        10,
        "with --task: how many batches of the validation split, and of the test split, count",
    )
    parser.add_flag("--steps", 100, "optimization steps of each method on each task")
    parser.add_flag(
        "--together",
        0,
        "number of tasks that are stepped in one batch; 0 for all. Where torchrun started "
        "several processes, they share the batches",
    )
    parser.add_switch("--overwrite", "replace the results that are in --out")
    parser.add_switch(
        "--redraw",
        "evaluate nothing; print the table and draw the picture and report of --out again",
    )
    parser.add_switch(
        "--verify-results",
        "only make the README's table again, or the --methods of it, and say which numbers differ; "
        "exit code 1 if any does",
    )
    parser.add_switch(
        "--tensorboard",
        "also write mean log10 losses as TensorBoard scalars, into --out/tensorboard",
    )
    parser.add_class_arguments(RegressionFamily)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``eval_meta.py``: parse the flags, build, run, save.

    Args:
        arguments: the command line; None for that of the process.
    """
    values = parse(build_parser, arguments)
    set_threads(values.threads)
    if values.tensorboard:
        summary_writer()  # or say now that it is missing
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
    family = _tasks(values)
    check_whole("--steps", values.steps)
    names = names or (list(DEFAULT_ON_TASKS) if values.task else default_methods())
    methods = [resolve(name) for name in dict.fromkeys(names)]
    methods = [m.for_any_module() if values.task else m.for_chains() for m in methods]
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
            remove_curves(out)
            try:
                pictures = drawing()
            except MissingExtra as missing:
                print(f"without {FIGURE} and {REPORT}: {missing}", file=sys.stderr)
                pictures = {}
            draw(out, pictures, values.tensorboard)


def _tasks(values: Any) -> RegressionFamily | Singles:
    """What builds the tasks: those of --task, or regressions of the sizes asked for."""
    if not values.task:
        family: RegressionFamily = take(RegressionFamily, values)
        return family
    own = {**asdict(RegressionFamily()), "together": 0}
    others = [name for name, default in own.items() if values[name] != default]
    if others:
        raise UserError(
            f"expected --task without flags of section 5.2's tasks, got --{others[0]}: leave it out"
        )
    task = named_task(values.task)
    if isinstance(task, TaskFamily):
        raise UserError(
            f"expected a Task to evaluate on, got the TaskFamily {shown(values.task)}: name a Task"
        )
    check_task(task, check_seeds(parse_seeds(values.seeds, values.problems), "test")[0])
    return Singles(task, values.task, values.eval_batches)


Drawing = Callable[[str, Sequence[Result], Sequence[Line], Mapping[str, Any]], bytes]
"""Makes the content of a file from (title, results, lines of the table, manifest)."""


def drawing() -> dict[str, Drawing]:
    """Return the functions that draw the picture and the report, by the names of the files.

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
        out: the folder.
        pictures: what :func:`drawing` returned. A picture or report that is not in it is removed
            from the folder, as it shows older results.
        tensorboard: whether to write TensorBoard curves too.

    Raises:
        UserError: if the results are missing or damaged.
    """
    results, manifest = read_results(out)
    with understood(out):
        table, drawn = _drawn(results, manifest, pictures)
    for name in (FIGURE, REPORT):
        if name in drawn:
            write_atomically(out / name, drawn[name])
        else:
            (out / name).unlink(missing_ok=True)
    if tensorboard:
        remove_curves(out)
        write_curves(out, results)
    print(table)
    for name in (RESULTS, MANIFEST, *drawn):
        print(out / name)


def _drawn(
    results: list[Result], manifest: dict[str, Any], pictures: dict[str, Drawing]
) -> tuple[str, dict[str, bytes]]:
    """Return the table as text, and the content of each picture by name."""
    sizes = manifest["config"]["problem"]
    count = len(manifest["problem_seeds"])
    title = (
        f"Training loss of {cut(str(sizes['task']), 60)}, {count} test seeds"
        if "task" in sizes
        else f"Loss on {count} held-out problems "
        f"({sizes['hidden']} hidden units, {sizes['samples']} samples)"
    )
    lines = summarise(results)
    table = as_text(lines, manifest["config"]["steps"])
    return table, {name: make(title, results, lines, manifest) for name, make in pictures.items()}


def _check_nothing_else(values: Any) -> None:
    """Refuse flags that change the README's table: its tasks, its steps, its device."""
    default = build_parser().get_defaults()
    free = {"config", "import", "methods", "threads", "timeout"}
    free |= {"out", "overwrite", "verify_results"}
    other = [k for k, v in values.items() if k not in free and v != default[k]]
    if other:
        raise UserError(
            f"expected --verify-results with --methods and --threads alone, got --{other[0]}: "
            f"leave it out"
        )


def _take(out: Path, overwrite: bool, held: ExitStack) -> bytes:
    """Lock the folder for this run; refuse one with files that must not be replaced."""
    held.enter_context(locked(out))
    written = (RESULTS, MANIFEST, FIGURE, REPORT)
    remove_leftovers(out, (*written, previous(RESULTS), previous(MANIFEST)))
    held_there = [name for name in written if (out / name).exists()]
    if held_there and not overwrite:
        raise UserError(
            f"expected an --out without results, got {str(out)!r}, which holds {held_there[0]}: "
            "add --overwrite to replace them, or choose another folder"
        )
    note_start(out)
    return b""


def parse_seeds(asked: str | int | list[int], problems: int) -> list[int]:
    """Return the seeds that a user asks for; their range is checked where tasks are built.

    Args:
        asked: "paper", numbers separated by commas, a number, or a list; "" for the first test
            seeds.
        problems: how many of the first test seeds to take if none are given.

    Raises:
        UserError: if they are not whole numbers.
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
            f"expected --seeds as whole numbers separated by commas, got {shown(text)}: as in 0,5,7"
        ) from None


entry = guarded(main)
