"""The suite: ten ordinary networks, with baselines that are tuned for each of them.

    python -m studies.suite --out runs/suite [--methods NAME,NAME] [--processes 2] [--quick]

Without --methods all baselines are tuned and run anew (about an hour of one core), and --out
gets a reference.json. With --methods these are run on three test seeds, minutes each, and compared
with the reference results of the repository. A method is a shipped optimizer, a .safetensors file,
a baseline (at its tuned setting) or BASELINE@RATE. What is done is kept, so it goes on where it was
killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metaopt.checks import check_names, check_whole
from metaopt.cli.common import guarded, set_threads
from metaopt.tasks.suite import SUITE
from metaopt.tasks.suite.lora import PRETRAINED
from studies.command import study_parser
from studies.report import write_text
from studies.suite.figure import suite_figure
from studies.suite.kept import Log
from studies.suite.pretraining import STEPS, pretrain
from studies.suite.protocol import QUICK_STEPS, Contender, baselines, contender
from studies.suite.reference import Reference, made, read, tuned
from studies.suite.report import tables
from studies.suite.study import Study

REFERENCE = Path(__file__).with_name("reference.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, make the runs, and write the tables and the figure."""
    parser = study_parser("suite", __doc__)
    parser.add_argument(
        "--methods", type=str, default="", help="names with commas between; else all baselines"
    )
    parser.add_argument("--tasks", type=str, default="", help="some of the tasks; else all")
    parser.add_argument(
        "--data-dir", type=str, default="", help="has mnist and fashion-mnist (else $METAOPT_DATA)"
    )
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--reference", type=str, default="", help="another file of reference results"
    )
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    check_whole("--processes", values.processes)
    tasks = values.tasks.split(",") if values.tasks else list(SUITE)
    check_names("tasks", tasks, SUITE)
    out = Path(values.out)
    if values.quick:
        out = out / "quick"
    pretrained = out / PRETRAINED
    if any(SUITE[task].needs == "pretrained" for task in tasks):
        pretrain(pretrained, QUICK_STEPS if values.quick else STEPS)
    study = Study(
        Log(out / "runs.jsonl"), tasks, values.data_dir or None, pretrained, values.processes,
        values.quick,
    )  # fmt: skip
    if values.methods:
        methods = [contender(name) for name in values.methods.split(",")]
        compare(study, methods, reference_of(study, values.reference), out)
        return
    contenders = baselines(values.quick)
    chosen, losses = study.tune(contenders)
    reference = made(study.test(contenders, chosen), losses)
    write_text(out / "reference.json", reference.as_text())
    report(reference, out)


def reference_of(study: Study, path: str) -> Reference:
    """Return the reference results; those of a quick study are made, as it has few steps.

    Args:
        study: where and how.
        path: of the file; "" for that of the repository.
    """
    if not study.quick:
        return read(Path(path) if path else REFERENCE)
    few = [replace(of, settings=of.settings[:1]) for of in baselines()]
    return made(study.test(few, study.tune(few)[0]), {})


def compare(study: Study, contenders: Sequence[Contender], kept: Reference, out: Path) -> None:
    """Run methods, and compare them with the reference results.

    Args:
        study: where and how.
        contenders: the methods.
        kept: the reference results.
        out: the folder of the report.
    """
    kept.warn()
    chosen = tuned(kept, contenders, study.tasks)
    records = study.test(contenders, chosen)
    report(kept.beside(records, study.tasks), out)


def report(results: Reference, out: Path) -> None:
    """Write and print the tables, and draw the figure.

    Args:
        results: all that is compared.
        out: the folder.
    """
    for name, table in tables(results).items():
        write_text(out / "tables" / f"{name}.md", table)
        print(table)
    (out / "suite.png").write_bytes(suite_figure(results))
    (out / "suite_seconds.png").write_bytes(suite_figure(results, seconds=True))


if __name__ == "__main__":
    sys.exit(guarded(main)())
