"""Scheduled teleports in a user's loop: gradients are taken along, layers come and go."""

import copy

import pytest
import torch
from teleporting_cases import LOSS, QUICK, convolutional, data, mlp
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import GradientAscent, LevelSetTeleport
from metaopt.tasks import RegressionFamily


def teleporting(model, parameters=None, rate=1.0, **options):
    base = torch.optim.SGD(model.parameters() if parameters is None else parameters, lr=rate)
    options = {"schedule": (0,), "search": QUICK, **options}
    return TeleportingOptimizer(base, model, LOSS, **options)


def gradients_of(model, *batches, scale=1.0):
    losses = [scale * LOSS(model(batch.x), batch.y) for batch in batches]
    return torch.autograd.grad(sum(losses), list(model.parameters()))


def backward(model, *batches, scale=1.0):
    for batch in batches:
        (scale * LOSS(model(batch.x), batch.y)).backward()


def assert_gradients(model, expected):
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


# The gradients that a user has computed.


@pytest.mark.parametrize("action", ["rescaling", "auto"])
def test_accumulated_and_scaled_gradients_are_those_at_the_new_point(action):
    model, batches = mlp(), [data(6, seed=seed) for seed in range(4)]
    optimizer = teleporting(model, action=action, rate=0.0)
    optimizer.param_groups[0]["lr"] = 1e-30
    backward(model, *batches, scale=0.25)
    optimizer.step(batch=batches[-1])
    assert optimizer.made == 1
    assert_gradients(model, gradients_of(model, *batches, scale=0.25))


def test_clipped_gradients_keep_their_factor():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, rate=1e-30)
    backward(model, batch)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step(batch=batch)
    assert_gradients(model, gradients_of(model, batch, scale=0.1 / (norm.item() + 1e-6)))


def test_a_gradient_through_dropout_and_batch_norm_is_that_of_the_same_pass_at_the_new_point():
    model, batch = convolutional(), data(8, 1, 6, 6)
    optimizer = teleporting(model, rate=1e-30)
    torch.manual_seed(3)
    backward(model, batch)
    before = copy.deepcopy(dict(model.named_buffers()))
    optimizer.step(batch=batch)
    assert optimizer.made == 1
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    torch.manual_seed(3)
    assert_gradients(model, gradients_of(model, batch))


@pytest.mark.parametrize("action", ["pre_activation", "post_activation", "rescaling"])
def test_the_gradient_of_another_loss_is_kept_and_that_of_the_batch_renewed(action):
    """What is not the batch's is transported, whichever group acts."""
    model, batch, extra = mlp(), data(5), nn.Parameter(torch.ones(3))
    optimizer = teleporting(model, action=action, rate=1e-30)
    optimizer.add_param_group({"params": [extra], "lr": 1.0})
    backward(model, batch)
    optimizer_alone = copy.deepcopy((model, optimizer))
    optimizer_alone[1].step(batch=batch)
    assert_gradients(optimizer_alone[0], gradients_of(optimizer_alone[0], batch))
    bias = model[4].bias  # which no action of these moves by g
    (3 * bias.sum() + extra.sum() + 0.01 * model[0].weight.sum()).backward()
    optimizer.step(batch=batch)
    assert optimizer.made == 1
    assert torch.equal(extra.detach(), torch.zeros(3))
    own = gradients_of(model, batch)
    torch.testing.assert_close(bias.grad, own[-1] + 3, rtol=1e-9, atol=1e-12)
    rest = model[0].weight.grad - own[0]
    assert rest.abs().min() > 1e-4
    assert (rest - 0.01).abs().max() > 1e-4, "it was not transported"


def test_forward_hooks_see_two_passes_where_the_group_is_exact_for_all_data():
    model, batch, seen = mlp(), data(6), []
    optimizer = teleporting(model, action="rescaling")
    backward(model, batch)
    hook = model.register_forward_hook(lambda *_: seen.append(model.training))
    optimizer.step(batch=batch)
    hook.remove()
    assert optimizer.made == 1
    assert seen == [True, True]


