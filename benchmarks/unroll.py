"""A training trajectory through `higher` against a hand-written loop doing the same mathematics.

python benchmarks/unroll.py [--element coordinatewise] [--batch 8] [--threads 1]
"""

from __future__ import annotations

import argparse
import json

import torch
from command import integers
from interleaved import interleaved
from trajectory import FLOOR, WINDOW, training_problem

from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.problems import Regression
from metaopt.symmetry import LayerInput
from metaopt.training.meta_loss import log_mean
from metaopt.training.unroll import unroll


def through_higher(problem: Regression, meta: MetaOptimizer, steps: int) -> None:
    for _ in unroll(problem, LearnedOptimizer(problem, meta), steps, WINDOW, log_mean(FLOOR)):
        pass


def by_hand(problem: Regression, meta: MetaOptimizer, steps: int) -> None:
    layer_input, sigma = LayerInput(problem.x), problem.chain.activations[0]
    weights = [p.detach().clone().requires_grad_() for p in problem.parameters()]
    state = meta.init_state(problem.chain, weights)

    def losses() -> torch.Tensor:
        residual = problem.y - weights[1] @ sigma(weights[0] @ problem.x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    for _ in range(steps // WINDOW):
        current, after = losses(), []
        for _ in range(WINDOW):
            gradients = torch.autograd.grad(current.sum(), weights, retain_graph=True)
            weights, state, _ = meta.advance(problem.chain, weights, gradients, layer_input, state)
            current = losses()
            after.append(current)
        torch.autograd.grad(log_mean(FLOOR)(torch.stack(after)), list(meta.parameters()))
        weights = [w.detach().requires_grad_() for w in weights]
        state = {name: [t.detach() for t in tensors] for name, tensors in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--element", default="coordinatewise", choices=["coordinatewise", "none"])
    integers(parser, batch=8, steps=100, threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    meta = MetaOptimizer(MetaOptimizerSpec(element=options.element), seed=0)
    problem = training_problem(options.batch)
    result = interleaved(
        lambda: through_higher(problem, meta, options.steps),
        lambda: by_hand(problem, meta, options.steps),
    )
    seconds = result["first_seconds"] / options.batch
    print(
        json.dumps(
            {
                "benchmark": "unroll through higher / hand-written loop",
                **vars(options),
                **result,
                "seconds_per_trajectory": seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
