"""Runs on images: equal to training by hand, kept on disk, and what a teleport does in them."""

from dataclasses import replace

import pytest
import torch
from image_study_cases import PLAN, TINY, TORCH, by_hand, pairs

from studies.optimizers import image_runs
from studies.optimizers.image_runs import BASES, Teleport, run
from studies.optimizers.mnist import SWEEP_SEED, best_rate
from studies.searches.random_move import RandomMove

RESCALING = Teleport("rescaling", minibatches=1)
MOVES = {
    "rescaling": RESCALING,
    "eq. 79": Teleport("pre_activation", size=0.02),
    "paper": Teleport("pre_activation", "reset", rate=5e-2),
    "random": Teleport("rescaling", random=True),
    "transport": Teleport("rescaling", "transport"),
}
DIVERGES = 1e30


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pairs(tmp_path_factory.mktemp("images"))


@pytest.fixture
def train_on(images, tmp_path):
    return lambda plan, data="x": run(plan, *images, tmp_path, data)


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_optimizers_are_those_of_torch():
    assert list(BASES) == list(TORCH)


@pytest.mark.parametrize("name", BASES)
def test_a_run_without_a_teleport_is_plain_training_bit_for_bit(name, images, train_on):
    plan = replace(PLAN, optimizer=name, seed=3)
    ran = train_on(plan)
    assert (ran.train, ran.test) == by_hand(plan, *images)
    assert len(ran.seconds) == len(ran.accuracy) == 3
    assert ran.seconds == sorted(ran.seconds)
    assert ran.teleport_seconds == ran.defect == ran.undone == 0
    assert ran.gradient_norms is None


@pytest.mark.parametrize("name", BASES)
def test_a_reset_alone_is_a_new_optimizer_at_its_epoch(name, images, train_on):
    plan = replace(PLAN, optimizer=name, epochs=3, teleport=Teleport("none", "reset", epoch=2))
    ran = train_on(plan)
    assert (ran.train, ran.test) == by_hand(plan, *images, new_at=2)
    plain = by_hand(plan, *images)[0]
    assert ran.train[:3] == plain[:3]
    assert (ran.train[3] == plain[3]) == (name == "sgd")


def test_a_run_leaves_the_generator_of_torch_alone(train_on):
    before = torch.random.get_rng_state()
    train_on(replace(PLAN, teleport=MOVES["random"]))
    assert torch.equal(torch.random.get_rng_state(), before)


# What is kept.


def test_a_run_that_is_there_is_read(train_on, tmp_path, monkeypatch):
    trained = []
    whole = image_runs.network
    monkeypatch.setattr(image_runs, "network", lambda *a: trained.append(a) or whole(*a))
    for plan in (PLAN, replace(PLAN, teleport=RESCALING)):
        trained.clear()
        first, kept = train_on(plan), files(tmp_path)
        assert len(trained) == 1
        assert train_on(plan) == first
        assert len(trained) == 1
        assert files(tmp_path) == kept


def test_a_run_that_diverged_is_read_as_it_was(train_on):
    plan = replace(PLAN, rate=DIVERGES)
    first, again = train_on(plan), train_on(plan)
    assert first.train[-1] != first.train[-1]
    assert again.train[-1] != again.train[-1]
    assert again.train[0] == first.train[0]


def test_another_plan_or_data_is_another_file(train_on, tmp_path):
    moved = replace(PLAN, teleport=RESCALING)
    plans = [
        PLAN,
        replace(PLAN, optimizer="sgd"),
        replace(PLAN, rate=0.02),
        replace(PLAN, seed=1),
        replace(PLAN, epochs=1),
        replace(PLAN, minibatch=50),
        moved,
        replace(moved, teleport=replace(RESCALING, random=True)),
        replace(moved, teleport=replace(RESCALING, buffers="reset")),
        replace(moved, teleport=replace(RESCALING, growth=2.0)),
        replace(moved, teleport=replace(RESCALING, epoch=0)),
    ]
    for count, plan in enumerate(plans, start=1):
        train_on(plan)
        assert len(files(tmp_path)) == count
    train_on(PLAN, "y")
    assert len(files(tmp_path)) == len(plans) + 1


