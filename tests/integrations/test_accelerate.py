"""Both optimizers through accelerate: prepare, save_state, load_state, accumulation, bf16."""

from typing import Any

import pytest
import torch
from integration_cases import (
    LOSS,
    TELEPORTS,
    assert_equal,
    assert_moved,
    every_optimizer,
    loader,
    network,
    plain_loop,
    teleporting,
)

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def accelerator(request) -> Any:
    """A fresh one, whose options are the parameter of the fixture."""
    accelerate = pytest.importorskip("accelerate")
    yield accelerate.Accelerator(cpu=True, **getattr(request, "param", {}))
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


PRECISIONS = pytest.mark.parametrize(
    ("accelerator", "cast_to"),
    [({}, None), ({"mixed_precision": "bf16"}, torch.bfloat16)],
    indirect=["accelerator"],
    ids=["float32", "bf16"],
)


def through(accelerator, model, optimizer, batches, clip=torch.inf):
    """accelerate's own loop, with a closure."""
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = LOSS(model(x), y)
            accelerator.backward(loss)
            if clip < torch.inf:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            return loss

        optimizer.step(closure)


@PRECISIONS
@pytest.mark.parametrize("first", ["model prepared first", "together"])
@every_optimizer
def test_what_was_prepared_equals_a_plain_loop(accelerator, cast_to, first, build):
    model, plain = network(), network()
    if first == "together":
        prepared, optimizer, batches = accelerator.prepare(model, build(model), loader())
    else:
        prepared = accelerator.prepare(model)
        optimizer, batches = accelerator.prepare(build(prepared), loader())
    through(accelerator, prepared, optimizer, batches, clip=0.1)
    plain_loop(plain, build(plain), loader(), clip=0.1, cast_to=cast_to)
    if cast_to is not None and getattr(optimizer.optimizer, "meta", None) is not None:
        # accelerate casts the output to float32, and what some learned optimizers see of the loss
        torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0.05, atol=1e-2)
    else:
        assert_equal(model, plain)
    assert_moved(model, network())
    if build is teleporting:
        assert optimizer.optimizer.made == len(TELEPORTS)


def test_a_batch_reaches_the_optimizer_inside(accelerator):
    """accelerate's own ``step`` takes a closure alone."""
    model, plain = network(), network()
    prepared, optimizer, batches = accelerator.prepare(model, teleporting(model), loader())
    other = teleporting(plain)
    for x, y in batches:
        optimizer.zero_grad()
        accelerator.backward(LOSS(prepared(x), y))
        optimizer.optimizer.next_batch = (x, y)
        optimizer.step()
        other.zero_grad()
        LOSS(plain(x), y).backward()
        other.step(batch=(x, y))
    assert other.made == len(TELEPORTS)
    assert_equal(model, plain)


@every_optimizer
def test_a_saved_state_goes_on_to_the_same_weights(accelerator, build, tmp_path):
    """In a fresh accelerator, with a scheduler."""

    def prepared():
        own = type(accelerator)(cpu=True)
        model = network()
        optimizer = build(model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return own, *own.prepare(model, optimizer, loader(3), scheduler)

    def epoch(own, model, optimizer, batches, scheduler):
        for batch in batches:
            through(own, model, optimizer, [batch])
            scheduler.step()

    whole, resumed = prepared(), prepared()
    epoch(*whole)
    whole[0].save_state(tmp_path)
    epoch(*whole)
    resumed[0].load_state(tmp_path)
    epoch(*resumed)
    assert_equal(resumed[1], whole[1])
    assert resumed[2].param_groups[0]["lr"] == whole[2].param_groups[0]["lr"]


@pytest.mark.parametrize("accelerator", [{"gradient_accumulation_steps": 2}], indirect=True)
@every_optimizer
def test_accumulation_steps_once_for_two_batches(accelerator, build):
    model, plain = network(), network()
    prepared, optimizer, batches = accelerator.prepare(model, build(model), loader(4))
    for batch in batches:
        with accelerator.accumulate(prepared):
            accelerator.backward(LOSS(prepared(batch[0]), batch[1]))
            if build is teleporting:
                optimizer.optimizer.next_batch = batch
            optimizer.step()
            optimizer.zero_grad()
    other = build(plain)
    for index, (x, y) in enumerate(loader(4)):
        (LOSS(plain(x), y) / 2).backward()
        if index % 2:
            other.step(**({"batch": (x, y)} if build is teleporting else {}))
            other.zero_grad()
    assert_equal(model, plain)
    assert_moved(model, network())
    if build is teleporting:
        assert other.made == optimizer.optimizer.made == 1
