"""Small networks of many kinds on full batches, as tasks."""

import pytest
import torch
from torch import nn

from metaopt.errors import UserError
from metaopt.tasks import NetworkFamily
from metaopt.tasks.networks import ACTIVATIONS
from metaopt.training.distributions import NETWORK_VALIDATION, NetworkTraining

MODULES = {
    "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.1), "steep_leaky_relu": nn.LeakyReLU(0.3),
    "tanh": nn.Tanh(), "gelu": nn.GELU(), "sigmoid": nn.Sigmoid(), "softplus": nn.Softplus(),
    "silu": nn.SiLU(),
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("bias", "depth"), [(True, 3), (False, 2), (True, 1)])
def test_losses_and_gradients_are_those_of_modules(activation, bias, depth):
    family = NetworkFamily(
        4, 5, 3, depth=depth, samples=6, activation=activation, bias=bias, dtype="float64"
    )
    tasks = family.sample([1, 2])
    losses = tasks()
    losses.sum().backward()
    widths = [4, *[5] * (depth - 1), 3]
    for task in range(2):
        layers = []
        for m in range(depth):
            layers += [nn.Linear(widths[m], widths[m + 1], bias), MODULES[activation]]
        model = nn.Sequential(*layers[:-1]).double()
        with torch.no_grad():
            for own, given in zip(model.parameters(), tasks.parameters(), strict=True):
                own.copy_(given[task])
        loss = 0.5 * (model(tasks.x[task].mT) - tasks.y[task].mT).square().sum()
        loss.backward()
        torch.testing.assert_close(loss, losses[task])
        for own, given in zip(model.parameters(), tasks.parameters(), strict=True):
            torch.testing.assert_close(own.grad, given.grad[task])


def test_a_seed_gives_the_same_task_whatever_it_is_batched_with():
    family = NetworkFamily(mixed=True)
    one, several = family.sample([7]), family.sample([3, 7])
    for own, joint in zip(one.state_dict().values(), several.state_dict().values(), strict=True):
        assert torch.equal(own[0], joint[1])
    assert family.coordinates == sum(p[0].numel() for p in one.parameters())


def test_initial_weights_are_distributed_as_torchs():
    tasks = NetworkFamily(input=16, hidden=40, depth=2).sample(range(20))
    bound = 16**-0.5
    assert tasks.W1.abs().max() <= bound
    assert tasks.W1.detach().std() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert tasks.b2.abs().max() <= 40**-0.5


def test_targets_are_a_teachers_with_noise():
    quiet = NetworkFamily(samples=500, noise=0.0, teacher=2.0).sample([1])
    assert quiet.y.std() == pytest.approx(2.0, rel=1e-3)
    noisy = NetworkFamily(samples=500, noise=1.0, teacher=0.0).sample([1])
    assert noisy.y.std() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "step"}, "an activation"),
        ({"samples": 0}, "samples"),
        ({"data_scale": 0.0}, "data_scale"),
    ],
)
def test_what_is_no_family_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        NetworkFamily(**fields)


def test_the_distribution_draws_every_kind_and_the_same_from_the_same_seed():
    def kinds(seed):
        generator = torch.Generator().manual_seed(seed)
        return [NetworkTraining().draw(3, generator) for _ in range(80)]

    drawn = kinds(0)
    assert drawn == kinds(0)
    assert drawn != kinds(1)
    own = [d.family for d in drawn if isinstance(d.family, NetworkFamily)]
    assert 20 < len(own) < 60
    assert {family.depth for family in own} == {2, 3, 4, 5, 6}
    assert len({family.activation for family in own}) == 7
    assert {family.bias for family in own} == {True, False}
    assert all(len(d.seeds) == 3 for d in drawn)
    assert all(torch.isfinite(d.sample()()).all() for d in drawn[:20])


def test_validation_is_on_kinds_of_their_own_and_on_section_5_2():
    families = NetworkTraining().validation(4)
    assert len(families) == len(NETWORK_VALIDATION) + 1
    assert all(count == 4 for _, count in families)
