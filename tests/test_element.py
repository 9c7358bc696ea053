"""Elements and their exponentials against ``torch.linalg.matrix_exp``, in each form of storage."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from metaopt.symmetry import Element
from metaopt.symmetry import element as elements
from metaopt.symmetry.element import MAX_DIRECTION, MAX_ELEMENT, exact, first_order, per_task

FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own


def drawn_matrices(*shape: int, norm: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn * (norm / torch.linalg.matrix_norm(drawn, keepdim=True))


@pytest.mark.parametrize("norm", [0.0, 1e-8, 0.1, 1.0, 8.0, MAX_ELEMENT])
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 3, 5, 5), (20, 20)])
def test_equals_matrix_exp_and_its_inverse_up_to_the_largest_norm(shape, norm):
    drawn = torch.ones(shape).double() if norm == 0 else drawn_matrices(*shape, norm=norm)
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
    elements._coefficients.cache_clear()
    with torch.inference_mode():
        exact(drawn_matrices(3, 3, norm=1.0))
    t = drawn_matrices(3, 3, norm=1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(exact(t)[0].sum(), t)
    assert gradient.any()


def test_zero_gives_the_identity_bit_for_bit():
    for matrix in exact(torch.zeros(2, 4, 4).double()):
        assert torch.equal(matrix, torch.eye(4).double().expand(2, 4, 4))


def test_a_symmetric_element_of_the_largest_norm_has_the_exponentials_of_its_eigenvalues():
    t = drawn_matrices(6, 6, norm=1.0)
    t = t + t.mT
    t = t * (MAX_ELEMENT / torch.linalg.matrix_norm(t))
    values, vectors = torch.linalg.eigh(t)
    g, inverse = exact(t)
    for own, sign in ((g, 1.0), (inverse, -1.0)):
        expected = vectors @ torch.diag((sign * values).exp()) @ vectors.mT
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9 * expected.norm().item())


@FORWARD_MODE
def test_first_and_second_derivatives_and_the_forward_mode_are_right():
    t = drawn_matrices(2, 3, 3, norm=1.5, seed=1).requires_grad_()
    assert gradcheck(exact, (t,), check_forward_ad=True)
    assert gradgradcheck(exact, (t,))


def test_the_gradient_equals_that_of_matrix_exp_at_a_large_norm():
    t = drawn_matrices(5, 5, norm=8.0, seed=2).requires_grad_()
    weights = drawn_matrices(2, 5, 5, norm=1.0, seed=3)
    own = torch.autograd.grad(sum((w * m).sum() for w, m in zip(weights, exact(t), strict=True)), t)
    theirs = torch.autograd.grad(
        (weights[0] * torch.linalg.matrix_exp(t)).sum()
        + (weights[1] * torch.linalg.matrix_exp(-t)).sum(),
        t,
    )
    torch.testing.assert_close(own, theirs, rtol=1e-11, atol=1e-11 * theirs[0].abs().max().item())


@FORWARD_MODE
def test_forward_mode_gives_the_direction_at_zero():
    direction = drawn_matrices(4, 4, norm=1.0, seed=4)
    with forward_ad.dual_level():
        g, inverse = exact(forward_ad.make_dual(torch.zeros(4, 4).double(), direction))
        torch.testing.assert_close(forward_ad.unpack_dual(g).tangent, direction)
        torch.testing.assert_close(forward_ad.unpack_dual(inverse).tangent, -direction)


def test_first_order_is_the_series_cut_after_its_linear_term():
    t = drawn_matrices(3, 3, norm=0.1)
    g, inverse = first_order(t)
    assert torch.equal(g, torch.eye(3).double() + t)
    assert torch.equal(inverse, torch.eye(3).double() - t)


# The three forms of storage: each against the dense matrix of the same T.

BATCHES = [(), (3,), (2, 3)]
FORMS = ["dense", "in a basis", "diagonal"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def orthogonal(*shape: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(*shape, seed=seed)).Q


def element(form: str, batch: tuple[int, ...] = (), width: int = 4, seed: int = 0) -> Element:
    if form == "dense":
        return Element(0.5 * normal(*batch, width, width, seed=seed))
    values = normal(*batch, width, seed=seed)
    if form == "diagonal":
        return Element(values, diagonal=True)
    return Element(values, orthogonal(*batch, width, width, seed=seed + 1))


def naive_dense(drawn: Element) -> Tensor:
    """T, one task at a time, from the definition of its form."""
    if drawn.basis is None and not drawn.diagonal:
        return drawn.values
    k = drawn.width
    flat = drawn.values.reshape(-1, k)
    bases = torch.eye(k).double().expand(len(flat), k, k)
    bases = bases if drawn.basis is None else drawn.basis.reshape(-1, k, k)
    matrices = [
        sum(t[i] * torch.outer(v[:, i], v[:, i]) for i in range(k))
        for t, v in zip(flat, bases, strict=True)
    ]
    return torch.stack(matrices).reshape(*drawn.batch, k, k)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_an_element_knows_its_batch_its_width_and_its_matrix(form, batch):
    drawn = element(form, batch)
    assert drawn.batch == batch
    assert drawn.width == 4
    torch.testing.assert_close(drawn.dense(), naive_dense(drawn), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_all_four_products_are_those_of_matrix_exp(form, batch):
    drawn = element(form, batch)
    t = naive_dense(drawn)
    g, inverse = torch.linalg.matrix_exp(t), torch.linalg.matrix_exp(-t)
    left, right = normal(*batch, 4, 5, seed=7), normal(*batch, 3, 4, seed=8)
    own = drawn.exponential()
    products = {
        "times": (own.times(left), g @ left),
        "after": (own.after(right), right @ inverse),
        "dual_times": (own.dual_times(left), inverse.mT @ left),
        "dual_after": (own.dual_after(right), right @ g.mT),
    }
    for name, (found, expected) in products.items():
        torch.testing.assert_close(
            found, expected, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_g_and_its_inverse_undo_each_other(form, batch):
    own = element(form, batch).exponential()
    identity = torch.eye(4).double().expand(*batch, 4, 4)
    for undone in (own.after(own.times(identity)), own.dual_after(own.dual_times(identity))):
        torch.testing.assert_close(undone, identity, atol=1e-13, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_first_order_cuts_every_form_but_the_diagonal_which_is_exact(form):
    drawn = element(form, (2,))
    t, identity = naive_dense(drawn), torch.eye(4).double()
    expected = identity + t, identity - t
    if form == "diagonal":
        expected = torch.linalg.matrix_exp(t), torch.linalg.matrix_exp(-t)
    own = drawn.exponential("first_order")
    found = own.times(identity.expand(2, 4, 4)), own.after(identity.expand(2, 4, 4))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_zero_of_every_form_leaves_a_matrix_as_it_is_bit_for_bit(form):
    own = element(form, (2,)).map(torch.zeros_like).exponential()
    left, right = normal(2, 4, 5, seed=7), normal(2, 3, 4, seed=8)
    for product in (own.times, own.dual_times):
        assert torch.equal(product(left), left)
    for product in (own.after, own.dual_after):
        assert torch.equal(product(right), right)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives_in_the_values_of_every_form_are_right(form):
    drawn = element(form, (2,), width=3)
    left, right = normal(2, 3, 2, seed=7), normal(2, 2, 3, seed=8)

    def products(values):
        own = drawn.with_values(values).exponential()
        return own.times(left), own.after(right), own.dual_times(left), own.dual_after(right)

    assert gradcheck(products, (drawn.values.clone().requires_grad_(),))


@pytest.mark.parametrize("form", FORMS)
def test_the_dual_products_keep_what_a_gradient_measures(form):
    """<g^-T G, g M> = <G, M> and <G g^T, M g^-1> = <G, M>."""
    own = element(form, (3,)).exponential()
    for shape, product, dual in (
        ((3, 4, 5), own.times, own.dual_times),
        ((3, 5, 4), own.after, own.dual_after),
    ):
        matrix, gradient = normal(*shape, seed=7), normal(*shape, seed=8)
        kept = (dual(gradient) * product(matrix)).sum()
        torch.testing.assert_close(kept, (gradient * matrix).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_squared_element_transports_the_variances_of_independent_entries(form):
    """Var(sum_j a_ij x_j) = sum_j a_ij^2 Var(x_j)."""
    own, variances = element(form).exponential(), normal(4, 2, seed=7).square()
    matrix = own.dual_times(torch.eye(4).double())
    expected = torch.zeros(4, 2).double()
    for i in range(4):
        for j in range(4):
            expected[i] += matrix[i, j] ** 2 * variances[j]
    torch.testing.assert_close(own.squared().dual_times(variances), expected)
    assert own.squared().diagonal == own.diagonal


@pytest.mark.parametrize("form", FORMS)
def test_scaling_takes_one_number_or_one_for_each_task(form):
    drawn = element(form, (3,))
    factors = torch.tensor([2.0, 0.0, -0.5]).double()
    scaled = drawn.scaled(factors)
    for index, factor in enumerate(factors.tolist()):
        expected = factor * naive_dense(drawn)[index]
        torch.testing.assert_close(naive_dense(scaled)[index], expected)
        alone = drawn.scaled(factor)
        torch.testing.assert_close(naive_dense(alone)[index], expected)


def test_with_values_keeps_the_form_and_map_reaches_the_values():
    for form in FORMS:
        drawn = element(form, (2,))
        for changed in (drawn.with_values(2 * drawn.values), drawn.map(lambda v: 2 * v)):
            assert torch.equal(changed.values, 2 * drawn.values)
            assert changed.basis is drawn.basis
            assert changed.diagonal == drawn.diagonal


LIMITS = {"dense": MAX_ELEMENT, "in a basis": MAX_DIRECTION, "diagonal": MAX_ELEMENT}


@pytest.mark.parametrize("form", FORMS)
def test_each_task_is_bounded_up_to_the_limit_of_its_form_and_nan_never(form):
    drawn = element(form, (4,)).map(torch.zeros_like)
    flat = drawn.values.flatten(1)
    flat[0, 0], flat[1, 0], flat[3, 1] = LIMITS[form], -1.01 * LIMITS[form], float("nan")
    assert drawn.bounded().tolist() == [True, False, True, False]


def test_one_value_a_task_broadcasts_against_any_shape():
    assert per_task(torch.ones(2, 3), torch.ones(2, 3, 4, 5)).shape == (2, 3, 1, 1)
    assert per_task(torch.ones(()), torch.ones(4, 5)).shape == (1, 1)
