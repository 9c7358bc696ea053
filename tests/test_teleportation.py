"""Moves along the orbits of chains: what stays, what moves, what is rejected or reverted."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from cases import (
    CASES,
    LINEAR,
    PLAIN,
    TWINS,
    Case,
    Variant,
    assert_layers_close,
    draw,
    group_elements,
    naive_output,
    tensors,
)

from metaopt import UserError
from metaopt.symmetry import (
    ACTIONS,
    Element,
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    Teleportation,
    chain_orbit,
    make_action,
)
from metaopt.symmetry.teleportation import ChainOutputs

WIDTHS, SAMPLES = (5, 4, 6, 4, 2), 4  # every action is exact at every site
BIASED = (True, False, True, True)
CHAIN = LayerChain(
    (LeakyReLU(0.1), LeakyReLU(0.5), LeakyReLU(0.3), Identity()), BIASED, batch_dims=1
)
SHORT = LayerChain(CHAIN.activations[1:], BIASED[1:], batch_dims=1)  # three layers
TASKS = 3


def chain_for(name, chain=CHAIN):
    """The chain, or one without activations for the action that needs that nothing lies between."""
    if name != LINEAR:
        return chain
    return replace(chain, activations=(Identity(),) * len(chain.biased))


def slopes_of(chain):
    return [getattr(activation, "slope", 1.0) for activation in chain.activations]


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn_chain(chain, samples=SAMPLES):
    """Layers and x of a batch of tasks."""
    widths = WIDTHS[-len(chain.biased) - 1 :]
    parameters = []
    for seed, (fan_in, fan_out) in enumerate(pairwise(widths)):
        parameters.append(normal(seed, TASKS, fan_out, fan_in))
        if chain.biased[seed]:
            parameters.append(normal(10 + seed, TASKS, fan_out))
    return chain.layers(parameters), normal(20, TASKS, widths[0], samples)


def drawn_elements(name, layers, scale=0.2):
    elements, diagonal = [], ACTIONS[name].diagonal
    for seed, layer in enumerate(layers[:-1]):
        width = layer.weight.shape[-2]
        shape = (width,) if diagonal else (width, width)
        elements.append(Element(scale * normal(30 + seed, TASKS, *shape), diagonal=diagonal))
    return elements


def teleport(chain, layers, x, elements, action):
    """The move of all layers by one element for each site."""
    parameters = chain.parameters(layers)
    point = chain_orbit(chain, parameters, LayerInput(x), action).move(parameters, elements)
    return Teleportation(ChainOutputs(chain, x), parameters, point.parameters, point.rejected)


def after(chain, move):
    """The layers that a move leaves."""
    return chain.layers(move.after)


def one(layers, index):
    return [layer.map(lambda t: t[index]) for layer in layers]


def naive_outputs(chain, layers, x):
    slopes = slopes_of(chain)
    return torch.stack([naive_output(one(layers, i), slopes, x[i]) for i in range(TASKS)])


@pytest.mark.parametrize("chain", [CHAIN, SHORT], ids=["four layers", "three layers"])
@pytest.mark.parametrize("name", ACTIONS)
def test_output_and_loss_of_a_deep_chain_stay_while_every_layer_moves(name, chain):
    chain = chain_for(name, chain)
    layers, x = drawn_chain(chain)
    move = teleport(chain, layers, x, drawn_elements(name, layers), make_action(name))
    assert not move.rejected.any()
    first, last = (naive_outputs(chain, at, x) for at in (layers, after(chain, move)))
    assert (last - first).norm() < 1e-10 * first.norm()
    y = normal(40, *first.shape)
    losses = [(y - output).square().sum(dim=(1, 2)) for output in (first, last)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    for moved, start in zip(after(chain, move), layers, strict=True):
        assert (moved.weight - start.weight).norm() > 1e-2 * start.weight.norm()
    assert all(a is b for a, b in zip(move.before, tensors(*layers), strict=True))
    torch.testing.assert_close(move.outputs(move.before), first, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_later_sites_use_inputs_at_the_weights_that_earlier_sites_left(variant):
    chain = chain_for(variant.name)
    layers, x = drawn_chain(chain)
    elements = drawn_elements(variant.name, layers)
    move = teleport(chain, layers, x, elements, make_action(variant.name))
    for index in range(TASKS):
        expected = twins_in_turn(chain, one(layers, index), x[index], elements, index, variant)
        assert_layers_close(one(after(chain, move), index), expected)


def twins_in_turn(chain, layers, x, elements, index, variant):
    """The layers of one task, moved site by site."""
    expected, h, slopes = list(layers), x, slopes_of(chain)
    for m, element in enumerate(elements):
        g, inverse = (t[index] for t in group_elements(variant, element))
        expected[m : m + 2] = TWINS[variant.name](g, inverse, *expected[m : m + 2], h, slopes[m])
        h = naive_output(expected[m : m + 1], slopes[m : m + 1], h)
    return expected


@pytest.mark.parametrize("name", ACTIONS)
def test_zero_elements_move_nothing_bit_for_bit(name):
    chain = chain_for(name)
    layers, x = drawn_chain(chain)
    elements = drawn_elements(name, layers, scale=0.0)
    move = teleport(chain, layers, x, elements, make_action(name))
    for moved, start in zip(move.after, tensors(*layers), strict=True):
        assert torch.equal(moved, start)
    assert move.invariance_error().eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_invariance_error_is_the_naive_relative_change_of_the_output(dtype):
    layers, x = drawn_chain(CHAIN, samples=9)  # too many samples for eq. 79
    layers, x = [layer.map(lambda t: t.to(dtype)) for layer in layers], x.to(dtype)
    action = make_action("pre_activation", max_defect=1e9)
    elements = drawn_elements("pre_activation", layers)
    move = teleport(CHAIN, layers, x, elements, action)
    first, last = (
        naive_outputs(CHAIN, [layer.map(torch.Tensor.double) for layer in at], x.double())
        for at in (layers, after(CHAIN, move))
    )
    expected = (last - first).norm(dim=(1, 2)) / first.norm(dim=(1, 2))
    assert expected.min() > 1e-3
    assert {moved.dtype for moved in move.after} == {dtype}
    torch.testing.assert_close(move.invariance_error(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_task_rejected_at_one_site_is_marked_and_keeps_its_moves_elsewhere(name):
    chain = chain_for(name)
    layers, x = drawn_chain(chain)
    good = drawn_elements(name, layers)
    spoilt = [element.map(torch.clone) for element in good]
    spoilt[0].values[2] = float("nan")
    spoilt[2].values[1] = float("nan")
    zeroed = [element.map(lambda values: values.nan_to_num(0.0)) for element in spoilt]
    action = make_action(name)
    move, expected, free = (
        teleport(chain, layers, x, elements, action) for elements in (spoilt, zeroed, good)
    )
    assert move.rejected.tolist() == [False, True, True]
    assert not expected.rejected.any()
    for got, want in zip(move.after, expected.after, strict=True):
        assert torch.equal(got, want)
    left, alone = (one(after(chain, m), 0) for m in (move, free))
    assert_layers_close(left, alone, rtol=1e-12)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_move_leaves_its_arguments_alone(name):
    chain = chain_for(name)
    layers, x = drawn_chain(chain)
    elements = drawn_elements(name, layers)
    arguments = [*tensors(*layers), x, *(element.values for element in elements)]
    copies = [t.clone() for t in arguments]
    teleport(chain, layers, x, elements, make_action(name))
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("count", [2, 4])
def test_there_must_be_one_element_for_each_site(count):
    layers, x = drawn_chain(CHAIN)
    elements = (drawn_elements("rescaling", layers) * 2)[:count]
    with pytest.raises(ValueError, match="zip"):
        teleport(CHAIN, layers, x, elements, make_action("rescaling"))


WRONG_ELEMENTS = {  # batch of a pair of width 4 -> shapes that do not fit it, by `diagonal`
    "wrong width": ((3,), {False: (3, 5, 5), True: (3, 5)}),
    "a matrix that is not square": ((3,), {False: (3, 4, 3), True: (3, 3)}),
    "a vector for a matrix or a number for a vector": ((), {False: (4,), True: ()}),
    "no batch for a batched pair": ((3,), {False: (4, 4), True: (4,)}),
    "no batch where the batch is as large as the width": ((4,), {False: (4, 4), True: (4,)}),
    "another batch": ((3,), {False: (2, 4, 4), True: (2, 4)}),
    "a batch for a single pair": ((), {False: (3, 4, 4), True: (4, 4)}),
}


@pytest.mark.parametrize("how", WRONG_ELEMENTS)
@pytest.mark.parametrize("name", ACTIONS)
def test_an_element_that_does_not_fit_its_site_is_refused(name, how):
    batch, shapes = WRONG_ELEMENTS[how]
    drawn = draw(Variant(name).at(Case(how, 5, 4, 3, 4, batch=batch)))
    diagonal = ACTIONS[name].diagonal
    element = Element(torch.zeros(shapes[diagonal], dtype=torch.float64), diagonal=diagonal)
    with pytest.raises(UserError, match="expected an element of shape"):
        teleport(drawn.chain, drawn[:2], drawn.h, [element], make_action(name))


@pytest.mark.parametrize("name", ACTIONS)
def test_an_element_of_another_form_is_refused(name):
    """A diagonal one where matrices are taken, and the other way round."""
    drawn = draw(Variant(name).at(Case("of another form", 5, 4, 3, 4, batch=(4,))))
    diagonal = not ACTIONS[name].diagonal
    shape = (4, 4) if diagonal else (4, 4, 4)
    element = Element(torch.zeros(shape, dtype=torch.float64), diagonal=diagonal)
    with pytest.raises(UserError, match="expected an element of shape"):
        teleport(drawn.chain, drawn[:2], drawn.h, [element], make_action(name))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_pseudo_inverse_satisfies_penroses_equations_and_is_made_once(case):
    layer_input = LayerInput(draw(case).h.float())
    h, inverse = layer_input.h, layer_input.pseudo_inverse
    assert inverse.dtype == torch.float64
    assert inverse is layer_input.pseudo_inverse
    for got, want in (
        (h @ inverse @ h, h),
        (inverse @ h @ inverse, inverse),
        ((h @ inverse).mT, h @ inverse),
        ((inverse @ h).mT, inverse @ h),
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_inputs_that_are_not_finite_are_marked_and_masked_per_task():
    h = torch.ones(3, 2, 4)
    h[1, 0, 0] = float("nan")
    layer_input = LayerInput(h)
    assert layer_input.finite.tolist() == [True, False, True]
    assert layer_input.h[1].eq(0).all()
    assert layer_input.with_ones.h[:, -1].eq(1).all()
    assert layer_input.with_ones.h.shape == (3, 3, 4)


def three_updates(scale=0.05):
    """A move by eq. 79 that changes the output, having too many samples, behind three updates.

    Returns:
        The chain, x, the parameters before the updates, of three sizes, and the move.
    """
    layers, x = drawn_chain(CHAIN, samples=9)
    sizes = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    start = [t - sizes.view(-1, *(1,) * (t.dim() - 1)) for t in tensors(*layers)]
    action = make_action("pre_activation", max_defect=1e9)
    elements = drawn_elements("pre_activation", layers, scale=scale)
    return CHAIN, x, start, teleport(CHAIN, layers, x, elements, action)


def changes(chain, x, start, move):
    """How far each update and each move change the output, ``(tasks,)`` both."""
    first, updated, moved = (
        naive_outputs(chain, chain.layers(at), x) for at in (start, move.before, move.after)
    )
    return (updated - first).norm(dim=(1, 2)), (moved - updated).norm(dim=(1, 2))


def test_a_move_that_undoes_the_update_before_it_is_reverted_and_the_others_are_kept():
    chain, x, start, move = three_updates()
    update, change = changes(chain, x, start, move)
    ratio = change / update
    fraction = ratio.sort().values[1:].mean().item()  # between the second and the third
    judged = move.revert_rounding(start, fraction)
    assert judged.reverted.tolist() == (ratio > fraction).tolist() == [True, False, False]
    assert judged.stayed.tolist() == [True, False, False]
    assert move.reverted is None
    for old, new, now in zip(move.before, move.after, judged.after, strict=True):
        expected = torch.cat((old[:1], new[1:]))
        torch.testing.assert_close(now, expected, rtol=0, atol=0)
    assert judged.invariance_error()[0] == 0
    assert judged.invariance_error()[1:].tolist() == move.invariance_error()[1:].tolist()


def test_gradients_go_through_moves_that_stay_and_through_those_that_are_reverted():
    """Against central differences, in the weights before the move and in T."""
    chain, x, start, move = three_updates()
    update, change = changes(chain, x, start, move)
    fraction = (change / update).sort().values[1:].mean().item()
    elements = drawn_elements("pre_activation", chain.layers(start), scale=0.05)
    action = make_action("pre_activation", max_defect=1e9)
    weighing = [normal(50 + seed, *t.shape) for seed, t in enumerate(start)]

    def values(parameters, own):
        """One value a task, of the weights that a move and its judgement leave."""
        moving = [e.with_values(t) for e, t in zip(elements, own, strict=True)]
        moved = teleport(chain, chain.layers(parameters), x, moving, action)
        judged = moved.revert_rounding(start, fraction)
        assert judged.reverted.tolist() == [True, False, False]
        return sum(
            (t * w).flatten(1).sum(dim=1) for t, w in zip(judged.after, weighing, strict=True)
        )

    origin = [t.detach().clone() for t in (*move.before, *(e.values for e in elements))]
    own = [t.clone().requires_grad_() for t in origin]
    count = len(move.before)
    gradients = torch.autograd.grad(values(own[:count], own[count:]).sum(), own)
    for place, gradient in enumerate(gradients):
        direction = normal(70 + place, *gradient.shape)
        shifted = []
        for step in (1e-6, -1e-6):
            at = list(origin)
            at[place] = origin[place] + step * direction
            shifted.append(values(at[:count], at[count:]))
        numeric = (shifted[0] - shifted[1]) / 2e-6
        found = (gradient * direction).flatten(1).sum(dim=1)
        torch.testing.assert_close(found, numeric, rtol=1e-6, atol=1e-7)
        assert (found[1:] != 0).all()
    for gradient, weight in zip(gradients[:count], weighing, strict=True):
        assert torch.equal(gradient[0], weight[0]), "what is reverted is the weight before"
    assert all(gradient[0].eq(0).all() for gradient in gradients[count:])
