"""Conjugate gradients on the damped Gauss-Newton model, and limits of steps."""

import math
from itertools import pairwise

import pytest
import torch

from metaopt.learned import refinement
from metaopt.learned.bases import Bases
from metaopt.learned.chain_pass import ChainPass
from metaopt.learned.network_pass import InBases
from metaopt.learned.refinement import Step, System, limited, promised_by, refined
from metaopt.output_loss import SOFTMAX, SQUARE
from metaopt.symmetry import Elementwise, Identity, LayerChain, LayerInput

TANH = Elementwise("Tanh", torch.tanh)
NU = 0.3


def chain_pass(batch=()):
    torch.manual_seed(0)
    chain = LayerChain((TANH, Identity()), (True, False), len(batch))
    shapes = [(4, 3), (4,), (2, 4)]
    w = [torch.randn(*batch, *shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(*batch, 3, 7, dtype=torch.float64)
    return ChainPass(chain, chain.layers(w), LayerInput(x))


def system_of(loss, penalties=False, masked=False, batch=()):
    at = chain_pass(batch)
    factors = at.curvatures(loss, 0)
    curvatures = [own.curvature for own in factors]
    sizes = [(*batch, 4, 4), (*batch, 2, 4)]
    bases = Bases(factors, list(map(torch.Size, sizes)))
    damping = [(NU * k.mean(dim=(-2, -1), keepdim=True)).expand_as(k) for k in curvatures]
    own = [torch.rand(size, dtype=torch.float64) for size in sizes] if penalties else None
    moving = [(torch.rand(size) > 0.3).double() for size in sizes] if masked else None
    slope = torch.randn(*batch, 24, dtype=torch.float64)
    along = at.in_bases(factors)
    return System(along, bases, loss, slope, *map(bases.row, (curvatures, damping)), own, moving)


def to_matrix(function, count=24):
    """The matrix of a linear map of rows."""
    return torch.stack([function(unit) for unit in torch.eye(count, dtype=torch.float64)], dim=1)


def rotation(system):
    """The matrix that makes coefficients to entries of augmented weights."""
    return to_matrix(lambda row: torch.cat([own.flatten() for own in system.bases.back(row)]))


def dense(system):
    """J^T H J + P and the damping of one task, over all coefficients."""
    j = to_matrix(lambda row: system.pushed(row).flatten())
    shape = system.along.outputs.shape
    hj = [system.loss.product(system.along.outputs, own.reshape(shape)).flatten() for own in j.mT]
    a = j.mT @ torch.stack(hj, dim=1)
    if system.penalties is not None:
        u = rotation(system)
        a = a + u.mT @ torch.diag(torch.cat([own.flatten() for own in system.penalties])) @ u
    return a, torch.diag(system.damping)


def step_of(system, d):
    return Step(d, system.pushed(d))


def test_derivatives_in_bases_are_those_of_matrices():
    """In closed form, and by way of matrices; a rotation of each layer is tested by itself."""
    at = chain_pass()
    for loss in (SQUARE, SOFTMAX):
        factors = at.curvatures(loss, 0)
        fast, slow = at.in_bases(factors), InBases(at, factors)
        directions = [torch.randn(5, *f.curvature.shape, dtype=torch.float64) for f in factors]
        torch.testing.assert_close(fast.tangents(directions), slow.tangents(directions))
        d = [own[0] for own in directions]
        torch.testing.assert_close(fast.pushed(d), slow.pushed(d))
        torch.testing.assert_close(
            fast.pushed(d), at.pushed([*map(lambda f, k: f.back(k), factors, d)])
        )
        v = torch.randn_like(at.outputs)
        rooms = [[torch.empty_like(own) for own in d] for _ in range(2)]
        fast.gradients_into(rooms[0], v)
        slow.gradients_into(rooms[1], v)
        for found in (slow.gradients(v), *rooms):
            for own, other in zip(found, fast.gradients(v), strict=True):
                torch.testing.assert_close(own, other)
        inner = sum((g * k).sum() for g, k in zip(fast.gradients(v), d, strict=True))
        torch.testing.assert_close(inner, (v * fast.pushed(d)).sum())
        assert [f.plain for f in factors] == [False, loss is SQUARE]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("penalties", [False, True])
@pytest.mark.parametrize("loss", [SQUARE, SOFTMAX], ids=lambda own: own.name)
def test_many_iterations_solve_the_system(loss, penalties, masked):
    system = system_of(loss, penalties, masked)
    a, damping = dense(system)
    step = step_of(system, system.masked(torch.randn(24, dtype=torch.float64)))
    found = refined(system, step, 100)
    u = rotation(system)  # what moves is known of entries
    g, whole = u @ system.slope, u @ (a + damping) @ u.mT
    kept = torch.ones(24, dtype=torch.bool)
    if masked:
        kept = torch.cat([own.flatten() for own in system.moving]).bool()
    expected = torch.zeros(24, dtype=torch.float64)
    expected[kept] = torch.linalg.solve(whole[kept][:, kept], -g[kept])
    torch.testing.assert_close(u @ found.d, expected)
    torch.testing.assert_close(found.jd, system.pushed(found.d))
    for d, rate in ((torch.randn(24, dtype=torch.float64), 1.0), (found.d, 0.3)):
        own = rate * d
        promised = -(system.slope @ own + 0.5 * own @ a @ own)
        assert promised_by(system, step_of(system, d), rate) == pytest.approx([float(promised)])


def test_each_iteration_lowers_the_damped_model():
    system = system_of(SQUARE)
    a, damping = dense(system)
    nothing = step_of(system, torch.zeros(24, dtype=torch.float64))
    found = [refined(system, nothing, iterations).d for iterations in range(6)]
    values = [float(system.slope @ d + 0.5 * d @ (a + damping) @ d) for d in found]
    assert all(after < before for before, after in pairwise(values))


@pytest.mark.parametrize("loss", [SQUARE, SOFTMAX], ids=lambda own: own.name)
def test_tasks_together_are_refined_as_each_alone(loss):
    system = system_of(loss, batch=(2,))
    together = refined(system, step_of(system, torch.zeros_like(system.slope)), 4)
    whole = chain_pass((2,))
    for task in range(2):
        chain = LayerChain((TANH, Identity()), (True, False))
        layers = [type(layer)(*(t if t is None else t[task] for t in layer))
                  for layer in whole.layers]  # fmt: skip
        at = ChainPass(chain, layers, LayerInput(whole.x.h[task]))
        factors = at.curvatures(loss, 0)
        bases = Bases(factors, [f.curvature.shape for f in factors])
        k, slope = bases.row([f.curvature for f in factors]), system.slope[task]
        # eigenvectors have a sign, which may be another one alone
        signs = torch.cat([
            torch.sign((f.left.mT @ g.left[task]).diagonal()[:, None]
                       * (f.right.mT @ g.right[task]).diagonal()).flatten()
            for f, g in zip(factors, system.bases.factors, strict=True)
        ])  # fmt: skip
        alone = System(at.in_bases(factors), bases, loss, signs * slope, k, system.damping[task])
        own = refined(alone, step_of(alone, torch.zeros_like(slope)), 4)
        torch.testing.assert_close(together.d[task], signs * own.d)
        torch.testing.assert_close(together.jd[task], own.jd)


def test_a_meta_gradient_goes_through_the_step_that_it_begins_from():
    system = system_of(SQUARE)
    start = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    found = refined(system, Step(start, torch.zeros_like(system.along.outputs)), 3)
    assert not found.jd.requires_grad
    found.d.sum().backward()
    assert torch.equal(start.grad, torch.ones_like(start))


def test_one_task_is_refined_in_tensors_as_in_numbers(monkeypatch):
    """Off a CPU a number would wait for the device."""
    system = system_of(SOFTMAX, penalties=True)
    start = step_of(system, torch.randn_like(system.slope))
    expected, promised = refined(system, start, 5), promised_by(system, start, 0.5)
    monkeypatch.setattr(refinement, "_dot", lambda a, b: (a * b).sum(dim=-1, keepdim=True))
    found = refined(system, start, 5)
    torch.testing.assert_close(found.d, expected.d)
    torch.testing.assert_close(found.jd, expected.jd)
    assert promised_by(system, start, 0.5) == pytest.approx(promised)


@pytest.mark.parametrize("far", [False, True])
def test_the_limit_that_promises_more_is_taken(far):
    """One layer wants to go a million times too far; the other is as long as it may be."""
    system = system_of(SQUARE)
    d = refined(system, step_of(system, torch.zeros_like(system.slope)), 50).d
    if far:
        d = torch.cat((1e6 * d[:16], d[16:]))
    lengths = [[1e6 if far else 1.0, 1.0]]
    found, promised, longest = limited(system, step_of(system, d), lengths, [0.5], 1.0)
    apart = torch.cat(((0.5e-6 if far else 0.5) * d[:16], 0.5 * d[16:]))
    whole = (0.5e-6 if far else 0.5) * d
    by = [promised_by(system, step_of(system, own))[0] for own in (whole, apart)]
    assert promised == [max(by)]
    assert longest == [0.5]
    torch.testing.assert_close(found, apart if far else whole)


def test_short_steps_stay_and_nan_is_shown():
    system = system_of(SQUARE)
    step = step_of(system, torch.ones(24, dtype=torch.float64))
    found, promised, far = limited(system, step, [[0.1, 0.2]], [0.5], 0.5)
    assert torch.equal(found, step.d)
    assert promised == promised_by(system, step, 0.5)
    assert far == [0.2]
    assert math.isnan(limited(system, step, [[math.nan, 0.2]], [0.5], 1.0)[2][0])


def test_a_task_that_is_lost_costs_the_others_nothing():
    system = system_of(SQUARE, batch=(2,))
    start = torch.zeros_like(system.slope)
    expected = refined(system, step_of(system, start), 4)
    slope = system.slope.clone()
    slope[0] = math.nan
    found = refined(system._replace(slope=slope), step_of(system, start), 4)
    torch.testing.assert_close(found.d[1], expected.d[1], rtol=0, atol=0)
    zero = refined(system._replace(slope=torch.zeros_like(slope)), step_of(system, start), 4)
    assert torch.equal(zero.d, start)  # no division by 0
