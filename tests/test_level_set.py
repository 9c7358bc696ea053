"""Level-set teleportation against closed forms, brute force and its own promises."""

import copy
import math

import pytest
import torch
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import LevelSetTeleport, find_sites
from metaopt.symmetry.functional import module_loss
from metaopt.symmetry.level_set import Stopped

EIGENVALUES = torch.tensor([1.0, 2.0, 5.0, 10.0]).double()


def quadratic(values):
    return 0.5 * (EIGENVALUES * values[0].square()).sum(-1)


def wells(values):
    """Two wells joined above f = 1, not convex between them."""
    x, y = values[0][..., 0], values[0][..., 1]
    return (x.square() - 1).square() + 2 * y.square() + 0.5 * x * y


def tanh_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, torch.randn(30, 5).double(), torch.arange(30) % 3


def teleporting(model, search=None, **options):
    """An optimizer with a momentum, whose teleports keep the cross entropy and no outputs."""
    base = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    search = search or LevelSetTeleport()
    return TeleportingOptimizer(base, model, nn.CrossEntropyLoss(), search=search, **options)


def norm(model, x, y):
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return math.sqrt(sum(g.square().sum().item() for g in gradients))


def keeps_its_promises(found, search):
    most = found.losses[0] + search.tolerance * found.losses[0].abs()
    assert (found.losses <= most).all()
    assert (found.gradient_norms.max(dim=0).values >= found.gradient_norms[0]).all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_quadratics_largest_gradient_is_along_its_largest_eigenvector(scale):
    """||g||^2 = 2 lambda_max f_0 at w = +-sqrt(2 f_0 / lambda_max) e_max."""
    start = torch.tensor([[1.0, 1.0, 1.0, 0.1], [-3.0, 0.2, 0.5, -0.4]]).double()
    search = LevelSetTeleport()

    def loss(values):
        return scale * quadratic(values)

    found = search(None, [start], loss)
    keeps_its_promises(found, search)
    level = loss([start])
    torch.testing.assert_close(
        found.gradient_norms.max(dim=0).values.square(), 20 * scale * level, rtol=1e-4, atol=0
    )
    expected = torch.zeros_like(start)
    expected[:, 3] = start[:, 3].sign() * (2 * level / (10 * scale)).sqrt()
    torch.testing.assert_close(found.parameters[0], expected, rtol=1e-4, atol=1e-2)


def test_a_non_convex_function_reaches_the_maximum_found_by_brute_force():
    start = torch.tensor([[0.3, 0.8], [-1.2, 0.7], [1.5, -0.1]]).double()
    search = LevelSetTeleport(iterations=200)
    found = search(None, [start], wells)
    keeps_its_promises(found, search)
    axis = torch.linspace(-3, 3, 1201).double()
    grid = torch.cartesian_prod(axis, axis).requires_grad_()
    values = wells([grid])
    (gradient,) = torch.autograd.grad(values.sum(), grid)
    for index, level in enumerate(wells([start])):
        inside = values <= level
        largest = gradient[inside].norm(dim=-1).max().item()
        reached = found.gradient_norms[:, index].max().item()
        assert reached == pytest.approx(largest, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tanh_networks_loss_stays_and_its_gradient_rises(dtype):
    model, x, y = tanh_network()
    model, x = model.to(dtype), x.to(dtype)
    loss_fn = nn.CrossEntropyLoss()
    loss, before = loss_fn(model(x), y).item(), norm(model, x, y)
    search = LevelSetTeleport()
    found = search(None, *module_loss(model, loss_fn, x, y))
    keeps_its_promises(found, search)
    move = teleporting(model, search).teleport(x, y)
    assert not move.stayed
    assert loss_fn(model(x), y).item() == pytest.approx(loss, rel=2e-4)
    assert norm(model, x, y) > 2 * before
    assert norm(model, x, y) == pytest.approx(found.gradient_norms.max().item(), rel=1e-4)


def test_one_step_without_corrections_is_the_printed_formula():
    generator = torch.Generator().manual_seed(0)
    hessian = torch.randn(4, 4, generator=generator).double()
    hessian, w = hessian @ hessian.T, torch.randn(4, generator=generator).double()

    def loss(values):
        return 0.5 * values[0] @ hessian @ values[0]

    search = LevelSetTeleport(iterations=1, rho=1e-3, corrections=0, tolerance=1.0)
    g = hessian @ w
    q = hessian @ g / (g @ g)
    v = 1e-3 * (q @ g) / (g @ g)
    torch.testing.assert_close(search(None, [w], loss).parameters[0], w + 1e-3 * q - v * g)

    def concave(values):
        return -loss(values)

    found = search(None, [w], concave)  # q.g < 0: no correction
    torch.testing.assert_close(found.parameters[0], w + 1e-3 * q)


def test_it_is_equivariant_under_rotations():
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(2, 2, generator=generator).double()).Q
    start = torch.tensor([0.3, 0.8]).double()
    search = LevelSetTeleport(iterations=8)
    plain = search(None, [start], wells)
    turned = search(None, [rotation @ start], lambda values: wells([rotation.T @ values[0]]))
    torch.testing.assert_close(turned.parameters[0], rotation @ plain.parameters[0])
    torch.testing.assert_close(turned.gradient_norms, plain.gradient_norms)


