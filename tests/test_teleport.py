from itertools import pairwise

import pytest
import torch
from cases import (
    CASES,
    PLAIN,
    TWINS,
    Case,
    assert_layers_close,
    draw,
    group_elements,
    naive_output,
    tensors,
)

from metaopt import UserError
from metaopt.symmetry import ACTIONS, LayerInput, make_action, teleport
from metaopt.symmetry.chain import Identity, Layer, LayerChain, LeakyReLU

WIDTHS, SAMPLES = (5, 4, 6, 4, 2), 4  # every action is exact at every site
SLOPES = (0.1, 0.5, 0.3, 1.0)
BIASED = (True, False, True, True)
CHAIN = LayerChain(
    (LeakyReLU(0.1), LeakyReLU(0.5), LeakyReLU(0.3), Identity()), BIASED, batch_dims=1
)
SHORT = LayerChain(CHAIN.activations[1:], BIASED[1:], batch_dims=1)  # three layers
PROBLEMS = 3


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn_chain(chain, samples=SAMPLES):
    """Layers and x of a batch of problems."""
    widths = WIDTHS[-len(chain.biased) - 1 :]
    parameters = []
    for seed, (fan_in, fan_out) in enumerate(pairwise(widths)):
        parameters.append(normal(seed, PROBLEMS, fan_out, fan_in))
        if chain.biased[seed]:
            parameters.append(normal(10 + seed, PROBLEMS, fan_out))
    return chain.layers(parameters), normal(20, PROBLEMS, widths[0], samples)


def drawn_elements(name, layers, scale=0.2):
    elements = []
    for seed, layer in enumerate(layers[:-1]):
        width = layer.weight.shape[-2]
        shape = (width,) if ACTIONS[name].diagonal else (width, width)
        elements.append(scale * normal(30 + seed, PROBLEMS, *shape))
    return elements


def one(layers, index):
    return [layer.map(lambda t: t[index]) for layer in layers]


def naive_outputs(chain, layers, x):
    slopes = SLOPES[-len(layers) :]
    return torch.stack([naive_output(one(layers, i), slopes, x[i]) for i in range(PROBLEMS)])


