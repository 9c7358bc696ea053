"""GL between two matrices with nothing between: the output stays on any data, for a dense g."""

import copy

import pytest
import torch
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import (
    ActingSite,
    Element,
    GradientAscent,
    Identity,
    LinearAction,
    MatrixView,
    Orbit,
    Site,
    find_sites,
)
from metaopt.symmetry.site import matrix_view

WIDTH = 4


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def drawn_element(*batch, scale=0.4, seed=9):
    """T whose every entry differs from 0, so that g is no diagonal."""
    return Element(scale * normal(*batch, WIDTH, WIDTH, seed=seed))


def linear_site(incoming, outgoing):
    return Site(
        name="a -> b",
        incoming=tuple(incoming),
        outgoing=tuple(outgoing),
        between=Identity(),
        group="GL",
        width=WIDTH,
        plain=True,
        homogeneous=True,
    )


def moved_model(model, element):
    """A copy of a model whose one site has moved by exp(T)."""
    (site,) = [site for site in find_sites(model).found if LinearAction().obstacle(site) is None]
    moved = LinearAction().move(element, site, dict(model.named_parameters()))
    assert not moved.rejected
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in moved.weights.items():
            other.get_parameter(name).copy_(value)
    return other, site


def change(before, after):
    return ((after - before).norm() / before.norm()).item()


