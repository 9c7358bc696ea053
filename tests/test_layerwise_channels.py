"""What the layerwise m1 sees of each tensor, against loops over tasks and tensors."""

import math

import pytest
import torch

from metaopt.learned.layerwise import LayerwiseConfig
from metaopt.learned.observation import Observation
from metaopt.symmetry import Identity, LayerChain, LeakyReLU
from metaopt.symmetry.chain import NO_CHAIN

TINY = 1e-24


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def moments(gradients, decay, power):
    """A running mean of a power of the gradients so far, without its bias."""
    mean = torch.zeros_like(gradients[0])
    for gradient in gradients:
        mean = decay * mean + (1 - decay) * gradient**power
    return mean / (1 - decay ** len(gradients))


def naive(weight, gradients):
    """The channels of one tensor of one task."""
    scale = (moments(gradients, 0.999, 2) + TINY).sqrt()
    fast, slow = (moments(gradients, decay, 1) / scale for decay in (0.9, 0.99))
    last = gradients[-1] / scale

    def mean(product):
        return product.mean().item()

    ff, ss, gg = mean(fast * fast), mean(slow * slow), mean(last * last)
    now, ever = (mean(moments(gradients, decay, 2)) for decay in (0.9, 0.999))
    return [
        math.sqrt(ff),
        math.sqrt(ss),
        mean(fast * slow) / math.sqrt(ff * ss),
        mean(last * slow) / math.sqrt(gg * ss),
        max(-5.0, min(5.0, math.log(now) - math.log(ever))),
        math.log(mean(weight * weight) + 1e-6) / 4,
        float(weight.dim() == 1),
        (weight.numel() + 1) ** 0.1 / 3,
        math.log10(len(gradients)) / 4,
    ]


CHAIN = LayerChain((LeakyReLU(0.1), Identity()), (True, False), batch_dims=1)
CASES = {
    "loose": (NO_CHAIN, (), ((4, 3), (5,), (2, 3, 2))),
    "tasks": (CHAIN, (2,), ((4, 3), (4,), (2, 4))),
}


@pytest.mark.parametrize(("chain", "batch", "shapes"), CASES.values(), ids=CASES)
def test_the_channels_are_those_that_loops_find(chain, batch, shapes):
    rule = LayerwiseConfig(hidden=5).build(torch.Generator().manual_seed(0))
    seen_by_lstm = []
    rule.lstm.register_forward_pre_hook(lambda module, given: seen_by_lstm.append(given[0]))
    weights = [0.3 * (i + 1) * normal(*batch, *s, seed=i) for i, s in enumerate(shapes)]
    state = rule.init_state(chain, weights)
    history = []
    for step in range(4):
        size = 100.0 if step == 3 else 1.0
        gradients = [size * normal(*batch, *s, seed=10 * step + i) for i, s in enumerate(shapes)]
        history.append(gradients)
        if chain == NO_CHAIN:
            seen = Observation.loose(weights, gradients, [])
        else:
            seen = Observation.of(chain, weights, gradients, normal(*batch, 3, 6, seed=99))
        _, state = rule.propose(seen, state)
    tasks = range(*(batch or (1,)))
    for step, found in enumerate(seen_by_lstm):
        past = history[: step + 1]
        columns = []
        for i, weight in enumerate(weights):
            for b in tasks:
                own = weight[b] if batch else weight
                columns.append(naive(own, [g[i][b] if batch else g[i] for g in past]))
        torch.testing.assert_close(found, torch.tensor(columns).mT, rtol=1e-3, atol=1e-4)


def test_a_jump_of_the_gradients_counts_for_no_more_than_a_factor_of_e_to_the_fifth():
    rule = LayerwiseConfig(hidden=5).build(torch.Generator().manual_seed(0))
    seen_by_lstm = []
    rule.lstm.register_forward_pre_hook(lambda module, given: seen_by_lstm.append(given[0]))
    weights = [torch.ones(3)]
    state = rule.init_state(NO_CHAIN, weights)
    state[0] = state[0] + 10_000  # so late, the slow mean has no bias left
    state[-1] = state[-1] + 1.0
    for size in (1e4, 1e-4):
        state[-2] = torch.full_like(state[-2], size)
        seen = Observation.loose(weights, [torch.zeros(3)], [])
        rule.propose(seen, state)
    assert [float(x[4]) for x in seen_by_lstm] == [5.0, -5.0]
