"""A trainer's whole state as tensors and facts, for a checkpoint that resumes bit for bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.learned.checkpoint import META, Checkpoint, meta_tensors
from metaopt.training.trainer import ADAM, RAW, Trainer

COUNTERS = ("trajectories", "meta_steps", "skipped", "skipped_in_row", "rollbacks")
BEST = "best/"
BEST_STATE = "best_state/"


def pack(trainer: Trainer) -> Checkpoint:
    """Everything the trainer needs to go on.

    The networks that a reader of the file gets are the averaged ones, as in the best checkpoint.
    """
    tensors = meta_tensors(trainer.averaged) | trainer.state()
    tensors |= {BEST + name: tensor for name, tensor in trainer.best.items()}
    tensors |= {BEST_STATE + name: tensor for name, tensor in trainer.best_state.items()}
    tensors["generator"] = trainer.generator.get_state()
    best = trainer.best_score
    facts: dict[str, Any] = {
        "spec": trainer.meta.spec.as_dict(),
        "training": trainer.spec.as_dict(),
        "best_score": best if math.isfinite(best) else None,
        **{name: getattr(trainer, name) for name in COUNTERS},
    }
    return Checkpoint(tensors, facts)


def pack_best(trainer: Trainer) -> Checkpoint:
    """The best networks alone, with how they came about."""
    tensors = {META + name: tensor for name, tensor in trainer.best.items()}
    facts = {
        "spec": trainer.meta.spec.as_dict(),
        "training": trainer.spec.as_dict(),
        "validation_score": trainer.best_score,
    }
    return Checkpoint(tensors, facts)


def unpack(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Bring a fresh trainer to the state that :func:`pack` saw.

    Raises:
        UserError: if the checkpoint is of another config, naming the fields that differ.
    """
    facts = checkpoint.facts
    if not isinstance(facts.get("training"), dict):
        raise UserError(
            "expected the last checkpoint of a run, got one without its training config: put "
            "last.safetensors back, or use --overwrite"
        )
    if not isinstance(facts.get("spec"), dict):
        raise UserError(
            "expected the last checkpoint of a run, got one without its networks' config: put "
            "last.safetensors back, or use --overwrite"
        )
    _check_same("networks", trainer.meta.spec.as_dict(), facts["spec"])
    _check_same("training", trainer.spec.as_dict(), {"micro_batch": 0} | facts["training"])
    try:
        _check_facts(facts)
        _check_shapes(trainer, checkpoint)
        _restore(trainer, checkpoint)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"expected the last checkpoint of a run, got a file without its state ({error}): "
            f"put last.safetensors back, or use --overwrite"
        ) from None


def _check_facts(facts: dict[str, Any]) -> None:
    """Raises ValueError for what :func:`pack` never writes."""
    for name in COUNTERS:
        if type(facts[name]) is not int or not 0 <= facts[name] < 2**63:
            raise ValueError(f"{name} = {facts[name]!r}")
    score = facts["best_score"]
    if score is not None and not (isinstance(score, float) and math.isfinite(score)):
        raise ValueError(f"best_score = {score!r}")


def _check_shapes(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Raises ValueError where they are not those of these networks, and of Adam on them."""
    facts, networks = checkpoint.facts, trainer.averaged.state_dict()
    fresh = {RAW + name: tensor for name, tensor in networks.items()}
    stepped = fresh | {
        f"{ADAM}{index}/{name}": torch.zeros(()) if name == "step" else parameter
        for index, parameter in enumerate(trainer.meta.parameters())
        for name in ("step", "exp_avg", "exp_avg_sq")
    }
    expected = {META + name: tensor for name, tensor in networks.items()}
    expected |= {"generator": trainer.generator.get_state()}
    moments, then = (f"{prefix}{ADAM}0/step" in checkpoint.tensors for prefix in ("", BEST_STATE))
    back_at_the_start = facts["rollbacks"] > 0 and not then and not moments
    expected |= stepped if facts["meta_steps"] and not back_at_the_start else fresh
    if facts["best_score"] is not None:
        expected |= {BEST + name: tensor for name, tensor in networks.items()}
        best_state = stepped if then else fresh
        expected |= {BEST_STATE + name: tensor for name, tensor in best_state.items()}
    if _kinds(checkpoint.tensors) != _kinds(expected):
        raise ValueError("tensors of other names, shapes or types")


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    facts = checkpoint.facts
    trainer.averaged.load_state_dict(checkpoint.under(META))
    trainer.set_state(checkpoint.tensors)
    trainer.best = checkpoint.under(BEST)
    trainer.best_state = checkpoint.under(BEST_STATE)
    trainer.generator.set_state(checkpoint.tensors["generator"].to("cpu", torch.uint8))
    for name in COUNTERS:
        setattr(trainer, name, facts[name])
    trainer.best_score = math.inf if facts["best_score"] is None else facts["best_score"]


def _check_same(what: str, now: dict[str, Any], then: dict[str, Any] | None) -> None:
    then = then or {}
    differing = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
    if differing:
        field = differing[0]
        line = (
            f"expected the {what} config of the run to resume, got another {', '.join(differing)} "
            f"({field}: {then.get(field)} then, {now.get(field)} now): use its config, or "
            f"another --out"
        )
        raise UserError(" ".join(line.split()))  # a file may name fields as it likes
