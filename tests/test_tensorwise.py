"""The update rule a tensor at a time: its directions, its lengths, and its step in place."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from own_tasks import Images, Tokens
from torch import nn
from torch.nn import functional as F

from metaopt.errors import UserError
from metaopt.learned import tensorwise
from metaopt.learned.checkpoint import read_checkpoint, save_meta_optimizer, write_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.observation import Observation
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.learned.orthogonal import even_rows, in_blocks, orthogonalised
from metaopt.learned.tensorwise import (
    DECAY,
    RATES,
    orthogonal,
    period,
)
from metaopt.roles import EMBEDDING, HIDDEN, OUTPUT, VECTOR, Role, role_of_shape, roles_of
from metaopt.symmetry.chain import NO_CHAIN, LayerChain
from metaopt.tasks import stacked


def build(seed: int = 0, scale: float = 0.0) -> MetaOptimizer:
    """Untrained, or with a head that says something."""
    meta = MetaOptimizer(MetaOptimizerSpec(update="tensorwise", element="none", hidden=5), seed)
    generator = torch.Generator().manual_seed(seed)
    if scale:
        nn.init.normal_(meta.update.lstm.head_weight, std=scale, generator=generator)
    return meta


def network(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 7), nn.LayerNorm(7),
        nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 3),
    )  # fmt: skip


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 4, 4, generator=generator), torch.arange(6) % 3


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, count: int, factor: float = 1.0
) -> list[float]:
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        x, y = batch(step % 3)
        loss = factor * F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (3, 6, 2)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = orthogonalised(matrix)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ found @ v.mT
    values = rotated.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(rotated, torch.diag_embed(values), rtol=0, atol=1e-12)
    large = s > 0.01 * torch.linalg.vector_norm(matrix, dim=(-2, -1)).unsqueeze(-1)
    assert large.any()
    assert (values[large] > 0.3).all()
    assert (values < 1.4).all()


@pytest.mark.parametrize("shape", [(300, 310), (520, 300), (2, 257, 400)])
def test_a_wide_matrix_is_made_orthogonal_in_blocks(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = in_blocks(matrix)
    along = -2 if shape[-2] <= shape[-1] else -1
    side = min(shape[-2:])
    start = 0
    for size in {300: (100, 100, 100), 257: (86, 86, 85)}[side]:
        own = found.narrow(along, start, size)
        torch.testing.assert_close(own, orthogonalised(matrix.narrow(along, start, size)))
        start += size
    assert start == side


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (3, 6, 2)])
def test_even_rows_are_of_one_length_and_the_whole_as_long(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = even_rows(matrix)
    norms, length = found.norm(dim=-1), matrix.norm(dim=(-2, -1))
    torch.testing.assert_close(found.norm(dim=(-2, -1)), length)
    torch.testing.assert_close(norms, norms[..., :1].expand_as(norms))
    torch.testing.assert_close(F.normalize(found, dim=-1), F.normalize(matrix, dim=-1))


def test_rows_of_zeros_stay_and_the_others_are_as_long_together():
    matrix = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix[1] = 0
    found = even_rows(matrix)
    assert not found[1].any()
    torch.testing.assert_close(found.norm(), matrix.norm())
    assert not even_rows(torch.zeros(2, 4)).any()


def test_a_row_that_is_short_stays_short():
    matrix = torch.randn(8, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    matrix[1] *= 1e-6 / matrix[1].norm()
    found = even_rows(matrix)
    usual = found.norm() / 7**0.5
    assert found[1].norm() < 1e-5 * usual
    torch.testing.assert_close(found[2].norm(), usual, rtol=1e-9, atol=0)


def test_a_unit_without_a_gradient_comes_to_rest():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = LearnedOptimizer(model, build())
    generator = torch.Generator().manual_seed(1)
    lengths = []
    for step in range(120):
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        x = torch.randn(32, 8, generator=generator)
        F.mse_loss(model(x), x[:, :2] * x[:, 2:4]).backward()
        if step >= 30:
            model[0].weight.grad[5] = 0
        optimizer.step()
        lengths.append((model[0].weight.detach() - before).norm(dim=1))
    assert lengths[29][5] > 0.2 * lengths[29].mean()
    assert lengths[119][5] < 0.1 * lengths[119].mean()


def deep_network(layers: int, factor: float = 1.0) -> nn.Module:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), *(nn.Linear(6, 6) for _ in range(layers)))
    with torch.no_grad():
        for layer in list(model)[1:-1]:
            layer.weight.mul_(factor)
    return model


def moved(model: nn.Module, groups: list[list[str]] | None = None) -> dict[str, torch.Tensor]:
    """How far each parameter is moved by one step, all gradients alike."""
    named = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    given = model if groups is None else [{"params": [named[n] for n in own]} for own in groups]
    optimizer = LearnedOptimizer(given, build())
    for p in named.values():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    return {name: (p.detach() - before[name]).norm() for name, p in named.items()}


def test_steps_of_deep_networks_are_as_much_shorter_as_the_root_of_their_depth(monkeypatch):
    monkeypatch.setattr(tensorwise, "DECAY", 0.0)
    shallow, deep = (moved(deep_network(layers)) for layers in (1, 4))
    for name in ("1.weight", "1.bias"):  # one matrix between layers, and four
        torch.testing.assert_close(deep[name], shallow[name] / 2)
    torch.testing.assert_close(deep["5.weight"], shallow["2.weight"])  # the output


def test_the_depth_is_that_of_all_groups_without_what_is_frozen(monkeypatch):
    monkeypatch.setattr(tensorwise, "DECAY", 0.0)
    names = [name for name, _ in deep_network(4).named_parameters()]
    one = moved(deep_network(4), [names])
    split = moved(
        deep_network(4), [[n for n in names if n[2:] == kind] for kind in ("bias", "weight")]
    )
    for name in names:
        torch.testing.assert_close(split[name], one[name])
    frozen, shallow = deep_network(4), moved(deep_network(1))
    for layer in list(frozen)[2:-1]:
        layer.weight.requires_grad_(False)
    torch.testing.assert_close(moved(frozen)["1.weight"], shallow["1.weight"])


@pytest.mark.parametrize("factor", [0.2, 0.001, 3.0, 0.0])
def test_small_weights_are_moved_less_and_those_near_zero_are_not(factor, monkeypatch):
    monkeypatch.setattr(tensorwise, "DECAY", 0.0)
    usual, other = moved(deep_network(2)), moved(deep_network(2, factor))
    weight = deep_network(2)[1].weight.detach()
    own = math.sqrt(3 * 32 * float(weight.square().mean()))  # near 1, over those of torch's start
    part = min(1.0, max(0.05, own * factor)) if factor > 0.01 else 1.0
    torch.testing.assert_close(other["1.weight"], usual["1.weight"] * part / min(1.0, own))
    torch.testing.assert_close(other["3.weight"], usual["3.weight"])


def test_a_checkpoint_from_before_the_depth_was_seen_loads(tmp_path):
    old = MetaOptimizer(MetaOptimizerSpec(update="tensorwise", element="none", hidden=5), 0)
    new = MetaOptimizer(
        MetaOptimizerSpec(update="tensorwise", element="none", hidden=5, sees_depth=True), 0
    )
    for meta, channels in ((old, 18), (new, 19)):
        assert meta.update.lstm.layers[0].weight_x.shape[1] == channels
        nn.init.normal_(meta.update.lstm.head_weight, generator=torch.Generator().manual_seed(1))
        path = tmp_path / f"{channels}.safetensors"
        save_meta_optimizer(path, meta, {})
        if meta is old:
            tensors, facts = read_checkpoint(path)
            del facts["spec"]["sees_depth"]
            write_checkpoint(path, tensors, facts)
        models = network(), network()
        for model, source in zip(models, (meta, path), strict=True):
            steps(model, LearnedOptimizer(model, source), 3)
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(one, other)


def test_the_wider_a_matrix_the_more_seldom_it_is_made_orthogonal():
    periods = [period(Role(HIDDEN, rows, 900, True)) for rows in (8, 32, 64, 128, 256, 900)]
    assert periods == [1, 1, 2, 4, 8, 8]


def wide(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 70), nn.Tanh(), nn.Linear(70, 66), nn.Tanh(),
                         nn.Linear(66, 3))  # fmt: skip


def test_what_is_made_orthogonal_seldom_is_its_formula_and_the_pure_step(monkeypatch):
    assert {period(role) for role in roles_of(wide()).values()} == {1, 2}
    meta = build(2, 0.5)
    models = wide(), wide()
    first, second = (LearnedOptimizer(model, meta) for model in models)
    monkeypatch.setattr(second.steppers[0], "steps_in_place", lambda meta: False)
    for model, optimizer in zip(models, (first, second), strict=True):
        steps(model, optimizer, 5)
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    model = wide()
    steps(model, LearnedOptimizer(model, build()), 5)
    for parameter, expected in zip(model.parameters(), naive(wide(), 5), strict=True):
        torch.testing.assert_close(parameter.double(), expected, rtol=2e-4, atol=2e-5)


def test_roles_are_read_from_the_modules():
    class Conv1D(nn.Module):  # as transformers has it: weight (in, out)
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 4))

    model = nn.ModuleDict(
        {
            "table": nn.Embedding(11, 6),
            "places": nn.ParameterList([torch.zeros(1, 9, 6)]),
            "depthwise": nn.Conv2d(6, 6, 3, groups=6, bias=False),
            "norm": nn.LayerNorm(6),
            "old": Conv1D(),
            "conv": nn.Conv2d(4, 8, (3, 2)),
            "head": nn.Linear(8, 11),
        }
    )
    assert roles_of(model) == {
        "table.weight": Role(EMBEDDING),
        "places.0": Role(VECTOR),
        "depthwise.weight": Role(HIDDEN, 6, 9, False),
        "norm.weight": Role(VECTOR),
        "norm.bias": Role(VECTOR),
        "old.weight": Role(HIDDEN, 4, 6, True, True),
        "conv.weight": Role(HIDDEN, 8, 24, True),
        "conv.bias": Role(VECTOR),
        "head.weight": Role(OUTPUT, 11, 8, True),
        "head.bias": Role(VECTOR),
    }
    tied = Tokens().model(0)
    assert roles_of(tied)["embedding.weight"].kind == EMBEDDING
    assert roles_of(tied)["inner.weight"].kind == HIDDEN  # the embedding is the output
    recurrent = nn.ModuleList([nn.Embedding(9, 4), nn.Linear(4, 4), nn.GRU(4, 4)])
    assert [role.kind for role in roles_of(recurrent).values() if role.kind != VECTOR] == [
        EMBEDDING, OUTPUT, HIDDEN, HIDDEN
    ]  # fmt: skip


def test_one_entry_a_unit_is_a_vector_unless_it_is_the_weight_of_a_layer():
    normed = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(1, 5)
    )
    normed.register_parameter("scale", nn.Parameter(torch.ones(4, 1, 1)))
    kinds = {name: role.kind for name, role in roles_of(normed).items()}
    assert kinds == {
        "scale": VECTOR,
        "0.bias": VECTOR,
        "0.parametrizations.weight.original0": VECTOR,
        "0.parametrizations.weight.original1": HIDDEN,
        "1.weight": OUTPUT,
        "1.bias": VECTOR,
    }
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(5, 0), nn.Linear(0, 5))
    assert roles_of(empty)["0.weight"].kind == VECTOR


def test_shapes_alone_say_a_role():
    assert role_of_shape((0, 4)) == role_of_shape(()) == role_of_shape((7,)) == Role(VECTOR)
    assert not orthogonal(Role(HIDDEN, 300, 1, False))
    assert orthogonal(Role(HIDDEN, 200, 4000, True))


def naive(model: nn.Module, count: int, total: int = 0) -> list[torch.Tensor]:
    """The untrained rule, a tensor at a time, in float64."""
    names = roles_of(model)
    every = {name: period(role) for name, role in names.items()}
    w = {n: p.detach().double() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in w.items()}
    v = {n: torch.zeros_like(p) for n, p in w.items()}
    first = {n: float(p.square().sum()) for n, p in w.items()}
    deep = max(1, sum(role.kind == HIDDEN for role in names.values()))
    look, mix = 1 / (1 + math.exp(2)), 0.5
    usual, trust = 0.0, 1.0
    for t in range(1, count + 1):
        x, y = batch((t - 1) % 3)
        values = {n: p.clone().requires_grad_() for n, p in w.items()}
        output = torch.func.functional_call(model.double(), values, (x.double(),))
        gradients = torch.autograd.grad(F.cross_entropy(output, y), list(values.values()))
        energy = sum(float(g.square().sum()) for g in gradients)
        usual = 0.98 * usual + 0.02 * energy
        trust = min(1.0, 2 * math.sqrt(usual / (1 - 0.98**t) / energy))
        for (name, role), g in zip(names.items(), gradients, strict=True):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g * g
            ahead = m[name] + look * (g - m[name])
            begun = math.sqrt(1 - 0.99**t) / (1 - 0.9**t)
            rate = RATES[role.kind] * min(1, t / (min(30, total / 3) if total else 20)) * trust
            rate *= 1 - (t - 1) / total if total else (1 + t / 30) ** -0.5
            if role.kind in (HIDDEN, VECTOR):
                rate /= math.sqrt(deep)
            if role.kind == HIDDEN and first[name] > 0:  # weights of torch's start have a third
                now = max(first[name], float(w[name].square().sum())) / g.numel()
                assert math.sqrt(first[name] * 3 * role.fan_in / g.numel()) > 0.01
                rate *= min(1.0, max(0.05, math.sqrt(now / (1 / (3 * role.fan_in)))))
            adam = begun * ahead / v[name].sqrt()
            if role.kind in (HIDDEN, OUTPUT):
                adam = adam / math.sqrt(role.fan_in)
            if role.kind == HIDDEN:
                o = orthogonalised(ahead.reshape(role.rows, -1))
                length = o.norm()
                norms = o.norm(dim=1, keepdim=True)
                o = o / norms.clamp(min=0.25 * float(length) / role.rows**0.5)
                o = (o * length / o.norm()).reshape(ahead.shape)
                now = every[name] * ((t + list(names).index(name)) % every[name] == 0)
                adam = (1 - mix) * adam + now * mix * o * max(1, role.rows / role.fan_in) ** 0.5
            if role.kind != VECTOR:
                relative = g.numel() / (role.fan_in if role.kind in (HIDDEN, OUTPUT) else 1)
                relative = math.sqrt(relative / float(w[name].square().sum()))
                adam = adam + DECAY * relative * w[name]
            w[name] = w[name] - rate * adam
    return list(w.values())


@pytest.mark.parametrize("total", [0, 8])
def test_the_untrained_rule_is_its_formula(total):
    model = network()
    optimizer = LearnedOptimizer(model, build(), total_steps=total)
    steps(model, optimizer, 7)
    for parameter, expected in zip(model.parameters(), naive(network(), 7, total), strict=True):
        torch.testing.assert_close(parameter.double(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"lr": 0.3, "weight_decay": 0.2}, {"total_steps": 9}])
def test_the_step_in_place_is_the_pure_one(options, monkeypatch):
    meta = build(3, 0.5)
    models = network(), network()
    first, second = (LearnedOptimizer(model, meta, **options) for model in models)
    monkeypatch.setattr(second.steppers[0], "steps_in_place", lambda meta: False)
    for model, optimizer in zip(models, (first, second), strict=True):
        steps(model, optimizer, 5)
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)
    for own, other in zip(*(o.learned_state["update"] for o in (first, second)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-7)


def test_tasks_together_are_the_tasks_alone():
    meta, parameters = build(1, 0.5), [torch.randn(3, 4, 5), torch.randn(3, 4)]
    gradients = [torch.randn_like(p) for p in parameters]

    def proposed(own, gradients, chain):
        state = meta.update.init_state(chain, own)
        for factor in (1.0, -0.5, 2.0):
            seen = Observation.of(chain, own, [factor * g for g in gradients], own[0].new_empty(0))
            update, state = meta.update.propose(seen, state)
        return update

    together = proposed(parameters, gradients, LayerChain((), (), batch_dims=1))
    for b in range(3):
        alone = proposed([p[b] for p in parameters], [g[b] for g in gradients], NO_CHAIN)
        for own, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(own[b], expected, rtol=1e-5, atol=1e-7)


def test_the_scale_of_the_loss_makes_no_difference():
    models = network(), network()
    for model, factor in zip(models, (1.0, 1e4), strict=True):
        steps(model, LearnedOptimizer(model, build(2, 0.5)), 6, factor)
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_a_gradient_of_zero_moves_nothing_and_makes_no_nan():
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = LearnedOptimizer(model, build(2, 0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(t.isfinite().all() for t in optimizer.learned_state["update"])
    losses = steps(model, optimizer, 30)
    assert losses[-1] < losses[0]


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    model = network()
    optimizer = LearnedOptimizer(model, build(2, 0.5))
    steps(model, optimizer, 2)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    next(model.parameters()).grad[0, 0, 0, 0] = math.inf
    optimizer.step()
    assert optimizer.skipped == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name])
    for key, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            assert torch.equal(value, before[1][key][name]), name


def test_a_run_goes_on_from_its_state():
    whole, model = network(), network()
    optimizer = LearnedOptimizer(whole, build(2, 0.5))
    first = LearnedOptimizer(model, build(2, 0.5))
    for own, stepped in ((whole, optimizer), (model, first)):
        steps(own, stepped, 3)
    second = LearnedOptimizer(model, build(2, 0.5))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for own, stepped in ((whole, optimizer), (model, second)):
        steps(own, stepped, 3)
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_parameter_keeps_its_own_moments():
    model = network()
    optimizer = LearnedOptimizer(model, build())
    steps(model, optimizer, 1)
    for parameter in model.parameters():
        entries = optimizer.state[parameter]
        assert entries["m1_momentum"].shape == entries["m1_square"].shape == parameter.shape
        assert entries["m1_numbers"].shape == (5, 1)
    count = sum(p.numel() for p in model.parameters())
    held = sum(
        entries[name].numel() for entries in optimizer.state.values()
        for name in ("m1_momentum", "m1_square")
    )  # fmt: skip
    assert held == 2 * count


def test_it_anneals_to_zero_at_the_announced_end():
    model = network()
    optimizer = LearnedOptimizer(model, build(), total_steps=20)
    lengths = []
    for step in range(22):
        warned = (
            pytest.warns(UserWarning, match="total_steps=20 are made")
            if step == 20
            else nullcontext()
        )
        before = [p.detach().clone() for p in model.parameters()]
        with warned:
            steps(model, optimizer, 1)
        moved = [(a - b.detach()).norm() for a, b in zip(before, model.parameters(), strict=True)]
        lengths.append(float(torch.stack(moved).norm()))
    assert lengths[19] < 0.15 * max(lengths)
    assert lengths[20] == lengths[21] == 0.0


def test_half_precision_weights_are_stepped():
    model = network().bfloat16()
    optimizer = LearnedOptimizer(model, build())
    x, y = batch()
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.bfloat16()), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.7
    assert optimizer.state[next(model.parameters())]["m1_momentum"].dtype == torch.float32


def test_stacked_copies_know_the_roles():
    assert [role.kind for role in stacked(Images(), [1, 2]).roles] == [
        HIDDEN, VECTOR, VECTOR, VECTOR, OUTPUT, VECTOR,
    ]  # fmt: skip


def stepped_with(model: nn.Module, optimizer: torch.optim.Optimizer, value: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()


def test_gradients_that_vanish_make_no_nan():
    """The momentum decays until its norm underflows, where a division by it would explode."""
    model = wide()
    optimizer = LearnedOptimizer(model, build())
    steps(model, optimizer, 3)
    for _ in range(600):
        stepped_with(model, optimizer, 0.0)
    for value in (1e-23, 1e-24, 1e-38):
        for _ in range(4):
            stepped_with(model, optimizer, value)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("where", ["gradients together", "a weight"])
def test_what_overflows_is_skipped_and_counted(where):
    model = wide()
    if where == "a weight":
        model[1].bias.data[0] = torch.finfo(torch.float32).min
    before = copy.deepcopy(model.state_dict())
    optimizer = LearnedOptimizer(model, build())
    largest = max(p.numel() for p in model.parameters())
    value = 1.0 if where == "a weight" else (0.9 * 3.4e38 / largest) ** 0.5
    stepped_with(model, optimizer, value)
    assert optimizer.skipped == 1
    for name, own in model.state_dict().items():
        assert torch.equal(own, before[name])


def test_a_layer_with_one_output_is_a_matrix():
    model = nn.Sequential(
        nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    kinds = [role.kind for role in roles_of(model).values()]
    assert kinds == [HIDDEN, VECTOR, HIDDEN, VECTOR, OUTPUT, VECTOR]
    assert roles_of(model)["4.weight"].fan_in == 64


def test_when_a_matrix_is_made_orthogonal_does_not_depend_on_which_others_have_gradients(
    monkeypatch,
):
    """Two branches of other sizes in turn; the trunk is turned in each second step."""
    torch.manual_seed(0)
    first = nn.Linear(4, 64)
    second = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 64, bias=False))
    trunk = nn.Linear(64, 64)
    model = nn.ModuleDict(
        {"first": first, "second": second, "trunk": trunk, "head": nn.Linear(64, 3)}
    )
    optimizer = LearnedOptimizer(model, build())
    turned = []

    def counting(matrix):
        turned.append(tuple(matrix.shape))
        return in_blocks(matrix)

    monkeypatch.setattr(tensorwise, "in_blocks", counting)
    for step in range(20):
        optimizer.zero_grad(set_to_none=True)
        branch = model["second" if step % 2 else "first"]
        model["head"](model["trunk"](branch(torch.ones(2, 4)))).sum().backward()
        optimizer.step()
    assert turned.count((64, 64)) == 10


def test_the_end_is_that_of_the_run_and_not_of_a_tensor_unfrozen_late():
    model = wide()
    model[1].requires_grad_(False)
    optimizer = LearnedOptimizer(model, build(), total_steps=10)
    steps(model, optimizer, 6)
    model[1].requires_grad_(True)
    steps(model, optimizer, 4)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="total_steps=10 are made, after which steps are 0"):
        steps(model, optimizer, 3)
    for name, own in model.state_dict().items():
        assert torch.equal(own, before[name]), name


@pytest.mark.parametrize("value", [-5, 10.7, "100", None, 10**30, True])
def test_total_steps_of_a_group_is_checked(value):
    model = wide()
    optimizer = LearnedOptimizer([model[1].weight], build())
    with pytest.raises(UserError, match="expected total_steps of 0 to"):
        optimizer.add_param_group({"params": [model[1].bias], "total_steps": value})
    assert len(optimizer.param_groups) == 1
