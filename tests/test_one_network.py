"""What is faster for one network than for a batch of tasks gives the same."""

import copy

import pytest
import torch
from teleporting_cases import LOSS, data, mlp
from torch import nn

from metaopt import TeleportingOptimizer
from metaopt.symmetry import (
    Element,
    GradientAscent,
    LayerInput,
    as_chain,
    chain_orbit,
    make_action,
    module_loss,
)
from metaopt.symmetry.element import MAX_ELEMENT, exact
from metaopt.symmetry.inputs import pseudo_inverse


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 9), (9, 3), (4, 4), (1, 5)])
def test_the_pseudo_inverse_of_one_matrix_is_that_of_a_batch(shape):
    matrix = drawn(*shape)
    expected = pseudo_inverse(matrix[None])[0]
    assert torch.equal(expected, torch.linalg.pinv(matrix[None])[0])
    torch.testing.assert_close(pseudo_inverse(matrix), expected, rtol=1e-11, atol=1e-12)


def test_the_pseudo_inverse_of_a_matrix_without_full_rank_is_found_by_its_singular_values():
    twice = drawn(4, 1) @ drawn(1, 6)
    nearly = drawn(3, 6)
    nearly[2] = nearly[1] + 1e-10 * nearly[0]
    for matrix in (twice, nearly, torch.zeros(2, 3).double()):
        assert torch.equal(pseudo_inverse(matrix), torch.linalg.pinv(matrix))


@pytest.mark.parametrize("norm", [0.0, 1e-9, 0.3, 0.5, 0.6, 4.0, MAX_ELEMENT])
def test_the_exponential_of_one_matrix_is_that_of_a_batch(norm):
    t = drawn(5, 5)
    t = t * (norm / t.norm())
    for own, of_batch in zip(exact(t), exact(t[None]), strict=True):
        torch.testing.assert_close(own, of_batch[0], rtol=1e-12, atol=1e-12 * own.abs().max())


def test_an_element_is_exponentiated_once_unless_a_gradient_is_asked_of_it():
    element = Element(drawn(3, 3))
    assert element.exponential() is element.exponential()
    learned = Element(drawn(3, 3).requires_grad_())
    for _ in range(2):
        learned.exponential().g.sum().backward()


@pytest.mark.parametrize("action", ["post_activation", "pre_activation"])
@pytest.mark.parametrize("samples", [5, 12])  # exact, and not
def test_an_orbit_that_remembers_moves_and_pulls_back_as_one_that_does_not(action, samples):
    model, (x, y) = mlp(), data(samples)
    chain = as_chain(model)
    parameters, loss = module_loss(model, LOSS, x, y)
    orbits = [
        chain_orbit(chain, parameters, LayerInput(x.mT), make_action(action, max_defect=1.0))
        for _ in range(2)
    ]
    here = [p.detach() for p in parameters]
    with orbits[0].remembering():
        for _ in range(3):
            gradients = torch.autograd.grad(loss([p.requires_grad_() for p in here]), here)
            here = [p.detach() for p in here]
            pulled = [orbit.pull_back(here, gradients) for orbit in orbits]
            for own, other in zip(*pulled, strict=True):
                torch.testing.assert_close(own.values, other.values, rtol=1e-12, atol=1e-14)
            steps = [element.scaled(0.1) for element in pulled[1]]
            moved, expected = (orbit.move(here, steps) for orbit in orbits)
            assert not expected.rejected
            assert torch.equal(moved.rejected, expected.rejected)
            for own, other in zip(moved.parameters, expected.parameters, strict=True):
                torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)
            here = moved.parameters
    assert orbits[0].layer_input._products is None


def test_what_is_remembered_is_not_taken_for_that_of_other_weights():
    layer_input, first, second = LayerInput(drawn(4, 3)), drawn(2, 4), drawn(2, 4, seed=1)

    def product(w):
        return layer_input.product("w", [w], lambda: w @ layer_input.h)

    with layer_input.remembering():
        assert product(first) is product(first)
        assert torch.equal(product(second), second @ layer_input.h)
        learned = first.clone().requires_grad_()
        assert product(learned) is not product(learned)
    assert product(first) is not product(first)


def test_one_task_is_moved_without_writing_into_what_was_given():
    """An action may work in place on the matrices it is given."""

    class InPlace(type(make_action("pre_activation")).__base__.__base__):  # ClosedFormAction
        group, exact_when, diagonal = "GL", "never", True

        def max_samples(self, site):
            return 0

        def propose(self, element, matrices):
            made, used = matrices.incoming[0].mul_(2.0), matrices.outgoing[0].div_(2.0)
            return (
                make_action("rescaling")
                .propose(element, matrices)
                ._replace(incoming=[made], outgoing=[used])
            )

    model, x = mlp(), data(5).x
    before = copy.deepcopy(model.state_dict())
    parameters = [p.detach() for p in model.parameters()]
    orbit = chain_orbit(as_chain(model), parameters, LayerInput(x.mT), InPlace(max_defect=10.0))
    moved = orbit.move(parameters, orbit.identity(parameters)).parameters
    assert torch.equal(moved[0], 2 * before["0.weight"])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_an_input_does_not_change_with_what_was_given():
    x = drawn(4, 3)
    layer_input, copied = LayerInput(x), x.clone()
    x.zero_()
    assert torch.equal(layer_input.h, copied)
    assert layer_input.h.is_contiguous()
    assert LayerInput(drawn(3, 4).mT).h.is_contiguous()


def test_one_network_with_weights_or_inputs_that_are_not_finite_stays():
    for name in ("weights", "inputs"):
        model, (x, y) = mlp(), data(5)
        with torch.no_grad():
            (model[0].weight if name == "weights" else x)[0, 0] = float("nan")
        before = copy.deepcopy(model.state_dict())
        optimizer = TeleportingOptimizer(
            torch.optim.SGD(model.parameters(), 0.1), model, nn.CrossEntropyLoss(),
            "pre_activation", search=GradientAscent(2),
        )  # fmt: skip
        assert optimizer.teleport(x, y).rejected
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
