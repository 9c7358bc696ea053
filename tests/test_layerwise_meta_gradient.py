"""The meta-gradient of m1 over whole tensors against finite differences, in float64."""

import pytest
import torch
from test_layerwise import build, make, seeded
from test_unroll import float64_networks  # noqa: F401
from torch import Tensor

from metaopt import LearnedOptimizer
from metaopt.learned.layerwise import LayerwiseUpdate
from metaopt.learned.observation import Observation
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.meta_loss import LogMean
from metaopt.training.unroll import Window

LOG = LogMean(0.0)
H = 1e-6


@pytest.fixture(autouse=True)
def _doubles(monkeypatch, float64_networks):  # noqa: F811
    """Its state in float64 too."""
    real = LayerwiseUpdate.init_state

    def init_state(self, chain, parameters):
        return [tensor.double() for tensor in real(self, chain, parameters)]

    monkeypatch.setattr(LayerwiseUpdate, "init_state", init_state)


def window(name: str, meta, steps: int) -> Window:
    tasks = make()
    optimizer = LearnedOptimizer(tasks, meta)
    return next(ESTIMATORS[name]().windows(tasks, optimizer, steps, steps, LOG, seeded()))


def largest(gradient: Tensor) -> list[int]:
    return gradient.abs().flatten().argsort(descending=True)[:3].tolist()


def difference_quotient(entries: Tensor, index: int, value) -> float:
    """d value / d entry."""
    kept, values = float(entries[index]), []
    for entry in (kept + H, kept - H):
        entries[index] = entry
        values.append(float(value()))
    entries[index] = kept
    return (values[0] - values[1]) / (2 * H)


@pytest.mark.parametrize("name", ["truncated", "first_order"])
@pytest.mark.parametrize("std", [0.0, 0.5])
def test_of_one_step_it_is_that_of_finite_differences(std, name):
    meta = build(std).double()
    gradients = window(name, meta, 1).gradients
    assert std == 0.0 or all(gradient.any() for gradient in gradients if gradient.dim() == 1)
    for parameter, gradient in zip(meta.parameters(), gradients, strict=True):
        for i in largest(gradient):
            expected = difference_quotient(
                parameter.data.view(-1), i, lambda: window(name, meta, 1).meta_loss
            )
            assert float(gradient.flatten()[i]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_of_first_order_it_is_that_of_steps_that_see_what_was_seen(monkeypatch):
    """Gradients and weights that m1 sees are replayed; its steps add up."""
    meta, steps, seen = build(0.5).double(), 5, []
    real = LayerwiseUpdate.propose

    def recording(self, observation: Observation, state):
        seen.append(observation)
        return real(self, observation, state)

    with monkeypatch.context() as patched:
        patched.setattr(LayerwiseUpdate, "propose", recording)
        found = window("first_order", meta, steps)
    assert len(seen) == steps

    @torch.no_grad()
    def replayed() -> Tensor:
        tasks = make()
        parameters = list(tasks.parameters())
        state, losses = meta.update.init_state(tasks.chain, parameters), []
        for step, observation in enumerate(seen, start=1):
            update, state = meta.update.propose(observation, state)
            for parameter, part in zip(parameters, update, strict=True):
                parameter += part
            losses.append(tasks(step))
        return LOG(torch.stack(losses))

    assert float(replayed()) == pytest.approx(float(found.meta_loss), rel=1e-9)
    for parameter, gradient in zip(meta.parameters(), found.gradients, strict=True):
        for i in largest(gradient):
            expected = difference_quotient(parameter.data.view(-1), i, replayed)
            assert float(gradient.flatten()[i]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_of_a_window_it_has_the_sign_and_about_the_size_of_the_truth(std):
    """It is biased: what m1 sees counts as a constant."""
    meta = build(std).double()
    names = [name for name, _ in meta.named_parameters()]
    gradient = window("truncated", meta, 6).gradients[names.index("update.lstm.head_bias")]
    entries = meta.update.lstm.head_bias.data
    for i in range(3):
        truth = difference_quotient(entries, i, lambda: window("truncated", meta, 6).meta_loss)
        assert 0.8 < float(gradient[i]) / truth < 1.25
