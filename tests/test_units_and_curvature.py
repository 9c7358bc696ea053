"""The curvature of losses against full Hessians, and the energies of units against loops."""

import pytest
import torch
from learned_network_cases import (
    batch,
    batch_for,
    build,
    conv_net,
    distance,
    halves,
    mlp,
    train,
)
from torch import nn
from torch.nn import functional as F

from metaopt import LearnedOptimizer
from metaopt.learned.loss_curvature import is_square, known_curvature, measured_curvature
from metaopt.learned.units import Units
from metaopt.symmetry.finders import find_sites

EQUAL = {  # quadratic for small residuals
    "mean": (nn.MSELoss(), F.mse_loss),
    "sum": (nn.MSELoss(reduction="sum"), None),
    "Huber": (nn.HuberLoss(delta=9.0), None),
    "smooth L1": (nn.SmoothL1Loss(beta=9.0), None),
    "smooth L1, summed": (nn.SmoothL1Loss(beta=9.0, reduction="sum"), None),
}
BOUNDED = {
    "cross entropy": (nn.CrossEntropyLoss(), "classes"),
    "cross entropy, summed": (nn.CrossEntropyLoss(reduction="sum"), "classes"),
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), "classes"),
    "probabilities": (nn.CrossEntropyLoss(), "probabilities"),
    "binary": (nn.BCEWithLogitsLoss(), "binary"),
    "binary, summed": (nn.BCEWithLogitsLoss(reduction="sum"), "binary"),
    "Huber": (nn.HuberLoss(delta=0.5), "numbers"),
}


def hessian_norm(loss_fn, output, target) -> float:
    hessian = torch.autograd.functional.hessian(lambda out: loss_fn(out, target), output)
    size = output.numel()
    return float(torch.linalg.matrix_norm(hessian.reshape(size, size), 2))


def target_of(kind, output):
    generator = torch.Generator().manual_seed(4)
    if kind == "classes":
        shape = output.shape[:1] + output.shape[2:]
        return torch.randint(output.shape[1], shape, generator=generator)
    noise = torch.rand(output.shape, generator=generator, dtype=output.dtype)
    if kind == "probabilities":
        return noise.softmax(dim=1)
    return noise.round() if kind == "binary" else noise


@pytest.mark.parametrize("shape", [(5, 2), (4, 3, 2), (6,)])
@pytest.mark.parametrize(("loss_fn", "function"), EQUAL.values(), ids=EQUAL)
def test_the_curvature_of_a_quadratic_loss_is_the_norm_of_its_hessian(loss_fn, function, shape):
    output = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = pytest.approx(hessian_norm(loss_fn, output, torch.zeros_like(output)), rel=1e-9)
    assert known_curvature(loss_fn)(output) == expected
    if function is not None:
        assert known_curvature(function)(output) == expected


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2)])
@pytest.mark.parametrize(("loss_fn", "kind"), BOUNDED.values(), ids=BOUNDED)
@pytest.mark.parametrize("size", [0.0, 1.0, 5.0])
def test_the_curvature_of_another_known_loss_is_at_least_the_norm_of_its_hessian(
    loss_fn, kind, shape, size
):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    output = size * noise
    known = known_curvature(loss_fn)(output)
    actual = hessian_norm(loss_fn, output, target_of(kind, output))
    assert actual <= known * (1 + 1e-9)
    if size == 0.0:
        assert actual > 0.6 * known, "not far above it"


def test_the_bounds_are_reached():
    even, two = torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    binary, classes = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()
    ones = torch.ones(4, 1, dtype=torch.float64)
    assert hessian_norm(binary, even, ones) == pytest.approx(known_curvature(binary)(even))
    index = torch.zeros(4, dtype=torch.long)
    assert hessian_norm(classes, two, index) == pytest.approx(known_curvature(classes)(two))


