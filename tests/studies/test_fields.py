"""Vector fields against hand calculation, finite differences and the identities of Lie brackets."""

from __future__ import annotations

import pytest
import torch

from metaopt import UserError
from studies.functions.skewed import random_skewed
from studies.geometry.fields import (
    along,
    antisymmetric_basis,
    bracket,
    gradient,
    hessian_of,
    reverse_gradient,
    squared_gradient,
    turned_gradient,
)

W = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)


def shear(w):
    """x d/dy."""
    return torch.stack([torch.zeros_like(w[0]), w[0], torch.zeros_like(w[0])])


def shift(w):
    """d/dx."""
    return torch.stack([torch.ones_like(w[0]), torch.zeros_like(w[0]), torch.zeros_like(w[0])])


def waves(w):
    return torch.stack([w[1].sin() * w[2], w[0] * w[1] ** 2, (w[0] * w[2]).exp()])


def mixed(w):
    return torch.stack([w[0] * w[1] * w[2], w[2].cos(), w[0] ** 2 - w[1]])


def height(w):
    return w[0] ** 3 * w[1] + (w[1] * w[2]).sin()


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def difference(function, w, direction, step=1e-5):
    """Central, of the derivative along a direction."""
    return (function(w + step * direction) - function(w - step * direction)) / (2 * step)


def test_the_gradient_and_the_hessian_are_those_by_hand():
    x, y, z = W
    by_hand = torch.stack(
        [3 * x**2 * y, x**3 + z * (y * z).cos(), y * (y * z).cos()],
    )
    same(gradient(height)(W), by_hand)
    same(reverse_gradient(height)(W), -by_hand)
    same(squared_gradient(height)(W), by_hand.square().sum())
    h = hessian_of(height, W)
    same(h[0], torch.stack([6 * x * y, 3 * x**2, torch.zeros_like(x)]))
    same(h[1, 2], (y * z).cos() - y * z * (y * z).sin())
    same(h, h.mT)


def test_the_bracket_of_a_shift_and_a_shear_is_the_field_that_it_is_by_hand():
    """[d/dx, x d/dy] = d/dy."""
    same(bracket(shift, shear)(W), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_the_bracket_of_linear_fields_is_minus_the_commutator_of_their_matrices():
    """A w and B w: components A b^i - B a^i = (B A - A B) w."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    same(bracket(lambda w: a @ w, lambda w: b @ w)(W), (b @ a - a @ b) @ W)


def test_the_bracket_of_two_rotations_is_the_third():
    xy, xz, yz = antisymmetric_basis(3)
    same(bracket(lambda w: xy @ w, lambda w: xz @ w)(W), yz @ W)


def test_a_function_along_a_field_is_its_directional_derivative():
    same(along(waves, height)(W), waves(W) @ gradient(height)(W))
    same(along(waves, height)(W), difference(height, W, waves(W)), 1e-8)


def test_a_bracket_is_what_finite_differences_give():
    a, b = waves(W), mixed(W)
    expected = difference(mixed, W, a) - difference(waves, W, b)
    same(bracket(waves, mixed)(W), expected, 1e-8)


def test_a_bracket_differentiates_functions_as_the_commutator_does():
    ab = along(waves, along(mixed, height))(W)
    ba = along(mixed, along(waves, height))(W)
    same(along(bracket(waves, mixed), height)(W), ab - ba)
    assert abs(float(ab - ba)) > 0.1


def test_a_bracket_is_antisymmetric_and_linear():
    same(bracket(waves, mixed)(W), -bracket(mixed, waves)(W))
    same(bracket(waves, waves)(W), torch.zeros_like(W))
    both = bracket(lambda w: 2 * waves(w) + shear(w), mixed)(W)
    same(both, 2 * bracket(waves, mixed)(W) + bracket(shear, mixed)(W))


def test_a_function_comes_out_of_a_bracket_by_the_product_rule():
    """[A, f B] = f [A, B] + (A f) B."""
    scaled = bracket(waves, lambda w: height(w) * mixed(w))(W)
    same(scaled, height(W) * bracket(waves, mixed)(W) + along(waves, height)(W) * mixed(W))


def test_brackets_meet_the_jacobi_identity():
    cyclic = [(waves, mixed, shear), (mixed, shear, waves), (shear, waves, mixed)]
    terms = [bracket(a, bracket(b, c))(W) for a, b, c in cyclic]
    same(sum(terms), torch.zeros_like(W))
    assert terms[0].norm() > 0.1


def test_the_flows_of_two_fields_part_by_the_bracket():
    """Four steps of exact flows of a shift and a shear around a square close up to [A, B] s t."""
    s, t = 0.3, 0.2

    def moved(w, field, length):  # both flows are straight
        return w + length * field(w)

    w = moved(moved(moved(moved(W, shift, s), shear, t), shift, -s), shear, -t)
    same(w - W, s * t * bracket(shift, shear)(W))


def test_a_turned_gradient_is_orthogonal_to_the_gradient_and_leaves_the_loss():
    generator = torch.Generator().manual_seed(1)
    function = random_skewed(3, 4.0, generator)
    for m in antisymmetric_basis(3):
        a = turned_gradient(function, m)
        assert a(W).norm() > 0.1
        assert abs(float(a(W) @ gradient(function)(W))) < 1e-13
        assert abs(float(along(a, function)(W))) < 1e-13


def test_the_antisymmetric_basis_is_one():
    basis = antisymmetric_basis(4)
    assert len(basis) == 6
    assert all(torch.equal(m, -m.mT) for m in basis)
    assert torch.linalg.matrix_rank(torch.stack(basis).flatten(1)) == 6


@pytest.mark.parametrize("m", [torch.eye(3).double(), torch.zeros(3).double()])
def test_a_matrix_that_is_not_antisymmetric_is_refused(m):
    with pytest.raises(UserError, match="expected an antisymmetric M"):
        turned_gradient(height, m)
