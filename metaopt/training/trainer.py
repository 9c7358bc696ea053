"""Meta-training: draw tasks, take meta-gradients, step m1 and m2, validate, keep the best."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaopt.errors import UserError, shown
from metaopt.evaluation.rollout import rollout
from metaopt.evaluation.statistics import FLOOR
from metaopt.learned.checkpoint import Checkpoint, build_meta_optimizer
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.ranks import ALONE, CPU, Ranks
from metaopt.registry import defaults
from metaopt.symmetry.action import Action
from metaopt.target import target_of
from metaopt.tasks import TaskSampler, first_seeds
from metaopt.tasks.module_tasks import LOSS, ModuleTasks
from metaopt.training.distributions import check_losses
from metaopt.training.effects import check_effects
from metaopt.training.guards import drawn_batch, sampled, validation_families
from metaopt.training.shards import reduced_windows, split
from metaopt.training.spec import TrainingSpec

RAW = "raw/"
ADAM = "adam/"
DIVERGED = 38.0  # log10 loss that stands for a task whose loss is not finite


class Trainer:
    """One meta-training run of the networks m1 and m2.

    Each call of :meth:`train_batch` trains on one batch of tasks. The learning rates depend on the
    part of the budget that is spent. Seeds of tasks come from ``generator``, and an estimator's
    draws from seeds made of the seed of ``spec``. Nothing else is random.
    ``metaopt.training.state`` saves and restores a trainer.

    Args:
        networks: what the networks m1 and m2 are.
        spec: how they are trained.
        ranks: the processes that share the work. Each has a trainer of its own, and all of these
            stay the same.
        device: the device of the networks and tasks.

    Attributes:
        origin: how the run came about, beside its configs; kept in checkpoints. "parts" is there
            where the processes decided on them, "init_from" after :meth:`warm_start`, and "budgets"
            are earlier ones, where the rates followed them.

    Raises:
        UserError: if the networks do not fit the tasks, or a field of the config has no effect.
    """

    def __init__(
        self,
        networks: MetaOptimizerSpec,
        spec: TrainingSpec,
        ranks: Ranks = ALONE,
        device: torch.device = CPU,
    ) -> None:
        check_effects(spec)
        check_fit(networks, spec)
        self.spec = spec
        self.tasks = spec.tasks
        self.ranks = ranks
        several = spec.shards(ranks.size) != spec.shards(1)
        self.origin: dict[str, Any] = {"parts": ranks.size} if several else {}
        self.meta = MetaOptimizer(networks, seed=spec.seed).to(device)
        self.generator = torch.Generator().manual_seed(spec.seed)
        element = [] if self.meta.element is None else trained(self.meta.element)
        groups: list[dict[str, Any]] = [{"params": trained(self.meta.update)}]
        if element:
            groups.append({"params": element})
        self.adam = torch.optim.Adam(groups, lr=spec.learning_rate_update)
        self.averaged = copy.deepcopy(self.meta)  # what is validated and shipped
        self.trajectories = 0
        self.meta_steps = 0
        self.skipped = 0
        self.skipped_in_row = 0
        self.best_score = math.inf
        self.best: dict[str, Tensor] = {}  # the averaged networks
        self.best_state: dict[str, Tensor] = {}  # what training goes on from there with
        self.rollbacks = 0

    @property
    def parts(self) -> int:
        """How many parts a batch is unrolled in, if it has as many tasks."""
        return int(self.origin.get("parts", self.spec.shards(1)))

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.trajectories >= self.spec.trajectories

    @property
    def due(self) -> bool:
        """Whether ``validation_every`` asks for a validation after the batch before."""
        every, before = self.spec.validation_every, self.trajectories - self.spec.batch
        return self.trajectories > 0 and self.trajectories // every > before // every

    def warm_start(self, checkpoint: Checkpoint, source: str) -> None:
        """Take over the networks m1 and m2 of a checkpoint, in place of fresh ones.

        What is no part of the networks may differ: ``damping``, ``exponential`` and ``hold``, and
        without m2 the action.

        Args:
            checkpoint: of a meta-optimizer.
            source: where it came from, for messages and for :attr:`origin`.

        Raises:
            UserError: if the networks differ, naming the fields.
        """
        networks = build_meta_optimizer(checkpoint, source)
        check_same_networks(self.meta, networks, source)
        for own in (self.meta, self.averaged):
            own.load_state_dict(networks.state_dict())
        self.origin["init_from"] = {"source": source, "sha256": checkpoint.facts["sha256"]}

    def train_batch(self) -> dict[str, float]:
        """Train on the next batch of tasks, and return the numbers to log.

        A non-finite meta-gradient skips its meta-step and ends the batch. A batch whose losses are
        all far below the floor of the meta-loss ends too, since nothing is left to learn from it.

        Returns:
            The means over windows of the meta-loss and of the gradient norm, and the numbers at the
            end: the geometric mean of the final losses, skipped meta-steps and rollbacks of the
            whole run, rejected teleportations of the batch, and the learning rate of m1.

        Raises:
            UserError: for losses below 0, or after ``max_skips`` skipped meta-steps in a row.
        """
        self._set_rates()
        drawn = drawn_batch(self.spec, self.tasks, self.spec.batch, self.generator)
        steps, told = self.tasks.horizon(self.spec.steps, self.generator)
        spec = self.spec if steps == self.spec.steps else replace(self.spec, steps=steps)
        values: list[float] = []
        norms: list[float] = []
        mean_log, rejected = math.nan, 0
        for window in reduced_windows(
            drawn, self.parts, spec, self.meta, self.ranks, self.trajectories, told
        ):
            check_losses(window.lowest)
            mean_log, rejected = window.mean_log, window.rejected
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(g) for g in window.gradients])
            ).item()
            if not (math.isfinite(norm) and math.isfinite(window.meta_loss)):
                self._skip()
                break
            self._step(window.gradients, norm)
            values.append(window.meta_loss)
            norms.append(norm)
            if window.settled:
                break
        self.trajectories += self.spec.batch
        return {
            "meta_loss": sum(values) / len(values) if values else math.nan,
            "gradient_norm": sum(norms) / len(norms) if norms else math.nan,
            "final_loss": float(np.exp(mean_log)),
            "skipped": float(self.skipped),
            "refused_teleportations": float(rejected),
            "learning_rate": self.adam.param_groups[0]["lr"],
            "rollbacks": float(self.rollbacks),
        }

    def validate(self) -> dict[str, float]:
        """Score the averaged networks on validation tasks, and remember them if they are the best.

        The score is the mean log10 loss over tasks, over the steps ``validation_at`` and over
        families. If it is worse than the best score by more than ``rollback``, training returns to
        the best networks.

        Returns:
            The score, and the mean log10 loss of the first family at each step of
            ``validation_at``.

        Raises:
            UserError: for losses below 0, which have no logarithm.
        """
        count = self.spec.validation_problems
        families = validation_families(self.spec, self.tasks, count)
        means = [self._mean_logs(family, count) for family, count in families]
        at = list(self.spec.validation_at)
        score = torch.stack(means)[:, at].mean().item()
        if score < self.best_score:
            self.best_score = score
            self.best = {k: v.clone() for k, v in self.averaged.state_dict().items()}
            self.best_state = {k: v.clone() for k, v in self.state().items()}
        elif 0 < self.spec.rollback < score - self.best_score:
            self.averaged.load_state_dict(self.best)
            self.set_state(self.best_state)
            self.rollbacks += 1
        return {"score": score} | {
            f"log10_loss_at_{t}": means[0][t].item() for t in self.spec.validation_at
        }

    def _mean_logs(self, family: TaskSampler, count: int) -> Tensor:
        """Return the mean log10 loss of a family's first validation tasks, ``(steps + 1,)``."""
        steps = max(self.spec.validation_at)
        parts = split(first_seeds("validation", count), self.parts)
        own = [self._losses(family, parts[k], steps) for k in self.ranks.own(len(parts))]
        gathered = self.ranks.gather(
            [losses.flatten() for losses in own], [(steps + 1) * len(part) for part in parts]
        )
        losses = torch.cat([flat.view(steps + 1, -1).cpu() for flat in gathered], dim=1)
        check_losses(losses.nan_to_num(nan=math.inf).min().item())
        losses = smoothed(losses, self.tasks.smoothing)
        logs = losses.clamp(min=FLOOR, max=10**DIVERGED).log10()
        return logs.nan_to_num(nan=DIVERGED, posinf=DIVERGED).mean(dim=1)

    def _losses(self, family: TaskSampler, seeds: Sequence[int], steps: int) -> Tensor:
        """Return the losses of the averaged networks on some tasks, float64 ``(steps + 1, B)``.

        At the steps of ``validation_at`` they are those of the validation split, if there is one.
        """
        tasks = sampled(family, seeds, self.spec.problems)
        tasks = tasks.to(next(self.meta.parameters()).device)
        tasks.total_steps = steps
        optimizer = LearnedOptimizer(tasks, self.averaged)
        count = self.tasks.eval_batches
        if not count or not isinstance(tasks, ModuleTasks):
            return rollout(tasks, optimizer, steps, measure_invariance=False).losses
        held_out: dict[int, Tensor] = {}
        steps_done = iter(range(1, steps + 1))

        def look() -> None:
            if (step := next(steps_done)) in self.spec.validation_at:
                held_out[step] = tasks.measure("validation", count)[LOSS]

        losses = rollout(tasks, optimizer, steps, measure_invariance=False, advance=look).losses
        for step, measured in held_out.items():
            losses[step] = measured
        return losses

    def state(self) -> dict[str, Tensor]:
        """Return the networks in training and Adam's moments, by name."""
        tensors: dict[str, Tensor] = {RAW + k: v for k, v in self.meta.state_dict().items()}
        for index, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"{ADAM}{index}/{name}": tensor for name, tensor in moments.items()}
        return tensors

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Copy networks and Adam's moments that :meth:`state` returned into this trainer.

        Args:
            tensors: by name.

        Raises:
            KeyError: if a tensor is missing.
            ValueError: if the moments are of other networks.
            RuntimeError: if the networks are others.
        """
        networks, adam = (
            {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in (RAW, ADAM)
        )
        self.meta.load_state_dict(networks)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in adam.items():
            index, moment = name.split("/")
            moments.setdefault(int(index), {})[moment] = tensor
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": moments, "param_groups": groups})

    def _set_rates(self) -> None:
        rates = self.spec.rates(self.trajectories)
        for group, rate in zip(self.adam.param_groups, rates, strict=False):
            group["lr"] = rate * 0.5**self.rollbacks

    def _step(self, gradients: list[Tensor], norm: float) -> None:
        scale = self.spec.clip / norm if 0 < self.spec.clip < norm else 1.0
        for parameter, gradient in zip(trained(self.meta), gradients, strict=True):
            parameter.grad = gradient * scale
        self.adam.step()
        with torch.no_grad():
            for mean, parameter in zip(trained(self.averaged), trained(self.meta), strict=True):
                mean.lerp_(parameter, 1.0 - self.spec.average)
        self.meta_steps += 1
        self.skipped_in_row = 0

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_row += 1
        if self.skipped_in_row >= self.spec.max_skips:
            raise UserError(
                f"expected finite meta-gradients, got {self.skipped_in_row} non-finite ones in a "
                f"row (trajectory {self.trajectories}): lower the learning rates or the clip "
                f"and start again"
            )


def trained(networks: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are trained: a rule may hold others, which stay as they are.

    Args:
        networks: m1, m2 or both.
    """
    return [parameter for parameter in networks.parameters() if parameter.requires_grad]


