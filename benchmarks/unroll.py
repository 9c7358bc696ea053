"""A training trajectory through `higher` against a hand-written loop doing the same mathematics.

python benchmarks/unroll.py [--method lstm_update_tele_v1] [--batch 8] [--threads 1]
"""

from __future__ import annotations

import argparse
import json

import torch
from command import integers
from interleaved import interleaved
from trajectory import meta_loss, training_problem, windows

from metaopt.cli.recipes import Recipe, load_recipe
from metaopt.learned.meta_optimizer import MetaOptimizer, StepInput
from metaopt.symmetry import LayerInput
from metaopt.tasks import Regression


def through_higher(recipe: Recipe, problem: Regression, meta: MetaOptimizer, steps: int) -> None:
    for _ in windows(recipe, problem, meta, steps):
        pass


def by_hand(recipe: Recipe, problem: Regression, meta: MetaOptimizer, steps: int) -> None:
    layer_input, sigma = LayerInput(problem.x), problem.chain.activations[0]
    weights = [p.detach().clone().requires_grad_() for p in problem.parameters()]
    state = meta.init_state(problem.chain, weights)
    second_order = recipe.training.estimator == "truncated"
    value = meta_loss(recipe)

    def losses() -> torch.Tensor:
        residual = problem.y - weights[1] @ sigma(weights[0] @ problem.x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    done = 0
    while done < steps:
        current, after = losses(), []
        for _ in range(min(recipe.training.window, steps - done)):
            gradients = torch.autograd.grad(
                current.sum(), weights, retain_graph=True, create_graph=second_order
            )
            now = StepInput(weights, gradients, second_order=second_order)
            weights, state, _ = meta.advance(problem.chain, layer_input, now, state)
            current = losses()
            after.append(current)
        done += len(after)
        torch.autograd.grad(value(torch.stack(after)), list(meta.parameters()))
        weights = [w.detach().requires_grad_() for w in weights]
        state = {name: [t.detach() for t in tensors] for name, tensors in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="lstm_update_tele_v1", help="a config of configs/")
    integers(parser, batch=8, steps=100, threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.method)
    meta = MetaOptimizer(recipe.networks, seed=0)
    problem = training_problem(recipe, options.batch)
    result = interleaved(
        lambda: through_higher(recipe, problem, meta, options.steps),
        lambda: by_hand(recipe, problem, meta, options.steps),
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