# The teleport.


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_teleport_is_at_the_start_of_its_epoch_alone(name, epoch, train_on):
    plan = replace(PLAN, epochs=epoch + 2)
    plain = train_on(plan)
    ran = train_on(replace(plan, teleport=replace(MOVES[name], epoch=epoch)))
    for side in ("train", "test", "accuracy"):
        assert getattr(ran, side)[: epoch + 1] == getattr(plain, side)[: epoch + 1]
    assert ran.train[epoch + 1] != plain.train[epoch + 1]
    assert len(ran.train) == epoch + 3
    assert 0 < ran.teleport_seconds < ran.seconds[epoch + 1]
    assert ran.seconds[epoch + 1] - ran.seconds[epoch] > ran.teleport_seconds


def test_a_teleport_after_the_last_epoch_is_none(train_on):
    late = train_on(replace(PLAN, teleport=replace(RESCALING, epoch=PLAN.epochs)))
    assert late.train == train_on(PLAN).train
    assert late.gradient_norms is None


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("minibatches", [1, 8])
def test_rescaling_keeps_the_losses_at_its_moment(random, minibatches, train_on):
    """At a rate of 0 nothing else moves."""
    teleport = replace(RESCALING, random=random, minibatches=minibatches, samples=25, iterations=3)
    ran = train_on(replace(PLAN, optimizer="sgd", rate=0.0, teleport=teleport))
    for losses in (ran.train, ran.test):
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert 0 < ran.defect < 1e-5
    assert ran.undone == 0
    assert ran.gradient_norms[0] != ran.gradient_norms[1]


@pytest.mark.parametrize("growth", [1.5, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_rescaling_raises_the_gradient_norm_within_its_bound(seed, growth, train_on):
    teleport = replace(RESCALING, growth=growth)
    before, after = train_on(replace(PLAN, seed=seed, teleport=teleport)).gradient_norms
    assert before < after <= growth * before * (1 + 1e-5)


@pytest.mark.parametrize("action", ["rescaling", "pre_activation"])
def test_the_control_moves_as_far_as_the_search_and_elsewhere(action, train_on, monkeypatch):
    ways = []

    class Watched(RandomMove):
        def __call__(self, *arguments):
            found = super().__call__(*arguments)
            ways.append((self.search(*arguments).elements, found.elements))
            return found

    monkeypatch.setattr(image_runs, "RandomMove", Watched)
    teleport = Teleport(action, random=True, minibatches=3, samples=60, iterations=3, size=0.02)
    train_on(replace(PLAN, teleport=teleport))
    assert len(ways) == 3
    for searched, drawn in ways:
        for sides in zip(searched, drawn, strict=True):
            one, other = (torch.cat([t.values.flatten() for t in elements]) for elements in sides)
            torch.testing.assert_close(one.norm(), other.norm())
            assert torch.cosine_similarity(one, other, dim=0).abs() < 0.9
    assert max(t.values.norm() for elements in searched for t in elements) > 0


def test_the_control_is_that_of_its_seed(train_on):
    plan = replace(PLAN, teleport=MOVES["random"])
    first, again = train_on(plan, "a"), train_on(plan, "b")
    assert (again.train, again.gradient_norms) == (first.train, first.gradient_norms)
    assert first.train != train_on(replace(plan, teleport=Teleport("rescaling"))).train


# The rate.


@pytest.mark.parametrize("name", TINY.optimizers)
def test_the_rate_has_the_lowest_validation_loss_and_is_never_one_that_diverged(
    name, images, tmp_path
):
    scale = replace(TINY, rates=(DIVERGES, 1e-3, 3e-2, 0.1))
    rate = best_rate(name, *images, tmp_path, scale)
    lasts = {}
    for other in scale.rates[1:]:
        plan = replace(PLAN, optimizer=name, rate=other, seed=SWEEP_SEED, epochs=1)
        lasts[other] = by_hand(plan, *images)[1][-1]
    assert rate == min(lasts, key=lasts.get)
    kept = files(tmp_path)
    assert len(kept) == 4
    assert best_rate(name, *images, tmp_path, scale) == rate
    assert files(tmp_path) == kept


def test_the_rate_of_other_validation_images_is_chosen_anew(images, tmp_path):
    train, validation = images
    fewer = tuple(side[:30] for side in validation)
    for judged in (validation, fewer):
        best_rate("adam", train, judged, tmp_path, TINY)
    assert len(files(tmp_path)) == 2 * len(TINY.rates)
