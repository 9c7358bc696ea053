"""Sites of several heads: each head has a group element of its own, and a task is one network."""

import math

import torch

from metaopt.symmetry import (
    ActingSite,
    Element,
    GradientAscent,
    Identity,
    LinearAction,
    MatrixView,
    Orbit,
    Site,
)

HEADS, WIDTH, FEATURES = 3, 4, 5
NAMES = ("value", "output")
SITE = Site(
    name="value -> output",
    incoming=(MatrixView("value", (1,), (2,), (HEADS, WIDTH, FEATURES), heads=(0,)),),
    outgoing=(MatrixView("output", (0,), (2,), (FEATURES, HEADS, WIDTH), heads=(1,)),),
    between=Identity(),
    group="GL",
    width=WIDTH,
    plain=True,
)
ORBIT = Orbit(NAMES, [ActingSite(SITE, LinearAction())])


def weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(HEADS * WIDTH, FEATURES, generator=generator, dtype=torch.float64),
        torch.randn(FEATURES, HEADS * WIDTH, generator=generator, dtype=torch.float64),
    ]


def products(parameters: list[torch.Tensor]) -> torch.Tensor:
    """O_h V_h of each head, which is what attention makes of them."""
    value, output = parameters
    each = zip(value.split(WIDTH), output.split(WIDTH, dim=1), strict=True)
    return torch.stack([out @ into for into, out in each])


def test_the_heads_of_an_element_are_no_tasks():
    assert ORBIT.batch_dims(weights()) == 0
    (zero,) = ORBIT.identity(weights())
    assert zero.values.shape == (HEADS, WIDTH, WIDTH)
    point = ORBIT.move(weights(), [zero])
    assert point.rejected.shape == ()
    assert not point.rejected


def test_a_search_moves_all_heads_and_keeps_what_each_computes():
    def loss(parameters):
        return products(list(parameters)).sum(dim=0).square().sum()

    result = GradientAscent(iterations=5)(ORBIT, weights(), loss)
    assert result.rejected.shape == ()
    assert not torch.equal(result.parameters[0], weights()[0])
    torch.testing.assert_close(products(result.parameters), products(weights()))


def test_one_head_that_cannot_be_moved_stays_and_its_network_counts_as_rejected():
    values = torch.zeros(HEADS, WIDTH, WIDTH, dtype=torch.float64)
    values[0] = 0.1
    values[1] = math.nan
    point = ORBIT.move(weights(), [Element(values)])
    assert point.rejected
    value, old = point.parameters[0].split(WIDTH), weights()[0].split(WIDTH)
    assert not torch.equal(value[0], old[0])
    assert torch.equal(value[1], old[1])
    torch.testing.assert_close(products(point.parameters), products(weights()))


def test_a_search_goes_on_where_one_head_is_not_finite():
    broken = weights()
    broken[0][:WIDTH] = math.inf

    def loss(parameters):
        return products(list(parameters))[1:].square().sum()

    result = GradientAscent(iterations=2)(ORBIT, broken, loss)
    assert result.rejected.shape == ()
    assert torch.equal(result.parameters[0][:WIDTH], broken[0][:WIDTH])
