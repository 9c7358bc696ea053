import pytest
import torch
from cases import mixed_signs, naive_leaky

from metaopt import UserError
from metaopt.symmetry import ACTIONS, LayerInput, make_action, teleport
from metaopt.symmetry.chain import Identity, Layer, LayerChain, LeakyReLU
from metaopt.symmetry.objectives import gradient_norm
from metaopt.symmetry.orbit import ChainOrbit
from metaopt.symmetry.search import GradientAscent

FAMILY = mixed_signs(4, 6, 5, 3)
SEEDS = (0, 1, 2)


class Recorder:
    """An action that remembers the elements it was given."""

    def __init__(self, action):
        self.action, self.diagonal, self.elements = action, action.diagonal, []

    def act(self, element, *arguments):
        self.elements.append(element.detach().clone())
        return self.action.act(element, *arguments)

    def pull_back(self, *arguments):
        return self.action.pull_back(*arguments)


def setting(problem):
    """Chain, layers, input and loss of a problem, written here without its forward."""
    chain = problem.chain

    def loss(parameters):
        residual = problem.y - chain.output(chain.layers(parameters), problem.x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    layers = chain.layers([p.detach() for p in problem.parameters()])
    return chain, layers, LayerInput(problem.x), loss


def climbed(ascent, chain, layers, layer_input, loss, action):
    """The move that an ascent makes."""
    orbit, start = ChainOrbit(chain, layer_input, action), chain.parameters(layers)
    climb = ascent(orbit, start, loss)
    return orbit.teleportation(start, climb.parameters, climb.refused)


def naive_gradient_norm(layers, x, y, slope=0.1):
    """||grad L||^2 of L = 1/2 ||Y - W2 sigma(W1 X)||^2, problem by problem, in closed form."""
    values = []
    for w1, w2, x_one, y_one in zip(layers[0].weight, layers[1].weight, x, y, strict=True):
        z = w1 @ x_one
        features = naive_leaky(z, slope)
        error = w2 @ features - y_one
        slopes = torch.where(z > 0, 1.0, slope)
        g2, g1 = error @ features.T, (slopes * (w2.T @ error)) @ x_one.T
        values.append((g1**2).sum() + (g2**2).sum())
    return torch.stack(values)


def value_at(problem, layers):
    return naive_gradient_norm(layers, problem.x, problem.y)


def test_the_objective_equals_the_closed_form():
    problem = FAMILY.sample(SEEDS)
    chain, layers, _, loss = setting(problem)
    torch.testing.assert_close(
        gradient_norm(chain.parameters(layers), loss), value_at(problem, layers)
    )


@pytest.mark.parametrize("size", [0.1, 5.0])
@pytest.mark.parametrize("samples", [4, 9])  # exact, and not
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIONS)
def test_no_problem_ends_below_its_start(name, dtype, samples, size):
    problem = mixed_signs(samples, 6, 5, 3, dtype).sample(range(8))
    chain, layers, layer_input, loss = setting(problem)
    ascent = GradientAscent(iterations=3, size=size)
    move = climbed(ascent, chain, layers, layer_input, loss, make_action(name))
    before, after = (
        gradient_norm(chain.parameters(at), loss).detach() for at in (layers, move.layers)
    )
    assert (after >= before).all()
    if samples == 4 and size == 0.1:
        assert (after > 1.01 * before).all()


