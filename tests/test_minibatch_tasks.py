"""Small networks on minibatches: their losses against torch's own layers, their data, their use."""

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaopt import LearnedOptimizer, UserError
from metaopt.evaluation.rollout import rollout
from metaopt.learned.differentiable import differentiable
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.tasks import MinibatchFamily, MinibatchTasks, TaskBatch

SIZES = {"input": 5, "hidden": 4, "output": 3, "samples": 20, "minibatch": 6}
SEEDS = [3, 7, 5]
MODULES = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.1), "tanh": nn.Tanh(), "gelu": nn.GELU()}
KINDS = ("classification", "regression")


def family(**fields) -> MinibatchFamily:
    return MinibatchFamily(**{**SIZES, **fields})


def make(seeds=SEEDS, **fields) -> MinibatchTasks:
    return family(**fields).sample(seeds).double()


class Twin(nn.Module):
    """One problem as ordinary layers."""

    def __init__(self, problem: MinibatchTasks, index: int) -> None:
        super().__init__()
        self.own, tensors = problem.family, [p.detach()[index] for p in problem.parameters()]
        self.layers = nn.ModuleList()
        for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers.append(layer)
        self.x, self.y = problem.data[index], problem.targets[index]

    def forward(self, start: int) -> torch.Tensor:
        h, y = (of[start : start + self.own.minibatch] for of in (self.x, self.y))
        for layer in self.layers[:-1]:
            z = MODULES[self.own.activation](layer(h))
            same = layer.in_features == layer.out_features
            h = h + z if self.own.residual and same else z
        loss = F.cross_entropy if self.own.kind == "classification" else F.mse_loss
        return loss(self.layers[-1](h), y)


