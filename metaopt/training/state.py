"""The whole state of a trainer as tensors and facts, so that a run resumes bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metaopt.errors import UserError
from metaopt.learned.checkpoint import META, Checkpoint, meta_tensors
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import ADAM, RAW, Trainer, trained

COUNTERS = ("trajectories", "meta_steps", "skipped", "skipped_in_row", "rollbacks")
ORIGIN = ("parts", "init_from", "budgets")
BEST = "best/"
BEST_STATE = "best_state/"


def pack(trainer: Trainer) -> Checkpoint:
    """Return everything that a trainer needs to go on, as a checkpoint.

    The networks that :func:`metaopt.load_pretrained` reads from the file are the averaged ones, as
    in the best checkpoint.
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
        **trainer.origin,
    }
    return Checkpoint(tensors, facts)


def pack_best(trainer: Trainer) -> Checkpoint:
    """Return the best networks so far, with their configs and their score, as a checkpoint."""
    tensors = {META + name: tensor for name, tensor in trainer.best.items()}
    facts = {
        "spec": trainer.meta.spec.as_dict(),
        "training": trainer.spec.as_dict(),
        "validation_score": trainer.best_score,
        **trainer.origin,
    }
    return Checkpoint(tensors, facts)


def unpack(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Give a fresh trainer the state that :func:`pack` saved.

    Args:
        trainer: a fresh trainer of the same config. Its budget of trajectories may be another, as
            long as it is not spent.
        checkpoint: what :func:`pack` returned.

    Raises:
        UserError: if the checkpoint is of another config, naming the fields that differ, or if it
            is damaged.
    """
    facts = checkpoint.facts
    for key, whose in (("training", "training"), ("spec", "networks'")):
        if not isinstance(facts.get(key), dict):
            raise UserError(
                f"expected the last checkpoint of a run, got one without its {whose} config: put "
                "last.safetensors back, or use --overwrite"
            )
    # Fields that are younger than the run had their defaults.
    networks = MetaOptimizerSpec().as_dict() | facts["spec"]
    _check_same("networks", trainer.meta.spec.as_dict(), networks)
    now, then = trainer.spec.as_dict(), TrainingSpec().as_dict() | facts["training"]
    _check_same("training", now, then | {"trajectories": now["trajectories"]})
    try:
        _check_facts(facts)
        _check_shapes(trainer, checkpoint)
        _restore(trainer, checkpoint)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"expected the last checkpoint of a run, got a file without its state ({error}): "
            f"put last.safetensors back, or use --overwrite"
        ) from None
    _change_budget(trainer, then["trajectories"])


def _change_budget(trainer: Trainer, before: int) -> None:
    """Check that the budget is not spent; remember an earlier one that decided the rates so far."""
    spec, done = trainer.spec, trainer.trajectories
    if spec.trajectories == before:
        return
    if spec.trajectories <= done:
        raise UserError(
            f"expected --trajectories above {done}, which the run has done, got "
            f"{spec.trajectories}: give more, or another --out"
        )
    earlier = replace(spec, trajectories=before)
    if any(earlier.rates(t) != spec.rates(t) for t in range(0, done, spec.batch_size)):
        trainer.origin["budgets"] = [*trainer.origin.get("budgets", []), before]


def _check_facts(facts: dict[str, Any]) -> None:
    """Raise ValueError for facts that :func:`pack` never writes."""
    for name in COUNTERS:
        if type(facts[name]) is not int or not 0 <= facts[name] < 2**63:
            raise ValueError(f"{name} = {facts[name]!r}")
    budgets = [facts["training"].get("trajectories"), *facts.get("budgets", [])]
    for count in (*budgets, facts.get("parts", 1)):
        if type(count) is not int or not 1 <= count < 2**63:
            raise ValueError(f"parts or trajectories = {count!r}")
    begun = facts.get("init_from", {"source": "", "sha256": ""})
    if [type(begun[key]) for key in ("source", "sha256")] != [str, str]:
        raise ValueError(f"init_from = {begun!r}")
    score = facts["best_score"]
    if score is not None and not (isinstance(score, float) and math.isfinite(score)):
        raise ValueError(f"best_score = {score!r}")


def _check_shapes(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Raise ValueError if the tensors do not fit the trainer's networks and their Adam state."""
    facts, networks = checkpoint.facts, trainer.averaged.state_dict()
    fresh = {RAW + name: tensor for name, tensor in networks.items()}
    stepped = fresh | {
        f"{ADAM}{index}/{name}": torch.zeros(()) if name == "step" else parameter
        for index, parameter in enumerate(trained(trainer.meta))
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
    trainer.origin = {name: facts[name] for name in ORIGIN if name in facts}
    trainer.best_score = math.inf if facts["best_score"] is None else facts["best_score"]


def _check_same(what: str, now: dict[str, Any], then: dict[str, Any]) -> None:
    differing = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
    if differing:
        field = differing[0]
        line = (
            f"expected the {what} config of the run to resume, got another {', '.join(differing)} "
            f"({field}: {then.get(field)} then, {now.get(field)} now): use its config, or "
            f"another --out"
        )
        raise UserError(" ".join(line.split()))  # a file may name fields as it likes