def test_without_any_gradient_that_of_the_batch_is_taken():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, rate=1e-30)
    optimizer.step(batch=batch)
    assert_gradients(model, gradients_of(model, batch))


def test_a_parameter_without_gradient_keeps_none():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, rate=1e-30)
    backward(model, batch)
    model[0].bias.grad = None
    optimizer.step(batch=batch)
    assert model[0].bias.grad is None
    torch.testing.assert_close(model[0].weight.grad, gradients_of(model, batch)[0])


def test_a_search_without_a_group_takes_the_gradient_of_the_batch_and_leaves_others():
    model, batch, extra = mlp(), data(6), nn.Parameter(torch.ones(3))
    optimizer = teleporting(model, rate=1e-30, search=LevelSetTeleport(iterations=2))
    optimizer.add_param_group({"params": [extra], "lr": 1.0})
    (LOSS(model(batch.x), batch.y) + extra.sum()).backward()
    optimizer.step(batch=batch)
    assert optimizer.made == 1
    assert_gradients(model, gradients_of(model, batch))
    assert torch.equal(extra.detach(), torch.zeros(3))


# What is trained now.


def moved(model, before):
    return [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]


FIRST, SECOND, THIRD = (["0.weight", "0.bias"], ["2.weight", "2.bias"], ["4.weight"])


def teleport_all(model, optimizer):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.teleport(*data(6))
    return moved(model, before)


@pytest.mark.parametrize("search", [QUICK, LevelSetTeleport(iterations=2)])
def test_a_frozen_layer_stays_and_moves_again_when_it_is_unfrozen(search):
    model = mlp()
    optimizer = teleporting(model, search=search)
    last = ["4.bias"] * (search is not QUICK)
    assert teleport_all(model, optimizer) == FIRST + SECOND + THIRD + last
    model[0].requires_grad_(False)
    site = SECOND + THIRD if search is QUICK else SECOND + THIRD + last
    assert teleport_all(model, optimizer) == site
    assert "0 is frozen (requires_grad is False)" in optimizer.report()
    model[0].requires_grad_(True)
    model[4].weight.requires_grad_(False)
    rest = ["2.weight"] if search is QUICK else SECOND + last
    assert teleport_all(model, optimizer) == FIRST + rest
    model.requires_grad_(True)
    assert teleport_all(model, optimizer) == FIRST + SECOND + THIRD + last
    assert "frozen" not in optimizer.report()


def test_a_layer_that_was_frozen_at_first_is_teleported_when_it_is_unfrozen():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = teleporting(model)
    assert teleport_all(model, optimizer) == SECOND + THIRD
    model[0].requires_grad_(True)
    assert teleport_all(model, optimizer) == FIRST + SECOND + THIRD


def test_given_sites_stay_the_given_ones_when_layers_are_frozen_and_unfrozen():
    model = mlp()
    optimizer = teleporting(model, sites=[("0", "2")])
    both = [*FIRST, "2.weight"]
    assert teleport_all(model, optimizer) == both
    model[4].requires_grad_(False)
    assert teleport_all(model, optimizer) == both
    model[2].requires_grad_(False)
    with pytest.raises(UserError, match=r"expected a site that may be moved, got none .*frozen"):
        optimizer.teleport(*data(6))
    model.requires_grad_(True)
    assert teleport_all(model, optimizer) == both
    assert "2, 4: it is not among the given sites" in optimizer.report()


def test_a_layer_that_the_base_does_not_hold_stays_until_its_group_is_added():
    model = mlp()
    optimizer = teleporting(model, [*model[2].parameters(), *model[4].parameters()])
    assert teleport_all(model, optimizer) == SECOND + THIRD
    assert "the optimizer does not hold 0.weight" in optimizer.report()
    optimizer.add_param_group({"params": model[0].parameters()})
    assert teleport_all(model, optimizer) == FIRST + SECOND + THIRD
    with pytest.raises(UserError, match="expected a base optimizer that holds the model's"):
        teleporting(model, model[4].parameters())


