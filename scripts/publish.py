"""Make what the repository shows of a study again: shipped optimizers, pictures and tables.

    python scripts/publish.py [--studies runs/study runs/controls runs/families ...]

Of each shipped method that a study trained, the meta-seed that is best on validation problems is
shipped. A table of the studies replaces what is between `<!-- table: NAME -->` and `<!-- end -->`
in the pages. A page may show some columns of a table: those that it shows already are kept. So a
wide table can be split by writing the same NAME over two tables with other columns.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from metaopt.evaluation.reference import FILE, WORST
from metaopt.learned.checkpoint import read_checkpoint
from metaopt.storage import write_atomically
from metaopt.training.run import BEST

sys.path.insert(0, str(Path(__file__).parents[1]))  # studies/ is not installed

from studies.recipes import LAYERWISE, SHIPPED

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / page for page in (
    "README.md", "docs/results.md", "docs/tables.md", "docs/theory.md", "docs/suite.md",
))  # fmt: skip
STUDIES = (
    "study",
    "controls",
    "families",
    "optimizers",
    "minibatches",
    "zoo",
    "full_batch",
    "suite",
    "untuned",
    "unusual",
    "generalization",
    "adapters",
    "learned_moves",
    "quantisation",
    "convergence",
)
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CELLS = re.compile(r"(?<!\\)\|")  # a cell may hold an escaped bar


def ship(study: Path) -> None:
    """Copy the chosen checkpoints into the package, if the study has any."""
    listed = study / "runs.json"
    runs = json.loads(listed.read_text()) if listed.exists() else {}
    for name in {*SHIPPED, *LAYERWISE} & runs.keys():
        best = min(runs[name], key=lambda run: run["score"])
        path = study / best["folder"] / BEST
        read_checkpoint(path)  # whole
        target = ROOT / "metaopt" / "learned" / "pretrained" / f"{name}.safetensors"
        write_atomically(target, path.read_bytes())
        print(f"shipped meta-seed {best['seed']} of {name}, validation score {best['score']:.3f}")


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in CELLS.split(line.strip())[1:-1]]


def narrowed(table: str, shown: str) -> str:
    """The columns of a study's table that a page shows, or all where the page shows others.

    A row that is mostly empty in these columns is left out.
    """
    lines = [cells(line) for line in table.splitlines()]
    wanted = cells(shown.splitlines()[0]) if shown.startswith("|") else []
    if not wanted or wanted == lines[0] or not set(wanted) <= set(lines[0]):
        return table
    places = [lines[0].index(heading) for heading in wanted]
    kept = [[line[place] for place in places] for line in lines]
    rows = [row for row in kept if 2 * row.count("") <= len(row)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def parsed(table: str) -> dict[str, Any]:
    """The README's table of methods as numbers, by method (or method@rate) and column."""
    headings, _, *rows = (cells(line) for line in table.splitlines())
    columns = {
        name.removeprefix("step ").replace("worst at the last", WORST): index
        for index, name in enumerate(headings)
        if name.startswith(("step ", WORST))
    }
    methods = {}
    for row in rows:
        name, rate = row[0].strip("`"), row[1]
        if rate == "all":  # the envelope of many
            continue
        key = name if rate == "–" else f"{name}@{rate}"
        methods[key] = {column: number(row[index]) for column, index in columns.items()}
    return {"problems": 64, "steps": 100, "methods": methods}


def number(cell: str) -> float | None:
    """The number of a cell; None if it is not finite, for which JSON has no number."""
    try:
        return float(cell)
    except ValueError:
        return None


def show(studies: list[Path]) -> None:
    """Put tables and pictures where the pages show them; what a study lacks stays."""
    tables = {p.stem: p for folder in studies for p in (folder / "tables").glob("*.md")}
    shown = "".join(page.read_text() for page in PAGES)
    for picture in (p for folder in studies for p in folder.glob("*.png")):
        if f"figures/{picture.name}" in shown:
            shutil.copyfile(picture, ROOT / "docs" / "figures" / picture.name)
    for page in PAGES:
        text = BLOCK.sub(
            lambda match: (
                match[1] + narrowed(tables[match[2]].read_text(), match[3]) + match[4]
                if match[2] in tables
                else match[0]
            ),
            page.read_text(),
        )
        write_atomically(page, text.encode())
        print(f"wrote {page.relative_to(ROOT)}")
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    if table := next((block[2] for block in blocks if block[1] == "methods"), ""):
        path = ROOT / "metaopt" / "evaluation" / FILE
        write_atomically(path, (json.dumps(parsed(table), indent=1) + "\n").encode())


def main() -> None:
    """Ship, then show."""
    parser = argparse.ArgumentParser(description=__doc__)
    there = [folder for name in STUDIES if (folder := ROOT / "runs" / name).is_dir()]
    parser.add_argument("--studies", type=Path, nargs="+", default=there, help="their folders")
    options = parser.parse_args()
    for study in options.studies:
        ship(study)
    show(options.studies)


if __name__ == "__main__":
    main()
