"""Train the networks of a study together, going on from what is kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metaopt.errors import UserError
from studies.generalization.kept import keep, kept
from studies.generalization.networks import Weights, train_epoch
from studies.generalization.setting import Rows

MINIBATCH = 20

Log = list[dict[str, Any]]
"""What ``watch`` has returned after each epoch."""


def trained(
    path: Path,
    plan: dict[str, Any],
    start: Callable[[], Weights],
    train: Rows,
    rate: float,
    epochs: range,
    watch: Callable[[Weights], dict[str, Any]] | None = None,
) -> tuple[Weights, Log]:
    """Train networks by SGD in minibatches of 20, which come in the same order for all of them.

    Args:
        path: where they are kept after each epoch, from which they go on.
        plan: what they depend on besides the rate, as JSON can have it; part of the file.
        start: makes the weights before the first of the epochs.
        train: images and classes.
        rate: of SGD.
        epochs: their numbers, of which the order of the images depends.
        watch: called with the weights after each epoch.

    Returns:
        The trained weights, and the log.

    Raises:
        UserError: if the file is damaged, or of another plan.
    """
    whole = {**plan, "rate": rate, "first epoch": epochs.start, "minibatch": MINIBATCH}
    there = kept(path, whole)
    weights, log = ([w.clone() for w in start()], []) if there is None else there
    if len(log) > len(epochs):
        raise UserError(
            f"expected networks of the same plan in {str(path)!r}, got some of {len(log)} epochs "
            f"for {len(epochs)}: choose another --out, or remove the file"
        )
    done = epochs.start + len(log)
    left = range(done, epochs.stop)
    bar = tqdm(left, initial=done, total=epochs.stop, desc="training", unit="epoch")
    for epoch in bar:
        train_epoch(weights, *train, epoch_order(len(train[1]), epoch), MINIBATCH, rate)
        log.append(watch(weights) if watch is not None else {})
        keep(path, weights, whole, log)
    return weights, log


def epoch_order(images: int, epoch: int) -> torch.Tensor:
    """A permutation of the images, the same for all networks and studies."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(10**6 + epoch))