@pytest.mark.parametrize("sizes", [(5, 4, 3), (4, 4, 4), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize(
    ("kind", "activation", "residual"), [*product(KINDS, MODULES, (False, True))]
)
def test_losses_and_gradients_are_those_of_torchs_own_layers(
    kind, activation, residual, depth, sizes
):
    names = dict(zip(("input", "hidden", "output"), sizes, strict=True))
    problem = make(kind=kind, activation=activation, residual=residual, depth=depth, **names)
    assert problem.W1.dtype == torch.float64
    for step in (0, 2):
        losses = problem(step)
        gradients = torch.autograd.grad(losses.sum(), list(problem.parameters()))
        assert losses.shape == (len(SEEDS),)
        for index in range(len(SEEDS)):
            twin = Twin(problem, index)
            expected = twin(step * SIZES["minibatch"])
            torch.testing.assert_close(losses[index], expected, rtol=1e-12, atol=1e-14)
            own = torch.autograd.grad(expected, list(twin.parameters()))
            for gradient, by_twin in zip(gradients, own, strict=True):
                torch.testing.assert_close(gradient[index], by_twin, rtol=1e-9, atol=1e-13)


def test_a_network_without_residuals_is_a_sequential():
    problem = make([1], activation="tanh")
    layers = Twin(problem, 0).layers
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    expected = F.cross_entropy(model(problem.data[0, :6]), problem.targets[0, :6])
    torch.testing.assert_close(problem(), expected[None], rtol=1e-12, atol=0)
    assert not torch.equal(make([1], activation="tanh", residual=True)(), problem())


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_problem_whatever_is_beside_it_and_another_seed_another(kind):
    together = family(kind=kind).sample(SEEDS)
    for index, seed in enumerate(SEEDS):
        alone = family(kind=kind).sample(iter([seed]))
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor[0], together.state_dict()[name][index])
        torch.testing.assert_close(alone(1)[0], together(1)[index])
    for name, tensor in together.state_dict().items():
        if name != "x":
            assert not any(torch.equal(tensor[i], tensor[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    family().sample(SEEDS)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_problems_are_independent_of_each_other(kind):
    problem = make(kind=kind)
    gradients = torch.autograd.grad(problem()[1], list(problem.parameters()))
    alone = make([SEEDS[1]], kind=kind)
    own = torch.autograd.grad(alone()[0], list(alone.parameters()))
    for gradient, by_itself in zip(gradients, own, strict=True):
        assert not gradient[[0, 2]].any()
        torch.testing.assert_close(gradient[1], by_itself[0], rtol=1e-10, atol=1e-14)


def seen(problem: MinibatchTasks, step: int) -> list[int]:
    """The samples that the loss of a step depends on."""
    data = problem.data.detach().requires_grad_()
    used = torch.func.functional_call(problem, {"data": data}, (step,))
    (gradient,) = torch.autograd.grad(used.sum(), data)
    return gradient[0].any(dim=1).nonzero().flatten().tolist()


def test_minibatches_walk_through_the_data_from_0_and_repeat():
    problem = make([1], activation="tanh", samples=10, minibatch=3)
    walked = [seen(problem, step) for step in range(16)]
    assert all(part == list(range(part[0], part[0] + 3)) for part in walked)
    assert [part[0] for part in walked] == [0, 3, 6] * 5 + [0]
    assert torch.equal(problem(), problem(0))
    assert torch.equal(problem(1), problem(4))


@pytest.mark.parametrize("minibatch", [8, 16, 32, 64, 128])
def test_a_walk_over_the_data_of_training_problems_sees_all_of_them_but_the_last_few(minibatch):
    problem = make([1], activation="tanh", input=2, samples=1024, minibatch=minibatch)
    walked = [i for step in range(1024 // minibatch) for i in seen(problem, step)]
    assert walked[:1000] == list(range(1000))
    assert len(set(walked)) > 1024 - minibatch


def test_a_minibatch_of_all_samples_is_the_whole_data_at_each_step():
    problem = make([1], activation="tanh", minibatch=20)
    assert seen(problem, 0) == seen(problem, 1) == list(range(20))
    assert torch.equal(problem(0), problem(7))


@pytest.mark.parametrize("output", [2, 3, 10])
def test_labels_are_in_range_and_not_all_of_one_class(output):
    labels = family(output=output, samples=200).sample(range(20)).targets
    assert labels.dtype == torch.long
    assert labels.shape == (20, 200)
    assert labels.min() == 0
    assert labels.max() == output - 1
    assert all(len(own.unique()) > 1 for own in labels)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_answers_have_a_deviation_of_one_but_for_the_noise(noise):
    problem = family(kind="regression", samples=2000, noise=noise).sample(SEEDS)
    assert problem.targets.shape == (3, 2000, 3)
    expected = torch.full((3, 3), math.hypot(1.0, noise))
    torch.testing.assert_close(problem.targets.std(dim=1), expected, rtol=0.1, atol=0)
    assert noise or torch.allclose(problem.targets.std(dim=1), expected, rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_initial_weights_are_within_the_scale_over_the_root_of_the_fan_in(scale):
    own = family(hidden=40, depth=4, weight_scale=scale)
    problem = own.sample(SEEDS)
    assert len(own.shapes) == 4
    for m, (out, fan_in) in enumerate(own.shapes, start=1):
        weight, bias = getattr(problem, f"W{m}"), getattr(problem, f"b{m}")
        assert weight.shape == (3, out, fan_in)
        assert bias.shape == (3, out)
        bound = scale / math.sqrt(fan_in)
        assert 0.9 * bound < weight.abs().max() <= bound
        assert 0.5 * bound < bias.abs().max() <= bound
        assert abs(weight.mean()) < 0.3 * bound
    assert own.coordinates == sum(p[0].numel() for p in problem.parameters())


@pytest.mark.parametrize(("scale", "decay"), [(1.0, 0.5), (3.0, 0.0), (0.1, 1.2)])
def test_the_root_mean_square_of_the_data_is_the_data_scale(scale, decay):
    problem = family(data_scale=scale, decay=decay).sample(SEEDS)
    torch.testing.assert_close(problem.data.square().mean((1, 2)).sqrt(), torch.full((3,), scale))


def test_principal_directions_of_the_data_decay():
    problem = family(input=6, samples=20_000, decay=1.0).sample([1])
    values = torch.linalg.svdvals(problem.data[0] - problem.data[0].mean(dim=0))
    torch.testing.assert_close(values / values[0], 1 / torch.arange(1, 7), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "ranking"), ("activation", "swish"), ("input", 0), ("hidden", 0), ("output", 0),
        ("depth", 1), ("minibatch", 0), ("minibatch", 21), ("samples", 5), ("samples", 0),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_in_one_line_that_says_what_came(field, value):
    with pytest.raises(UserError, match=r"^expected .*: \w+") as caught:
        family(**{field: value})
    assert "\n" not in str(caught.value)
    assert str(value) in str(caught.value)


def test_no_seeds_are_refused():
    with pytest.raises(UserError, match="at least one problem seed, got none"):
        family().sample([])


def test_the_loss_of_a_problem_has_to_be_written():
    with pytest.raises(NotImplementedError):
        TaskBatch()(0)


def by_hand(problem: MinibatchTasks, steps: int, rate: float) -> torch.Tensor:
    """Gradient descent in float64, ``(steps + 1, B)``."""
    losses = []
    for step in range(steps + 1):
        losses.append(problem(step))
        gradients = torch.autograd.grad(losses[-1].sum(), list(problem.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(problem.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return torch.stack(losses).detach()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_takes_the_minibatch_of_each_step(kind):
    problem = make(kind=kind)
    expected = by_hand(copy.deepcopy(problem), 7, 0.1)
    run = rollout(problem, torch.optim.SGD(problem.parameters(), lr=0.1), 7)
    torch.testing.assert_close(run.losses, expected, rtol=1e-10, atol=0)
    norm = torch.cat([p.grad.flatten(1) for p in problem.parameters()], dim=1).norm(dim=1)
    torch.testing.assert_close(run.grad_norms[-1], norm, rtol=1e-10, atol=0)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_differentiable_twin_takes_the_same_steps_and_has_a_meta_gradient(kind, second_order):
    meta = MetaOptimizer(MetaOptimizerSpec(update="layerwise", element="none", hidden=4), 1)
    nn.init.normal_(meta.update.lstm.head_weight, generator=torch.Generator().manual_seed(2))
    problem = make(kind=kind)
    start = copy.deepcopy(problem.state_dict())
    losses = []
    with differentiable(problem, LearnedOptimizer(problem, meta), second_order) as run:
        for _ in range(5):
            losses.append(run.losses())
            run.step(losses[-1])
        losses.append(run.losses())
        gradients = torch.autograd.grad(losses[-1].sum(), list(meta.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)
    torch.testing.assert_close(dict(problem.state_dict()), dict(start), rtol=0, atol=0)
    own = rollout(problem, LearnedOptimizer(problem, meta), 5).losses
    torch.testing.assert_close(torch.stack(losses).detach(), own, rtol=1e-10, atol=0)
