"""exp(T) and exp(-T) against ``torch.linalg.matrix_exp``, finite differences and their own law."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from metaopt.symmetry import exponential
from metaopt.symmetry.exponential import MAX_ELEMENT, Spectral, exact, first_order

FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own


def element(*shape: int, norm: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn * (norm / torch.linalg.matrix_norm(drawn, keepdim=True))


@pytest.mark.parametrize("norm", [0.0, 1e-8, 0.1, 1.0, 8.0, MAX_ELEMENT])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 3, 5, 5), (20, 20)])
def test_equals_matrix_exp_and_its_inverse_up_to_the_largest_norm(shape, norm):
    drawn = torch.ones(shape).double() if norm == 0 else element(*shape, norm=norm)
    t = drawn * 0.0 if norm == 0 else drawn
    g, inverse = exact(t)
    size = torch.linalg.matrix_norm(g, keepdim=True) * torch.linalg.matrix_norm(
        inverse, keepdim=True
    )
    expected = torch.linalg.matrix_exp(t)
    scale = torch.linalg.matrix_norm(expected, keepdim=True)
    torch.testing.assert_close(g / scale, expected / scale, rtol=0, atol=1e-12)
    identity = torch.eye(shape[-1]).double().expand(shape)
    torch.testing.assert_close(g @ inverse / size, identity / size, rtol=0, atol=1e-13)


def test_a_first_call_in_inference_mode_leaves_later_ones_differentiable():
    exponential._coefficients.cache_clear()
    with torch.inference_mode():
        exact(element(3, 3, norm=1.0))
    t = element(3, 3, norm=1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(exact(t)[0].sum(), t)
    assert gradient.any()


def test_zero_gives_the_identity_bit_for_bit():
    for matrix in exact(torch.zeros(2, 4, 4).double()):
        assert torch.equal(matrix, torch.eye(4).double().expand(2, 4, 4))


def test_a_symmetric_element_of_the_largest_norm_has_the_exponentials_of_its_eigenvalues():
    t = element(6, 6, norm=1.0)
    t = t + t.mT
    t = t * (MAX_ELEMENT / torch.linalg.matrix_norm(t))
    values, vectors = torch.linalg.eigh(t)
    g, inverse = exact(t)
    for own, sign in ((g, 1.0), (inverse, -1.0)):
        expected = vectors @ torch.diag((sign * values).exp()) @ vectors.mT
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9 * expected.norm().item())


@FORWARD_MODE
def test_first_and_second_derivatives_and_the_forward_mode_are_right():
    t = element(2, 3, 3, norm=1.5, seed=1).requires_grad_()
    assert gradcheck(exact, (t,), check_forward_ad=True)
    assert gradgradcheck(exact, (t,))


def test_the_gradient_equals_that_of_matrix_exp_at_a_large_norm():
    t = element(5, 5, norm=8.0, seed=2).requires_grad_()
    weights = element(2, 5, 5, norm=1.0, seed=3)
    own = torch.autograd.grad(sum((w * m).sum() for w, m in zip(weights, exact(t), strict=True)), t)
    theirs = torch.autograd.grad(
        (weights[0] * torch.linalg.matrix_exp(t)).sum()
        + (weights[1] * torch.linalg.matrix_exp(-t)).sum(),
        t,
    )
    torch.testing.assert_close(own, theirs, rtol=1e-11, atol=1e-11 * theirs[0].abs().max().item())


@FORWARD_MODE
def test_forward_mode_gives_the_direction_at_zero():
    direction = element(4, 4, norm=1.0, seed=4)
    with forward_ad.dual_level():
        g, inverse = exact(forward_ad.make_dual(torch.zeros(4, 4).double(), direction))
        torch.testing.assert_close(forward_ad.unpack_dual(g).tangent, direction)
        torch.testing.assert_close(forward_ad.unpack_dual(inverse).tangent, -direction)


def test_first_order_is_the_series_cut_after_its_linear_term():
    t = element(3, 3, norm=0.1)
    g, inverse = first_order(t)
    assert torch.equal(g, torch.eye(3).double() + t)
    assert torch.equal(inverse, torch.eye(3).double() - t)


def test_a_spectral_element_exponentiates_as_its_matrix_does():
    values = element(2, 3, 4, norm=3.0)[:, 0]
    vectors = torch.linalg.qr(element(2, 4, 4, norm=1.0, seed=5))[0]
    spectral = Spectral(values, vectors)
    torch.testing.assert_close(spectral.exponential(), exact(spectral.dense()))
    g, inverse = spectral.exponential()
    torch.testing.assert_close(
        g @ inverse, torch.eye(4).double().expand(2, 4, 4), atol=1e-13, rtol=0
    )
