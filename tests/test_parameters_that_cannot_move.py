"""Parameters and modules that neither optimizer can move are refused in one line, and named."""

import pytest
import torch
from teleporting_cases import LOSS, data
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError
from metaopt.target import check_parameters, target_of


class Net(nn.Module):
    """9 -> 7 -> 3, with one more parameter."""

    def __init__(self, extra=None) -> None:
        super().__init__()
        self.front, self.rear = nn.Linear(9, 7), nn.Linear(7, 3)
        self.extra = extra

    def forward(self, x):
        return self.rear(self.front(x).relu())


def on_meta() -> nn.Module:
    model = Net()
    model.rear.to("meta")
    return model


def inferred() -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(torch.ones(3))


class OfADeviceMesh(torch.Tensor):
    """Looks like torch's DTensor, which needs a group of processes."""

    device_mesh = "a mesh"


class FullyShardedDataParallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = Net()


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="script"):
        return torch.jit.script(Net())


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(7), nn.ReLU(), nn.Linear(7, 3))


def eight_bits() -> nn.Parameter:
    return nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn))


REFUSED = {
    "lazy": (lazy, "got 0.weight, which is not initialized"),
    "meta": (on_meta, "got rear.weight, which is on the meta device"),
    "sparse": (lambda: Net(nn.Parameter(torch.eye(3).to_sparse())), "extra, of the sparse layout"),
    "eight bits": (lambda: Net(eight_bits()), "got extra, of dtype torch.float8"),
    "inference": (lambda: Net(inferred()), "got extra, made in inference mode"),
    "DTensor": (lambda: Net(nn.Parameter(torch.ones(3).as_subclass(OfADeviceMesh))), "a DTensor"),
    "FSDP": (FullyShardedDataParallel, "got a FullyShardedDataParallel module, which"),
    "FSDP inside": (lambda: Net(FullyShardedDataParallel()), "module in extra, which"),
    "scripted": (scripted, "got a ScriptModule: give the module that was scripted"),
    "scripted inside": (lambda: Net(scripted()), "got a ScriptModule in extra"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_move_is_refused_by_both_optimizers(build, words):
    model = build()
    base = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    for make in (
        lambda: TeleportingOptimizer(base, model, LOSS),
        lambda: LearnedOptimizer(model, "lstm_layerwise"),
        lambda: LearnedOptimizer(model, "lstm_update_tele"),
    ):
        with pytest.raises(UserError) as error:
            make()
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_parameters_on_two_devices_are_named():
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 1)

    there = nn.Parameter(torch.ones(2).as_subclass(Elsewhere))
    here = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match="got a on cpu and b on cuda:1: move the model to one"):
        check_parameters([("a", here), ("b", there)])
    check_parameters([("a", here), ("b", there.requires_grad_(False))])


FROZEN = {
    "whole numbers": lambda: torch.ones(3, dtype=torch.int8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "eight bits": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("tensor", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("as_buffer", [False, True])
def test_what_is_frozen_may_be_of_any_kind(tensor, as_buffer):
    model = Net(None if as_buffer else nn.Parameter(tensor(), requires_grad=False))
    if as_buffer:
        model.register_buffer("other", tensor())
    base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    optimizer = TeleportingOptimizer(base, model, LOSS)
    assert not optimizer.teleport(*data(dtype=torch.float32)).stayed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_real_and_complex_numbers_may_move(dtype):
    target = target_of(Net(nn.Parameter(torch.ones(3, dtype=dtype))))
    assert "extra" in target.trainable()


def test_what_is_no_module_is_refused():
    with pytest.raises(UserError, match=r"expected an nn\.Module, got list: give the model itself"):
        target_of([nn.Linear(2, 2)])
