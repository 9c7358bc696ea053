import math

import pytest
import torch
from cases import (
    BREAK,
    BROKEN,
    CASES,
    PLAIN,
    PRE,
    VARIANTS,
    Case,
    Variant,
    assert_layers_close,
    crossed,
    draw,
    draw_element,
    group_elements,
    pair_output,
    tensors,
    twin,
)

from metaopt import UserError
from metaopt.symmetry import ACTIONS, LayerInput, make_action
from metaopt.symmetry.chain import Identity, Layer, LeakyReLU

OTHERS = [0, 2]


def act(action, element, drawn):
    return action.act(
        element, drawn.incoming, drawn.outgoing, LayerInput(drawn.h), drawn.activation
    )


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
    assert move.defect.shape == move.refused.shape == case.batch
    torch.testing.assert_close(move.defect.flatten(), change, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(**crossed())
def test_is_exact_says_what_the_table_says(variant, case):
    drawn = draw(case)
    predicted = variant.make().is_exact(*drawn[:2], case.samples, drawn.activation)
    assert predicted == variant.exact_at(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(**crossed())
def test_the_identity_moves_nothing_bit_for_bit(variant, case, dtype):
    drawn = draw(case, dtype=dtype)
    move = act(variant.make(), draw_element(variant, case, scale=0.0), drawn)
    assert not move.refused.any()
    assert move.defect.eq(0).all()
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
    back = act(action, -element, drawn._replace(incoming=there[0], outgoing=there[1]))
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
    layer_input = LayerInput(drawn.h)
    biases = [layer.bias is not None for layer in drawn[:2]]

    def moved(element, *parameters):
        remaining = iter(parameters)
        layers = [Layer(next(remaining), next(remaining) if b else None) for b in biases]
        return tuple(tensors(*action.act(element, *layers, layer_input, drawn.activation)[:2]))

    element = draw_element(variant, case)
    for at in (drawn.incoming, act(action, element, drawn).incoming):
        assert at(drawn.h).abs().min() > 1e-4, "a kink of LeakyReLU is within the differences"
    inputs = [t.clone().requires_grad_() for t in (element, *tensors(*drawn[:2]))]
    assert torch.autograd.gradcheck(moved, inputs, fast_mode=False)


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_known_answers_at_width_one(variant):
    def moved(w, b, u, h, t):
        incoming = Layer(torch.tensor([[w]]).double(), None if b is None else torch.tensor([b]))
        move = variant.make().act(
            torch.full((1,) if ACTIONS[variant.name].diagonal else (1, 1), t).double(),
            incoming.map(torch.Tensor.double),
            Layer(torch.tensor([[u]]).double()),
            LayerInput(torch.tensor([[h]]).double()),
            LeakyReLU(0.1),
        )
        return torch.cat([t.flatten() for t in tensors(*move[:2])]).tolist()

    # One unit and g > 0: every action is the rescaling, the minimal change of [w b] aside.
    assert moved(2.0, None, 5.0, 3.0, math.log(2)) == pytest.approx([4.0, 2.5])
    assert moved(-2.0, None, 5.0, 3.0, math.log(2)) == pytest.approx([-4.0, 2.5])
    # w h + b = 7 becomes 14: eq. 78 adds 7 [3, 1] / 10, the others double w and b.
    expected = [4.1, 1.7, 2.5] if variant.name == "post_activation" else [4.0, 2.0, 2.5]
    assert moved(2.0, 1.0, 5.0, 3.0, math.log(2)) == pytest.approx(expected)


def test_the_first_order_exponential_changes_the_output_of_eq_78_by_t_squared():
    case, variant = CASES[0], Variant("post_activation", {"exponential": "first_order"})
    drawn, element = draw(case), draw_element(variant, case, scale=0.05)
    features = drawn.activation(drawn.incoming(drawn.h))
    expected = (drawn.outgoing.weight @ element @ element @ features).norm()
    expected = expected / (drawn.outgoing.weight @ features).norm()
    torch.testing.assert_close(act(variant.make(), element, drawn).defect, expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_layer_keeps_its_own_dtype(variant):
    drawn = draw(CASES[0], dtype=torch.float32)
    wide = drawn._replace(outgoing=drawn.outgoing.map(torch.Tensor.double))
    move = act(variant.make(), draw_element(variant, CASES[0]), wide)
    assert move.incoming.weight.dtype == torch.float32
    assert move.outgoing.weight.dtype == move.defect.dtype == torch.float64


def only(drawn, index):
    incoming, outgoing = (layer.map(lambda t: t[index]) for layer in drawn[:2])
    return drawn._replace(incoming=incoming, outgoing=outgoing, h=drawn.h[index])


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_broken_problem_keeps_its_weights_and_the_others_move_as_if_alone(variant, how):
    element, drawn = BREAK[how](draw_element(variant, BROKEN, scale=0.1), draw(BROKEN))
    move = act(variant.make(), element, drawn)
    assert move.refused.tolist() == [False, True, False]
    for moved, start in zip(tensors(*move[:2]), tensors(*drawn[:2]), strict=True):
        assert torch.equal(moved[1].nan_to_num(7.0), start[1].nan_to_num(7.0))
    for index in OTHERS:
        alone = act(variant.make(), element[index], only(drawn, index))
        together = [layer.map(lambda t, i=index: t[i]) for layer in move[:2]]
        assert_layers_close(together, alone[:2], rtol=1e-11)


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_broken_problem_leaves_gradients_in_its_element_and_of_the_others_finite(variant, how):
    element, drawn = BREAK[how](draw_element(variant, BROKEN, scale=0.1), draw(BROKEN))
    inputs = [t.clone().requires_grad_() for t in (element, *tensors(*drawn[:2]))]
    w, b, u, c = inputs[1:]
    move = act(
        variant.make(), inputs[0], drawn._replace(incoming=Layer(w, b), outgoing=Layer(u, c))
    )
    sum(t.square().sum() for t in tensors(*move[:2])).backward()
    # A network proposes every element: NaN in one would reach the weights they share.
    assert inputs[0].grad.isfinite().all()
    for leaf in inputs:
        assert leaf.grad[OTHERS].isfinite().all()
        assert leaf.grad[OTHERS].any()


@pytest.mark.parametrize(("size", "refused"), [(31.9, False), (32.1, True)])
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_an_element_is_attempted_up_to_norm_32(variant, size, refused):
    case = Case("two units", 3, 2, 2, 2)
    if ACTIONS[variant.name].diagonal:
        element = torch.tensor([size, 0.0]).double()
    else:  # a rotation, whose exponential stays bounded
        element = size / math.sqrt(2) * torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    assert act(variant.make(), element, draw(case)).refused.item() == refused


@pytest.mark.parametrize(("damping", "limit"), [(0.0, 0.5), (0.1, 2.0)])
def test_eq_79_refuses_only_the_problem_whose_moved_features_vanish(damping, limit):
    # A half turn of positive ReLU features leaves none: H = 0, and the defect is 1. Undamped it
    # is above the limit; damped it is below, and the factorisation fails.
    drawn = draw(Case("two units", 3, 2, 2, 2, batch=(3,)))
    positive, h = drawn.incoming.map(torch.abs), drawn.h.abs() + 0.1
    drawn = drawn._replace(incoming=positive, h=h, activation=LeakyReLU(0.0))
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    element = torch.stack([0.01 * turn, math.pi * turn, -0.01 * turn]).requires_grad_()
    move = act(make_action(PRE, damping=damping, max_defect=limit), element, drawn)
    assert move.refused.tolist() == [False, True, False]
    for moved, start in zip(tensors(*move[:2]), tensors(*drawn[:2]), strict=True):
        assert torch.equal(moved[1], start[1])
        assert not torch.equal(moved[0], start[0])
    move.outgoing.weight.sum().backward()
    assert element.grad.isfinite().all()


@pytest.mark.parametrize(**crossed(keep=lambda v, c: c.batch == (2,) and not v.exact_at(c)))
def test_a_defect_above_max_defect_refuses_that_problem_alone(variant, case):
    drawn, element = draw(case), draw_element(variant, case)
    element[0] *= 1e-4
    free = act(variant.make(), element, drawn)
    assert free.defect[0] < free.defect[1]
    between = free.defect.mean().item()
    move = act(variant.make(max_defect=between), element, drawn)
    assert move.refused.tolist() == [False, True]
    assert torch.equal(move.defect, free.defect)
    triples = zip(*(tensors(*pair[:2]) for pair in (move, drawn, free)), strict=True)
    for moved, start, other in triples:
        assert torch.equal(moved[1], start[1])
        assert torch.equal(moved[0], other[0])


def test_eq_78_refuses_an_activation_that_is_no_bijection_and_the_others_take_it():
    drawn = draw(CASES[0])._replace(activation=LeakyReLU(0.0))
    for variant in PLAIN:
        element = draw_element(variant, CASES[0])
        if variant.name == "post_activation":
            assert not variant.make().is_exact(*drawn[:2], 1, drawn.activation)
            with pytest.raises(UserError, match="expected a bijective activation"):
                act(variant.make(), element, drawn)
        else:
            assert not act(variant.make(), element, drawn).refused


class Shifted(Identity):
    """sigma(z) = z + 1, which is not homogeneous."""

    homogeneous = False

    def __call__(self, z):
        return z + 1.0


def test_rescaling_refuses_an_activation_that_is_not_homogeneous():
    drawn, action = draw(CASES[0])._replace(activation=Shifted()), make_action("rescaling")
    assert not action.is_exact(*drawn[:2], 1, drawn.activation)
    with pytest.raises(UserError, match="positively homogeneous"):
        act(action, torch.zeros(4, dtype=torch.float64), drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sideways"}, "post_activation, pre_activation, rescaling.*got 'sideways'"),
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
