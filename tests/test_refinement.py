"""Conjugate gradients on the damped Gauss-Newton model, and limits of steps."""

import math
from itertools import pairwise

import pytest
import torch

from metaopt.learned.network_pass import ChainPass
from metaopt.learned.refinement import System, limited, promised_by, refined
from metaopt.output_loss import SOFTMAX, SQUARE
from metaopt.symmetry import Elementwise, Identity, LayerChain, LayerInput

TANH = Elementwise("Tanh", torch.tanh)
NU = 0.3


def system_of(loss, penalties=False, masked=False, batch=()):
    torch.manual_seed(0)
    chain = LayerChain((TANH, Identity()), (True, False), len(batch))
    shapes = [(4, 3), (4,), (2, 4)]
    w = [torch.randn(*batch, *shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(*batch, 3, 7, dtype=torch.float64)
    at = ChainPass(chain, chain.layers(w), LayerInput(x))
    factors = at.curvatures(loss, 0)
    curvatures = [own.curvature for own in factors]
    damping = [NU * k.mean(dim=(-2, -1), keepdim=True) for k in curvatures]
    sizes = [(*batch, 4, 4), (*batch, 2, 4)]
    own = [torch.rand(size, dtype=torch.float64) for size in sizes] if penalties else None
    moving = [(torch.rand(size) > 0.3).double() for size in sizes] if masked else None
    gradient = [torch.randn(size, dtype=torch.float64) for size in sizes]
    return System(at, loss, factors, curvatures, damping, own, moving), gradient


def dense(system):
    """J^T H J + P and the damping of one task, over all entries of augmented weights."""
    count = [own.numel() for own in system.curvatures]
    columns = []
    for index in range(sum(count)):
        unit = torch.zeros(sum(count), dtype=torch.float64)
        unit[index] = 1.0
        parts = [
            own.reshape(k.shape)
            for own, k in zip(unit.split(count), system.curvatures, strict=True)
        ]
        columns.append(system.at.pushed(parts))
    j = torch.stack([own.flatten() for own in columns], dim=1)
    hj = torch.stack(
        [system.loss.product(system.at.outputs, own).flatten() for own in columns], dim=1
    )
    a = j.mT @ hj
    if system.penalties is not None:
        a = a + torch.diag(torch.cat([own.flatten() for own in system.penalties]))
    damping = torch.cat(
        [d.expand_as(k).flatten() for d, k in zip(system.damping, system.curvatures, strict=True)]
    )
    return a, torch.diag(damping)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("penalties", [False, True])
@pytest.mark.parametrize("loss", [SQUARE, SOFTMAX], ids=lambda own: own.name)
def test_many_iterations_solve_the_system(loss, penalties, masked):
    system, gradient = system_of(loss, penalties, masked)
    a, damping = dense(system)
    start = [torch.randn_like(g) for g in gradient]
    start = system.masked(start)
    found = torch.cat([own.flatten() for own in refined(system, gradient, start, 100)])
    g = torch.cat([own.flatten() for own in gradient])
    kept = torch.ones_like(g).bool()
    if masked:
        kept = torch.cat([own.flatten() for own in system.moving]).bool()
    expected = torch.zeros_like(g)
    expected[kept] = torch.linalg.solve((a + damping)[kept][:, kept], -g[kept])
    torch.testing.assert_close(found, expected)
    step = [torch.randn_like(own) for own in gradient]
    d = torch.cat([own.flatten() for own in step])
    torch.testing.assert_close(promised_by(system, gradient, step)[0], -(g @ d + 0.5 * d @ a @ d))


def test_each_iteration_lowers_the_damped_model():
    system, gradient = system_of(SQUARE)
    a, damping = dense(system)
    g = torch.cat([own.flatten() for own in gradient])
    values = []
    for iterations in range(6):
        x = refined(system, gradient, [torch.zeros_like(own) for own in gradient], iterations)
        d = torch.cat([own.flatten() for own in x])
        values.append(float(g @ d + 0.5 * d @ (a + damping) @ d))
    assert all(after < before for before, after in pairwise(values))


def test_tasks_together_are_refined_as_each_alone():
    system, gradient = system_of(SQUARE, batch=(2,))
    start = [torch.zeros_like(own) for own in gradient]
    together = refined(system, gradient, start, 4)
    for task in range(2):
        chain = LayerChain((TANH, Identity()), (True, False))
        layers = [type(layer)(*(t if t is None else t[task] for t in layer))
                  for layer in system.at.layers]  # fmt: skip
        at = ChainPass(chain, layers, LayerInput(system.at.x.h[task]))
        factors = at.curvatures(SQUARE, 0)
        alone = System(
            at, SQUARE, factors, [f.curvature for f in factors], [d[task] for d in system.damping]
        )
        own = refined(alone, [g[task] for g in gradient], [s[task] for s in start], 4)
        for a, b in zip(together, own, strict=True):
            torch.testing.assert_close(a[task], b)


def test_a_meta_gradient_goes_through_the_step_that_it_begins_from():
    system, gradient = system_of(SQUARE)
    start = [torch.zeros_like(own, requires_grad=True) for own in gradient]
    found = refined(system, gradient, start, 3)
    torch.autograd.backward([own.sum() for own in found])
    assert all(torch.equal(own.grad, torch.ones_like(own)) for own in start)


@pytest.mark.parametrize("far", [False, True])
def test_the_limit_that_promises_more_is_taken(far):
    """One layer wants to go a million times too far; the other is as long as it may be."""
    system, gradient = system_of(SQUARE)
    steps = refined(system, gradient, [torch.zeros_like(own) for own in gradient], 50)
    if far:
        steps = [1e6 * steps[0], steps[1]]
    lengths = [[1e6 if far else 1.0, 1.0]]
    found, promised, longest = limited(system, gradient, steps, lengths, [0.5], 1.0)
    apart = [own * limit for own, limit in zip(steps, (0.5e-6 if far else 0.5, 0.5), strict=True)]
    whole = [own * (0.5e-6 if far else 0.5) for own in steps]
    by = [float(promised_by(system, gradient, own)) for own in (whole, apart)]
    assert promised == [max(by)]
    assert longest == [0.5]
    for own, expected in zip(found, apart if far else whole, strict=True):
        torch.testing.assert_close(own, expected)


def test_short_steps_stay_and_nan_is_shown():
    system, gradient = system_of(SQUARE)
    steps = [torch.ones_like(own) for own in gradient]
    found, promised, far = limited(system, gradient, steps, [[0.1, 0.2]], [0.5], 0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, steps, strict=True))
    half = [0.5 * own for own in steps]
    assert promised == [float(promised_by(system, gradient, half))]
    assert far == [0.2]
    assert math.isnan(limited(system, gradient, steps, [[math.nan, 0.2]], [0.5], 1.0)[2][0])
