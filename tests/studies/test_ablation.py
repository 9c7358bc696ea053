"""Ablations of a trained m2: cut off after some steps, or replaced by a random element."""

import pytest
import torch
from torch import Tensor, nn

from metaopt.learned.baselines import GradientDirection
from metaopt.learned.element import CoordinatewiseElementConfig
from metaopt.learned.observation import Observation
from metaopt.learned.spectral import SpectralElementConfig
from metaopt.symmetry import Element, make_action
from metaopt.tasks import RegressionFamily
from studies.learned_teleportation.ablation import Ablation

FAMILY = RegressionFamily(samples=4, input=6, hidden=3, output=5, dtype="float64")
SEEDS = (3, 4)


def observe(tasks: nn.Module) -> Observation:
    parameters = list(tasks.parameters())
    gradients = torch.autograd.grad(tasks().sum(), parameters)
    return Observation.of(tasks.chain, parameters, gradients, tasks.x)


FIELDS = {"hidden": 5, "features": ("balance",), "bound": 8.0, "gate": 0.0}
RULES = {
    "entries": CoordinatewiseElementConfig(**FIELDS),
    "directions": SpectralElementConfig(**FIELDS),
}


@pytest.fixture(params=RULES)
def trained_looking(request):
    """An m2 whose head is not zero."""
    action = make_action("post_activation")
    rule = RULES[request.param].build(action, torch.Generator().manual_seed(0))
    nn.init.normal_(rule.lstm.head_weight, generator=torch.Generator().manual_seed(1))
    return rule


def proposals(rule: Ablation, steps: int) -> list[Tensor]:
    tasks = FAMILY.sample(SEEDS)
    seen = observe(tasks)
    state = rule.init_state(tasks.chain, list(tasks.parameters()))
    elements = []
    for _ in range(steps):
        (element,), state = rule.propose(seen, state)
        elements.append(element.values.detach())
    return elements


def test_an_element_can_be_cut_off_after_some_steps(trained_looking):
    whole, cut = (
        proposals(Ablation(trained_looking), 4),
        proposals(Ablation(trained_looking, steps=2), 4),
    )
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], cut[:2], strict=True))
    assert all(element.any() for element in whole)
    assert not any(element.any() for element in cut[2:])


def test_a_random_element_has_the_same_size_another_direction_and_its_own_seed(
    trained_looking,
):
    whole = proposals(Ablation(trained_looking), 3)
    first, again, other = (proposals(Ablation(trained_looking, random=s), 3) for s in (1, 1, 2))
    for step in range(3):
        torch.testing.assert_close(
            torch.linalg.matrix_norm(first[step]), torch.linalg.matrix_norm(whole[step])
        )
        assert torch.equal(first[step], again[step])
        assert not torch.equal(first[step], other[step])
    assert not torch.equal(first[0] / first[0].norm(), first[1] / first[1].norm())


def test_random_elements_of_one_seed_are_not_those_of_another_at_a_later_step():
    class Ones(GradientDirection):
        def propose(self, seen, state):
            return [Element(torch.ones(1, 3, 3))], []

    drawn = {}
    for seed in (0, 1, 2):
        for step in (0, 1, 10, 60, 120):
            rule = Ablation(Ones(1.0), random=seed)
            (element,), (count,) = rule.propose(None, [torch.tensor([step])])
            assert int(count) == step + 1
            assert torch.linalg.matrix_norm(element.values).item() == pytest.approx(3.0)
            drawn[seed, step] = tuple(element.values.flatten().tolist())
    assert len(set(drawn.values())) == len(drawn)