@pytest.mark.parametrize(
    "loss_fn",
    [
        None, lambda out, y: (out - y).square().mean(), nn.L1Loss(), nn.MSELoss(reduction="none"),
        nn.CrossEntropyLoss(weight=torch.ones(3)), nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
    ],
)  # fmt: skip
def test_of_other_losses_nothing_is_known(loss_fn):
    assert known_curvature(loss_fn) is None


def curvature(optimizer: LearnedOptimizer) -> list[float]:
    return [float(c) for c in optimizer.learned_state["curvature"]]


@pytest.mark.parametrize("make", [mlp, conv_net])
@pytest.mark.parametrize("factor", [1.0, 7.0])
def test_from_the_second_step_on_the_same_batch_the_curvature_is_measured(factor, make):
    model, (x, y) = make(dtype=torch.float64), batch_for(make, dtype=torch.float64)
    optimizer = LearnedOptimizer(model, build())

    def loss_fn(out, target):
        return factor * F.mse_loss(out, target)

    train(model, optimizer, [(x, y)], loss_fn)
    assert curvature(optimizer) == [0.0], "not measured yet"
    for _ in range(4):
        train(model, optimizer, [(x, y)], loss_fn)
        assert curvature(optimizer) == [pytest.approx(factor * 2.0 / y.numel(), rel=1e-9)]
    train(model, optimizer, [batch_for(make, 5, 8, torch.float64)], loss_fn)
    assert curvature(optimizer) == [pytest.approx(factor * 2.0 / y.numel(), rel=1e-9)], "kept"


def test_measured_curvature_of_a_convex_loss_is_at_most_the_known_one():
    model, (x, _) = mlp(dtype=torch.float64), batch_for(mlp, dtype=torch.float64)
    target, loss_fn = torch.arange(6) % 3, nn.CrossEntropyLoss()
    optimizer = LearnedOptimizer(model, build())
    train(model, optimizer, [(x, target)] * 10, loss_fn)
    assert 0 < curvature(optimizer)[0] <= known_curvature(loss_fn)(torch.zeros(6, 3))


def test_a_measurement_falls_by_half_a_step_at_most_and_nothing_comes_of_no_change():
    first, then = torch.zeros(3), torch.ones(3)
    assert measured_curvature((first, first), (then, 0.1 * then), 4.0) == 2.0
    assert measured_curvature((first, first), (then, 8.0 * then), 4.0) == pytest.approx(8.0)
    for gradient in (-then, float("nan") * then, float("inf") * then):
        assert measured_curvature((first, first), (then, gradient), 0.0) == 0.0
        assert measured_curvature((first, first), (then, gradient), 4.0) == 4.0
    assert measured_curvature((first, first), (first, then), 4.0) == 4.0


LOSSES = {
    "mean": (F.mse_loss, nn.MSELoss()),
    "mean, by function": (F.mse_loss, F.mse_loss),
    "sum": (lambda out, y: (out - y).square().sum(), nn.MSELoss(reduction="sum")),
    "Huber": (nn.HuberLoss(delta=1e3), nn.HuberLoss(delta=1e3)),
    "smooth L1": (nn.SmoothL1Loss(beta=1e3), nn.SmoothL1Loss(beta=1e3)),
}


@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize(("loss_fn", "given"), LOSSES.values(), ids=LOSSES)
def test_a_loss_whose_curvature_is_known_is_trained_as_the_sum_of_halves(loss_fn, given, changing):
    """Whose curvature is 1, what an optimizer takes before it has measured."""
    models = [mlp(dtype=torch.float64) for _ in range(2)]
    batches = [batch_for(mlp, seed=s if changing else 1, dtype=torch.float64) for s in range(15)]
    train(models[0], LearnedOptimizer(models[0], build(), loss_fn=given), batches, loss_fn)
    train(models[1], LearnedOptimizer(models[1], build()), batches, halves)
    assert distance(*models) < 1e-4


def grouped() -> nn.Module:
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2)
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 2, 3))


