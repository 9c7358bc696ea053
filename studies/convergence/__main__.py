"""The paper's theory as runnable studies, measured against its bounds.

    python -m studies.convergence {sgd-basin,...,all} --out OUT [--quick]

Each study leaves OUT/STUDY.json (what was measured, the bounds, the constants and how they were
obtained), OUT/STUDY.png, and a line that says whether the statements came out as they should: those
that are wrong as printed (docs/errata.md) should fail, and their corrected forms hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from metaopt.cli.common import guarded, set_threads
from studies.command import study_parser
from studies.convergence.outcome import table
from studies.convergence.studies import STUDIES
from studies.report import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one study or all, and print the verdicts."""
    parser = study_parser("convergence", __doc__)
    parser.add_argument("study", choices=(*STUDIES, "all"))
    values = parser.parse_args(arguments)
    set_threads(values.threads)
    out = Path(values.out)
    names = list(STUDIES) if values.study == "all" else [values.study]
    outcomes = []
    for name in tqdm(names, desc="studies", unit="study", disable=None if len(names) > 1 else True):
        outcomes.append(STUDIES[name](values.quick))
        outcomes[-1].write(out)
        tqdm.write(outcomes[-1].verdict)
    if values.study == "all" and not values.quick:  # what docs/theory.md shows
        write_text(out / "tables" / "theory.md", table(outcomes))


if __name__ == "__main__":
    sys.exit(guarded(main)())