def test_a_rate_of_zero_moves_nothing_until_it_rises():
    """As in a warm-up; a group of rate 0 stays like a frozen one."""
    model, batch = mlp(), data(6)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2:].parameters()}]
    optimizer = teleporting(model, groups, rate=0.0, schedule=range(4))
    start = copy.deepcopy(model.state_dict())

    def step():
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step(batch=batch)
        return moved(model, before)

    assert step() == []
    assert str(model.state_dict()) == str(start)
    assert (optimizer.steps, optimizer.made, optimizer.skipped) == (1, 0, 1)
    assert optimizer.teleportation is None
    assert "Teleports skipped: 1" in optimizer.report()
    optimizer.param_groups[1]["lr"] = torch.tensor(0.1)
    assert step() == [*SECOND, *THIRD, "4.bias"]
    optimizer.param_groups[0]["lr"] = 0.1
    assert step() == [*FIRST, *SECOND, *THIRD, "4.bias"]
    assert (optimizer.steps, optimizer.made, optimizer.skipped) == (3, 2, 1)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.0
    assert teleport_all(model, optimizer), "who calls teleport() wants it"


def test_a_scheduled_teleport_of_a_frozen_model_is_skipped_and_counted():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model)
    model[:4].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    backward(model, batch)
    optimizer.step()  # no batch is asked for
    assert optimizer.skipped == optimizer.steps == 1
    assert moved(model, before) == ["4.weight", "4.bias"]


def test_a_search_without_a_group_needs_a_parameter_that_may_move():
    model, search = mlp(), LevelSetTeleport(iterations=1)
    optimizer = teleporting(model, search=search)
    model.requires_grad_(False)
    with pytest.raises(UserError, match="expected parameters that may be moved, got none"):
        optimizer.teleport(*data(6))
    with pytest.raises(UserError, match="that require a gradient, got none: unfreeze some"):
        teleporting(model, search=search)


def test_a_refused_step_is_not_counted_and_changes_nothing():
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    optimizer = teleporting(model, schedule=range(9), rate=1e-3)
    for seed in (0, 1):
        optimizer.zero_grad()
        backward(model, data(5, seed=seed))
        before = copy.deepcopy((model.state_dict(), optimizer.base.state_dict(), optimizer.steps))
        gradients = [p.grad.clone() for p in model.parameters()]
        if seed == 0:
            optimizer.step(batch=data(5, seed=seed))
    with pytest.raises(UserError, match="got several: name an action"):
        optimizer.step(batch=data(5, seed=1))
    assert str((model.state_dict(), optimizer.base.state_dict(), optimizer.steps)) == str(before)
    assert_gradients(model, gradients)
    assert optimizer.made == 1


def test_minibatches_count_as_batches_that_came_and_are_refused_before_the_first_move():
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    optimizer = teleporting(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="got several: name an action"):
        optimizer.teleport_on([data(5, seed=0), data(5, seed=1)])
    assert str(model.state_dict()) == str(before)
    assert optimizer.made == 0
    optimizer = teleporting(model)
    optimizer.teleport_on([data(5), data(5)])
    with pytest.raises(UserError, match="got several: name an action"):
        optimizer.teleport(*data(5, seed=2))


def test_a_batch_can_be_left_for_the_next_step():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, schedule=(0, 1))
    backward(model, batch)
    optimizer.next_batch = batch
    optimizer.step()
    assert optimizer.made == 1
    assert optimizer.next_batch is None
    with pytest.raises(UserError, match="expected batch="):
        optimizer.step()


# Counts.


def test_a_rejected_search_is_not_counted_as_made():
    tasks = RegressionFamily(samples=4, input=5, hidden=6, output=3).sample([0])
    with torch.no_grad():
        tasks.W1.fill_(float("nan"))
    base = torch.optim.SGD(tasks.parameters(), lr=0.1)
    optimizer = TeleportingOptimizer(base, tasks, action="post_activation")
    assert optimizer.teleport().rejected.all()
    assert optimizer.made == 0


