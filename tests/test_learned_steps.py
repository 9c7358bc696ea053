"""What a meta-optimizer hands to the group: damping, scales, norms; and the state it keeps."""

import pytest
import torch
from learned_network_cases import build, distance, made, mlp

from metaopt.learned.element import FlatElement, covariance
from metaopt.learned.meta_optimizer import MetaOptimizerSpec, StepInput
from metaopt.learned.observation import Observation
from metaopt.learned.stepper import largest_so_far, loosely
from metaopt.learned.trust import trusted, untried
from metaopt.symmetry import Identity, LayerChain, LayerInput, Orbit
from metaopt.tasks import RegressionFamily

FAMILY = RegressionFamily(4, 3, 3, 2, distribution="normal")


def setting(meta):
    """Arguments of a step at the start of two tasks."""
    tasks = FAMILY.sample([10**7, 10**7 + 1])
    parameters = list(tasks.parameters())
    gradients = torch.autograd.grad(tasks().sum(), parameters)
    start = [p.detach() for p in parameters]
    state = meta.init_state(tasks.chain, start)
    return tasks.chain, LayerInput(tasks.x), StepInput(start, gradients), state


@pytest.mark.parametrize("element", ["spectral", "coordinatewise"])
@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_trust_is_a_factor_of_the_elements_of_a_step(monkeypatch, element, scale):
    meta = build(element=element, hold=0.0)
    acted, move = [], Orbit.move

    def recorded(self, parameters, elements):
        acted.append((parameters, [element.values.detach() for element in elements]))
        return move(self, parameters, elements)

    monkeypatch.setattr(Orbit, "move", recorded)
    given = setting(meta)
    with torch.no_grad():
        chain, x, now, state = given
        for factor in (1.0, scale):
            now = now._replace(trust=factor, rate=1 / factor)
            meta.advance(chain, x, now, state)
    (before, whole), (after, scaled) = acted
    assert whole[0].abs().max() > 0
    torch.testing.assert_close(scaled, [scale * t for t in whole])
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_the_rate_of_a_step_is_a_factor_of_its_update_alone(rate):
    meta = build(element="none")
    chain, x, now, state = setting(meta)
    with torch.no_grad():
        whole, part = (
            meta.advance(chain, x, now._replace(rate=factor), state).parameters
            for factor in (1.0, rate)
        )
    for start, one, other in zip(now.parameters, whole, part, strict=True):
        torch.testing.assert_close(other - start, rate * (one - start), rtol=1e-4, atol=1e-6)


def test_a_spec_of_a_checkpoint_from_before_moves_were_reverted_reverts_none():
    fields = build(hold=0.5).spec.as_dict()
    assert MetaOptimizerSpec.from_dict(fields).hold == 0.5
    del fields["hold"]
    assert MetaOptimizerSpec.from_dict(fields).hold == 0.0


def test_the_damping_of_the_spec_is_that_of_the_action():
    for damping in (0.0, 0.5):
        assert build(action="pre_activation", damping=damping).action.damping == damping
    assert not hasattr(build(action="post_activation").action, "damping")


def test_entries_of_a_covariance_count_for_three_times_its_mean_diagonal_at_most():
    h = torch.zeros(8, 2)
    h[0, 0], h[1, 0] = 1.0, -1.0  # all there is, so that C_00 = -C_01 = 4 times the mean
    chain = LayerChain((Identity(), Identity()), (False, False), batch_dims=0)
    seen = Observation.of(chain, [h, torch.ones(1, 8)], [h, torch.ones(1, 8)], torch.eye(2))
    found = covariance(seen, chain.pairs[0])
    torch.testing.assert_close(found.by_log[0], h @ h.mT)
    torch.testing.assert_close(found.plain[0], 3.0 * (h @ h.mT))
    assert torch.equal(found.plain[1], torch.eye(8))


@pytest.mark.parametrize("norm", [0.01, 0.5, 2.0])
def test_a_flat_element_has_its_norm_however_small_it_is(norm):
    meta = build(
        update="flat", element="flat", action="pre_activation", flat_widths=(3, 3, 2), norm=norm
    )
    assert isinstance(meta.element, FlatElement)
    chain, layer_input, now, state = setting(meta)
    seen = Observation.of(chain, now.parameters, now.gradients, layer_input.original)
    (element,), _ = meta.element.propose(seen, state["element"])
    found = torch.linalg.matrix_norm(element.values).tolist()
    assert found == pytest.approx([norm] * 2, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_gradients_so_far_are_kept_in_float32_and_never_fall(dtype):
    own = [torch.ones(4, dtype=dtype)]
    largest = largest_so_far(own)
    found = []
    for size in (1.0, 3.0, 2.0, float("nan"), float("inf")):
        _, largest = loosely(own, [torch.full((4,), size, dtype=dtype)], largest)
        assert [t.dtype for t in largest] == [torch.float32]
        found.append(float(largest[0]))
    assert found == [2.0, 6.0, 6.0, 6.0, 6.0]


@pytest.mark.parametrize("scale", [1.0, 2.0, 64.0])
def test_gradients_that_a_scaler_enlarged_give_the_step_of_the_gradients(scale):
    ends = []
    for size in (None, scale):
        model, optimizer, (x, y) = made(mlp)
        scaler = torch.amp.GradScaler("cpu", init_scale=size or 1.0, enabled=size is not None)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(torch.nn.functional.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(model)
    assert distance(*ends) < 1e-6


@pytest.mark.parametrize(("shape", "level"), [((), 9.0), ((1,), 9.0), ((2,), 36.0), ((2, 3), 36.0)])
def test_the_level_of_a_gradient_is_its_mean_square_times_the_samples_squared(shape, level):
    trust, now, least = trusted(untried(), torch.full(shape, 3.0), True).tolist()
    assert (trust, now, least) == (1.0, level, level)
