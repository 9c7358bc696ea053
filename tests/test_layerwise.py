"""m1 over whole tensors: Adam at a head of 0, its formula elsewhere, what it does not notice."""

import math

import pytest
import torch
from learned_network_cases import batch_for, conv_net, mlp, train, weights
from torch import Tensor, nn

from metaopt import LearnedOptimizer
from metaopt.learned.checkpoint import load_meta_optimizer, save_meta_optimizer
from metaopt.learned.layerwise import LayerwiseUpdate, _corrections, _spread
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.learned.observation import Observation
from metaopt.symmetry.chain import NO_CHAIN
from metaopt.tasks import MinibatchFamily, MinibatchTasks

SEEDS = [3, 7, 5]
SHAPES = [(4, 3), (5,), (1,), (2, 3, 2, 2), ()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(std: float = 0.0, layers: int = 1) -> MetaOptimizer:
    """With a head of this deviation."""
    spec = MetaOptimizerSpec(update="layerwise", element="none", hidden=5, layers=layers)
    meta = MetaOptimizer(spec, 1)
    if std:
        nn.init.normal_(meta.update.lstm.head_weight, std=std, generator=seeded(2))
        nn.init.normal_(meta.update.lstm.head_bias, std=std, generator=seeded(3))
    return meta


def make(seeds=SEEDS, **fields) -> MinibatchTasks:
    sizes = {"input": 5, "hidden": 4, "output": 3, "samples": 60, "minibatch": 20}
    return MinibatchFamily(**{**sizes, "activation": "tanh", **fields}).sample(seeds).double()


def descend(tasks: MinibatchTasks, optimizer, steps: int = 20, factor=1.0) -> list[Tensor]:
    """How far each weight has gone."""
    before = weights(tasks)
    for step in range(steps):
        optimizer.zero_grad()
        (factor * tasks(step)).sum().backward()
        optimizer.step()
    return [w - b for w, b in zip(weights(tasks), before, strict=True)]


def learned(meta: MetaOptimizer, seeds=SEEDS, **options) -> list[Tensor]:
    tasks = make(seeds)
    return descend(tasks, LearnedOptimizer(tasks, meta), **options)


def assert_near(own: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    """In terms of the largest entry."""
    assert len(own) == len(other)
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))
        assert b.any()


def adam(parameters) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=3e-3, betas=(0.9, 0.999), eps=1e-14)


@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]], ids=["batched", "single"])
def test_with_a_zero_head_it_is_adam_on_tasks(seeds):
    tasks = make(seeds)
    expected = descend(tasks, adam(tasks.parameters()))
    assert_near(learned(build(), seeds), expected, 1e-4)