def smoothed(losses: Tensor, fraction: float) -> Tensor:
    """Return the running means of losses over the last part of the steps before each step.

    Args:
        losses: ``(steps + 1, B)``.
        fraction: at step t the mean is over the last ``fraction * (t + 1)`` steps, at least one;
            0 returns the losses as they are.
    """
    if not fraction:
        return losses
    ends = torch.arange(1, len(losses) + 1)
    starts = ends - (fraction * ends).ceil().long()
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return torch.stack([losses[start:end].mean(dim=0) for start, end in spans])


def check_fit(networks: MetaOptimizerSpec, spec: TrainingSpec) -> None:
    """Check that the networks m1 and m2 can step the tasks.

    Args:
        networks: what the networks are.
        spec: how they are trained, and on which tasks.

    Raises:
        UserError: if the networks need chains of layers, or tasks of one size, and the tasks
            differ.
    """
    tasks, rules = spec.tasks, (networks.update_config, networks.element_config)
    tasks.check()
    if not tasks.chains and any(rule.needs_chain for rule in rules):
        raise UserError(
            f"expected element='none', and update='layerwise' or a coordinatewise one with "
            f"heads=['plain'], for problems={spec.problems!r}, which are no chains of layers, got "
            f"{networks.element!r}, {networks.update!r} and {list(networks.heads)}: set them"
        )
    for rule in rules:
        if rule.one_size is not None:
            tasks.check_one_size(rule.one_size)
    held_out = getattr(spec.gradient_estimator, "pes_held_out", 0)
    if held_out and not tasks.eval_batches:
        raise UserError(
            f"expected pes_held_out=0 for problems={spec.problems!r}, which have no validation "
            f"split, got {held_out}: set it to 0, or train on tasks of your own by --task"
        )
    elsewhere = networks.update_config.only_where_exact
    if tasks.chains and networks.element_config.needs_chain and not elsewhere:
        check_acts(networks.build_action(), networks.action, spec)


