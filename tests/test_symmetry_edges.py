"""Moves and searches at the edges: precision, batches of batches, nothing left to climb."""

import pytest
import torch
from cases import mixed_signs

from metaopt.chain import Identity, LayerChain, LeakyReLU
from metaopt.symmetry import LayerInput, Negated, make_action
from metaopt.symmetry.exponential import Spectral
from metaopt.symmetry.fixed_ascent import FixedAscent
from metaopt.symmetry.objectives import gradient_norm
from metaopt.symmetry.orbit import ChainOrbit, Moved
from metaopt.symmetry.random_move import RandomMove
from metaopt.symmetry.search import Climb, GradientAscent

SEARCH = GradientAscent(iterations=3, size=0.2)


def setting(action="pre_activation", dtype="float64"):
    """(orbit, parameters, loss) of three problems."""
    problem = mixed_signs(4, 6, 5, 3, dtype=dtype).sample((0, 1, 2))

    def loss(parameters):
        residual = problem.y - problem.chain.output(problem.chain.layers(parameters), problem.x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    orbit = ChainOrbit(problem.chain, LayerInput(problem.x), make_action(action))
    return orbit, [p.detach().clone() for p in problem.parameters()], loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Steps:
    """A search that makes these steps, and says that it was refused where ``refused``."""

    def __init__(self, taken, refused=False):
        self.taken, self.refused = taken, refused

    def __call__(self, orbit, parameters, loss):
        refused = torch.full((len(parameters[0]),), self.refused)
        return Climb(list(parameters), refused, self.taken)


class Line:
    """An orbit of parameters w + T; move number n is refused where ``refused[n]``."""

    def __init__(self, *refused):
        self.refused = list(refused)

    def pull_back(self, parameters, gradients):
        return list(gradients)

    def move(self, parameters, elements):
        refused = torch.tensor(self.refused.pop(0))
        return Moved([p + e for p, e in zip(parameters, elements, strict=True)], refused)


# Random moves and the ascent at a fixed rate.


def test_a_random_direction_is_drawn_in_the_precision_of_the_element():
    orbit, parameters, loss = setting()
    control = RandomMove(SEARCH, seeded())
    control(orbit, parameters, loss)
    (element,) = orbit.identity(parameters)
    expected = torch.randn(element.shape, generator=seeded(), dtype=torch.float64)
    assert torch.equal(control.direction[0], expected)


def test_a_random_step_has_its_length_however_short_the_direction_is():
    orbit, parameters, loss = setting()
    (element,) = orbit.identity(parameters)
    control = RandomMove(Steps([[element + 0.1]]), seeded())
    control.direction = [1e-5 * (element + 1.0)]
    ((step,),) = control(orbit, parameters, loss).taken
    torch.testing.assert_close(step, element + 0.1)


ONES = [[torch.ones(3, 1)]] * 2
REFUSALS = [
    ((False, False, False), (False, False, False)),
    ((True, False, True), (False, False, True)),
    ((True, True, True), (True, False, False)),
]


@pytest.mark.parametrize(("first", "second"), REFUSALS)
def test_a_problem_is_refused_where_no_step_moved_it(first, second):
    both = [a and b for a, b in zip(first, second, strict=True)]
    start = [torch.zeros(3, 1)]

    def loss(values):
        return values[0].square().sum(dim=1)

    ascent = FixedAscent(iterations=2, objective=lambda values, loss: values[0].sum(dim=1))
    for search in (RandomMove(Steps(ONES), seeded()), ascent):
        climb = search(Line(first, second), start, loss)
        assert climb.refused.tolist() == both
        stayed = (climb.parameters[0] == 0).all(dim=1)
        assert stayed.tolist() == both
        for refused, (step,) in zip((first, second), climb.taken, strict=True):
            assert (step == 0).all(dim=1).tolist() == list(refused)


@pytest.mark.parametrize(
    "search", [RandomMove(SEARCH, seeded()), FixedAscent(iterations=2), SEARCH]
)
def test_where_a_search_ends_carries_no_graph_even_where_all_is_refused(search):
    orbit, parameters, loss = setting()
    broken = [p.clone().fill_(float("nan")).requires_grad_() for p in parameters]
    for start in ([p.requires_grad_() for p in parameters], broken):
        climb = search(orbit, start, loss)
        assert not any(p.requires_grad for p in climb.parameters)
        assert not any(t.requires_grad for step in climb.taken for t in step)


# The ascent with a bound.


@pytest.mark.parametrize("objective", [gradient_norm, Negated(gradient_norm)])
def test_a_bound_that_is_no_way_off_is_not_climbed_to(objective):
    orbit, parameters, loss = setting()
    climb = GradientAscent(objective=objective, most_ratio=1 + 1e-8)(orbit, parameters, loss)
    assert climb.taken == []
    assert not climb.refused.any()
    assert all(map(torch.equal, climb.parameters, parameters))


# Elements and layers.


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_spectral_element_of_any_batch_exponentiates_as_its_matrix_does(batch):
    drawn = torch.randn(*batch, 4, 4, generator=seeded(), dtype=torch.float64)
    vectors = torch.linalg.qr(drawn).Q
    values = torch.randn(*batch, 4, generator=seeded(1), dtype=torch.float64)
    element = Spectral(values, vectors)
    for found, sign in zip(element.exponential(), (1, -1), strict=True):
        torch.testing.assert_close(found, torch.linalg.matrix_exp(sign * element.dense()))


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("action", ["rescaling", "post_activation"])
def test_transported_gradients_keep_their_dtype_and_are_those_of_float64(action, squares):
    chain = LayerChain((LeakyReLU(0.1), Identity()), (True, True), batch_dims=1)
    shapes = ((2, 4, 5), (2, 4), (2, 3, 4), (2, 3))
    wide = [torch.randn(s, generator=seeded(i), dtype=torch.float64) for i, s in enumerate(shapes)]
    orbit = ChainOrbit(chain, LayerInput(torch.zeros(2, 5, 3)), make_action(action))
    elements = [t + 0.3 for t in orbit.identity(wide)]
    narrow = [t.float() for t in wide]
    expected = orbit.transport([t.double() for t in narrow], elements, squares)
    found = orbit.transport(narrow, elements, squares)
    assert [t.dtype for t in found] == [torch.float32] * 4
    torch.testing.assert_close(found, [t.float() for t in expected])
