"""Balance: the closed form against a naive descent, moves that can be undone, and the optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from symmetry_cases import CASES, PAIRS, QK, VO, installed, randomised
from torch import Tensor, nn

import metaopt
from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import (
    ActingSite,
    Balance,
    Identity,
    LinearAction,
    MatrixView,
    Orbit,
    PostActivationAction,
    Site,
    imbalance,
)
from metaopt.symmetry.balancing import balanced

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("default")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pair(width: int = 4, heads: int = 0) -> tuple[Orbit, list[Tensor]]:
    """A in (heads x width, 7) and B in (5, heads x width), with a bias beside A."""
    total = width * max(heads, 1)
    views: tuple[Any, Any]
    if heads:
        bias = MatrixView("c", (1,), (), (heads, width), 1, heads=(0,))
        views = (
            MatrixView("a", (1,), (2,), (heads, width, 7), heads=(0,), bias=bias),
            MatrixView("b", (0,), (2,), (5, heads, width), heads=(1,)),
        )
    else:
        views = MatrixView("a", bias=MatrixView("c", columns=())), MatrixView("b")
    site = Site(
        "s", views[:1], views[1:], Identity(), "GL", width, plain=True, homogeneous=True
    )  # fmt: skip
    weights = [drawn(total, 7), drawn(total, seed=1), drawn(5, total, seed=2)]
    return Orbit(("a", "c", "b"), [ActingSite(site, LinearAction())]), weights


def squares(parameters: Any) -> Tensor:
    return torch.stack([p.square().sum() for p in parameters]).sum()


@pytest.mark.parametrize("heads", [0, 3])
def test_the_closed_form_is_where_a_naive_descent_of_the_norm_ends(heads: int) -> None:
    orbit, start = pair(heads=heads)
    result = Balance(ridge=1e-15)(orbit, start)
    (zero,) = orbit.identity(start)
    t = torch.zeros_like(zero.values, requires_grad=True)
    descent = torch.optim.LBFGS([t], max_iter=500, tolerance_grad=1e-12, tolerance_change=0,
        line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        descent.zero_grad()
        value = squares(orbit.move(start, [zero.with_values(t)]).parameters)
        value.backward()
        return value

    descent.step(closure)
    assert squares(result.parameters) < 0.99 * squares(start)
    torch.testing.assert_close(squares(result.parameters), closure().detach(), rtol=1e-9, atol=0)
    weights = dict(zip(orbit.names, result.parameters, strict=True))
    assert imbalance(orbit.acting[0].site, weights) < 1e-9


def test_the_move_is_the_nearest_to_the_identity() -> None:
    """Of all g that balance, O g for orthogonal O, the symmetric one is nearest to 1."""
    orbit, start = pair()
    (element,) = Balance(ridge=1e-15)(orbit, start).elements[0]
    g = element.exponential().g
    torch.testing.assert_close(g, g.T)
    identity = torch.eye(4, dtype=torch.float64)
    for seed in range(20):
        q, _ = torch.linalg.qr(drawn(4, 4, seed=seed))
        assert (q @ g - identity).norm() >= (g - identity).norm() - 1e-12


def test_a_balanced_point_stays() -> None:
    orbit, start = pair()
    once = Balance(ridge=1e-15)(orbit, start).parameters
    twice = Balance(ridge=1e-15)(orbit, once).parameters
    for one, other in zip(once, twice, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_strength_is_a_part_of_the_way_and_limit_bounds_it() -> None:
    orbit, start = pair()
    start[2] = 1e3 * start[2]
    full = Balance(limit=8.0)(orbit, start).elements[0][0].values
    half = Balance(strength=0.5, limit=8.0)(orbit, start).elements[0][0].values
    torch.testing.assert_close(half, full / 2)
    assert Balance(limit=0.1)(orbit, start).elements[0][0].values.abs().max() <= 0.1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_side_without_full_rank_moves_by_a_bounded_step(rank: int) -> None:
    """As an adapter begins: B is 0, and of rank 1 after a step."""
    orbit, start = pair()
    start[2] = rank * torch.outer(drawn(5), drawn(4, seed=3)) * 1e-3
    result = Balance()(orbit, start)
    (element,) = result.elements[0]
    assert not result.rejected
    assert all(p.isfinite().all() for p in result.parameters)
    assert element.values.abs().max() <= Balance().limit
    if rank == 0:
        assert all(map(torch.equal, result.parameters, start))
    product = result.parameters[2] @ result.parameters[0]
    torch.testing.assert_close(product, start[2] @ start[0], rtol=1e-9, atol=1e-15)


def test_one_head_without_weights_does_not_keep_the_others() -> None:
    orbit, start = pair(heads=3)
    start[2][:, :4] = 0.0
    result = Balance()(orbit, start)
    (element,) = result.elements[0]
    assert not element.values[0].any()
    assert element.values[1:].abs().amax(dim=-1).min() > 0


def chain() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.LeakyReLU(), nn.Linear(5, 3)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-1, 1, 7).double()[:, None])
    return model


def test_units_of_a_chain_are_balanced_over_several_passes() -> None:
    model, x = chain(), drawn(9, 6)
    start = [p.detach().clone() for p in model.parameters()]
    before = model(x)
    move = metaopt.balance(model, x)
    weights = dict(model.named_parameters())
    torch.testing.assert_close(model(x), before)
    assert move.invariance_error is not None
    assert move.invariance_error < 1e-13
    assert len(move.steps) > 1
    for site in metaopt.symmetries(model):
        assert imbalance(site, weights) < 1e-3
    assert squares(model.parameters()) < squares(start)
    rows = weights["0.weight"].square().sum(1) + weights["0.bias"].square()
    torch.testing.assert_close(rows, weights["2.weight"].square().sum(0), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "name", ["llama by hand", "gpt, tied", "resnet", "adapters", "vit of transformers", "gpt-neox"]
)
def test_a_move_and_its_inverse_restore_the_weights(name: str) -> None:
    case = CASES[name]
    if not installed(case):
        pytest.skip(f"{case.needs} is missing")
    torch.manual_seed(1)
    model = randomised(case.model())
    x = case.inputs(torch.Generator().manual_seed(2))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    move = metaopt.balance(model, x)
    assert move.invariance_error is not None
    assert move.invariance_error < 1e-5
    sites = balanced(metaopt.symmetries(model, x))
    weights = dict(model.named_parameters())
    assert all(imbalance(site, weights) < 1e-3 for site in sites)
    moved = [n for n in start if not torch.equal(weights[n], start[n])]
    assert set(moved) <= set(move.orbit.names)
    assert len(moved) == len(move.orbit.names)
    move.undo()
    for name, value in model.named_parameters():
        assert (value - start[name]).norm() <= 1e-6 * start[name].norm(), name


def test_given_sites_alone_are_moved() -> None:
    model, x = randomised(CASES["mlp"].model()), torch.randn(3, 7)
    move = metaopt.balance(model, sites=metaopt.symmetries(model, x).of_kind(PAIRS))
    assert set(move.orbit.names) == {"2.weight", "2.bias", "3.weight"}
    assert move.invariance_error is None
    assert repr(move) == "Move(sites=1, invariance_error=not measured)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "expected"),
        ({"strength": 1.5}, "expected a strength above 0 and up to 1, got 1.5"),
        ({"limit": 0.0}, "expected a limit above 0 and up to 8, got 0.0"),
        ({"sites": []}, r"expected sites of metaopt\.symmetries\(\), got \[\]"),
        ({"sites": "0"}, r"expected sites of metaopt\.symmetries\(\), got '0'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        metaopt.balance(chain(), **options)


def test_a_network_without_a_site_is_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(UserError, match="expected a site to move, got none"):
        metaopt.balance(model, torch.randn(2, 3))


def test_a_group_that_acts_on_a_batch_is_refused() -> None:
    orbit, start = pair()
    site = orbit.acting[0].site
    with pytest.raises(UserError, match="expected groups that keep all data for a balance"):
        Balance()(Orbit(orbit.names, [ActingSite(site, PostActivationAction())]), start)


# ---- TeleportingOptimizer(search="balance")


def transformer() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = randomised(CASES["encoder, norms first"].model()).double()
    return model, drawn(2, 5, 12), drawn(2, 5, 12, seed=1)


def gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()


def test_the_optimizer_balances_at_each_step_with_no_loss_and_no_batch() -> None:
    model, x, y = transformer()
    base = torch.optim.AdamW(model.parameters(), 1e-3)
    optimizer = TeleportingOptimizer(base, model, search="balance", schedule=1, buffers="transport")
    losses = []
    for step in range(5):
        gradients_of(model, x, y)
        optimizer.step()
        losses.append(nn.functional.mse_loss(model(x), y).item())
        assert optimizer.made == step, "it begins after the first step"
    assert losses[-1] < losses[0]
    assert optimizer.teleportation is not None
    assert optimizer.teleportation.invariance_error() < 1e-13
    with pytest.raises(UserError, match="expected no data for a move"):
        optimizer.teleportation.invariance_error(x)


def test_the_balance_of_a_step_is_followed_by_the_step_of_its_base() -> None:
    """A naive twin: balance by hand, transport the gradient by hand, then a step of SGD."""
    model, x, y = transformer()
    twin = copy.deepcopy(model)
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(base, model, search="balance", schedule=[0])
    gradients_of(model, x, y)
    optimizer.step()
    sites = metaopt.symmetries(twin, x).of_kind(VO, QK)
    metaopt.balance(twin, sites=sites, passes=1, limit=2.0)
    gradients_of(twin, x, y)
    torch.optim.SGD(twin.parameters(), 0.1).step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_first_moments_go_along_exactly_and_second_ones_by_the_squares() -> None:
    model, x, y = transformer()
    base = torch.optim.Adam(model.parameters(), 0.0, betas=(0.0, 0.0))
    optimizer = TeleportingOptimizer(base, model, search="balance")
    assert optimizer.buffers == "transport"
    gradients_of(model, x, y)
    optimizer.base.step()
    before = {p: base.state[p]["exp_avg_sq"].clone() for p in model.parameters()}
    optimizer.teleport()
    gradients_of(model, x, y)
    for parameter in model.parameters():
        torch.testing.assert_close(
            base.state[parameter]["exp_avg"], parameter.grad, rtol=1e-8, atol=1e-12
        )
    assert optimizer.made == 1
    layer = model.layers[0].self_attn.out_proj.weight  # 3 heads of 4
    assert not torch.equal(base.state[layer]["exp_avg_sq"], before[layer])
    assert all(base.state[p]["exp_avg_sq"].min() >= 0 for p in model.parameters())


def test_a_closure_is_evaluated_once_at_the_balanced_point() -> None:
    model, x, y = transformer()
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(base, model, search="balance", schedule=[0])
    calls = []

    def closure() -> Tensor:
        calls.append(0)
        gradients_of(model, x, y)
        return nn.functional.mse_loss(model(x), y)

    loss = optimizer.step(closure)
    assert len(calls) == 1
    assert loss.item() > nn.functional.mse_loss(model(x), y).item()
    assert optimizer.made == 1


def test_given_sites_and_frozen_layers_are_respected() -> None:
    model, x, _ = transformer()
    sites = metaopt.symmetries(model, x).of_kind(VO)
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(base, model, search="balance", sites=sites)
    start = copy.deepcopy(model)
    model.layers[0].requires_grad_(False)
    optimizer.teleport()
    moved = {
        name
        for name, value in model.named_parameters()
        if not torch.equal(value, start.get_parameter(name))
    }
    own = "layers.1.self_attn"
    assert moved == {f"{own}.in_proj_weight", f"{own}.in_proj_bias", f"{own}.out_proj.weight"}


def test_an_attention_known_by_its_names_alone_needs_sites() -> None:
    torch.manual_seed(0)
    model = randomised(CASES["vit"].model())
    base = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match=r"give sites=metaopt\.symmetries\(model, x\)"):
        TeleportingOptimizer(base, model, search="balance")
    sites = metaopt.symmetries(model, torch.randn(2, 3, 8, 8))
    optimizer = TeleportingOptimizer(base, model, search="balance", sites=sites)
    optimizer.teleport()
    assert optimizer.made == 1


def test_sites_of_another_model_and_unknown_searches_are_refused() -> None:
    model, _, _ = transformer()
    other = chain()
    base = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(UserError, match="expected sites of this model"):
        TeleportingOptimizer(base, model, search="balance", sites=metaopt.symmetries(other))
    with pytest.raises(UserError, match="expected a search of balance, got 'balanced'"):
        TeleportingOptimizer(base, model, search="balanced")


def test_the_state_of_a_balancing_optimizer_resumes() -> None:
    ends = []
    for resumed in (False, True):
        model, x, y = transformer()
        built = [model, None]
        base = torch.optim.AdamW(model.parameters(), 1e-2)
        optimizer = TeleportingOptimizer(
            base, model, search="balance", schedule=1, buffers="transport"
        )
        for step in range(4):
            if resumed and step == 2:
                kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                model, _, _ = transformer()
                model.load_state_dict(kept[0])
                base = torch.optim.AdamW(model.parameters(), 1e-2)
                optimizer = TeleportingOptimizer(
                    base, model, search="balance", schedule=1, buffers="transport"
                )
                optimizer.load_state_dict(kept[1])
            gradients_of(model, x, y)
            optimizer.step()
        assert built
        ends.append([p.detach() for p in model.parameters()])
    assert all(map(torch.equal, *ends))
