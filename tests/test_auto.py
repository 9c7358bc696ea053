"""The one policy of ``action="auto"``, in all its branches, through both optimizers."""

import pytest
import torch
from learned_network_cases import build, halves, weights
from learned_network_cases import train as learn
from teleporting_cases import LOSS, QUICK, data, seeded
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError
from metaopt.symmetry import (
    LinearAction,
    PostActivationAction,
    PreActivationAction,
    RescalingAction,
    find_sites,
)
from metaopt.symmetry.auto import Returns, choose_actions
from metaopt.tasks import RegressionFamily

POST, PRE = PostActivationAction, PreActivationAction
SCALES, LINEAR = RescalingAction, LinearAction


def chain(*between, bias=True):
    """9 -> 7 -> 6 -> 3, with these modules between; None is nothing."""

    def make():
        first, second = between
        layers = nn.Linear(9, 7, bias), first, nn.Linear(7, 6, bias), second, nn.Linear(6, 3, bias)
        return nn.Sequential(*(layer for layer in layers if layer is not None)).double()

    return seeded(make)


def convolutional():
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 6), nn.ReLU()
    return seeded(lambda: nn.Sequential(nn.Unflatten(1, (1, 3, 3)), *layers, nn.Linear(6, 3)))


def teleporting(model, **options):
    base = torch.optim.SGD(model.parameters(), lr=1e-2)
    return TeleportingOptimizer(base, model, LOSS, search=QUICK, **options)


def acting(optimizer, batch):
    return [(site.name, type(action)) for site, action in optimizer.orbit(*batch).acting]


# Eq. 78 is exact here for 8 and 7 + 1 samples or fewer, eq. 79 for 7 + 1 and 6 + 1.
FEW, MANY = 5, 40
LEAKY = (nn.LeakyReLU(0.1), nn.LeakyReLU(0.1))
EVERYWHERE = {
    "LeakyReLU": (chain(*LEAKY), [("0 -> 2", SCALES), ("2 -> 4", SCALES)]),
    "ReLU": (chain(nn.ReLU(), nn.ReLU()), [("0 -> 2", SCALES), ("2 -> 4", SCALES)]),
    "linear": (chain(None, None), [("0 -> 1", LINEAR), ("1 -> 2", LINEAR)]),
    "linear, ReLU": (chain(None, nn.ReLU()), [("0 -> 1", LINEAR), ("1 -> 3", SCALES)]),
    "linear, tanh": (chain(None, nn.Tanh()), [("0 -> 1", LINEAR)]),
    "tanh, ReLU": (chain(nn.Tanh(), nn.ReLU()), [("2 -> 4", SCALES)]),
    "PReLU": (chain(nn.PReLU(7), nn.Dropout(0.0)), [("0 -> 2", SCALES), ("2 -> 4", SCALES)]),
}
every_network = pytest.mark.parametrize(
    ("model", "expected"), EVERYWHERE.values(), ids=EVERYWHERE.keys()
)


@every_network
def test_the_largest_group_acts_that_is_exact_for_all_data_whatever_the_batch(model, expected):
    optimizer = teleporting(model)
    for samples in (1, FEW, MANY):
        assert acting(optimizer, data(samples)) == expected
    optimizer.teleport(*data(FEW))
    optimizer.teleport(*data(FEW, seed=2))
    assert acting(optimizer, data(FEW)) == expected


@every_network
def test_what_it_does_keeps_the_output_on_fresh_data_and_moves_all_that_may_move(model, expected):
    optimizer = teleporting(model)
    names = optimizer.target.moving("auto")
    move = optimizer.teleport(*data(FEW, seed=3))
    assert move.invariance_error(data(50, seed=4).x) < 1e-12
    assert not move.stayed
    sites = [site for site, _ in optimizer.orbit(*data(FEW)).acting]
    touched = {name for site in sites for name in site.without_outgoing_bias().parameters}
    assert touched <= set(names)
    for name, before, after in zip(names, move.before, move.after, strict=True):
        assert torch.equal(before, after) != (name in touched), name


def test_linear_pairs_get_gl_and_not_only_scales():
    model = chain(None, None)
    optimizer = teleporting(model)
    before = model[0].weight.detach().clone()
    optimizer.teleport(*data(FEW))
    g = model[0].weight.detach() @ torch.linalg.pinv(before)
    torch.testing.assert_close(g @ before, model[0].weight.detach(), rtol=1e-9, atol=1e-12)
    assert (g - torch.diag(g.diagonal())).norm() > 1e-2


