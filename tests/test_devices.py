"""Steps that could run on a GPU: nothing in them asks for a value, all tensors are on one device.

A device without values, "meta", shows both without a GPU; with one, numbers are compared.
"""

import pytest
import torch

from metaopt import LearnedOptimizer, UserError
from metaopt.cli.common import pick_device
from metaopt.evaluation.evaluate import evaluate
from metaopt.evaluation.methods import BASELINES, TELEPORT_STEPS, chain_methods, resolve
from metaopt.evaluation.rollout import rollout
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.spec import ELEMENT_RULES, MetaOptimizerSpec
from metaopt.tasks import MinibatchFamily, RegressionFamily
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.meta_loss import META_LOSSES
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer

FAMILY = RegressionFamily(samples=4, input=5, hidden=3, output=2)
LOOKS = {
    "lbfgs", "lbfgs_wolfe", "muon", "levenberg_marquardt", "shampoo", "soap",
    "kfac", "lstm_update_tele", "lstm_whitened",
}  # fmt: skip
"""Of other libraries, or a task at a time, or in an eigenbasis: their steps look at values."""

SEARCHES = {name for name in chain_methods() if name.endswith("_tele") and name in BASELINES}
"""Their step 5 teleports by a search, which asks whether all tasks have arrived."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", [name for name in chain_methods() if name not in LOOKS])
def test_no_step_of_a_method_asks_for_a_value(name):
    tasks = FAMILY.sample([1, 2]).to("meta")
    steps = min(TELEPORT_STEPS) if name in SEARCHES else 8
    run = rollout(tasks, resolve(name).optimizer(tasks), steps)
    for tensor in (run.losses, run.grad_norms, run.invariance_errors, run.rejected):
        assert tensor.shape == (steps + 1, 2)
        assert tensor.device.type == "meta"


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_a_search_alone_asks_for_values(name):
    tasks = FAMILY.sample([1, 2]).to("meta")
    with pytest.raises(RuntimeError, match=r"[Mm]eta tensors"):
        rollout(tasks, resolve(name).optimizer(tasks), max(TELEPORT_STEPS) + 1)


def test_nor_on_minibatches():
    tasks = MinibatchFamily(hidden=4, samples=16, minibatch=4).sample([1, 2]).to("meta")
    run = rollout(tasks, resolve("lstm_layerwise").optimizer(tasks), 3)
    assert run.losses.device.type == "meta"


@pytest.mark.parametrize("element", ELEMENT_RULES)
@pytest.mark.parametrize("action", ["post_activation", "pre_activation"])
@pytest.mark.parametrize("estimator", ["truncated", "first_order"])
def test_no_unrolled_step_asks_for_a_value(element, action, estimator):
    update = "flat" if element == "flat" else "coordinatewise"
    spec = MetaOptimizerSpec(
        update=update, element=element, action=action, hidden=3, flat_widths=(5, 3, 2)
    )
    meta = MetaOptimizer(spec).to("meta")
    tasks = FAMILY.sample([1, 2]).to("meta")
    windows = ESTIMATORS[estimator]().windows(
        tasks, LearnedOptimizer(tasks, meta), 4, 2, META_LOSSES["log"](1e-6), torch.Generator()
    )
    for window in windows:
        assert {g.device.type for g in window.gradients} == {"meta"}
        assert window.rejected.device.type == "meta"


@pytest.mark.parametrize("name", ["cuda:99", "cuda:-1", "gpu", "", "meta", "mps", "tpu:0"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=r"^expected .*GPU|^expected a --device of cpu"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


@needs_gpu
@pytest.mark.parametrize("name", ["gd", "adam", "gd_tele", "lstm_update", "lstm_update_tele"])
def test_a_gpu_gives_the_numbers_of_a_cpu(name):
    def losses(device: str) -> torch.Tensor:
        results = evaluate([resolve(name)], FAMILY, [1, 2], 10, device=torch.device(device))
        return next(iter(results)).trajectory.losses

    torch.testing.assert_close(losses("cuda"), losses("cpu"), rtol=1e-2, atol=1e-6)


@needs_gpu
def test_a_step_on_a_gpu_does_not_synchronize_but_for_the_eigenvectors():
    """``torch.linalg.eigh`` looks whether it succeeded; nothing else waits."""
    tasks = FAMILY.sample([1, 2]).to("cuda")
    optimizer = resolve("lstm_update").optimizer(tasks)
    rollout(tasks, optimizer, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.zero_grad()
        tasks().sum().backward()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_meta_optimizer_trains_on_a_gpu():
    spec = TrainingSpec(
        trajectories=2, batch_size=1, steps=6, window=3, widths=(8,), validation_problems=2,
        validation_at=(2, 4), validation_families=(),
    )  # fmt: skip
    losses = []
    for device in ("cpu", "cuda"):
        trainer = Trainer(MetaOptimizerSpec(hidden=4), spec, device=torch.device(device))
        losses.append(trainer.train_batch()["meta_loss"])
        assert trainer.validate()["score"] < 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