def test_how_the_weights_are_cut_into_tensors_does_not_matter():
    start = torch.tensor([0.3, 0.8]).double()
    whole = LevelSetTeleport(iterations=8)(None, [start], wells)
    parts = LevelSetTeleport(iterations=8)(
        None, [start[0].clone(), start[1:]], lambda v: wells([torch.cat([v[0].reshape(1), v[1]])])
    )
    together = torch.cat([p.reshape(-1) for p in parts.parameters])
    torch.testing.assert_close(together, whole.parameters[0])


def test_a_task_does_not_depend_on_its_batch_even_where_another_is_broken():
    start = torch.tensor([[0.3, 0.8], [math.nan, 1.0], [1.0, 0.0], [1.5, -0.1]]).double()
    search = LevelSetTeleport(iterations=12)
    together = search(None, [start], wells)
    assert together.stopped[1] == Stopped.NOT_FINITE
    for index in (0, 2, 3):
        alone = search(None, [start[index]], wells)
        torch.testing.assert_close(together.parameters[0][index], alone.parameters[0])
        assert together.stopped[index] == alone.stopped


def test_it_stops_where_there_is_nothing_to_climb():
    search = LevelSetTeleport(iterations=5)
    for start in ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]):  # the minimum, and the maximiser
        found = search(None, [torch.tensor(start).double()], quadratic)
        assert found.stopped == Stopped.STATIONARY
        assert found.parameters[0].tolist() == start
        assert len(found.losses) == 1
    linear = search(None, [torch.ones(3).double()], lambda values: values[0].sum())
    assert linear.stopped == Stopped.STATIONARY


def test_from_below_the_level_it_returns_to_it():
    """Of -1/2 w^2 the gradient grows as the loss falls, without end: no correction is made."""
    found = LevelSetTeleport(iterations=5)(
        None, [torch.ones(3).double()], lambda v: -v[0].square().sum()
    )
    assert (found.losses.diff() < 0).all()
    assert (found.gradient_norms.diff() > 0).all()
    assert found.stopped == Stopped.ITERATIONS


def test_steps_that_are_not_finite_are_rejected_and_counted():
    """The gradient grows towards a barrier, and a first step of this size passes it."""

    def loss(values):
        x, y = values[0].unbind(-1)
        return 4.5 * y.square() - (1 - x).log()

    search = LevelSetTeleport(iterations=20, rho=1e3)
    found = search(None, [torch.tensor([[0.9, 0.3], [0.5, 0.7]]).double()], loss)
    keeps_its_promises(found, search)
    rejected = found.not_finite.tolist()
    assert rejected[0] > 0
    assert rejected[1] == 0, "it goes the other way"
    assert found.losses.isfinite().all()
    assert (found.gradient_norms[-1] > 1.4 * found.gradient_norms[0]).all()


def test_where_no_size_fits_it_stays_and_says_so():
    start = torch.tensor([1.0, 1.0, 1.0, 0.1]).double()
    found = LevelSetTeleport(rho=1e6, max_backtracks=0)(None, [start], quadratic)
    assert found.stopped == Stopped.NO_STEP
    assert torch.equal(found.parameters[0], start)


def test_the_module_is_left_alone_by_its_loss_and_only_free_parameters_move():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)
    ).double()
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(20, 5).double(), torch.arange(20) % 3
    before = copy.deepcopy(model.state_dict())
    parameters, loss = module_loss(model, nn.CrossEntropyLoss(), x, y)
    assert len(parameters) == 5
    state = torch.get_rng_state()
    assert loss(parameters) == loss(parameters)
    assert torch.equal(torch.get_rng_state(), state)
    found = LevelSetTeleport(iterations=3)(None, parameters, loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in parameters)
    assert not any(p.requires_grad for p in found.parameters)
    with torch.no_grad():
        quiet = LevelSetTeleport(iterations=3)(None, parameters, loss)
    assert torch.equal(quiet.losses, found.losses)
    teleporting(model, LevelSetTeleport(iterations=3)).teleport(x, y)
    for parameter, value in zip(parameters, found.parameters, strict=True):
        assert torch.equal(parameter, value)
    assert torch.equal(model[0].bias, before["0.bias"])


# As the search of an optimizer.