UNITS = {
    "linear": (mlp, (5, 9)),
    "sequences": (mlp, (5, 4, 9)),
    "convolutions": (conv_net, (5, 1, 6, 6)),
    "groups": (grouped, (5, 1, 6, 6)),
}


def energies(site, tensors, unit, groups) -> tuple[float, float]:
    """Of what takes the scale of a unit, and of what is divided by it."""
    (incoming,), (outgoing,) = site.incoming, site.outgoing
    over = sum(
        tensors[name].reshape(site.width, -1)[unit].square().sum() for name in incoming.parameters
    )
    below = tensors[outgoing.parameter]
    if below.dim() == 2:
        return over, below[:, unit * site.block : (unit + 1) * site.block].square().sum()
    fan_in, fan_out = site.width // groups, below.shape[0] // groups
    group = unit // fan_in
    rows = below[group * fan_out : (group + 1) * fan_out]
    return over, rows[:, unit % fan_in].square().sum()


@pytest.mark.parametrize(("make", "shape"), UNITS.values(), ids=UNITS)
def test_units_have_the_energies_that_loops_find(make, shape):
    torch.manual_seed(0)
    model, kept = make().double(), {}
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, given, name=name: kept.update({name: given[0]}))
    sites = find_sites(make()).found
    assert len(sites) >= 2
    out = model(batch(*shape, dtype=torch.float64)[0]).square().sum()
    gradients = torch.autograd.grad(out, list(model.parameters()))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    slopes = dict(zip(parameters, gradients, strict=True))
    for site in sites:
        divided = site.outgoing[0].parameter
        groups = getattr(model.get_submodule(site.layers[1]), "groups", 1)
        hidden = kept[site.layers[1]].detach()
        units = Units.of(site, parameters, slopes, hidden)
        images = parameters[divided].dim() > 2
        for unit in range(site.width):
            block = slice(unit * site.block, (unit + 1) * site.block)
            own = hidden[:, unit] if images else hidden[..., block]
            for seen, tensors in ((units.weights, parameters), (units.gradients, slopes)):
                found = torch.stack([seen[0][unit], seen[1][unit]]).double()
                expected = torch.stack(energies(site, tensors, unit, groups))
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
            assert float(units.features[unit]) == pytest.approx(float(own.square().sum()), rel=1e-5)
        rms = slopes[divided].square().mean().sqrt()
        assert float(units.gradient_rms) == pytest.approx(float(rms), rel=1e-5)


@pytest.mark.parametrize("element", ["spectral", "coordinatewise"])
def test_dead_units_are_not_scaled_and_the_others_keep_the_function(element):
    model, (x, y) = mlp(nn.ReLU(), dtype=torch.float64), batch_for(mlp, 20, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias[2] = -1e3
    optimizer = LearnedOptimizer(model, build(element=element), action="rescaling")
    for _ in range(5):
        train(model, optimizer, [(x, y)])
        move = optimizer.teleportation
        assert move.invariance_error() < 1e-12
        scaled = move.after[0].norm(dim=1) / move.before[0].norm(dim=1)
        assert scaled[2] == 1.0
        assert (scaled != 1.0).sum() > 2


def test_only_the_squared_error_is_known_to_be_one():
    """SmoothL1Loss with beta 0.5 has its largest second derivative, and is none."""
    assert known_curvature(nn.MSELoss()).square
    assert known_curvature(torch.nn.functional.mse_loss).square
    for other in (nn.SmoothL1Loss(beta=0.5), nn.HuberLoss(), nn.CrossEntropyLoss()):
        assert not known_curvature(other).square


@pytest.mark.parametrize("square", [True, False])
def test_a_squared_error_is_seen_from_two_passes(square):
    passes = []
    for seed in (0, 1):
        f = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        (f.square().mean() if square else f.abs().pow(1.5).mean()).backward()
        passes.append((f.detach(), f.grad))
    curvature = measured_curvature(*passes, 0.0)
    assert is_square(*passes, curvature, known=not square) == square
    assert is_square(passes[0], passes[0], curvature, known=square) == square