def test_held_out_data_are_looked_at_by_a_search_without_a_group_too():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, search=LevelSetTeleport(iterations=5, rho=1.0), max_defect=1e-3)
    before = copy.deepcopy(model.state_dict())
    move = optimizer.teleport(*batch, held_out=data(20, seed=4).x)
    assert move.reverted
    assert (optimizer.made, optimizer.undone) == (0, 1)
    assert str(model.state_dict()) == str(before)
    assert not optimizer.teleport(*batch).stayed
    tasks = RegressionFamily(samples=4, input=5, hidden=6, output=3).sample([0])
    base = torch.optim.SGD(tasks.parameters(), lr=0.1)
    with pytest.raises(UserError, match="expected no held_out for a batch of tasks"):
        TeleportingOptimizer(base, tasks).teleport(held_out=batch.x)


# Faults of a user, each in one line, after which nothing has changed.


def expanded():
    model = nn.Sequential(nn.Linear(9, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()
    model[2].weight = nn.Parameter(torch.randn(1, 7).double().expand(3, 7))
    return model


def same_memory():
    model = nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7), nn.Linear(7, 7)).double()
    model[2].weight = nn.Parameter(model[0].weight.data)
    return model


@pytest.mark.parametrize(
    ("build", "width", "words"),
    [(expanded, 9, "2.weight of strides"), (same_memory, 7, "0.weight and 2.weight, which share")],
)
def test_parameters_that_share_memory_are_refused_before_anything_is_written(build, width, words):
    model, batch = build(), data(6, width)
    optimizer = teleporting(model, search=LevelSetTeleport(iterations=2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=words):
        optimizer.teleport(*batch)
    assert str(model.state_dict()) == str(before)


@pytest.mark.parametrize("search", [QUICK, LevelSetTeleport(iterations=2)])
@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"returns one number, got \(6,\): take the mean"),
        (lambda out, y: LOSS(out, y).detach(), "depends on the weights, got one without"),
        (lambda out, y: LOSS(out, y).item(), "returns one number, got float"),
        (lambda out, y: None, "returns one number, got NoneType"),
    ],
)
def test_a_loss_that_cannot_be_climbed_is_refused(search, loss_fn, words):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TeleportingOptimizer(base, model, loss_fn, search=search)
    with pytest.raises(UserError, match=words) as error:
        optimizer.teleport(*data(6))
    assert len(str(error.value)) < 300
    assert str(model.state_dict()) == str(before)
    assert optimizer.made == 0


def test_a_loss_of_one_entry_is_a_loss():
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TeleportingOptimizer(
        base, model, lambda out, y: LOSS(out, y).reshape(1), search=GradientAscent(iterations=1)
    )
    assert not optimizer.teleport(*data(6)).stayed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": 5}, "expected pairs of names as sites, got 5"),
        ({"sites": [5]}, "expected pairs of names, got 5"),
        ({"action": ["rescaling"]}, r"expected an action of auto, .*, got \['rescaling'\]"),
        ({"action": None}, "expected an action of auto, .*, got None"),
        ({"action": "rescalling"}, "got 'rescalling': did you mean rescaling"),
        ({"max_defect": "small"}, "expected a positive max_defect, got 'small'"),
        ({"buffers": ["keep"]}, "expected buffers of keep, reset, transport, got"),
        ({"schedule": 2.5}, "expected steps of 0 or more in the schedule, got 2.5"),
    ],
)
def test_options_of_another_type_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        teleporting(mlp(), **options)


def test_what_is_no_base_is_refused():
    model = mlp()
    with pytest.raises(UserError, match="expected an optimizer of torch as base, got"):
        TeleportingOptimizer(list(model.parameters()), model, LOSS)
    with pytest.raises(UserError, match="expected a base that does not teleport"):
        TeleportingOptimizer(teleporting(model), model, LOSS)