@pytest.mark.parametrize("names", [("rescaling", "linear"), ("linear", "rescaling")])
def test_of_two_groups_the_larger_acts_in_whichever_order_they_are_named(names):
    sites = find_sites(chain(None, nn.ReLU()))
    chosen = choose_actions(sites, MANY, Returns.NO, names)
    assert [type(action) for _, action in chosen] == [LINEAR, SCALES]


@pytest.mark.parametrize("between", [(nn.Tanh(), nn.Tanh()), (nn.GELU(), nn.Sigmoid())])
def test_without_such_a_group_gl_acts_on_the_one_batch_that_is_known(between):
    model, batch = chain(*between), data(FEW)
    optimizer = teleporting(model)
    assert acting(optimizer, batch) == [("0 -> 2", PRE), ("2 -> 4", PRE)]
    for _ in range(2):  # the same comes again
        assert optimizer.teleport(*batch).invariance_error() < 1e-9
    before = weights(model)
    for other in (data(FEW, seed=2), batch):  # from now on no batch stands for all data
        with pytest.raises(UserError, match="expected one batch that stays") as error:
            optimizer.teleport(*other)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300
    assert all(map(torch.equal, weights(model), before))


def test_a_batch_that_a_step_was_told_of_counts_as_seen():
    model = chain(nn.Tanh(), nn.Tanh())
    optimizer = teleporting(model)
    for seed in (1, 2):
        batch = data(FEW, seed=seed)
        optimizer.zero_grad()
        LOSS(model(batch.x), batch.y).backward()
        optimizer.step(batch=batch)
    with pytest.raises(UserError, match="expected one batch that stays"):
        optimizer.teleport(*data(FEW, seed=2))


def test_a_named_action_acts_on_every_batch():
    optimizer = teleporting(chain(nn.Tanh(), nn.Tanh()), action="pre_activation")
    for seed in (1, 2, 1):
        assert optimizer.teleport(*data(FEW, seed=seed)).invariance_error() < 1e-9


def test_a_batch_of_too_many_samples_is_refused_with_the_number_that_may_be():
    optimizer = teleporting(chain(nn.Tanh(), nn.Tanh()))
    assert acting(optimizer, data(7)) == [("0 -> 2", PRE), ("2 -> 4", PRE)]
    for samples in (8, MANY):
        with pytest.raises(UserError, match=f"at most 7 samples, .* one of {samples} samples"):
            optimizer.orbit(*data(samples))


def test_given_sites_are_no_chain_so_no_group_acts_through_the_data():
    optimizer = teleporting(chain(*LEAKY), sites=[("2", "4")])
    assert acting(optimizer, data(FEW)) == [("2 -> 4", SCALES)]
    optimizer = teleporting(chain(None, nn.Tanh()), sites=[("0", "1")])
    assert acting(optimizer, data(FEW)) == [("0 -> 1", LINEAR)]
    with pytest.raises(UserError, match="expected a model with a place for a group to act"):
        teleporting(chain(nn.Tanh(), nn.Tanh()), sites=[("0", "2")])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"samples": 5, "input": 6, "hidden": 4}, POST),  # at most as many samples as inputs
        ({"samples": 5, "input": 4, "hidden": 6}, PRE),  # or as hidden units
        ({"samples": 9, "input": 4, "hidden": 6}, SCALES),  # else for all data
        ({"samples": 5, "input": 6, "hidden": 4, "depth": 3}, SCALES),  # h of the second: 4 rows
        ({"samples": 4, "input": 6, "hidden": 4, "depth": 3}, POST),
    ],
)
def test_the_data_of_tasks_return_at_each_step_so_gl_acts_where_it_is_exact(sizes, expected):
    tasks = RegressionFamily(output=3, dtype="float64", **sizes).sample([0, 1])
    base = torch.optim.SGD(tasks.parameters(), lr=1e-4)
    optimizer = TeleportingOptimizer(base, tasks, search=QUICK)
    kinds = {type(action) for _, action in optimizer.orbit().acting}
    assert kinds == {expected}
    assert len(optimizer.orbit().acting) == sizes.get("depth", 2) - 1
    assert optimizer.teleport().invariance_error().max() < 1e-7


