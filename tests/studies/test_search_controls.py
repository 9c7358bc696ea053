"""What the study compares searches with: a random move of their size, and the paper's ascent."""

import pytest
import torch
from cases import LEAKY_ACTIONS, mixed_signs, naive_leaky

from metaopt import UserError
from metaopt.symmetry import (
    GradientAscent,
    Identity,
    LayerChain,
    LayerInput,
    LeakyReLU,
    Negated,
    SearchResult,
    Teleportation,
    chain_orbit,
    gradient_norm,
    make_action,
)
from metaopt.symmetry.teleportation import ChainOutputs
from studies.searches.fixed_ascent import FixedAscent
from studies.searches.random_move import RandomMove

FAMILY = mixed_signs(4, 6, 5, 3)
SEEDS = (0, 1, 2)
SEARCH = GradientAscent(iterations=3, initial_step=0.2)
INF = float("inf")


def of_tasks(seeds=SEEDS, action="pre_activation", **options):
    """(orbit, parameters, loss)."""
    tasks = FAMILY.sample(seeds)
    chain, x, y = tasks.chain, tasks.x, tasks.y

    def loss(parameters):
        residual = y - chain.output(chain.layers(parameters), x)
        return 0.5 * residual.square().sum(dim=(-2, -1))

    parameters = [p.detach().clone() for p in tasks.parameters()]
    orbit = chain_orbit(chain, parameters, LayerInput(x), make_action(action, **options))
    return orbit, parameters, loss


def of_two_sites(max_defect=1e-10):
    """Two tasks, and eq. 79, which is exact at the site of 5 units and is rejected at that of 3.

    In float64, with 4 samples.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 6), (3, 5), (2, 3), (6, 4), (2, 4))
    *parameters, x, y = (
        torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes
    )
    chain = LayerChain((LeakyReLU(0.1),) * 2 + (Identity(),), (False,) * 3, batch_dims=1)
    action = make_action("pre_activation", max_defect=max_defect)

    def loss(values):
        return (y - chain.output(chain.layers(values), x)).square().sum(dim=(1, 2))

    return chain_orbit(chain, parameters, LayerInput(x), action), parameters, loss


def control(search=SEARCH, seed=0):
    return RandomMove(search, torch.Generator().manual_seed(seed))


def norms(elements):
    """Of T over all sites, one a task."""
    return torch.cat([t.values.flatten(1) for t in elements], dim=1).norm(dim=1)


class Steps:
    """A search that makes these steps, and asks nobody."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, orbit, parameters, loss):
        rejected = torch.zeros(len(parameters[0]), dtype=torch.bool)
        elements = [orbit.elements(parameters, values) for values in self.steps]
        return SearchResult(list(parameters), rejected, elements)


# A random move.


@pytest.mark.parametrize("name", LEAKY_ACTIONS)
def test_each_random_step_is_as_long_as_the_one_searched(name):
    setting = of_tasks(action=name)
    searched, drawn = SEARCH(*setting), control()(*setting)
    assert len(drawn.elements) == len(searched.elements) == 3
    for ours, theirs in zip(drawn.elements, searched.elements, strict=True):
        assert norms(theirs).min() > 0
        torch.testing.assert_close(norms(ours), norms(theirs))
        for one, other in zip(ours, theirs, strict=True):
            cosines = torch.cosine_similarity(one.values.flatten(1), other.values.flatten(1))
            assert cosines.abs().max() < 0.95


def test_each_task_has_a_length_of_its_own():
    orbit, parameters, loss = of_tasks()
    lengths = torch.tensor([0.5, 0.0, 0.01], dtype=torch.float64)
    (identity,) = orbit.identity(parameters)
    step = torch.ones_like(identity.values)
    step = step / step.flatten(1).norm(dim=1)[:, None, None] * lengths[:, None, None]
    found = control(Steps([[step]]))(orbit, parameters, loss)
    torch.testing.assert_close(norms(found.elements[0]), lengths)
    for after, before in zip(found.parameters, parameters, strict=True):
        assert torch.equal(after[1], before[1])
        assert not torch.equal(after[0], before[0])


def test_the_length_is_shared_by_the_sites():
    """Drawn over both together, not kept at each."""
    orbit, parameters, loss = of_two_sites(max_defect=INF)
    first, second = orbit.identity(parameters)
    (drawn,) = control(Steps([[first.values + 1.0, second.values]]))(
        orbit, parameters, loss
    ).elements
    torch.testing.assert_close(norms(drawn), torch.full((2,), 5.0).double())
    assert drawn[1].values.norm() > 0


@pytest.mark.parametrize("name", LEAKY_ACTIONS)
def test_a_random_move_ends_where_its_steps_lead_and_keeps_the_output(name):
    orbit, parameters, loss = of_tasks(action=name)
    found = control()(orbit, parameters, loss)
    current = parameters
    for elements in found.elements:
        current = orbit.move(current, elements).parameters
    for after, stepped, before in zip(found.parameters, current, parameters, strict=True):
        assert torch.equal(after, stepped)
        assert not torch.equal(after, before)
    assert not found.rejected.any()
    outputs = ChainOutputs(orbit.chain, orbit.layer_input.original)
    move = Teleportation(outputs, parameters, found.parameters, found.rejected)
    assert move.invariance_error().max() < 1e-9


