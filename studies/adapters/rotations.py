"""AdamW at rates above its best, with the heads or the stream of the character model turned.

    python -m studies.adapters.rotations --out runs/rotations [--quick]

The character model is trained from scratch on the pages of this repository. Plain AdamW chooses its
best rate; then each method trains at once, twice and four times that rate, from five seeds. Heads
are balanced each ten steps, at the nearest point or in the singular basis, and the averages of
AdamW go along. The residual stream is turned to the singular basis likewise, where norms are those
of the root mean square, without gains. What is done is kept, so the study goes on where it was
killed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import metaopt
from metaopt.cli.common import guarded, set_threads
from metaopt.symmetry import Balance
from studies.adapters.network import HEADS, CharacterModel, text
from studies.adapters.runs import Training, held_out, kept, train
from studies.command import study_parser
from studies.report import markdown, write_text

HEADS_MOVED, STREAM_TURNED = ("values and outputs", "queries and keys"), ("residual streams",)


class Method(NamedTuple):
    """What is done beside AdamW.

    Attributes:
        norm: of the model.
        basis: of the balance; empty for none.
        kinds: of the sites that are moved.
    """

    norm: str
    basis: str = ""
    kinds: tuple[str, ...] = HEADS_MOVED


METHODS = {
    "none": Method("layer"),
    "balanced heads": Method("layer", "nearest"),
    "heads in the singular basis": Method("layer", "singular"),
    "none, norms without gains": Method("root mean square"),
    "stream in the singular basis": Method("root mean square", "singular", STREAM_TURNED),
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FACTORS = (1, 2, 4)
SEEDS = (10, 11, 12, 13, 14)
STEPS, EVERY = 100, 10


def trained(setting: Training) -> float:
    """Train a character model, and return its loss on held-out pages, in nats a character.

    Args:
        setting: how.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        model = CharacterModel(METHODS[setting.method].norm)
    characters, test = text("docs", "*.md")
    base = torch.optim.AdamW(model.parameters(), setting.rate)
    optimizer: torch.optim.Optimizer = base
    _, basis, kinds = METHODS[setting.method]
    if basis:
        for block in model.blocks:
            vars(block)["num_heads"] = HEADS  # by which the finder knows an attention
        x = torch.zeros(1, 8, dtype=torch.long)
        sites = metaopt.symmetries(model, x).of_kind(*kinds)
        search = Balance(basis=basis)
        optimizer = metaopt.TeleportingOptimizer(
            base, model, search=search, schedule=EVERY, sites=sites
        )
    train(model, characters, optimizer, setting.steps, setting.seed)
    return held_out(model, test)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, train, and write the table."""
    values = study_parser("rotations", __doc__).parse_args(arguments)
    set_threads(values.threads)
    folder, steps = Path(values.out), 3 if values.quick else STEPS
    rates, seeds = (RATES[:1], SEEDS[:1]) if values.quick else (RATES, SEEDS)

    def losses(settings: Sequence[Training]) -> list[float]:
        return list(tqdm(kept(folder, settings, trained), total=len(settings), unit="training"))

    tried = losses([Training("none", rate, 0, steps) for rate in rates])
    best = rates[tried.index(min(tried))]
    means: dict[tuple[str, int], float] = {}
    for factor in FACTORS:
        for method in METHODS:
            own = losses([Training(method, factor * best, seed, steps) for seed in seeds])
            means[method, factor] = sum(own) / len(own)
    rows = [[m, *(f"{means[m, factor]:.4f}" for factor in FACTORS)] for m in METHODS]
    headings = ["method", *(f"{factor} × {best:g}" for factor in FACTORS)]
    table = markdown(headings, rows)
    write_text(folder / "tables" / "rotations.md", table)
    print(table)


if __name__ == "__main__":
    sys.exit(guarded(main)())
