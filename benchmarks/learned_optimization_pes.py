"""Meta-training by google/learned_optimization: truncated PES on a perceptron, in JAX.

Its own classes do all of it: ``TruncatedPES``, ``SingleMachineGradientLearner``, a learned
optimizer of its own, and its perceptron on pictures. It imports TensorFlow for summaries and data
sets, which are not used here; where TensorFlow is not installed, an empty stand-in is imported.
"""

from __future__ import annotations

import itertools
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import flax.io  # noqa: F401 - it imports TensorFlow where it is found, so before the stand-ins
import jax
import numpy as np

for _name in ("tensorflow", "tensorflow_datasets"):
    if find_spec(_name) is None:
        for _part in ("", ".compat", ".compat.v1", ".compat.v2"):
            _stand_in = MagicMock()
            _stand_in.__spec__ = ModuleSpec(_name + _part, None)  # others ask for it
            sys.modules[_name + _part] = _stand_in

from learned_optimization.learned_optimizers import mlp_lopt, nn_adam  # noqa: E402
from learned_optimization.optimizers.base import Adam  # noqa: E402
from learned_optimization.outer_trainers.gradient_learner import (  # noqa: E402
    SingleMachineGradientLearner,
)
from learned_optimization.outer_trainers.lopt_truncated_step import (  # noqa: E402
    VectorizedLOptTruncatedStep,
)
from learned_optimization.outer_trainers.truncated_pes import TruncatedPES  # noqa: E402
from learned_optimization.outer_trainers.truncation_schedule import (  # noqa: E402
    ConstantTruncationSchedule,
)
from learned_optimization.tasks.base import single_task_to_family  # noqa: E402
from learned_optimization.tasks.datasets.base import Datasets  # noqa: E402
from learned_optimization.tasks.fixed.image_mlp import _MLPImageTask  # noqa: E402

RULES = {
    "NNAdam": lambda hidden: nn_adam.NNAdam(lstm_hidden_size=hidden),  # an LSTM for each tensor
    "MLPLOpt": lambda hidden: mlp_lopt.MLPLOpt(compute_summary=False),  # an MLP for each weight
}


class MetaTraining:
    """Meta-steps of truncated PES, compiled at the first.

    Args:
        rule: one of ``RULES``.
        hidden: units of its LSTM.
        pictures: ``(N, 8, 8, 1)``, the one batch of all tasks.
        labels: ``(N,)``.
        widths: of the hidden layers.
        tasks: how many, each with two particles.
        steps: of a trajectory.
        window: steps between two meta-steps.
        rate: of Adam.
    """

    def __init__(
        self,
        rule: str,
        hidden: int,
        pictures: np.ndarray,
        labels: np.ndarray,
        widths: list[int],
        tasks: int,
        steps: int,
        window: int,
        rate: float,
    ) -> None:
        batch = {"image": pictures, "label": labels}
        abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
        batches: Any = [itertools.repeat(batch)] * 4
        data = Datasets(*batches, extra_info={"num_classes": 10}, abstract_batch=abstract)
        learned = RULES[rule](hidden)
        step = VectorizedLOptTruncatedStep(
            task_family=single_task_to_family(_MLPImageTask(data, widths)),
            learned_opt=learned,
            trunc_sched=ConstantTruncationSchedule(steps),
            num_tasks=tasks,
            random_initial_iteration_offset=steps,
        )
        # Not stack_antithetic_samples, which JAX 0.10 refuses: it donates a buffer twice.
        estimator = TruncatedPES(step, trunc_length=window, steps_per_jit=window)
        self.learner = SingleMachineGradientLearner(learned, [estimator], Adam(rate))
        self.key = jax.random.PRNGKey(0)
        self.state = self.learner.init(self.key)

    def run(self, meta_steps: int) -> float:
        """Take meta-steps; the meta-loss of the last."""
        for _ in range(meta_steps):
            self.key, own = jax.random.split(self.key)
            self.state, loss, _ = self.learner.update(self.state, own, with_metrics=False)
        jax.block_until_ready(self.learner.get_meta_params(self.state))
        return float(loss)

    @property
    def meta_parameters(self) -> int:
        """How many there are."""
        leaves = jax.tree_util.tree_leaves(self.learner.get_meta_params(self.state))
        return sum(leaf.size for leaf in leaves)
