"""One tuning of the character model, and the file that keeps what was done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

import metaopt
from metaopt.storage import write_atomically
from studies.adapters.network import CharacterModel, batch, text

S = TypeVar("S", bound=Any)

BASE = "base.safetensors"
PLUS = 16  # how many times A's rate LoRA+ gives B
METHODS = ("adamw", "lora_plus", "balanced", "balanced_keep")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Setting:
    """One tuning.

    Attributes:
        method: one of :data:`METHODS`.
        rate: of AdamW.
        rank: of the adapters.
        scale: how many times as large as usual A is drawn.
        seed: of A and of the batches.
        steps: of AdamW.
    """

    method: str
    rate: float
    rank: int = 8
    scale: float = 1.0
    seed: int = 0
    steps: int = 300


@dataclass(frozen=True)
class Training:
    """One training of a model whose size stays.

    Attributes:
        method: of the study.
        rate: of AdamW.
        seed: of the weights that are trained, and of the batches.
        steps: of AdamW.
    """

    method: str
    rate: float
    seed: int
    steps: int


def pretrained(folder: Path, steps: int) -> CharacterModel:
    """Return the character model trained on the pages; it is trained once and kept.

    Args:
        folder: of the study.
        steps: of the training.
    """
    torch.manual_seed(0)
    model = CharacterModel()
    path = folder / BASE
    if not path.exists():
        characters, _ = text("docs", "*.md")
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        train(model, characters, optimizer, steps, 0, schedule.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(model.state_dict()))
    model.load_state_dict(load_file(path))
    return model


def tuned(model: CharacterModel, setting: Setting) -> float:
    """Tune a model in place, and return its loss on held-out text, in nats a character.

    Args:
        model: the pretrained model.
        setting: how.
    """
    characters, test = text("metaopt", "*.py")
    model.adapt(setting.rank, setting.scale, setting.seed)
    optimizer = tuning(model, setting.method, setting.rate, torch.zeros(1, 8, dtype=torch.long))
    train(model, characters, optimizer, setting.steps, setting.seed)
    return held_out(model, test)


def tuning(
    model: nn.Module, method: str, rate: float, x: Tensor | None = None
) -> torch.optim.Optimizer:
    """Return AdamW without weight decay for what is trained of a model with adapters.

    Args:
        model: the model.
        method: one of :data:`METHODS`; any other is AdamW as it is.
        rate: of AdamW; for B of an adapter LoRA+ takes a multiple of it.
        x: what the model is called with, to verify the sites of a balance; None not to.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    second = rate * (PLUS if method == "lora_plus" else 1)
    groups = [
        {"params": [p for n, p in trained if n.endswith("lora_B") is of_b], "lr": own}
        for of_b, own in ((False, rate), (True, second))
    ]
    base = torch.optim.AdamW([own for own in groups if own["params"]], weight_decay=0.0)
    if not method.startswith("balanced"):
        return base
    policy = method.partition("_")[2] or "transport"
    inputs = () if x is None else (x,)
    sites = metaopt.symmetries(model, *inputs).of_kind("low-rank pairs")
    return metaopt.TeleportingOptimizer(
        base, model, search="balance", schedule=1, buffers=policy, sites=sites
    )


def held_out(model: CharacterModel, test: Tensor) -> float:
    """Return the loss of a character model on held-out text, in nats a character.

    Args:
        model: the model.
        test: the text.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        losses = [model.loss(batch(test, generator)) for _ in range(20)]
    return float(torch.stack(losses).mean())


def train(
    model: CharacterModel, characters: Tensor, optimizer: torch.optim.Optimizer, steps: int,
    seed: int, after: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Train a character model in place.

    Args:
        model: the model.
        characters: the text.
        optimizer: of the model.
        steps: how many.
        seed: of the batches.
        after: called after each step.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.loss(batch(characters, generator))
        torch.autograd.backward(loss)
        optimizer.step()
        after()


def measured(folder: Path, settings: Sequence[Setting], pretraining: int) -> Iterator[float]:
    """Yield the loss of each setting; what was done is read, and what is done is kept.

    Args:
        folder: of the study.
        settings: the settings.
        pretraining: steps of the training before.
    """
    return kept(folder, settings, lambda own: tuned(pretrained(folder, pretraining), own))


def kept(folder: Path, settings: Sequence[S], run: Callable[[S], float]) -> Iterator[float]:
    """Yield the result of each setting; what was done is read, and what is done is kept.

    Args:
        folder: of the study.
        settings: data classes.
        run: a function from a setting to its result.
    """
    path = folder / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    known = {json.dumps(row["setting"]): row["loss"] for row in map(json.loads, lines)}
    for setting in settings:
        key = json.dumps(asdict(setting))
        if key not in known:
            known[key] = run(setting)
            lines.append(json.dumps({"setting": asdict(setting), "loss": known[key]}))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, ("\n".join(lines) + "\n").encode())
        yield known[key]
