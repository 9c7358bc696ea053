"""Gradient ascent along an orbit: its direction and size, and what no task loses by it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import LINEAR, mixed_signs, naive_leaky

from metaopt import UserError
from metaopt.symmetry import (
    ACTIONS,
    Action,
    GradientAscent,
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    Negated,
    Teleportation,
    chain_orbit,
    gradient_norm,
    make_action,
)
from metaopt.symmetry.teleportation import ChainOutputs

FAMILY = mixed_signs(4, 6, 5, 3)
SEEDS = (0, 1, 2)


class Recorder(Action):
    """An action that remembers the values of the elements it was given."""

    group, exact_when, uses_inputs = "GL", "the other is", True

    def __init__(self, action):
        self.action, self.elements = action, []

    def max_samples(self, site):
        return self.action.max_samples(site)

    def identity(self, site, weights):
        return self.action.identity(site, weights)

    def move(self, element, *arguments):
        self.elements.append(element.values.detach().clone())
        return self.action.move(element, *arguments)

    def pull_back(self, *arguments):
        return self.action.pull_back(*arguments)


def setting(tasks, action="rescaling"):
    """Chain, parameters, input and loss of tasks, written here without their forward.

    The chain has no activations for the action that needs that nothing lies between two layers.
    """
    chain = tasks.chain
    if action == LINEAR:
        chain = replace(chain, activations=(Identity(),) * len(chain.biased))

    def loss(parameters):
        residual = tasks.y - chain.output(chain.layers(parameters), tasks.x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    return chain, [p.detach() for p in tasks.parameters()], LayerInput(tasks.x), loss


def climbed(ascent, chain, parameters, layer_input, loss, action):
    """The move that an ascent makes."""
    orbit = chain_orbit(chain, parameters, layer_input, action)
    result = ascent(orbit, parameters, loss)
    outputs = ChainOutputs(chain, layer_input.original)
    return Teleportation(outputs, parameters, result.parameters, result.rejected)


def naive_gradient_norm(parameters, x, y, slope):
    """||grad L||^2 of L = 1/2 ||Y - W2 sigma(W1 X)||^2, task by task, in closed form."""
    values = []
    for w1, w2, x_one, y_one in zip(*parameters, x, y, strict=True):
        z = w1 @ x_one
        features = naive_leaky(z, slope)
        error = w2 @ features - y_one
        slopes = torch.where(z > 0, 1.0, slope)
        g2, g1 = error @ features.T, (slopes * (w2.T @ error)) @ x_one.T
        values.append((g1**2).sum() + (g2**2).sum())
    return torch.stack(values)


def value_at(tasks, parameters, action="rescaling"):
    slope = 1.0 if action == LINEAR else 0.1
    return naive_gradient_norm(parameters, tasks.x, tasks.y, slope)


@pytest.mark.parametrize("action", [LINEAR, "rescaling"])
def test_the_objective_equals_the_closed_form(action):
    tasks = FAMILY.sample(SEEDS)
    _, parameters, _, loss = setting(tasks, action)
    expected = value_at(tasks, parameters, action)
    torch.testing.assert_close(gradient_norm(parameters, loss), expected)


@pytest.mark.parametrize("size", [0.1, 5.0])
@pytest.mark.parametrize("samples", [4, 9])  # exact, and not
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIONS)
def test_no_task_ends_below_its_start(name, dtype, samples, size):
    tasks = mixed_signs(samples, 6, 5, 3, dtype).sample(range(8))
    chain, parameters, layer_input, loss = setting(tasks, name)
    ascent = GradientAscent(iterations=3, initial_step=size)
    move = climbed(ascent, chain, parameters, layer_input, loss, make_action(name))
    before, after = (gradient_norm(at, loss).detach() for at in (parameters, move.after))
    assert (after >= before).all()
    if samples == 4 and size == 0.1:
        assert (after > 1.01 * before).all()


@pytest.mark.parametrize("name", ACTIONS)
def test_the_direction_is_the_finite_difference_gradient_in_t(name):
    tasks = FAMILY.sample(SEEDS)
    chain, parameters, layer_input, loss = setting(tasks, name)
    recorder = Recorder(make_action(name, max_defect=1e9))
    ascent = GradientAscent(iterations=1, initial_step=0.25, max_backtracks=0)
    climbed(ascent, chain, parameters, layer_input, loss, recorder)
    (tried,) = recorder.elements
    orbit = chain_orbit(chain, parameters, layer_input, recorder.action)
    gradient, epsilon = torch.zeros_like(tried), 1e-5
    for entry in range(tried[0].numel()):
        values = []
        for step in (epsilon, -epsilon):
            element = torch.zeros_like(tried)
            element.flatten(1)[:, entry] = step
            point = orbit.move(parameters, orbit.elements(parameters, [element]))
            values.append(value_at(tasks, point.parameters, name))
        gradient.flatten(1)[:, entry] = (values[0] - values[1]) / (2 * epsilon)
    for index in range(len(SEEDS)):
        expected = 0.25 * gradient[index] / gradient[index].norm()
        torch.testing.assert_close(tried[index], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_task_does_not_depend_on_its_batch(name):
    ascent, action = GradientAscent(iterations=4, initial_step=0.5), make_action(name)
    together = climbed(ascent, *setting(FAMILY.sample(SEEDS), name), action)
    for index, seed in enumerate(SEEDS):
        alone = climbed(ascent, *setting(FAMILY.sample([seed]), name), action)
        for got, want in zip(together.after, alone.after, strict=True):
            torch.testing.assert_close(got[index], want[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_norm_of_the_element_is_shared_by_the_sites_of_a_task(name):
    between = (Identity(),) * 2 if name == LINEAR else (LeakyReLU(0.1), LeakyReLU(0.3))
    chain = LayerChain((*between, Identity()), (True, False, True), batch_dims=1)
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (5,), (4, 5), (3, 4), (3,), (6, 4), (3, 4))
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    recorder = Recorder(make_action(name, max_defect=1e9))
    ascent = GradientAscent(iterations=1, initial_step=0.2, max_backtracks=0)
    move = climbed(ascent, chain, parameters, LayerInput(x), loss, recorder)
    first, second = (t.flatten(1).square().sum(1) for t in recorder.elements)
    assert min(first.min(), second.min()) > 0
    torch.testing.assert_close((first + second).sqrt(), torch.full((2,), 0.2).double())
    assert move.invariance_error().max() < 1e-10


def test_the_objective_is_what_is_climbed():
    def small_weights(parameters, loss):
        return -sum(parameter.square().sum(dim=(-2, -1)) for parameter in parameters)

    setup = setting(FAMILY.sample(SEEDS))
    move = climbed(GradientAscent(objective=small_weights), *setup, make_action("rescaling"))
    before, after = (small_weights(at, None) for at in (setup[1], move.after))
    assert (after > before).all()


def test_a_step_that_never_rises_is_halved_and_then_stays_bit_for_bit():
    def cliff(parameters, loss):
        """Highest at the start, and with a slope there."""
        total = parameters[0].sum(dim=(-2, -1))
        return total - 1e9 * (total.detach() - start).abs().sign()

    setup = setting(FAMILY.sample(SEEDS))
    start = setup[1][0].sum(dim=(-2, -1))
    recorder = Recorder(make_action("rescaling"))
    ascent = GradientAscent(iterations=1, initial_step=0.8, max_backtracks=3, objective=cliff)
    move = climbed(ascent, *setup, recorder)
    sizes = [element.norm(dim=1).tolist() for element in recorder.elements]
    expected = [[size] * 3 for size in (0.8, 0.4, 0.2, 0.1)]
    torch.testing.assert_close(torch.tensor(sizes), torch.tensor(expected))
    for moved, start in zip(move.after, setup[1], strict=True):
        assert torch.equal(moved, start)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_broken_task_is_rejected_and_the_others_climb_as_if_alone(name):
    setup = setting(FAMILY.sample(SEEDS), name)
    setup[1][0][1, 0, 0] = float("nan")
    ascent, action = GradientAscent(iterations=2), make_action(name)
    move = climbed(ascent, *setup, action)
    assert move.rejected.tolist() == [False, True, False]
    assert torch.equal(move.after[1][1], setup[1][1][1])
    alone = climbed(ascent, *setting(FAMILY.sample([SEEDS[2]]), name), action)
    for got, want in zip(move.after, alone.after, strict=True):
        torch.testing.assert_close(got[2], want[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["post_activation", "pre_activation"])  # others: never inexact
def test_a_task_whose_output_would_change_too_much_is_rejected_and_stays(name):
    setup = setting(mixed_signs(9, 4, 3, 5).sample(SEEDS))
    move = climbed(GradientAscent(iterations=2), *setup, make_action(name, max_defect=1e-13))
    assert move.rejected.all()
    for moved, start in zip(move.after, setup[1], strict=True):
        assert torch.equal(moved, start)


def test_a_task_rejected_at_one_site_is_not_moved_at_the_others():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (3, 5), (2, 3), (6, 4), (2, 4))  # eq. 79: exact at 5 units, not at 3
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )
    chain = LayerChain((LeakyReLU(0.1),) * 2 + (Identity(),), (False,) * 3, batch_dims=1)

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    action = make_action("pre_activation", max_defect=1e-10)
    move = climbed(GradientAscent(iterations=1), chain, parameters, LayerInput(x), loss, action)
    assert move.rejected.all()
    for moved, start in zip(move.after, parameters, strict=True):
        assert torch.equal(moved, start)


@pytest.mark.parametrize("name", ACTIONS)
def test_iterations_follow_one_another(name):
    chain, parameters, *rest = setting(FAMILY.sample(SEEDS), name)
    action = make_action(name)
    at_once = climbed(
        GradientAscent(iterations=3, initial_step=1e-3), chain, parameters, *rest, action
    )
    one = GradientAscent(iterations=1, initial_step=1e-3)
    for _ in range(3):  # so small a step always rises, and is never shortened
        parameters = climbed(one, chain, parameters, *rest, action).after
    for got, want in zip(at_once.after, parameters, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_the_start_is_left_alone():
    setup = setting(FAMILY.sample(SEEDS))
    copies = [parameter.clone() for parameter in setup[1]]
    climbed(GradientAscent(iterations=1), *setup, make_action("rescaling"))
    for parameter, copy in zip(setup[1], copies, strict=True):
        assert torch.equal(parameter, copy)
        assert not parameter.requires_grad


@pytest.mark.parametrize("name", ACTIONS)
def test_what_is_found_carries_no_graph(name):
    tasks = FAMILY.sample(SEEDS)
    chain, parameters, layer_input, loss = setting(tasks, name)
    orbit = chain_orbit(chain, parameters, layer_input, make_action(name))
    result = GradientAscent(iterations=2)(orbit, parameters, loss)
    elements = [element.values for step in result.elements for element in step]
    assert len(elements) == 2
    assert not any(tensor.requires_grad for tensor in (*result.parameters, *elements))


def test_a_search_under_no_grad_finds_the_same():
    ascent, action = GradientAscent(iterations=2), make_action("post_activation")
    free = climbed(ascent, *setting(FAMILY.sample(SEEDS)), action)
    with torch.no_grad():
        quiet = climbed(ascent, *setting(FAMILY.sample(SEEDS)), action)
    for a, b in zip(free.after, quiet.after, strict=True):
        assert torch.equal(a, b)


def test_biases_move_along():
    chain = LayerChain((LeakyReLU(0.1), Identity()), (True, True), batch_dims=1)
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (5,), (3, 5), (3,), (6, 4), (3, 4))
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    move = climbed(
        GradientAscent(iterations=3),
        chain,
        parameters,
        LayerInput(x),
        loss,
        make_action("rescaling"),
    )
    (w1, b1, _, b2), (moved_w1, moved_b1, _, moved_b2) = parameters, move.after
    scale = moved_w1[:, :, 0] / w1[:, :, 0]
    assert (scale - 1).abs().max() > 1e-2
    torch.testing.assert_close(moved_b1, scale * b1)
    assert torch.equal(moved_b2, b2)


@pytest.mark.parametrize("name", ACTIONS)
def test_steps_along_old_directions_rise_and_keep_the_bound(name):
    """With as many steps, four fifths of the gain at the least, and no task below its start."""
    setup = setting(FAMILY.sample(range(8)), name)
    _, parameters, _, loss = setup
    before = gradient_norm(parameters, loss)
    gains = []
    for steps in (1, 5):
        ascent = GradientAscent(10, 0.1, max_ratio=3.0, steps_per_gradient=steps)
        after = gradient_norm(climbed(ascent, *setup, make_action(name)).after, loss)
        assert (after >= before).all()
        assert (after <= 3.0 * before).all()
        gains.append((after / before).log().mean())
    assert gains[1] > 0.8 * gains[0]


def test_steps_along_an_old_direction_are_tried_as_one_and_shortened_like_any():
    class Counting(Recorder):
        pulled = 0

        def pull_back(self, *arguments):
            self.pulled += 1
            return super().pull_back(*arguments)

    def first_weights(parameters, loss):
        return parameters[0].sum(dim=(-2, -1))

    setup = setting(FAMILY.sample([0]))
    ascent = GradientAscent(7, 1e-3, objective=first_weights, steps_per_gradient=4)
    action = Counting(make_action("rescaling"))
    free = climbed(ascent, *setup, action)
    sizes = torch.stack([values.norm() for values in action.elements]) / 1e-3
    torch.testing.assert_close(sizes, torch.tensor([1.0, 3.0, 1.0, 2.0]).double())
    assert action.pulled == 2
    start, end = (first_weights(at, None) for at in (setup[1], free.after))
    most = (start + 0.4 * (end - start)).item()  # within the second move
    action = Counting(make_action("rescaling"))
    bounded = climbed(replace(ascent, max_value=most), *setup, action)
    assert start + 0.38 * (end - start) < first_weights(bounded.after, None) <= most
    assert (action.pulled, len(action.elements)) == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "expected iterations of 1 or more, got 0"),
        ({"iterations": 1.5}, "expected iterations of 1 or more, got 1.5: give a whole number"),
        ({"max_backtracks": -1}, "expected max_backtracks of 0 or more, got -1"),
        ({"max_backtracks": None}, "expected max_backtracks of 0 or more, got None"),
        ({"steps_per_gradient": 0}, "expected steps_per_gradient of 1 or more, got 0"),
        ({"initial_step": 0.0}, "expected a positive initial_step, got 0.0: the default is 0.1"),
        ({"initial_step": float("nan")}, "expected a positive initial_step, got nan"),
        ({"initial_step": "0.1"}, "expected a positive initial_step, got '0.1'"),
        ({"max_value": None}, "expected a number as max_value and max_ratio > 1, got None"),
        ({"max_ratio": "2"}, "expected a number as max_value and max_ratio > 1, got inf and '2'"),
        ({"objective": None}, "expected an objective, .* got None: leave it out"),
        ({"objective": 3.0}, "expected an objective, .* got 3.0"),
        ({"objective": Negated}, "expected an objective, .* got <class"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        GradientAscent(**options)


def test_only_an_objective_can_be_negated():
    with pytest.raises(UserError, match=r"expected an objective, .* got None"):
        Negated(None)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert GradientAscent(iterations=np.int64(3), initial_step=np.float32(0.5)).iterations == 3