def test_equal_generators_give_equal_moves_and_others_do_not():
    setting = of_tasks()
    first, again, other = (control(seed=seed)(*setting).parameters for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    kept = control()
    assert torch.equal(kept(*setting).parameters[0], kept(*setting).parameters[0])


def test_a_random_move_leaves_its_start_and_the_generator_of_torch_alone():
    orbit, parameters, loss = of_tasks()
    copies, state = [p.clone() for p in parameters], torch.random.get_rng_state()
    found = control()(orbit, parameters, loss)
    assert all(torch.equal(p, c) for p, c in zip(parameters, copies, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(p.requires_grad for p in found.parameters)


@pytest.mark.parametrize(
    "search", [control(), FixedAscent(iterations=2, rate=1e-3)], ids=["random", "fixed"]
)
def test_a_broken_task_stays_and_the_others_move_as_if_it_were_not_there(search):
    orbit, parameters, loss = of_tasks()
    parameters[0][1, 0, 0] = float("nan")
    found = search(orbit, parameters, loss)
    assert found.rejected.tolist() == [False, True, False]
    for after, before in zip(found.parameters, parameters, strict=True):
        assert torch.equal(after[1].nan_to_num(), before[1].nan_to_num())
        assert after[2].isfinite().all()
        assert not torch.equal(after[2], before[2])
    assert all((element.values[1] == 0).all() for step in found.elements for element in step)


@pytest.mark.parametrize(
    "search",
    [control(Steps([[torch.ones(2, 5, 5).double(), torch.ones(2, 3, 3).double()]])), FixedAscent()],
    ids=["random", "fixed"],
)
def test_a_task_rejected_at_one_site_is_not_moved_at_the_others(search):
    """And what it took is 0, so that the buffers stay too."""
    orbit, parameters, loss = of_two_sites()
    found = search(orbit, parameters, loss)
    assert found.rejected.all()
    for after, before in zip(found.parameters, parameters, strict=True):
        assert torch.equal(after, before)
    assert all((element.values == 0).all() for step in found.elements for element in step)


# The paper's ascent.


def objective_by_hand(t, w1, w2, x, y):
    """(||grad L||^2, W1, W2) of one task at exp(T) . w by eq. 79; all is written out here."""
    g = torch.linalg.matrix_exp(t)
    first = g @ w1
    features = torch.where(first @ x > 0, first @ x, 0.1 * (first @ x))
    linear = w2 @ torch.linalg.inv(g)
    second = linear + (w2 @ naive_leaky(w1 @ x, 0.1) - linear @ features) @ torch.linalg.pinv(
        features
    )
    error = second @ features - y
    slopes = torch.where(first @ x > 0, 1.0, 0.1).double()
    gradients = (slopes * (second.T @ error)) @ x.T, error @ features.T
    return sum(g.square().sum() for g in gradients), first, second


@pytest.mark.parametrize("iterations", [1, 4])
def test_the_ascent_equals_a_loop_by_hand(iterations):
    rate = 1e-6
    found = FixedAscent(iterations, rate)(*of_tasks(max_defect=INF))
    tasks = FAMILY.sample(SEEDS)
    for index in range(len(SEEDS)):
        x, y = tasks.x[index], tasks.y[index]
        w1, w2 = (p.detach()[index] for p in tasks.parameters())
        for step in range(iterations):
            t = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
            value = objective_by_hand(t, w1, w2, x, y)[0]
            slope = rate * torch.autograd.grad(value, t)[0]
            torch.testing.assert_close(
                found.elements[step][0].values[index], slope, rtol=1e-7, atol=1e-12
            )
            _, w1, w2 = objective_by_hand(slope, w1, w2, x, y)
        for got, wanted in zip(found.parameters, (w1, w2), strict=True):
            torch.testing.assert_close(got[index], wanted, rtol=1e-9, atol=1e-11)
    assert not found.rejected.any()


def test_the_objective_of_the_ascent_is_the_one_it_is_given():
    setting = of_tasks(max_defect=INF)
    up, down = (
        FixedAscent(1, 1e-6, objective)(*setting)
        for objective in (gradient_norm, Negated(gradient_norm))
    )
    assert torch.equal(up.elements[0][0].values, -down.elements[0][0].values)


def test_the_ascent_is_unguarded():
    """A GradientAscent would halve such a step, or stay."""
    _, parameters, loss = setting = of_tasks(max_defect=INF)
    before = gradient_norm(parameters, loss)
    fallen = FixedAscent(1, 1e-6, Negated(gradient_norm))(*setting)
    assert (gradient_norm(fallen.parameters, loss) < before).all()


@pytest.mark.parametrize(
    "options",
    [{"iterations": 0}, {"rate": 0.0}, {"rate": -1.0}, {"rate": INF}, {"rate": float("nan")}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match=r"expected (iterations of 1 or more|a positive rate), got"):
        FixedAscent(**options)