# What a learned optimizer does at batches A A B B A: Rescaling, its own GL, or Nothing.

TURNS = {
    "GL where the batch returns": (chain(*LEAKY), FEW, "post_activation", {}, "RGRGR"),
    "too many samples": (chain(*LEAKY), MANY, "post_activation", {}, "RRRRR"),
    "no inverse": (chain(nn.ReLU(), nn.ReLU()), FEW, "post_activation", {}, "RRRRR"),
    "no scales": (chain(nn.Tanh(), nn.Tanh()), FEW, "pre_activation", {}, "NGNGN"),
    "neither": (chain(nn.Tanh(), nn.Tanh()), FEW, "post_activation", {}, "NNNNN"),
    "no scales, too many": (chain(nn.Tanh(), nn.Tanh()), MANY, "pre_activation", {}, "NNNNN"),
    "scales at one site": (chain(nn.Tanh(), nn.ReLU()), FEW, "pre_activation", {}, "RGRGR"),
    "linear": (chain(None, None), FEW, "post_activation", {}, "RGRGR"),  # m2 has no other GL
    "linear, too many": (chain(None, None), MANY, "post_activation", {}, "RRRRR"),
    "given sites": (chain(*LEAKY), FEW, "post_activation", {"sites": [("0", "2")]}, "RRRRR"),
    "no chain": (convolutional(), FEW, "post_activation", {}, "RRRRR"),
    "by name": (chain(*LEAKY), FEW, "post_activation", {"action": "post_activation"}, "GGGGG"),
    "scales by name": (chain(*LEAKY), FEW, "post_activation", {"action": "rescaling"}, "RRRRR"),
    "none by name": (chain(*LEAKY), FEW, "post_activation", {"action": "none"}, "NNNNN"),
}


@pytest.mark.parametrize(
    ("model", "samples", "own", "options", "turns"), TURNS.values(), ids=TURNS.keys()
)
def test_what_a_learned_optimizer_does_at_each_step(model, samples, own, options, turns):
    meta = build(action=own, hold=0.0)
    optimizer = LearnedOptimizer(model, meta, loss_fn=halves, lr=1e-3, **options)
    kind = next(model.parameters()).dtype
    batches = [data(samples, seed=seed).x.to(kind) for seed in (1, 1, 2, 2, 1)]
    counts = {"R": "rescaling", "G": own, "N": "no teleportation"}
    for step, (x, turn) in enumerate(zip(batches, turns, strict=True)):
        learn(model, optimizer, [(x, x[:, :3].clone())], halves)
        assert (optimizer.teleportation is None) == (turn == "N")
        for letter, words in counts.items():
            number = turns[: step + 1].count(letter)
            lines = [line for line in optimizer.report().splitlines() if line.startswith(words)]
            assert sum(int(line.split()[-2]) for line in lines) == number, (step, letter)


def test_a_learned_optimizer_takes_no_batch_to_return_whose_gradients_are_summed_with_others():
    model = chain(*LEAKY)
    optimizer = LearnedOptimizer(model, build(), loss_fn=halves, lr=1e-3)
    x, y = data(FEW).x, torch.zeros(FEW, 3).double()
    for _ in range(3):
        optimizer.zero_grad()
        for part in (x, x):  # the last pass is on the same batch at each step
            halves(model(part), y).backward()
        optimizer.step()
    assert "rescaling: 3 steps" in optimizer.report()


def test_a_learned_optimizer_moves_nothing_where_no_pass_was_seen():
    model = convolutional()
    optimizer = LearnedOptimizer(model, build())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer.teleportation is None
    words = "no teleportation (no differentiated forward pass was seen): 1 steps"
    assert words in optimizer.report()


def test_a_resumed_run_remembers_that_another_batch_came():
    first, second = (data(5, seed=seed) for seed in (1, 2))
    model = chain(nn.Tanh(), nn.Tanh())
    optimizer = teleporting(model)
    for batch in (first, second):
        optimizer.step(batch=batch)
    resumed = teleporting(model)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        with pytest.raises(UserError, match="got several: name an action"):
            each.teleport(*second)
    older = {"base": optimizer.base.state_dict(), "steps": 2, "undone": 0}
    fresh = teleporting(model)
    fresh.load_state_dict(older)
    fresh.teleport(*second)