@pytest.mark.parametrize("name", ACTIONS)
def test_the_direction_is_the_finite_difference_gradient_in_t(name):
    problem = FAMILY.sample(SEEDS)
    setup = setting(problem)
    recorder = Recorder(make_action(name, max_defect=1e9))
    climbed(GradientAscent(iterations=1, size=0.25, halvings=0), *setup, recorder)
    (tried,) = recorder.elements
    gradient, epsilon = torch.zeros_like(tried), 1e-5
    for entry in range(tried[0].numel()):
        values = []
        for step in (epsilon, -epsilon):
            element = torch.zeros_like(tried)
            element.flatten(1)[:, entry] = step
            move = teleport(*setup[:3], [element], recorder.action)
            values.append(value_at(problem, move.layers))
        gradient.flatten(1)[:, entry] = (values[0] - values[1]) / (2 * epsilon)
    for index in range(len(SEEDS)):
        expected = 0.25 * gradient[index] / gradient[index].norm()
        torch.testing.assert_close(tried[index], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_problem_does_not_depend_on_its_batch(name):
    ascent, action = GradientAscent(iterations=4, size=0.5), make_action(name)
    together = climbed(ascent, *setting(FAMILY.sample(SEEDS)), action)
    for index, seed in enumerate(SEEDS):
        alone = climbed(ascent, *setting(FAMILY.sample([seed])), action)
        for got, want in zip(together.layers, alone.layers, strict=True):
            torch.testing.assert_close(got.weight[index], want.weight[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_norm_of_the_element_is_shared_by_the_sites_of_a_problem(name):
    chain = LayerChain(
        (LeakyReLU(0.1), LeakyReLU(0.3), Identity()), (True, False, True), batch_dims=1
    )
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (5,), (4, 5), (3, 4), (3,), (6, 4), (3, 4))
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    recorder = Recorder(make_action(name, max_defect=1e9))
    ascent = GradientAscent(iterations=1, size=0.2, halvings=0)
    move = climbed(ascent, chain, chain.layers(parameters), LayerInput(x), loss, recorder)
    first, second = (t.flatten(1).square().sum(1) for t in recorder.elements)
    assert min(first.min(), second.min()) > 0
    torch.testing.assert_close((first + second).sqrt(), torch.full((2,), 0.2).double())
    assert move.defect().max() < 1e-10


def test_the_objective_is_what_is_climbed():
    def small_weights(parameters, loss):
        return -sum(parameter.square().sum(dim=(-2, -1)) for parameter in parameters)

    setup = setting(FAMILY.sample(SEEDS))
    move = climbed(GradientAscent(objective=small_weights), *setup, make_action("rescaling"))
    before, after = (small_weights(setup[0].parameters(at), None) for at in (setup[1], move.layers))
    assert (after > before).all()


def test_a_step_that_never_rises_is_halved_and_then_stays_bit_for_bit():
    def cliff(parameters, loss):
        """Highest at the start, and with a slope there."""
        total = parameters[0].sum(dim=(-2, -1))
        return total - 1e9 * (total.detach() - start).abs().sign()

    setup = setting(FAMILY.sample(SEEDS))
    start = setup[1][0].weight.sum(dim=(-2, -1))
    recorder = Recorder(make_action("rescaling"))
    ascent = GradientAscent(iterations=1, size=0.8, halvings=3, objective=cliff)
    move = climbed(ascent, *setup, recorder)
    sizes = [element.norm(dim=1).tolist() for element in recorder.elements]
    expected = [[size] * 3 for size in (0.8, 0.4, 0.2, 0.1)]
    torch.testing.assert_close(torch.tensor(sizes), torch.tensor(expected))
    for moved, layer in zip(move.layers, setup[1], strict=True):
        assert torch.equal(moved.weight, layer.weight)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_broken_problem_is_refused_and_the_others_climb_as_if_alone(name):
    setup = setting(FAMILY.sample(SEEDS))
    setup[1][0].weight[1, 0, 0] = float("nan")
    ascent, action = GradientAscent(iterations=2), make_action(name)
    move = climbed(ascent, *setup, action)
    assert move.refused.tolist() == [False, True, False]
    assert torch.equal(move.layers[1].weight[1], setup[1][1].weight[1])
    alone = climbed(ascent, *setting(FAMILY.sample([SEEDS[2]])), action)
    for got, want in zip(move.layers, alone.layers, strict=True):
        torch.testing.assert_close(got.weight[2], want.weight[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["post_activation", "pre_activation"])  # rescaling: never inexact
def test_a_problem_whose_output_would_change_too_much_is_refused_and_stays(name):
    setup = setting(mixed_signs(9, 4, 3, 5).sample(SEEDS))
    move = climbed(GradientAscent(iterations=2), *setup, make_action(name, max_defect=1e-13))
    assert move.refused.all()
    for moved, layer in zip(move.layers, setup[1], strict=True):
        assert torch.equal(moved.weight, layer.weight)


def test_a_problem_refused_at_one_site_is_not_moved_at_the_others():
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (3, 5), (2, 3), (6, 4), (2, 4))  # eq. 79: exact at 5 units, not at 3
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )
    chain = LayerChain((LeakyReLU(0.1),) * 2 + (Identity(),), (False,) * 3, batch_dims=1)

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    layers = chain.layers(parameters)
    action = make_action("pre_activation", max_defect=1e-10)
    move = climbed(GradientAscent(iterations=1), chain, layers, LayerInput(x), loss, action)
    assert move.refused.all()
    for moved, layer in zip(move.layers, layers, strict=True):
        assert torch.equal(moved.weight, layer.weight)


@pytest.mark.parametrize("name", ACTIONS)
def test_iterations_follow_one_another(name):
    setup = setting(FAMILY.sample(SEEDS))
    action = make_action(name)
    at_once = climbed(GradientAscent(iterations=3, size=1e-3), *setup, action)
    layers, one = setup[1], GradientAscent(iterations=1, size=1e-3)
    for _ in range(3):  # so small a step always rises, and is never halved
        layers = climbed(one, setup[0], layers, *setup[2:], action).layers
    for got, want in zip(at_once.layers, layers, strict=True):
        torch.testing.assert_close(got.weight, want.weight, rtol=1e-12, atol=1e-14)


def test_the_start_is_left_alone_and_kept_as_before():
    setup = setting(FAMILY.sample(SEEDS))
    copies = [layer.weight.clone() for layer in setup[1]]
    move = climbed(GradientAscent(iterations=1), *setup, make_action("rescaling"))
    for layer, copy, before in zip(setup[1], copies, move.before, strict=True):
        assert torch.equal(layer.weight, copy)
        assert before.weight is layer.weight
        assert not layer.weight.requires_grad


def test_the_layers_found_carry_no_graph():
    move = climbed(
        GradientAscent(iterations=2), *setting(FAMILY.sample(SEEDS)), make_action("rescaling")
    )
    assert not any(layer.weight.requires_grad for layer in move.layers)


def test_a_search_under_no_grad_finds_the_same():
    ascent, action = GradientAscent(iterations=2), make_action("post_activation")
    free = climbed(ascent, *setting(FAMILY.sample(SEEDS)), action)
    with torch.no_grad():
        quiet = climbed(ascent, *setting(FAMILY.sample(SEEDS)), action)
    for a, b in zip(free.layers, quiet.layers, strict=True):
        assert torch.equal(a.weight, b.weight)


def test_biases_move_along():
    chain = LayerChain((LeakyReLU(0.1), Identity()), (True, True), batch_dims=1)
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (5,), (3, 5), (3,), (6, 4), (3, 4))
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    layers = chain.layers(parameters)
    move = climbed(
        GradientAscent(iterations=3), chain, layers, LayerInput(x), loss, make_action("rescaling")
    )
    scale = move.layers[0].weight[:, :, 0] / layers[0].weight[:, :, 0]
    assert (scale - 1).abs().max() > 1e-2
    torch.testing.assert_close(move.layers[0].bias, scale * layers[0].bias)
    assert isinstance(move.layers[1], Layer)
    assert torch.equal(move.layers[1].bias, layers[1].bias)


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"halvings": -1}, {"size": 0.0}, {"size": float("nan")}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match="iterations >= 1, halvings >= 0 and size > 0"):
        GradientAscent(**options)
