"""Groups smaller than GL: their projections, moves, pull-backs and transports."""

from __future__ import annotations

import pytest
import torch
from symmetry_cases import QK, STREAM, Llama, randomised
from torch import Tensor, nn

from metaopt import TeleportingOptimizer, symmetries
from metaopt.symmetry import GROUPS, Element, MatrixView, Site, fold_norms
from metaopt.symmetry.element import Way
from metaopt.symmetry.moves import orbit_of
from metaopt.symmetry.verify import random_elements

torch.set_num_threads(1)

PLANES = ((0, 3), (1, 4))


def site(group: str, width: int = 6) -> Site:
    return Site(
        "s", (MatrixView("a"),), (MatrixView("b"),), None, group, width,
        planes=PLANES if group == "plane_rotations" else (),
    )  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def basis(group: str, width: int) -> Tensor:
    """A spanning set of the Lie algebra, written down without the projection."""
    found = []
    ones = torch.ones(width, dtype=torch.float64)
    for i in range(width):
        for j in range(i):
            skew = torch.zeros(width, width, dtype=torch.float64)
            skew[i, j], skew[j, i] = 1.0, -1.0
            found.append(skew)
    if group == "orthogonal_of_ones":
        away = torch.eye(width, dtype=torch.float64) - torch.outer(ones, ones) / width
        found = [away @ skew @ away for skew in found]
    if group == "plane_rotations":
        found = []
        for i, j in PLANES:
            scale, turn = torch.zeros(2, width, width, dtype=torch.float64)
            scale[i, i] = scale[j, j] = 1.0
            turn[j, i], turn[i, j] = 1.0, -1.0
            found += [scale, turn]
        rest = [u for u in range(width) if u not in sum(PLANES, ())]
        for i in rest:
            for j in rest:
                entry = torch.zeros(width, width, dtype=torch.float64)
                entry[i, j] = 1.0
                found.append(entry)
    return torch.stack(found).flatten(1)


@pytest.mark.parametrize("group", list(GROUPS))
def test_a_projection_is_the_least_squares_fit_in_the_lie_algebra(group: str) -> None:
    t = drawn(6, 6)
    span = basis(group, 6)
    fitted = torch.linalg.lstsq(span.T, t.flatten()[:, None], driver="gelsd").solution
    expected = (span.T @ fitted).reshape(6, 6)
    projected = GROUPS[group]().project(t, site(group))
    torch.testing.assert_close(projected, expected, rtol=1e-10, atol=1e-12)
    assert site(group).directions == int(torch.linalg.matrix_rank(span))


@pytest.mark.parametrize("group", list(GROUPS))
def test_the_elements_are_those_of_the_group(group: str) -> None:
    action, own = GROUPS[group](), site(group)
    weights = {"a": drawn(6, 4), "b": drawn(5, 6, seed=1)}
    element = Element(drawn(6, 6, seed=2) / 3)
    moved = action.move(element, own, weights).weights
    torch.testing.assert_close(moved["b"] @ moved["a"], weights["b"] @ weights["a"])
    g = torch.linalg.matrix_exp(action.project(element.values, own))
    torch.testing.assert_close(moved["a"], g @ weights["a"])
    if group.startswith("orthogonal"):
        torch.testing.assert_close(g @ g.T, torch.eye(6, dtype=torch.float64))
    if group == "orthogonal_of_ones":
        ones = torch.ones(6, dtype=torch.float64)
        torch.testing.assert_close(g @ ones, ones)
    still = action.move(element.map(torch.zeros_like), own, weights).weights
    assert all(torch.equal(still[name], value) for name, value in weights.items())


@pytest.mark.parametrize("group", list(GROUPS))
def test_the_pull_back_is_the_gradient_along_the_group(group: str) -> None:
    action, own = GROUPS[group](), site(group)
    weights = {"a": drawn(6, 4), "b": drawn(5, 6, seed=1)}
    gradients = {"a": drawn(6, 4, seed=3), "b": drawn(5, 6, seed=4)}
    values = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    moved = action.move(Element(values), own, weights).weights
    value = sum((moved[n] * gradients[n]).sum() for n in weights)
    (expected,) = torch.autograd.grad(value, values)
    pulled = action.pull_back(gradients, own, weights).values
    torch.testing.assert_close(pulled, expected)


def test_steps_made_one_after_another_are_projected_each() -> None:
    action, own = GROUPS["orthogonal"](), site("orthogonal")
    weights = {"a": drawn(6, 4), "b": drawn(5, 6, seed=1)}
    steps = [Element(drawn(6, 6, seed=s) / 3) for s in (2, 3)]
    at_once = action.move(Way.of(steps), own, weights).weights
    for step in steps:
        weights = {**weights, **action.move(step, own, weights).weights}
    for name, value in at_once.items():
        torch.testing.assert_close(value, weights[name])


def test_another_group_is_refused() -> None:
    action = GROUPS["orthogonal"]()
    assert action.obstacle(site("plane_rotations")) == "the group there is plane_rotations"
    assert action.max_samples(site("plane_rotations")) == 0


def folded() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = randomised(Llama()).double()
    x = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
    fold_norms(model, x)
    return model, x


@pytest.mark.parametrize("kind", [QK, STREAM])
def test_gradients_are_transported_along_a_random_move(kind: str) -> None:
    model, x = folded()
    orbit = orbit_of(symmetries(model, x).of_kind(kind))
    start = [model.get_parameter(name).detach() for name in orbit.names]

    def gradients(values: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [value.clone().requires_grad_() for value in values]
        given = dict(zip(orbit.names, leaves, strict=True))
        out = torch.func.functional_call(model, given, (x,))
        return torch.autograd.grad((out.square() * torch.arange(11.0)).sum(), leaves)

    elements = random_elements(orbit, start, 0.5, 1)
    moved = orbit.move(start, elements).parameters
    carried = orbit.transport(gradients(start), elements)
    for one, other in zip(carried, gradients(moved), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_a_teleport_climbs_the_gradient_norm_on_all_sites_of_a_transformer() -> None:
    model, x = folded()
    sites = symmetries(model, x)
    y = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(1))

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), y.flatten())

    def norm() -> float:
        own = [p for p in model.parameters() if p.requires_grad]
        return float(sum(g.square().sum() for g in torch.autograd.grad(loss(model(x), y), own)))

    base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    optimizer = TeleportingOptimizer(base, model, loss, sites=sites)
    start, before = norm(), model(x)
    move = optimizer.teleport(x, y)
    assert optimizer.made == 1
    assert move.invariance_error() < 1e-12
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-11)
    assert norm() > 1.1 * start
    assert len(optimizer.orbit(x, y).acting) == len(sites)
