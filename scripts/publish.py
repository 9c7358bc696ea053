"""Make what the repository shows of a study again: shipped optimizers, pictures and tables.

    python scripts/publish.py --study runs/study

Of each method of Figure 6 the meta-seed that is best on validation problems is shipped. A table of
the study replaces what stands between `<!-- table: NAME -->` and `<!-- end -->` in README.md and
docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from metaopt.experiments.recipes import SHIPPED
from metaopt.learned.checkpoint import read_checkpoint, write_atomically
from metaopt.training.run import BEST

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def ship(study: Path) -> None:
    """Copy the chosen checkpoints into the package."""
    runs = json.loads((study / "runs.json").read_text())
    for name in SHIPPED:
        best = min(runs[name], key=lambda run: run["score"])
        path = Path(best["folder"]) / BEST
        read_checkpoint(path)  # whole
        target = ROOT / "metaopt" / "learned" / "pretrained" / f"{name}.safetensors"
        write_atomically(target, path.read_bytes())
        print(f"shipped meta-seed {best['seed']} of {name}, validation score {best['score']:.3f}")


def show(study: Path) -> None:
    """Put tables and pictures where the pages show them."""
    for picture in study.glob("*.png"):
        shutil.copyfile(picture, ROOT / "docs" / "figures" / picture.name)
    for page in PAGES:
        text = BLOCK.sub(
            lambda match: match[1] + (study / "tables" / f"{match[2]}.md").read_text() + match[3],
            page.read_text(),
        )
        write_atomically(page, text.encode())
        print(f"wrote {page.relative_to(ROOT)}")


def main() -> None:
    """Ship, then show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, default=ROOT / "runs" / "study")
    study = parser.parse_args().study.resolve()
    ship(study)
    show(study)


if __name__ == "__main__":
    main()