@pytest.mark.parametrize("chain", [CHAIN, SHORT], ids=["four layers", "three layers"])
@pytest.mark.parametrize("name", ACTIONS)
def test_output_and_loss_of_a_deep_chain_stay_while_every_layer_moves(name, chain):
    layers, x = drawn_chain(chain)
    move = teleport(chain, layers, LayerInput(x), drawn_elements(name, layers), make_action(name))
    assert not move.refused.any()
    before, after = (naive_outputs(chain, at, x) for at in (layers, move.layers))
    assert (after - before).norm() < 1e-10 * before.norm()
    y = normal(40, *before.shape)
    losses = [(y - output).square().sum(dim=(1, 2)) for output in (before, after)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    for moved, start in zip(move.layers, layers, strict=True):
        assert (moved.weight - start.weight).norm() > 1e-2 * start.weight.norm()
    assert move.before == layers
    assert move.x is x


@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_later_sites_use_inputs_at_the_weights_that_earlier_sites_left(variant):
    layers, x = drawn_chain(CHAIN)
    elements = drawn_elements(variant.name, layers)
    move = teleport(CHAIN, layers, LayerInput(x), elements, make_action(variant.name))
    for index in range(PROBLEMS):
        expected, h = one(layers, index), x[index]
        for m, element in enumerate(elements):
            g, inverse = (t[index] for t in group_elements(variant, element))
            expected[m : m + 2] = TWINS[variant.name](
                g, inverse, *expected[m : m + 2], h, SLOPES[m]
            )
            h = naive_output(expected[m : m + 1], SLOPES[m : m + 1], h)
        assert_layers_close(one(move.layers, index), expected)


@pytest.mark.parametrize("name", ACTIONS)
def test_zero_elements_move_nothing_bit_for_bit(name):
    layers, x = drawn_chain(CHAIN)
    elements = drawn_elements(name, layers, scale=0.0)
    move = teleport(CHAIN, layers, LayerInput(x), elements, make_action(name))
    for moved, start in zip(tensors(*move.layers), tensors(*layers), strict=True):
        assert torch.equal(moved, start)
    assert move.defect().eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_defect_is_the_naive_relative_change_of_the_output(dtype):
    layers, x = drawn_chain(CHAIN, samples=9)  # too many samples for eq. 79
    layers, x = [layer.map(lambda t: t.to(dtype)) for layer in layers], x.to(dtype)
    action = make_action("pre_activation", max_defect=1e9)
    elements = drawn_elements("pre_activation", layers)
    move = teleport(CHAIN, layers, LayerInput(x), elements, action)
    before, after = (
        naive_outputs(CHAIN, [layer.map(torch.Tensor.double) for layer in at], x.double())
        for at in (layers, move.layers)
    )
    expected = (after - before).norm(dim=(1, 2)) / before.norm(dim=(1, 2))
    assert expected.min() > 1e-3
    assert move.layers[0].weight.dtype == dtype
    torch.testing.assert_close(move.defect(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ACTIONS)
def test_a_problem_refused_at_one_site_is_marked_and_keeps_its_moves_elsewhere(name):
    layers, x = drawn_chain(CHAIN)
    good = drawn_elements(name, layers)
    spoilt = [element.clone() for element in good]
    spoilt[0][2] = float("nan")
    spoilt[2][1] = float("nan")
    zeroed = [t.nan_to_num(0.0) for t in spoilt]
    action = make_action(name)
    move, expected, free = (
        teleport(CHAIN, layers, LayerInput(x), elements, action)
        for elements in (spoilt, zeroed, good)
    )
    assert move.refused.tolist() == [False, True, True]
    assert not expected.refused.any()
    for got, want in zip(tensors(*move.layers), tensors(*expected.layers), strict=True):
        assert torch.equal(got, want)
    assert_layers_close(one(move.layers, 0), one(free.layers, 0), rtol=1e-12)


@pytest.mark.parametrize("name", ACTIONS)
def test_teleport_leaves_its_arguments_alone(name):
    layers, x = drawn_chain(CHAIN)
    elements = drawn_elements(name, layers)
    arguments = [*tensors(*layers), x, *elements]
    copies = [t.clone() for t in arguments]
    teleport(CHAIN, layers, LayerInput(x), elements, make_action(name))
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("count", [2, 4])
def test_there_must_be_one_element_for_each_site(count):
    layers, x = drawn_chain(CHAIN)
    elements = (drawn_elements("rescaling", layers) * 2)[:count]
    with pytest.raises(ValueError, match="zip"):
        teleport(CHAIN, layers, LayerInput(x), elements, make_action("rescaling"))


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
    drawn = draw(Case(how, 5, 4, 3, 4, batch=batch))
    chain = LayerChain((drawn.activation, Identity()), (False, False), len(batch))
    element = torch.zeros(shapes[ACTIONS[name].diagonal], dtype=torch.float64)
    with pytest.raises(UserError, match="expected an element of shape"):
        teleport(chain, drawn[:2], LayerInput(drawn.h), [element], make_action(name))


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


def test_inputs_that_are_not_finite_are_marked_and_masked_per_problem():
    h = torch.ones(3, 2, 4)
    h[1, 0, 0] = float("nan")
    layer_input = LayerInput(h)
    assert layer_input.finite.tolist() == [True, False, True]
    assert layer_input.h[1].eq(0).all()
    assert layer_input.with_ones.h[:, -1].eq(1).all()
    assert layer_input.with_ones.h.shape == (3, 3, 4)


def test_a_move_that_undoes_the_update_before_it_is_held_and_the_others_are_kept():
    """Eq. 79 with too many samples changes the output; the updates are of three sizes."""
    layers, x = drawn_chain(CHAIN, samples=9)
    sizes = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    start = [
        Layer(*(None if t is None else t - sizes.view(-1, *(1,) * (t.dim() - 1)) for t in layer))
        for layer in layers
    ]
    action = make_action("pre_activation", max_defect=1e9)
    elements = drawn_elements("pre_activation", layers, scale=0.05)
    move = teleport(CHAIN, layers, LayerInput(x), elements, action)
    first, updated, moved = (naive_outputs(CHAIN, at, x) for at in (start, layers, move.layers))
    ratio = (moved - updated).norm(dim=(1, 2)) / (updated - first).norm(dim=(1, 2))
    fraction = ratio.sort().values[1:].mean().item()  # between the second and the third
    judged = move.hold(start, fraction)
    assert judged.held.tolist() == (ratio > fraction).tolist() == [True, False, False]
    for before, after, kept in zip(layers, move.layers, judged.layers, strict=True):
        for old, new, now in zip(before, after, kept, strict=True):
            if old is not None:
                expected = torch.cat((old[:1], new[1:]))
                torch.testing.assert_close(now, expected, rtol=0, atol=0)
    assert judged.defect()[0] == 0
    assert judged.defect()[1:].tolist() == move.defect()[1:].tolist()