@pytest.mark.parametrize("given", ["network", "network with loss", "parameters"])
def test_with_a_zero_head_it_is_adam_on_networks(given):
    models = [mlp(nn.Tanh(), dtype=torch.float64) for _ in range(2)]
    batches, before = [batch_for(mlp, dtype=torch.float64)] * 20, weights(models[0])
    own = list(models[0].parameters()) if given == "parameters" else models[0]
    loss_fn = nn.MSELoss() if given == "network with loss" else None
    train(models[0], LearnedOptimizer(own, build(), loss_fn=loss_fn), batches)
    train(models[1], adam(models[1].parameters()), batches)
    moved = [[w - b for w, b in zip(weights(m), before, strict=True)] for m in models]
    assert_near(*moved, 1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_tasks_of_a_batch_do_not_know_of_each_other(layers):
    together = learned(build(0.5, layers))
    for index, seed in enumerate(SEEDS):
        alone = learned(build(0.5, layers), [seed])
        assert_near([part[index : index + 1] for part in together], alone, 1e-3)
    assert any(
        float((a - b).abs().max()) > 0.1 * float(b.abs().max())
        for a, b in zip(together, learned(build()), strict=True)
    ), "the head does something"


def observed(gradients: list[Tensor], parameters: list[Tensor]) -> Observation:
    return Observation.loose(parameters, gradients, [torch.ones(())] * len(gradients))


def tensors(seed: int, shapes=SHAPES) -> list[Tensor]:
    drawn = seeded(seed)
    return [torch.randn(shape, generator=drawn) for shape in shapes]


def updates(rule: LayerwiseUpdate, gradients: list[list[Tensor]], parameters: list[Tensor]):
    """f at each step, for gradients that do not depend on it."""
    state, found = rule.init_state(NO_CHAIN, parameters), []
    for step in gradients:
        update, state = rule.propose(observed(step, parameters), state)
        found.append([part.detach() for part in update])
    return found


@pytest.mark.parametrize("outputs", [(0.0, 0.0, 0.0), (0.3, -0.7, 0.4), (-9.0, 2.0, 0.0)])
def test_steps_are_those_of_the_formula_for_each_output_of_the_network(outputs):
    rule = build().update
    with torch.no_grad():
        rule.lstm.head_bias.copy_(torch.tensor(outputs))
    history = [tensors(10 + step) for step in range(6)]
    found = updates(rule, history, tensors(1))
    rate = 0.003 * math.exp(3 * math.tanh(outputs[0]))
    for position, shape in enumerate(SHAPES):
        for entry in range(torch.Size(shape).numel()):
            fast = slow = square = 0.0
            for t in range(1, 7):
                g = float(history[t - 1][position].reshape(-1)[entry])
                fast, slow = 0.9 * fast + 0.1 * g, 0.99 * slow + 0.01 * g
                square = 0.999 * square + 0.001 * g * g
                mixed = fast / (1 - 0.9**t) + outputs[1] * slow / (1 - 0.99**t) + outputs[2] * g
                expected = -rate * mixed / math.sqrt(square / (1 - 0.999**t))
                own = float(found[t - 1][position].reshape(-1)[entry])
                assert own == pytest.approx(expected, rel=1e-3, abs=1e-3 * rate)


@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_the_scale_of_the_loss_does_not_matter(factor):
    meta = build(0.5)
    assert_near(learned(meta, factor=factor), learned(meta), 1e-3)


def test_coordinates_of_a_tensor_are_equals():
    rule, shapes, drawn = build(0.5).update, [(4, 3), (7,)], seeded(8)
    orders = [torch.randperm(torch.Size(shape).numel(), generator=drawn) for shape in shapes]

    def permuted(parts: list[Tensor]) -> list[Tensor]:
        pairs = zip(parts, orders, strict=True)
        return [part.reshape(-1)[order].reshape(part.shape) for part, order in pairs]

    history, parameters = [tensors(20 + t, shapes) for t in range(5)], tensors(1, shapes)
    plain = updates(rule, history, parameters)
    other = updates(rule, [permuted(step) for step in history], permuted(parameters))
    for own, expected in zip(other, plain, strict=True):
        assert_near(own, permuted(expected), 1e-4)


def test_tensors_do_not_know_of_each_other():
    rule, history = build(0.5).update, [tensors(20 + t) for t in range(5)]
    parameters = tensors(1)
    together = updates(rule, history, parameters)
    for position in range(len(SHAPES)):
        alone = updates(rule, [[step[position]] for step in history], [parameters[position]])
        for own, expected in zip(together, alone, strict=True):
            assert_near([own[position]], expected, 1e-4)


@pytest.mark.parametrize("std", [0.0, 1.0])
def test_zero_gradients_give_zero_steps_before_others_and_finite_ones_after(std):
    rule, zeros = build(std).update, [torch.zeros(shape) for shape in SHAPES]
    found = updates(rule, [zeros, zeros, tensors(5), *[zeros] * 60], tensors(1))
    assert not any(part.any() for step in found[:2] for part in step)
    assert all(part.isfinite().all() for step in found for part in step)
    assert all(part.any() for part in found[2])
    assert all(part.abs().max() < 1.0 for step in found for part in step)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15])