MODELS = {
    "two layers": lambda: nn.Sequential(nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)),
    "no biases": lambda: nn.Sequential(
        nn.Linear(3, WIDTH, bias=False), nn.Linear(WIDTH, 2, bias=False)
    ),
    "a bias in": lambda: nn.Sequential(nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2, bias=False)),
    "a bias out": lambda: nn.Sequential(nn.Linear(3, WIDTH, bias=False), nn.Linear(WIDTH, 2)),
    "more units than inputs or outputs": lambda: nn.Sequential(
        nn.Linear(1, WIDTH), nn.Identity(), nn.Linear(WIDTH, 1)
    ),
    "in a deeper network": lambda: nn.Sequential(
        nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5), nn.Tanh(),
        nn.Linear(5, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_the_output_stays_on_data_that_the_move_never_saw(build):
    torch.manual_seed(0)
    model = build().double()
    moved, site = moved_model(model, drawn_element())
    inputs = next(model.parameters()).shape[1]
    for seed in (1, 2):
        x = 10 * normal(500, inputs, seed=seed)
        assert change(model(x), moved(x)) < 1e-12
    for name in (site.incoming[0].parameter, site.outgoing[0].parameter):
        assert change(model.get_parameter(name), moved.get_parameter(name)) > 0.1
    g = torch.linalg.matrix_exp(drawn_element().values)
    for name in site.incoming[0].parameters:
        old, new = model.get_parameter(name), moved.get_parameter(name)
        torch.testing.assert_close(new, g @ old, rtol=1e-12, atol=1e-12)
    if site.biased[1]:
        bias = f"{site.layers[1]}.bias"
        assert torch.equal(moved.get_parameter(bias), model.get_parameter(bias))


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
@pytest.mark.parametrize("biased", [False, True])
def test_each_network_of_a_batch_has_its_own_g(batch, biased):
    site = linear_site(
        [matrix_view("w", "b" if biased else None)], [matrix_view("u", "c" if biased else None)]
    )
    shapes = {"w": (WIDTH, 3), "b": (WIDTH,), "u": (2, WIDTH), "c": (2,)}
    weights = {
        name: normal(*batch, *shape, seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
        if biased or name in "wu"
    }
    element = drawn_element(*batch)
    moved = weights | LinearAction().move(element, site, weights).weights

    def output(at, x):
        f = at["w"] @ x + (at["b"].unsqueeze(-1) if biased else 0.0)
        return at["u"] @ f + (at["c"].unsqueeze(-1) if biased else 0.0)

    x = normal(*batch, 3, 50, seed=7)
    assert change(output(weights, x), output(moved, x)) < 1e-12
    flat = element.values.reshape(-1, WIDTH, WIDTH)
    for index, t in enumerate(flat):
        new, old = (at["w"].reshape(-1, WIDTH, 3)[index] for at in (moved, weights))
        torch.testing.assert_close(new, torch.linalg.matrix_exp(t) @ old, rtol=1e-12, atol=1e-12)


# Several matrices that make or use the same features.

SHARED = linear_site(
    [matrix_view("w1", "b1"), matrix_view("w2", "b2"), matrix_view("w3")],
    [matrix_view("u1", "c1"), matrix_view("u2")],
)
SHARED_SHAPES = {
    "w1": (WIDTH, 3), "b1": (WIDTH,), "w2": (WIDTH, 5), "b2": (WIDTH,), "w3": (WIDTH, 1),
    "u1": (2, WIDTH), "c1": (2,), "u2": (6, WIDTH),
}  # fmt: skip


def shared_weights(*batch):
    return {
        name: normal(*batch, *shape, seed=seed)
        for seed, (name, shape) in enumerate(SHARED_SHAPES.items())
    }


def shared_output(at, *inputs):
    """Three layers make the features, as after a skip connection, and two use them."""
    x, y, z = inputs
    features = at["w1"] @ x + at["b1"][..., None] + at["w2"] @ y + at["b2"][..., None]
    features = features + at["w3"] @ z
    return torch.cat((at["u1"] @ features + at["c1"][..., None], at["u2"] @ features), dim=-2)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_all_that_make_or_use_the_same_features_move_by_one_g(batch):
    weights = shared_weights(*batch)
    moved = LinearAction().move(drawn_element(*batch), SHARED, weights)
    assert not moved.rejected.any()
    assert moved.weights.keys() == set(SHARED_SHAPES) - {"c1"}
    after = weights | moved.weights
    inputs = [normal(*batch, n, 50, seed=20 + n) for n in (3, 5, 1)]
    assert change(shared_output(weights, *inputs), shared_output(after, *inputs)) < 1e-12
    for name, value in moved.weights.items():
        assert change(weights[name], value) > 0.1


@pytest.mark.parametrize("batch", [(), (3,)])
def test_the_pulled_back_gradient_sums_over_all_of_them(batch):
    weights, gradients = shared_weights(*batch), shared_weights(*batch)
    gradients = {name: normal(*t.shape, seed=40 + t.numel()) for name, t in gradients.items()}
    orbit = Orbit(tuple(SHARED_SHAPES), [ActingSite(SHARED, LinearAction())])
    parameters = list(weights.values())
    (zero,) = orbit.identity(parameters)
    values = zero.values.requires_grad_()
    moved = orbit.move(parameters, [zero.with_values(values)]).parameters
    value = sum((gradients[name] * t).sum() for name, t in zip(orbit.names, moved, strict=True))
    (expected,) = torch.autograd.grad(value, values)
    (pulled,) = orbit.pull_back(parameters, list(gradients.values()))
    torch.testing.assert_close(pulled.values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_gradient_transported_through_all_of_them_is_that_at_the_new_point(batch):
    """The loss stays along the orbit, so its gradient at g.w is what transport makes of it."""
    inputs = [normal(*batch, n, 50, seed=20 + n) for n in (3, 5, 1)]

    def gradient(at):
        leaves = {name: t.detach().requires_grad_() for name, t in at.items()}
        loss = shared_output(leaves, *inputs).square().sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    weights, action, element = shared_weights(*batch), LinearAction(), drawn_element(*batch)
    before = gradient(weights)
    transported = before | action.transport(element, SHARED, before)
    expected = gradient(weights | action.move(element, SHARED, weights).weights)
    for name, own in transported.items():
        torch.testing.assert_close(own, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SHARED_SHAPES if name != "c1"])
def test_a_task_with_a_nan_in_any_of_them_keeps_all_its_weights(name):
    weights = shared_weights(3)
    weights[name] = weights[name].clone()
    weights[name][1].flatten()[0] = torch.nan
    moved = LinearAction().move(drawn_element(3), SHARED, weights)
    assert moved.rejected.tolist() == [False, True, False]
    for other, value in moved.weights.items():
        assert torch.equal(value[1].nan_to_num(7.0), weights[other][1].nan_to_num(7.0))
        assert not torch.equal(value[0], weights[other][0])
        assert value[[0, 2]].isfinite().all()


def test_each_matrix_keeps_its_own_dtype():
    weights = shared_weights()
    weights |= {name: weights[name].float() for name in ("w2", "b2", "u2")}
    moved = LinearAction().move(drawn_element(), SHARED, weights)
    for name, value in moved.weights.items():
        assert value.dtype == weights[name].dtype


# Heads: queries and keys meet in a product alone, and so do values and the matrix that joins them.

HEADS, EMBEDDED, TOKENS = 3, 5, 6


def rows(name, bias):
    return MatrixView(
        name, rows=(1,), columns=(2,), shape=(HEADS, WIDTH, EMBEDDED), heads=(0,),
        bias=MatrixView(bias, rows=(1,), columns=(), shape=(HEADS, WIDTH), dims=1, heads=(0,)),
    )  # fmt: skip


QUERY_KEY = linear_site(
    [rows("q", "bq")],
    [
        MatrixView("k", rows=(2,), columns=(1,), shape=(HEADS, WIDTH, EMBEDDED), heads=(0,)),
        MatrixView("bk", rows=(), columns=(1,), shape=(HEADS, WIDTH), dims=1, heads=(0,)),
    ],
)
VALUE_OUT = linear_site(
    [rows("v", "bv")],
    [MatrixView("o", rows=(0,), columns=(2,), shape=(EMBEDDED, HEADS, WIDTH), heads=(1,))],
)


def attention(at, x):
    """Multi-head attention with a loop over its heads; x ``(tokens, EMBEDDED)``."""
    out = torch.zeros(len(x), EMBEDDED, dtype=x.dtype)
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        q, k, v = (x @ at[n][own].T + at[f"b{n}"][own] for n in "qkv")
        out = out + (q @ k.T / WIDTH**0.5).softmax(dim=-1) @ v @ at["o"][:, own].T
    return out


def test_each_head_of_an_attention_moves_by_its_own_g_and_its_output_stays():
    size = HEADS * WIDTH
    weights = {n: normal(size, EMBEDDED, seed=i) for i, n in enumerate("qkv")}
    weights |= {f"b{n}": normal(size, seed=10 + i) for i, n in enumerate("qkv")}
    weights["o"] = normal(EMBEDDED, size, seed=20)
    moved = dict(weights)
    for seed, site in ((30, QUERY_KEY), (31, VALUE_OUT)):
        moved |= LinearAction().move(drawn_element(HEADS, seed=seed), site, moved).weights
    x = normal(TOKENS, EMBEDDED, seed=40)
    assert change(attention(weights, x), attention(moved, x)) < 1e-12
    for name, value in moved.items():
        assert change(weights[name], value) > 0.1
    g = torch.linalg.matrix_exp(drawn_element(HEADS, seed=30).values)
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        torch.testing.assert_close(moved["q"][own], g[head] @ weights["q"][own])


# From a model to its teleport.


def loss_of(model, x, y):
    return nn.functional.mse_loss(model(x), y)


@pytest.mark.parametrize("action", ["linear", "auto"])
def test_a_teleport_of_a_model_climbs_and_keeps_its_output_on_fresh_data(action):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, WIDTH), nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 2))
    model.double()
    before = copy.deepcopy(model)
    x, y, fresh = normal(8, 3), normal(8, 2, seed=1), normal(300, 3, seed=2)
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, nn.functional.mse_loss, action,
        search=GradientAscent(iterations=3),
    )  # fmt: skip
    (acting,) = optimizer.orbit(x, y).acting
    assert isinstance(acting.action, LinearAction)
    move = optimizer.teleport(x, y)
    assert not move.stayed.any()
    assert change(before(fresh), model(fresh)) < 1e-12
    along = nn.functional.cosine_similarity(move.before[0], move.after[0], dim=1)
    assert (along < 1 - 1e-4).all(), "a rescaling would keep the direction of each row"
    norms = []
    for each in (before, model):
        each.zero_grad()
        loss_of(each, x, y).backward()
        norms.append(sum(p.grad.square().sum().item() for p in each.parameters()))
    assert norms[1] > norms[0]


@pytest.mark.parametrize(
    "between", [nn.ReLU(), nn.Tanh(), nn.Dropout(0.1)], ids=lambda module: type(module).__name__
)
def test_what_lies_between_is_named_where_something_does(between):
    model = nn.Sequential(nn.Linear(3, WIDTH), between, nn.Linear(WIDTH, 2)).double()
    (site,) = find_sites(model).found
    assert LinearAction().max_samples(site) == 0
    message = f"expected a site for LinearAction.*{type(between).__name__} lies between"
    with pytest.raises(UserError, match=message):
        LinearAction().move(drawn_element(), site, dict(model.named_parameters()))
