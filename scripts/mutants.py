"""Mutation testing: put one small fault after another into the sources, and see whether tests fail.

    python scripts/mutants.py                     # a sample of each module, an hour on one core
    python scripts/mutants.py metaopt/symmetry/search.py --sample 0    # all faults of a file

Prints, and writes to --out, a table and the faults that no test noticed. What is in --out is
resumed; remove the folder after the sources or the tests were changed.

The sources are not touched. A fault is put into the copy that a child process imports, and the
tests that ran its line before are run there. Which these are is measured first (minutes), and so
is how long each takes; a test that fails without a fault, or is slow, is not asked.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mutant_tests import ROOT, Tests, warm_up
from mutations import Mutant, mutants_of

FOLDERS = ("metaopt/symmetry", "metaopt/learned")
OUTCOMES = ("killed", "survived", "timed out", "no test")


def judge(path: Path, mutant: Mutant, known: Tests, log: Path) -> str:
    """What the tests say of a fault; of one that is there on import, those of the whole module."""
    rounds = known.rounds(path, None if mutant.on_import else mutant.lines)
    source = mutant.source()
    for tests in filter(None, rounds):
        passed = known.ask(tests, path, source, log)
        if not passed:
            return "timed out" if passed is None else "killed"
    return "survived" if any(rounds) else "no test"


def markdown(rows: Sequence[dict[str, Any]], sizes: dict[str, int]) -> str:
    """The table, and what survived."""
    columns = ("module", "faults", "run", *OUTCOMES)
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    counts = {name: Counter(r["outcome"] for r in rows if r["file"] == name) for name in sizes}
    total: Counter[str] = sum(counts.values(), Counter())
    for name, count in [*counts.items(), ("all", total)]:
        possible = sizes.get(name, sum(sizes.values()))
        cells = [name, possible, count.total(), *(count[outcome] for outcome in OUTCOMES)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    left = [row for row in rows if row["outcome"] in ("survived", "no test")]
    lines += ["", *(f"- {r['file']}:{r['line']} `{r['before']}` → `{r['after']}`" for r in left)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, resuming what is there."""
    parser = argparse.ArgumentParser(description="mutation testing")
    parser.add_argument("paths", nargs="*", default=FOLDERS, help="files or folders of metaopt")
    parser.add_argument("--sample", type=int, default=30, help="faults a module; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--line", type=int, help="only the faults of this line")
    parser.add_argument("--minutes", type=float, default=60.0, help="until it stops, unfinished")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    given = [ROOT / path for path in options.paths]
    paths = [p for g in given for p in (sorted(g.glob("*.py")) if g.is_dir() else [g])]
    paths = [path for path in paths if path.name != "__init__.py"]
    warm_up()
    known = Tests(options.out, paths)
    kept, log = options.out / "results.jsonl", options.out / "last.log"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["file"], row["number"]) for row in rows}
    todo, sizes = [], {}
    for path in paths:
        found, name = mutants_of(path), str(path.relative_to(ROOT))
        first = known.rounds(path, None)[0]
        if not first or not known.ask(first, path, path.read_text(), log):
            sys.exit(f"expected tests of {name} that pass without a fault: see {log}")
        sizes[name] = len(found)
        if options.line is not None:
            found = [mutant for mutant in found if mutant.line == options.line]
        elif options.sample:
            random.Random(f"{options.seed} {name}").shuffle(found)
            found = found[: options.sample]
        todo += [(path, name, m) for m in found if (name, m.number) not in done]
    random.Random(options.seed).shuffle(todo)  # what is stopped early has something of each
    end = time.monotonic() + 60 * options.minutes
    for count, (path, name, mutant) in enumerate(todo, start=1):
        if time.monotonic() > end:
            break
        row = {"file": name, "number": mutant.number, "line": mutant.line, "before": mutant.before,
               "after": mutant.after}  # fmt: skip
        row["outcome"] = judge(path, mutant, known, log)
        rows.append(row)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{count}/{len(todo)} {name}:{mutant.line} {row['outcome']}", flush=True)
    rows = sorted(rows, key=lambda row: (row["file"], row["line"], row["number"]))
    table = markdown([row for row in rows if row["file"] in sizes], sizes)
    (options.out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
