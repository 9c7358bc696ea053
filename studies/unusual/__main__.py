"""Small problems of unusual kinds, untuned: learned optimizers beside AdamW and Muon at their best.

    python -m studies.unusual --out runs/unusual [--methods NAME,NAME] [--quick]

23 problems by which the lengths of steps were chosen, and 17 that were run once, at the end; 300
steps, three seeds. A method is a shipped optimizer or a .safetensors file, which with :open at its
end is not told how many steps there will be, or an ordinary optimizer at a rate (muon@0.01). AdamW
with a cosine at eight rates and Muon at five are always there, each problem at its best. What is
done is kept, so it goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt.checks import check_whole
from metaopt.cli.common import guarded, set_threads
from studies.command import study_parser
from studies.report import write_text
from studies.suite.kept import Log
from studies.suite.protocol import OPEN
from studies.untuned.runs import Extent, Subject, contenders, measure
from studies.unusual.problems import SEEN, UNSEEN
from studies.unusual.report import PARTS, RIVALS, tables

LEARNED = "lstm_layerwise"
QUICK_STEPS = PARTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, make the runs that are left, and write and print the tables."""
    parser = study_parser("unusual", __doc__)
    parser.add_argument(
        "--methods", type=str, default=f"{LEARNED},{LEARNED}{OPEN}", help="names, commas between"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method on each problem")
    parser.add_argument("--steps", type=int, default=300, help="of a run")
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    check_whole("--seeds", values.seeds)
    check_whole("--steps", values.steps, PARTS)
    rivals = [name for own in RIVALS.values() for name in own]
    methods = contenders([*values.methods.split(","), *rivals])
    extent = Extent(values.steps, values.seeds)
    problems = SEEN | UNSEEN
    if values.quick:
        extent = Extent(QUICK_STEPS, 1)
        problems = {name: own[name] for own in (SEEN, UNSEEN) for name in list(own)[:2]}
    out = Path(values.out)
    subjects = {name: Subject(problem, problem.digest()) for name, problem in problems.items()}
    records = measure(methods, extent, subjects, Log(out / "runs.jsonl"))
    for name, table in tables(records, UNSEEN).items():
        write_text(out / "tables" / f"{name}.md", table)
        print(table)


if __name__ == "__main__":
    sys.exit(guarded(main)())