def without_sites():
    """A module where no group acts, in training mode, and a batch."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 6), nn.LayerNorm(6), nn.GELU(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip
    return model, torch.randn(30, 5).double(), torch.arange(30) % 3


def parameters_of(model):
    return [p.detach().clone() for p in model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_module_where_no_group_acts_is_teleported_all_the_same():
    model, x, y = without_sites()
    assert not find_sites(model).found
    before, at = norm(model, x, y), nn.functional.cross_entropy(model(x), y).item()
    search = LevelSetTeleport()
    optimizer = teleporting(model, search)
    move = optimizer.teleport(x, y)
    after = nn.functional.cross_entropy(model(x), y).item()
    assert norm(model, x, y) > 2 * before
    assert after <= at + search.tolerance * abs(at)
    assert after == pytest.approx(at, rel=2 * search.tolerance)
    assert not move.rejected
    assert same(move.after, parameters_of(model))
    assert move.invariance_error() > 1e-2, "the loss is kept, and the outputs are not"
    assert optimizer.teleportation is move
    assert (optimizer.made, optimizer.undone) == (1, 0)


def test_each_teleport_counts_and_moves_every_free_parameter():
    model, x, y = without_sites()
    model[0].bias.requires_grad_(False)
    optimizer = teleporting(model, LevelSetTeleport(iterations=3))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(optimizer.moving) == len(names) == 9
    start, frozen = parameters_of(model), model[0].bias.clone()
    for count in (1, 2, 3):
        optimizer.teleport(x, y)
        assert optimizer.made == count
    assert optimizer.undone == 0
    assert "Teleports made: 3" in optimizer.report()
    assert torch.equal(model[0].bias, frozen)
    moved = dict(model.named_parameters())
    for name, old in zip(moved, start, strict=True):
        assert torch.equal(moved[name], old) == (name == "0.bias"), name


def test_a_search_that_stays_is_rejected_whatever_the_reason_and_does_not_count():
    """In one dimension the gradient is normal to the level set: the start is stationary."""

    def loss(values):
        return 0.5 * values[0].square().sum(dim=-1)

    start = torch.tensor([[3.0], [0.0]], dtype=torch.float64)
    found = LevelSetTeleport()(None, [start], loss)
    assert found.stopped.tolist() == [Stopped.STATIONARY] * 2
    assert found.rejected.tolist() == [True, True]
    assert torch.equal(found.parameters[0], start)
    model = nn.Linear(1, 1, bias=False)
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(
        base, model, lambda out, y: out.square().mean(), search=LevelSetTeleport()
    )
    optimizer.teleport(torch.ones(2, 1), torch.zeros(2))
    assert optimizer.made == 0


def test_a_large_change_of_the_outputs_is_reverted_on_held_out_samples_alone():
    """``max_defect`` is of moves that keep the outputs, unless one asks for it."""
    model, x, y = without_sites()
    optimizer = teleporting(model, max_defect=1e-9)
    before = parameters_of(model)
    assert optimizer.teleport(x, y, held_out=x[:4]).reverted
    assert same(parameters_of(model), before)
    assert optimizer.teleport(x, y).reverted is None
    assert not same(parameters_of(model), before)
    assert (optimizer.made, optimizer.undone) == (1, 1)


def momenta(optimizer):
    return [optimizer.state[p].get("momentum_buffer") for p in optimizer.moving]


def stepped(buffers):
    """(model, optimizer, batch) after one step, so that there are momenta."""
    model, x, y = without_sites()
    optimizer = teleporting(model, LevelSetTeleport(iterations=3), buffers=buffers)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(m is not None and m.abs().sum() > 0 for m in momenta(optimizer))
    return model, optimizer, (x, y)


def test_buffers_are_kept_bit_for_bit():
    _, optimizer, batch = stepped("keep")
    kept = [m.clone() for m in momenta(optimizer)]
    optimizer.teleport(*batch)
    assert same(momenta(optimizer), kept)


def test_buffers_that_are_reset_are_those_of_a_new_optimizer():
    model, optimizer, (x, y) = stepped("reset")
    optimizer.teleport(x, y)
    assert momenta(optimizer) == [None] * 10
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    at, gradients = parameters_of(model), [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    for parameter, old, gradient in zip(model.parameters(), at, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * gradient)


def test_buffers_cannot_be_transported_where_no_group_moves_the_weights():
    model, _, _ = without_sites()
    with pytest.raises(UserError, match="expected buffers 'keep' or 'reset' for Level") as refused:
        teleporting(model, buffers="transport")
    message = str(refused.value)
    assert "got 'transport': it moves by no group" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 300


def test_scheduled_teleports_are_made_at_their_steps():
    """And the step that follows each is from the gradient at the new point."""
    model, x, y = without_sites()
    optimizer = teleporting(model, LevelSetTeleport(iterations=3), schedule={1})
    twin = copy.deepcopy(model)
    base = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    by_hand = teleporting(twin, LevelSetTeleport(iterations=3))
    for step in range(3):
        optimizer.step(batch=(x, y)) if step == 1 else train_step(model, optimizer, x, y)
        if step == 1:
            by_hand.teleport(x, y)
        train_step(twin, base, x, y)
        assert optimizer.made == (step >= 1)
        assert same(parameters_of(model), parameters_of(twin))


def train_step(model, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0}, {"max_backtracks": -1}, {"corrections": -1}, {"rho": 0.0},
        {"rho": math.nan}, {"tolerance": 0.0}, {"growth": 0.5}, {"stationary": 1.0},
        {"iterations": 1.5}, {"rho": "0.1"}, {"growth": math.inf}, {"stationary": None},
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(options):
    with pytest.raises(UserError, match=r"^expected .*, got .*: .*$"):
        LevelSetTeleport(**options)