def test_gradients_and_weights_of_any_size_give_finite_steps(size):
    rule = build(1.0).update
    history = [[size * part for part in tensors(t)] for t in range(4)]
    for parameters in (tensors(1), history[0], [torch.zeros(shape) for shape in SHAPES]):
        found = updates(rule, history, parameters)
        assert all(part.isfinite().all() and part.abs().max() < 1.0 for s in found for part in s)


def test_a_lost_task_leaves_the_others_of_its_batch_alone():
    ends = []
    for lost in (False, True):
        tasks = make()
        optimizer = LearnedOptimizer(tasks, build(0.5))
        for step in range(4):
            optimizer.zero_grad()
            tasks(step).sum().backward()
            if lost:
                tasks.W1.grad[1] = math.nan
            optimizer.step()
        ends.append([w[[0, 2]] for w in weights(tasks)])
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=0)


def test_the_step_is_counted_and_moments_are_kept_of_each_coordinate():
    rule, parameters = build().update, tensors(1)
    state = rule.init_state(NO_CHAIN, parameters)
    assert [t.shape for t in state[3:]] == [(1, sum(p.numel() for p in parameters))] * 4
    assert state[1].shape == state[2].shape == (5, len(SHAPES))
    _, following = rule.propose(observed(tensors(2), parameters), state)
    assert [t.shape for t in following] == [t.shape for t in state]
    assert state[0].tolist() == [0.0] * len(SHAPES)
    assert following[0].tolist() == [1.0] * len(SHAPES)
    assert not any(t.any() for t in state)


def test_it_survives_its_checkpoint(tmp_path):
    meta = build(0.5, layers=2)
    save_meta_optimizer(tmp_path / "it.safetensors", meta, {})
    loaded = load_meta_optimizer(tmp_path / "it.safetensors")
    assert loaded.spec == meta.spec
    torch.testing.assert_close(learned(loaded), learned(meta), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["tasks", "network", "parameters"])
def test_twenty_steps_and_twenty_after_saving_are_forty(tmp_path, kind):
    def start(seed: int):
        model = make() if kind == "tasks" else mlp(seed=seed)
        given = list(model.parameters()) if kind == "parameters" else model
        return model, LearnedOptimizer(given, build(0.5))

    def go(model, optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            if kind == "tasks":
                model(step).sum().backward()
            else:
                x, y = batch_for(mlp, seed=step % 2)
                nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    whole, first, second = start(0), start(0), start(1)
    go(*whole, 0, 40)
    go(*first, 0, 20)
    torch.save([part.state_dict() for part in first], tmp_path / "saved.pt")
    for part, saved in zip(second, torch.load(tmp_path / "saved.pt"), strict=True):
        part.load_state_dict(saved)
    go(*second, 20, 40)
    torch.testing.assert_close(weights(second[0]), weights(whole[0]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "std"),
    [("network", 0.0), ("network", 0.1), ("parameters", 0.1), ("convolutions", 0.1)],
)
def test_it_lowers_the_loss_of_ordinary_networks(kind, std):
    make_model = conv_net if kind == "convolutions" else mlp
    model, pair = make_model(), batch_for(make_model, samples=10)
    given = list(model.parameters()) if kind == "parameters" else model
    losses = train(model, LearnedOptimizer(given, build(std)), [pair] * 100)
    assert losses[-1] < 0.6 * losses[0]


def test_corrections_of_tensors_that_differ_in_age_and_outputs_stand_at_each_coordinate():
    """Also where a tensor has no coordinate."""
    sizes, steps = [6, 1, 0, 7], torch.tensor([1.0, 2.0, 3.0, 9.0], dtype=torch.float64)
    found = _corrections(steps, sizes, steps.device)
    outputs = torch.arange(24.0).reshape(3, 8)  # of four tensors in two tasks
    whole = _spread(outputs, sizes)
    assert whole.shape == (3, 2, 14)
    place = 0
    for tensor, size in enumerate(sizes):
        for _ in range(size):
            for decay, own in found.items():
                assert own[place] == pytest.approx(1 - decay ** steps[tensor].item(), rel=1e-9)
            assert torch.equal(whole[:, :, place], outputs[:, 2 * tensor : 2 * tensor + 2])
            place += 1
