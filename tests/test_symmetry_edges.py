"""Moves and searches at the edges: precision, batches of batches, nothing left to climb."""

import math
import re
from contextlib import nullcontext

import pytest
import torch
from cases import mixed_signs

from metaopt import UserError
from metaopt.symmetry import (
    Element,
    GradientAscent,
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    LevelSetTeleport,
    Negated,
    OrbitPoint,
    SearchResult,
    chain_orbit,
    gradient_norm,
    make_action,
)
from metaopt.symmetry.level_set import Stopped
from metaopt.symmetry.metric import adaptive_metric
from metaopt.symmetry.objectives import per_task_sum
from metaopt.symmetry.slope import EvaluatedSlope
from studies.searches.fixed_ascent import FixedAscent
from studies.searches.random_move import RandomMove

SEARCH = GradientAscent(iterations=3, initial_step=0.2)


def setting(action="pre_activation", dtype="float64"):
    """(orbit, parameters, loss) of three tasks."""
    tasks = mixed_signs(4, 6, 5, 3, dtype=dtype).sample((0, 1, 2))

    def loss(parameters):
        residual = tasks.y - tasks.chain.output(tasks.chain.layers(parameters), tasks.x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    parameters = [p.detach().clone() for p in tasks.parameters()]
    orbit = chain_orbit(tasks.chain, parameters, LayerInput(tasks.x), make_action(action))
    return orbit, parameters, loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Steps:
    """A search that makes these steps, and says that it was rejected where ``rejected``."""

    def __init__(self, elements, rejected=False):
        self.elements, self.rejected = elements, rejected

    def __call__(self, orbit, parameters, loss):
        rejected = torch.full((len(parameters[0]),), self.rejected)
        return SearchResult(list(parameters), rejected, self.elements)


class Line:
    """An orbit of parameters w + t; move number n is rejected where ``rejected[n]``."""

    def __init__(self, *rejected):
        self.rejected = list(rejected)

    remembering = staticmethod(nullcontext)

    def pull_back(self, parameters, gradients):
        return [Element(g, diagonal=True) for g in gradients]

    def move(self, parameters, elements):
        rejected = torch.tensor(self.rejected.pop(0))
        moved = [p + e.values for p, e in zip(parameters, elements, strict=True)]
        return OrbitPoint(moved, rejected)


# Random moves and the ascent at a fixed rate.


def test_a_random_direction_is_drawn_in_the_precision_of_the_element():
    orbit, parameters, loss = setting()
    control = RandomMove(SEARCH, seeded())
    control(orbit, parameters, loss)
    (element,) = orbit.identity(parameters)
    expected = torch.randn(element.values.shape, generator=seeded(), dtype=torch.float64)
    assert torch.equal(control.direction[0], expected)


def test_a_random_step_has_its_length_however_short_the_direction_is():
    orbit, parameters, loss = setting()
    (element,) = orbit.identity(parameters)
    control = RandomMove(Steps([[element.map(lambda t: t + 0.1)]]), seeded())
    control.direction = [1e-5 * (element.values + 1.0)]
    ((step,),) = control(orbit, parameters, loss).elements
    torch.testing.assert_close(step.values, element.values + 0.1)


ONES = [[Element(torch.ones(3, 1), diagonal=True)]] * 2
REJECTIONS = [
    ((False, False, False), (False, False, False)),
    ((True, False, True), (False, False, True)),
    ((True, True, True), (True, False, False)),
    ((False, True, False), (True, True, False)),
]


@pytest.mark.parametrize(("first", "second"), REJECTIONS)
def test_a_task_is_rejected_where_no_step_moved_it(first, second):
    both = [a and b for a, b in zip(first, second, strict=True)]
    start = [torch.zeros(3, 1)]

    def loss(values):
        return values[0].square().sum(dim=1)

    ascent = FixedAscent(iterations=2, objective=lambda values, loss: values[0].sum(dim=1))
    for search in (RandomMove(Steps(ONES), seeded()), ascent):
        result = search(Line(first, second), start, loss)
        assert result.rejected.tolist() == both
        stayed = (result.parameters[0] == 0).all(dim=1)
        assert stayed.tolist() == both
        for rejected, (step,) in zip((first, second), result.elements, strict=True):
            assert (step.values == 0).all(dim=1).tolist() == list(rejected)


@pytest.mark.parametrize(("first", "second"), REJECTIONS)
def test_a_search_is_rejected_where_its_first_move_was(first, second):
    """One that was rejected has arrived: it is not asked again."""
    search = GradientAscent(
        2, max_backtracks=0, objective=lambda values, loss: values[0].sum(dim=1)
    )
    result = search(Line(first, second), [torch.zeros(3, 1)], None)
    assert result.rejected.tolist() == list(first)
    expected = [0.1 * (not a) * (1 + (not b)) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(
        result.parameters[0].flatten().double(), torch.tensor(expected).double()
    )


def test_a_search_that_made_no_step_was_not_rejected():
    start = [torch.zeros(3, 1)]
    result = RandomMove(Steps([]), seeded())(Line(), start, None)
    assert not result.rejected.any()
    assert torch.equal(result.parameters[0], start[0])


SEARCHES = {
    "random": RandomMove(SEARCH, seeded()),
    "fixed": FixedAscent(iterations=2),
    "guarded": SEARCH,
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_where_a_search_ends_carries_no_graph_even_where_all_is_rejected(search):
    orbit, parameters, loss = setting()
    broken = [p.clone().fill_(float("nan")).requires_grad_() for p in parameters]
    for start in ([p.requires_grad_() for p in parameters], broken):
        result = search(orbit, start, loss)
        assert not any(p.requires_grad for p in result.parameters)
        assert not any(t.values.requires_grad for step in result.elements for t in step)


# The ascent with a bound.


@pytest.mark.parametrize("objective", [gradient_norm, Negated(gradient_norm)])
def test_a_bound_that_is_no_way_off_is_not_climbed_to(objective):
    orbit, parameters, loss = setting()
    result = GradientAscent(objective=objective, max_ratio=1 + 1e-8)(orbit, parameters, loss)
    assert result.elements == []
    assert not result.rejected.any()
    assert all(map(torch.equal, result.parameters, parameters))


def test_a_step_past_the_bound_is_shortened_to_end_a_fortieth_of_the_way_before_it():
    search = GradientAscent(
        initial_step=0.1, max_value=0.05, objective=lambda values, loss: values[0].sum(dim=1)
    )
    result = search(Line(*[[False]] * 4), [torch.zeros(1, 1).double()], None)
    assert result.parameters[0].item() == pytest.approx(0.05 * (1 - 1 / 40), rel=1e-9)
    assert len(result.elements) == 1


def test_slopes_that_are_not_finite_count_as_none():
    def objective(values, loss):
        rising, falling, undefined, sound = values[0].unbind(dim=1)
        return rising.sqrt() - falling.sqrt() + (0 * undefined).sqrt() + sound.square()

    slope = EvaluatedSlope(Line(), objective, None)
    (gradient,) = slope.gradients(slope.at([torch.tensor([[0.0, 0.0, 0.0, 3.0]])]))
    assert gradient.tolist() == [[0.0, 0.0, 0.0, 6.0]]


# Level sets.


@pytest.mark.parametrize("max_backtracks", [0, 3])
def test_a_step_is_tried_once_more_than_it_may_be_halved(max_backtracks):
    start = torch.ones(2, dtype=torch.float64)

    def only_there(values):
        loss = values[0][0].square() + 3 * values[0][1].square()
        return loss if torch.equal(values[0].detach(), start) else loss * float("nan")

    result = LevelSetTeleport(max_backtracks=max_backtracks, corrections=0)(
        None, [start], only_there
    )
    assert result.not_finite == max_backtracks + 1
    assert result.stopped == Stopped.NO_STEP
    assert torch.equal(result.parameters[0], start)


def test_a_loss_may_be_linear_in_a_parameter_and_without_another():
    start = [torch.tensor([1.0, 0.5]).double(), torch.ones(2).double(), torch.ones(3).double()]

    def loss(values):
        return values[0].square().sum() * values[0][0] + 0.1 * values[1].sum()

    result = LevelSetTeleport(iterations=3)(None, start, loss)
    assert result.gradient_norms[-1] > result.gradient_norms[0]
    assert torch.equal(result.parameters[2], start[2])


# Objectives.


@pytest.mark.parametrize("batch", [(), (3,), (3, 2)])
def test_a_parameter_may_be_one_number_a_task(batch):
    sums = per_task_sum([torch.ones(batch), torch.ones(*batch, 4)], len(batch))
    assert sums.shape == batch
    assert (sums == 5).all()


def test_what_is_negated_twice_is_as_it_was():
    _, parameters, loss = setting()
    twice = Negated(Negated(gradient_norm))
    own = [p.requires_grad_() for p in parameters]
    assert torch.equal(twice(own, loss), gradient_norm(own, loss))


@pytest.mark.parametrize("kind", [torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Adamax])
def test_an_optimizer_whose_step_is_of_another_form_has_no_metric(kind):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([weight])
    weight.sum().backward()
    optimizer.step()
    with pytest.raises(UserError, match=f"expected Adagrad, RMSprop or Adam.*{kind.__name__}"):
        adaptive_metric(optimizer, [weight])


# Transport.


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("action", ["rescaling", "post_activation"])
def test_transported_gradients_keep_their_dtype_and_are_those_of_float64(action, squares):
    chain = LayerChain((LeakyReLU(0.1), Identity()), (True, True), batch_dims=1)
    shapes = ((2, 4, 5), (2, 4), (2, 3, 4), (2, 3))
    wide = [torch.randn(s, generator=seeded(i), dtype=torch.float64) for i, s in enumerate(shapes)]
    orbit = chain_orbit(chain, wide, LayerInput(torch.zeros(2, 5, 3)), make_action(action))
    elements = [zero.map(lambda t: t + 0.3) for zero in orbit.identity(wide)]
    narrow = [t.float() for t in wide]
    expected = orbit.transport([t.double() for t in narrow], elements, squares)
    found = orbit.transport(narrow, elements, squares)
    assert [t.dtype for t in found] == [torch.float32] * 4
    torch.testing.assert_close(found, [t.float() for t in expected])


# Options.

DEFAULTS = [
    (GradientAscent, ("initial_step",), {"initial_step": 0.0}),
    (FixedAscent, ("rate",), {"rate": 0.0}),
    (LevelSetTeleport, ("rho",), {"rho": 0.0}),
    (LevelSetTeleport, ("tolerance",), {"tolerance": math.nan}),
    (LevelSetTeleport, ("growth", "stationary"), {"growth": 0.5}),
]


@pytest.mark.parametrize(("search", "names", "bad"), DEFAULTS)
def test_a_refusal_names_the_defaults_as_they_are(search, names, bad):
    with pytest.raises(UserError) as error:
        search(**bad)
    named = re.findall(r"\d[\d.e-]*", re.split("defaults? (?:is|are)", str(error.value))[1])
    assert [float(number.rstrip(".")) for number in named] == [
        getattr(search(), name) for name in names
    ]


INFINITE = [
    lambda inf: GradientAscent(initial_step=inf),
    lambda inf: GradientAscent(max_value=inf * 0),
    lambda inf: FixedAscent(rate=inf),
    lambda inf: LevelSetTeleport(rho=inf),
    lambda inf: LevelSetTeleport(tolerance=inf),
    lambda inf: LevelSetTeleport(growth=inf),
    lambda inf: LevelSetTeleport(stationary=1.0),
]


@pytest.mark.parametrize("build", INFINITE)
def test_an_option_has_to_be_finite_and_below_its_limit(build):
    with pytest.raises(UserError, match="expected"):
        build(float("inf"))