def check_same_networks(own: MetaOptimizer, other: MetaOptimizer, source: str) -> None:
    """Check that the networks of a run are of the same kind as those of a checkpoint.

    Args:
        own: the networks of the run.
        other: the networks of the checkpoint.
        source: where the checkpoint came from, for the message.

    Raises:
        UserError: if they differ, naming the fields.
    """

    def fields(meta: MetaOptimizer) -> dict[str, Any]:
        spec, acting = meta.spec, () if meta.element is None else ("action",)
        rules = [*defaults(type(spec.update_config)), *defaults(type(spec.element_config))]
        return {name: getattr(spec, name) for name in ("update", "element", *acting, *rules)}

    now, then = fields(own), fields(other)
    for name in now | then:
        if now.get(name) != then.get(name):
            raise UserError(
                f"expected a checkpoint with the networks of this run, whose {name} is "
                f"{shown(now.get(name))}, got {shown(then.get(name))} in {shown(source)}: train "
                "networks as there, or name another"
            )


def check_acts(action: Action, name: str, spec: TrainingSpec) -> None:
    """Check that an action can act on tasks of each validation family, and on a training task.

    Args:
        action: the action.
        name: its name, for the message.
        spec: how the networks are trained, and on which tasks.

    Raises:
        UserError: if the action cannot act at a site where it would be used.
    """
    tasks = spec.tasks
    drawn = drawn_batch(spec, tasks, 1, torch.Generator().manual_seed(spec.seed))
    samples: list[tuple[TaskSampler, Sequence[int]]] = [(drawn.family, drawn.seeds[:1])]
    samples += [
        (family, first_seeds("validation", 1)) for family, _ in validation_families(spec, tasks, 1)
    ]
    for family, seeds in samples:
        for site, why in target_of(sampled(family, seeds, spec.problems)).obstacles(action):
            raise UserError(
                f"expected an action that can act on problems={spec.problems!r}, got {name!r} "
                f"for {site.name} ({why}): name another, such as post_activation"
            )
