"""Balance in the singular basis: both sides diagonal, and the network as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from symmetry_cases import CASES, PAIRS, QK, VO, randomised
from torch import Tensor, nn

import metaopt
from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import Balance
from metaopt.symmetry.element import Turn
from metaopt.symmetry.projected import OnesAction
from metaopt.symmetry.site import Site

torch.set_num_threads(1)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def products(site: Site, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A A^T with the bias and B^T B, by hand."""
    made = sum(m @ m.mT for v in site.incoming for m in [v.read_augmented(weights)])
    used = sum(m.mT @ m for v in site.outgoing for m in [v.read(weights)])
    assert isinstance(made, Tensor)
    assert isinstance(used, Tensor)
    return made, used


def network(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = randomised(CASES[name].model()).double()
    x = CASES[name].inputs(torch.Generator().manual_seed(1))
    return model, x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", ["encoder, norms first", "mlp", "low-rank pair"])
def test_both_sides_of_a_site_are_the_same_diagonal(name: str) -> None:
    model, x = network(name)
    before = model(x)
    sites = metaopt.symmetries(model, x)
    move = metaopt.balance(model, x, sites=sites, passes=200, basis="singular")
    assert move.invariance_error is not None
    assert move.invariance_error < 1e-12
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)
    turned = [site for site in sites if site.group == "GL"]
    assert turned
    for site in turned:
        made, used = products(site, weights_of(model))
        values = made.diagonal(dim1=-2, dim2=-1)
        assert (made - torch.diag_embed(values)).norm() < 1e-3 * made.norm()
        assert (made - used).norm() < 3e-3 * made.norm()
        assert (values[..., 1:] <= values[..., :-1] * (1 + 1e-6)).all()


def test_the_squares_of_a_linear_pair_are_the_singular_values_of_its_product() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 4, bias=False), nn.Linear(4, 5, bias=False)).double()
    product = model[1].weight.detach() @ model[0].weight.detach()
    sites = metaopt.symmetries(model, torch.rand(3, 7).double()).of_kind(PAIRS)
    search = Balance(limit=8.0, ridge=1e-15, basis="singular")
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), 0.1), model, search=search, sites=sites
    )
    optimizer.teleport()
    expected = torch.linalg.svdvals(product)[:4]
    squares = model[0].weight.detach().square().sum(1)
    torch.testing.assert_close(squares, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(model[1].weight.detach().square().sum(0), expected)
    torch.testing.assert_close(model[1].weight @ model[0].weight, product)


def test_a_turn_changes_no_norm_and_a_second_balance_moves_nothing() -> None:
    model, x = network("encoder, norms first")
    near = copy.deepcopy(model)
    sites = metaopt.symmetries(model, x).of_kind(VO, QK)
    metaopt.balance(near, sites=sites, passes=200)
    metaopt.balance(model, sites=sites, passes=200, basis="singular")
    for name in ("layers.0.self_attn.in_proj_weight", "layers.1.self_attn.out_proj.weight"):
        one, other = near.get_parameter(name), model.get_parameter(name)
        assert (one - other).norm() > 1e-2
        torch.testing.assert_close(one.norm(), other.norm())
    before = weights_of(model)
    metaopt.balance(model, sites=sites, passes=200, basis="singular")
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, before[name], rtol=1e-2, atol=1e-2)


def test_a_move_to_the_singular_basis_can_be_undone() -> None:
    model, x = network("encoder, norms first")
    before = weights_of(model)
    metaopt.balance(model, x, basis="singular").undo()
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, before[name], rtol=1e-9, atol=1e-11)


def test_gradients_and_first_moments_go_along_exactly() -> None:
    model, x = network("encoder, norms first")
    base = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    search = Balance(passes=3, basis="singular")
    optimizer = TeleportingOptimizer(base, model, search=search)

    def gradients() -> None:
        model.zero_grad()
        model(x).sin().sum().backward()

    gradients()
    base.step()
    optimizer.teleport()
    gradients()
    for p in model.parameters():
        torch.testing.assert_close(base.state[p]["momentum_buffer"], p.grad, rtol=1e-8, atol=1e-10)


def stream_network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    norm = nn.RMSNorm(6, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 3)).double()
    return model, torch.rand(5, 4, dtype=torch.float64)


def test_a_stream_is_turned_so_that_the_sum_of_both_sides_is_diagonal() -> None:
    model, x = stream_network()
    before = model(x)
    (site,) = metaopt.symmetries(model, x).of_kind("residual streams")
    nearest = metaopt.balance(model, x, sites=[site])
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    assert nearest.invariance_error == 0
    metaopt.balance(model, x, sites=[site], basis="singular")
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-14)
    total = sum(products(site, weights_of(model)))
    values = total.diagonal()
    assert (total - torch.diag(values)).norm() < 1e-12 * total.norm()
    assert (values[1:] <= values[:-1] * (1 + 1e-9)).all()


def test_gradients_and_momentum_go_along_where_a_stream_is_turned() -> None:
    model, x = stream_network()
    sites = metaopt.symmetries(model, x).of_kind("residual streams")
    base = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.5)
    optimizer = TeleportingOptimizer(
        base, model, search=Balance(basis="singular"), schedule=1, sites=sites
    )
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    moved = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    model(x).square().sum().backward()
    for p, gradient in zip(model.parameters(), moved, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)
        momentum = base.state[p]["momentum_buffer"]
        torch.testing.assert_close(momentum, 1.75 * p.grad, rtol=1e-8, atol=1e-10)


def test_a_turn_has_no_parts_and_another_basis_is_refused() -> None:
    turn = Turn.of(torch.linalg.qr(torch.rand(2, 3, 3, dtype=torch.float64)).Q)
    g, back = turn.exponential(), turn.scaled(-1.0).exponential()
    torch.testing.assert_close(g.g @ back.g, torch.eye(3).double().expand(2, 3, 3))
    assert turn.batch == (2,)
    with pytest.raises(UserError, match=r"expected a whole turn or the one back, got 0\.5"):
        turn.scaled(0.5)
    ones = replace(metaopt.symmetries(*stream_network()).of_kind("residual streams")[0],
                   group="orthogonal_of_ones")  # fmt: skip
    with pytest.raises(UserError, match="expected T of the group at the stream of 6 features"):
        OnesAction().at(turn, ones)
    with pytest.raises(UserError, match="a basis"):
        Balance(basis="singula")
