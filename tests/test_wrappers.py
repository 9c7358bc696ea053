"""Learned optimizers on compiled models, and the modules that wrap a model."""

import copy

import pytest
import torch
from learned_network_cases import Residual, batch_for, equal, mlp, train
from torch import nn
from torch.optim.swa_utils import AveragedModel

from metaopt import LearnedOptimizer, TeleportingOptimizer
from metaopt.learned.forward_record import compiled_before
from metaopt.wrappers import is_compiled, layers_of_wrapping, unwrapped

BATCH = batch_for(mlp)
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile asks for it


def after(model, name, build):
    """Weights after four steps; ``build`` gives the optimizer and what is called."""
    optimizer, called = build(model, lambda m: LearnedOptimizer(m, name, loss_fn=nn.MSELoss()))
    train(called, optimizer, [BATCH] * 4)
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


def built_first(model, make):
    return make(model), compiled(model)


def compiled_first(model, make):
    called = compiled(model)
    return make(model), called


def compiled_and_called_first(model, make):
    called = compiled(model)
    called(BATCH[0]).sum().backward()
    model.zero_grad()
    return make(model), called


def given_compiled(model, make):
    called = torch.compile(model, backend="eager", fullgraph=True)
    return make(called), called


def compiled_in_place(model, make):
    model.compile(backend="eager")
    model(BATCH[0]).sum().backward()
    model.zero_grad()
    return make(model), model


WAYS = (built_first, compiled_first, compiled_and_called_first, given_compiled, compiled_in_place)


@pytest.mark.parametrize("build", WAYS)
@pytest.mark.parametrize("model", [mlp, Residual])
@pytest.mark.parametrize("name", ["lstm_update_tele", "lstm_layerwise"])
def test_a_compiled_model_is_trained_as_the_model_is(model, name, build):
    torch._dynamo.reset()
    torch.manual_seed(0)
    start = model()
    plain = after(copy.deepcopy(start), name, lambda m, make: (make(m), m))
    assert equal(after(copy.deepcopy(start), name, build), plain)
    assert not equal(start, plain)


def test_a_name_in_a_message_is_that_of_the_model_inside():
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = LearnedOptimizer(compiled(model), "lstm_lr_tele")
    model[0].requires_grad_(True)
    called = compiled(model)
    called(BATCH[0]).sum().backward()
    try:
        optimizer.step()
    except ValueError as error:
        assert " 0.weight" in str(error)  # noqa: PT017 - a chain takes it without a word


def test_wrappers_are_seen_through_in_any_order():
    model = mlp()
    outer = nn.DataParallel(compiled(AveragedModel(model)))
    assert [type(m).__name__ for m in layers_of_wrapping(outer)] == [
        "DataParallel", "OptimizedModule", "AveragedModel", "Sequential",
    ]  # fmt: skip
    assert unwrapped(model) is model
    own = nn.Module()
    own.module = model
    assert unwrapped(own) is own, "a module of a user's may have any names"
    assert is_compiled(compiled(model))
    assert not is_compiled(own)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, AveragedModel])
def test_a_teleport_of_a_wrapped_model_is_that_of_the_model_inside(wrap):
    def moved(build):
        model = build(mlp())
        base = torch.optim.SGD(model.parameters(), 0.1)
        optimizer = TeleportingOptimizer(base, model, nn.MSELoss())
        assert optimizer.teleport(*BATCH).stayed.logical_not().all()
        return unwrapped(model)

    assert equal(moved(wrap), moved(lambda model: model))


def test_only_what_was_compiled_is_compiled_again():
    torch._dynamo.reset()
    model, other = mlp(), mlp()
    assert not compiled_before(model)
    called = compiled(model)
    assert compiled_before(model)
    assert not compiled_before(other)
    assert not compiled_before(called)


def test_nothing_is_searched_where_nothing_was_compiled(monkeypatch):
    torch.compiler.reset()
    torch.optim.SGD(mlp().parameters())  # torch itself turns compilation off for a function
    monkeypatch.setattr("gc.get_referrers", lambda *given: pytest.fail("all objects were searched"))
    assert not compiled_before(mlp())
