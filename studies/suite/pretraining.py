"""The model of characters that LoRA tunes: trained once, on the standard library's sources."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from safetensors.torch import save
from tqdm import tqdm

from metaopt.evaluation.ordinary import ORDINARY
from metaopt.storage import write_atomically
from metaopt.tasks import first_seeds
from metaopt.tasks.suite import AttentionCharacters

STEPS = 2000


def pretrain(path: Path, steps: int = STEPS) -> None:
    """Train the model of characters by AdamW with a cosine, unless its file is there.

    Args:
        path: the file.
        steps: how many.
    """
    if path.exists():
        return
    (seed,) = first_seeds("training", 1)
    task = AttentionCharacters()
    model = task.model(seed)
    optimizer = ORDINARY["adamw_cosine"].optimizer(model, steps)
    batches = islice(iter(task.batches(seed, "train")), steps)
    for batch in tqdm(batches, total=steps, desc="pretraining", unit="step"):
        optimizer.zero_grad()
        task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(model.state_dict()))
