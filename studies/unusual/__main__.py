"""Small problems of unusual kinds, untuned: learned optimizers beside AdamW and Muon at their best.

    python -m studies.unusual --out runs/unusual [--methods NAME,NAME] [--quick]

23 problems by which the lengths of steps were chosen, and 17 that nothing was chosen by; 300
steps, three seeds. A method is a shipped optimizer or a .safetensors file, which with :open at its
end is not told how many steps there will be, or an ordinary optimizer at a rate (muon@0.01). AdamW
with a cosine at eight rates and Muon at five are always there, each problem at its best. What is
done is kept, so it goes on where it was killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metaopt.cli.common import guarded
from studies.suite.kept import Log
from studies.untuned.command import asked, untuned_parser, write_tables
from studies.untuned.runs import Subject, measure
from studies.unusual.problems import SEEN, UNSEEN
from studies.unusual.report import PARTS, RIVALS, tables

QUICK_STEPS = PARTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, make the runs that are left, and write and print the tables."""
    values = untuned_parser("unusual", __doc__, steps=300).parse_args(arguments)
    rivals = [name for own in RIVALS.values() for name in own]
    methods, extent = asked(values, rivals, PARTS, QUICK_STEPS)
    problems = SEEN | UNSEEN
    if extent.quick:
        problems = {name: own[name] for own in (SEEN, UNSEEN) for name in list(own)[:2]}
    out = Path(values.out)
    subjects = {name: Subject(problem, problem.digest()) for name, problem in problems.items()}
    records = measure(methods, extent, subjects, Log(out / "runs.jsonl"))
    write_tables(tables(records, UNSEEN), out)


if __name__ == "__main__":
    sys.exit(guarded(main)())
