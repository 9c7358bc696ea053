import math

import pytest
import torch
from cases import (
    BREAK,
    BROKEN,
    CASES,
    LINEAR,
    PLAIN,
    POST,
    PRE,
    VARIANTS,
    Case,
    Drawn,
    Variant,
    act,
    assert_layers_close,
    between,
    crossed,
    draw,
    draw_element,
    group_elements,
    pair_output,
    tensors,
    twin,
)

from metaopt import UserError
from metaopt.symmetry import ACTIONS, Element, Identity, Layer, LeakyReLU, make_action

OTHERS = [0, 2]
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()


@pytest.mark.parametrize(**crossed())
def test_a_move_equals_its_naive_twin(variant, case):
    drawn, element = draw(case), draw_element(variant, case)
    move = act(variant.make(), element, drawn)
    expected = twin(variant, case, drawn, *group_elements(variant, element))
    assert_layers_close(move[:2], expected)


@pytest.mark.parametrize(**crossed())
def test_the_output_stays_where_the_action_is_exact_and_changes_where_not(variant, case):
    drawn = draw(case)
    move = act(variant.make(), draw_element(variant, case), drawn)
    before = pair_output(case, drawn, drawn[:2])
    after = pair_output(case, drawn, move[:2])
    change = (after - before).norm(dim=(1, 2)) / before.norm(dim=(1, 2))
    if variant.exact_at(case):
        assert change.max() < 1e-10
    else:
        assert change.min() > 1e-3
    assert move.invariance_error.shape == move.rejected.shape == case.batch
    torch.testing.assert_close(move.invariance_error.flatten(), change, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(**crossed())
def test_the_largest_batch_is_what_the_table_says(variant, case):
    predicted = case.samples <= variant.make().max_samples(draw(case).site)
    assert predicted == variant.exact_at(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(**crossed())
def test_the_identity_moves_nothing_bit_for_bit(variant, case, dtype):
    drawn = draw(case, dtype=dtype)
    move = act(variant.make(), draw_element(variant, case, scale=0.0), drawn)
    assert not move.rejected.any()
    assert move.invariance_error.eq(0).all()
    for moved, start in zip(tensors(*move[:2]), tensors(*drawn[:2]), strict=True):
        assert moved.dtype == dtype
        assert torch.equal(moved, start)


def two_moves(variant, case):
    """exp(A) then exp(B), and the naive move by exp(B) exp(A)."""
    drawn, action = draw(case), variant.make()
    a, b = (draw_element(variant, case, seed) for seed in (1, 2))
    first = act(action, a, drawn)
    second = act(action, b, drawn._replace(incoming=first.incoming, outgoing=first.outgoing))
    (g_a, inverse_a), (g_b, inverse_b) = (group_elements(variant, t) for t in (a, b))
    return second, twin(variant, case, drawn, g_b @ g_a, inverse_a @ inverse_b)


@pytest.mark.parametrize(**crossed(PLAIN, lambda v, c: v.name not in c.no_law))
def test_two_moves_are_the_move_by_the_product(variant, case):
    second, expected = two_moves(variant, case)
    assert_layers_close(second[:2], expected)


@pytest.mark.parametrize(**crossed(PLAIN, lambda v, c: v.name not in c.no_law))
def test_the_inverse_element_moves_back(variant, case):
    drawn, element, action = draw(case), draw_element(variant, case), variant.make()
    there = act(action, element, drawn)
    back = act(action, element.scaled(-1.0), drawn._replace(incoming=there[0], outgoing=there[1]))
    assert_layers_close(back[:2], drawn[:2])


@pytest.mark.parametrize(**crossed(PLAIN, lambda v, c: v.name in c.no_law))
def test_two_moves_are_not_the_move_by_the_product_for_the_tables_reason(variant, case):
    second, expected = two_moves(variant, case)
    pairs = zip(tensors(*second[:2]), tensors(*expected), strict=True)
    gaps = [(a - b).norm() / b.norm() for a, b in pairs]
    assert max(gaps) > 1e-3, case.no_law[variant.name]


@pytest.mark.parametrize(**crossed(tuple(v for v in PLAIN if v.name == PRE)))
def test_eq_79_obeys_the_group_law_on_the_incoming_weight_everywhere(variant, case):
    second, expected = two_moves(variant, case)
    assert_layers_close(second[:1], expected[:1])


@pytest.mark.parametrize(**crossed(VARIANTS, lambda v, c: c.features * c.hidden < 30))
def test_gradients_in_the_element_and_the_weights_equal_finite_differences(variant, case):
    drawn, action = draw(case), variant.make()
    biases = [layer.bias is not None for layer in drawn[:2]]
    element = draw_element(variant, case)

    def moved(values, *parameters):
        remaining = iter(parameters)
        layers = [Layer(next(remaining), next(remaining) if b else None) for b in biases]
        at = drawn._replace(incoming=layers[0], outgoing=layers[1])
        return tuple(tensors(*act(action, element.with_values(values), at)[:2]))

    for at in (drawn.incoming, act(action, element, drawn).incoming):
        assert at(drawn.h).abs().min() > 1e-4, "a kink of LeakyReLU is within the differences"
    inputs = [t.clone().requires_grad_() for t in (element.values, *tensors(*drawn[:2]))]
    assert torch.autograd.gradcheck(moved, inputs, fast_mode=False)


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_known_answers_at_width_one(variant):
    def moved(w, b, u, h, t):
        incoming = Layer(torch.tensor([[w]]), None if b is None else torch.tensor([b]))
        move = act(
            variant.make(),
            draw_element(variant, one_unit).map(lambda values: torch.full_like(values, t)),
            Drawn(
                incoming.map(torch.Tensor.double),
                Layer(torch.tensor([[u]]).double()),
                torch.tensor([[h]]).double(),
                between(one_unit.slope),
            ),
        )
        return torch.cat([t.flatten() for t in tensors(*move[:2])]).tolist()

    one_unit = variant.at(Case("one unit", 1, 1, 1, 1))
    # One unit and g > 0: every action is the rescaling, the minimal change of [w b] aside.
    assert moved(2.0, None, 5.0, 3.0, math.log(2)) == pytest.approx([4.0, 2.5])
    assert moved(-2.0, None, 5.0, 3.0, math.log(2)) == pytest.approx([-4.0, 2.5])
    # w h + b = 7 becomes 14: eq. 78 adds 7 [3, 1] / 10, the others double w and b.
    expected = [4.1, 1.7, 2.5] if variant.name == POST else [4.0, 2.0, 2.5]
    assert moved(2.0, 1.0, 5.0, 3.0, math.log(2)) == pytest.approx(expected)


def test_the_first_order_exponential_changes_the_output_of_eq_78_by_t_squared():
    case, variant = CASES[0], Variant(POST, {"exponential": "first_order"})
    drawn, element = draw(case), draw_element(variant, case, scale=0.05)
    features, t = drawn.activation(drawn.incoming(drawn.h)), element.values
    expected = (drawn.outgoing.weight @ t @ t @ features).norm()
    expected = expected / (drawn.outgoing.weight @ features).norm()
    error = act(variant.make(), element, drawn).invariance_error
    torch.testing.assert_close(error, expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_layer_keeps_its_own_dtype(variant):
    case = variant.at(CASES[0])
    drawn = draw(case, dtype=torch.float32)
    wide = drawn._replace(outgoing=drawn.outgoing.map(torch.Tensor.double))
    move = act(variant.make(), draw_element(variant, case), wide)
    assert move.incoming.weight.dtype == torch.float32
    assert move.outgoing.weight.dtype == move.invariance_error.dtype == torch.float64


def only(drawn, index):
    incoming, outgoing = (layer.map(lambda t: t[index]) for layer in drawn[:2])
    return drawn._replace(incoming=incoming, outgoing=outgoing, h=drawn.h[index])


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_broken_task_keeps_its_weights_and_the_others_move_as_if_alone(variant, how):
    case = variant.at(BROKEN)
    element, drawn = BREAK[how](draw_element(variant, case, scale=0.1), draw(case))
    move = act(variant.make(), element, drawn)
    assert move.rejected.tolist() == [False, True, False]
    for moved, start in zip(tensors(*move[:2]), tensors(*drawn[:2]), strict=True):
        assert torch.equal(moved[1].nan_to_num(7.0), start[1].nan_to_num(7.0))
    for index in OTHERS:
        alone = act(variant.make(), element.map(lambda t, i=index: t[i]), only(drawn, index))
        together = [layer.map(lambda t, i=index: t[i]) for layer in move[:2]]
        assert_layers_close(together, alone[:2], rtol=1e-11)


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_broken_task_leaves_gradients_in_its_element_and_of_the_others_finite(variant, how):
    case = variant.at(BROKEN)
    element, drawn = BREAK[how](draw_element(variant, case, scale=0.1), draw(case))
    inputs = [t.clone().requires_grad_() for t in (element.values, *tensors(*drawn[:2]))]
    w, b, u, c = inputs[1:]
    at = drawn._replace(incoming=Layer(w, b), outgoing=Layer(u, c))
    move = act(variant.make(), element.with_values(inputs[0]), at)
    sum(t.square().sum() for t in tensors(*move[:2])).backward()
    # A network proposes every element: NaN in one would reach the weights they share.
    assert inputs[0].grad.isfinite().all()
    for leaf in inputs:
        assert leaf.grad[OTHERS].isfinite().all()
        assert leaf.grad[OTHERS].any()


@pytest.mark.parametrize(("size", "rejected"), [(31.9, False), (32.1, True)])
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_an_element_is_attempted_up_to_norm_32(variant, size, rejected):
    case = variant.at(Case("two units", 3, 2, 2, 2))
    if ACTIONS[variant.name].diagonal:
        element = Element(torch.tensor([size, 0.0]).double(), diagonal=True)
    else:  # a rotation, whose exponential stays bounded
        element = Element(size / math.sqrt(2) * TURN)
    assert act(variant.make(), element, draw(case)).rejected.item() == rejected


@pytest.mark.parametrize(("damping", "limit"), [(0.0, 0.5), (0.1, 2.0)])
def test_eq_79_rejects_only_the_task_whose_moved_features_vanish(damping, limit):
    # A half turn of positive ReLU features leaves none: H = 0, and the error is 1. Undamped it
    # is above the limit; damped it is below, and the factorisation fails.
    drawn = draw(Case("two units", 3, 2, 2, 2, batch=(3,)))
    positive, h = drawn.incoming.map(torch.abs), drawn.h.abs() + 0.1
    drawn = drawn._replace(incoming=positive, h=h, activation=LeakyReLU(0.0))
    values = torch.stack([0.01 * TURN, math.pi * TURN, -0.01 * TURN]).requires_grad_()
    move = act(make_action(PRE, damping=damping, max_defect=limit), Element(values), drawn)
    assert move.rejected.tolist() == [False, True, False]
    for moved, start in zip(tensors(*move[:2]), tensors(*drawn[:2]), strict=True):
        assert torch.equal(moved[1], start[1])
        assert not torch.equal(moved[0], start[0])
    move.outgoing.weight.sum().backward()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize(**crossed(keep=lambda v, c: c.batch == (2,) and not v.exact_at(c)))
def test_an_error_above_max_defect_rejects_that_task_alone(variant, case):
    drawn, element = draw(case), draw_element(variant, case)
    element.values[0] *= 1e-4
    free = act(variant.make(), element, drawn)
    assert free.invariance_error[0] < free.invariance_error[1]
    limit = free.invariance_error.mean().item()
    move = act(variant.make(max_defect=limit), element, drawn)
    assert move.rejected.tolist() == [False, True]
    assert torch.equal(move.invariance_error, free.invariance_error)
    triples = zip(*(tensors(*pair[:2]) for pair in (move, drawn, free)), strict=True)
    for moved, start, other in triples:
        assert torch.equal(moved[1], start[1])
        assert torch.equal(moved[0], other[0])


def test_eq_78_refuses_an_activation_that_is_no_bijection_and_the_others_take_it():
    drawn = draw(CASES[0])._replace(activation=LeakyReLU(0.0))
    for variant in (v for v in PLAIN if v.name != LINEAR):
        element, action = draw_element(variant, CASES[0]), variant.make()
        if variant.name == POST:
            assert action.max_samples(drawn.site) == 0
            assert (
                action.obstacle(drawn.site)
                == "LeakyReLU(slope=0.0) has no inverse on the real line"
            )
            with pytest.raises(UserError, match="expected a bijective activation"):
                act(action, element, drawn)
        else:
            assert action.obstacle(drawn.site) is None
            assert not act(action, element, drawn).rejected


def test_gl_refuses_an_activation_between_and_takes_two_matrices():
    drawn, action = draw(CASES[0]), make_action(LINEAR)
    assert action.max_samples(drawn.site) == 0
    assert action.obstacle(drawn.site) == "LeakyReLU(slope=0.1) lies between the two layers"
    with pytest.raises(UserError, match=r"expected a site for LinearAction.* lies between"):
        act(action, Element(torch.zeros(4, 4, dtype=torch.float64)), drawn)
    alone = drawn._replace(activation=Identity()).site
    assert action.max_samples(alone) == math.inf
    assert action.obstacle(alone) is None


class Shifted(Identity):
    """sigma(z) = z + 1, which is not homogeneous."""

    homogeneous = False

    def __call__(self, z):
        return z + 1.0


def test_rescaling_refuses_an_activation_that_is_not_homogeneous():
    drawn, action = draw(CASES[0])._replace(activation=Shifted()), make_action("rescaling")
    assert action.max_samples(drawn.site) == 0
    assert "is not positively homogeneous" in action.obstacle(drawn.site)
    with pytest.raises(UserError, match="positively homogeneous"):
        act(action, Element(torch.zeros(4, dtype=torch.float64), diagonal=True), drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "sideways"},
            "post_activation, pre_activation, linear, rescaling.*got 'sideways'",
        ),
        ({"name": "rescaling", "damping": 1.0}, "expected options of the action 'rescaling'"),
        ({"name": PRE, "damping": -1.0}, "damping of 0 or more, got -1"),
        ({"name": PRE, "exponential": "second"}, "exact, first_order, got 'second'"),
        ({"name": PRE, "max_defect": 0.0}, "positive max_defect, got 0"),
        ({"name": PRE, "max_defect": float("nan")}, "positive max_defect, got nan"),
    ],
)
def test_bad_names_and_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_action(**options)
