"""Calls with other weights leave a module as it was, however its parameters are held."""

import copy

import pytest
import torch
from teleporting_cases import LOSS, QUICK
from torch import nn
from torch.nn.utils import parametrizations, prune

from metaopt import TeleportingOptimizer
from metaopt.measures import hessian, sharpness
from metaopt.symmetry import LevelSetTeleport
from metaopt.symmetry.functional import ModuleOutputs, call_with, module_loss


class Held(nn.Module):
    """Modules and tensors under several names, and a forward pass that changes what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
        self.again, self.net = self.body[0], nn.Sequential(self.body, nn.BatchNorm1d(9))
        self.tied, self.head, self.last = nn.Linear(9, 9), nn.Linear(9, 6), nn.Linear(6, 3)
        self.tied.weight = self.body[2].weight
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("passing", torch.ones(9), persistent=False)
        self.register_buffer("none", None)
        self.net[1].same = self.passing
        self.last_input, self.passes = None, 0

    def forward(self, x):
        self.count += 1
        self.passing.mul_(2)
        self.none, self.last_input, self.new = torch.ones(3), x, x
        self.passes += 1
        h = self.net(self.tied(self.again(x))) * self.passing / self.net[1].same
        return self.last(self.head(h).relu())


class Tied(nn.Module):
    """The embedding is the head, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
        self.wte.weight = self.lm_head.weight
        self.mlp = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5))

    def forward(self, x):
        h = self.wte(x.long().abs() % 9).mean(1)
        return self.lm_head(h + self.mlp(h))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.head(self.rnn(x.reshape(-1, 3, 3))[0][:, -1]).relu())


def small() -> nn.Sequential:
    layers = nn.Linear(9, 7), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(5, 3))


def parametrized() -> nn.Module:
    model = small()
    parametrizations.spectral_norm(model[0])
    parametrizations.orthogonal(model[1])
    return model


def pruned() -> nn.Module:
    model = small()
    prune.random_unstructured(model[0], "weight", 0.3)
    return model


def hooked() -> nn.Module:
    model = small()
    nn.utils.spectral_norm(model[0])  # its weight is an attribute that a hook sets
    return model


MODELS = {
    "held": Held, "tied": Tied, "recurrent": Recurrent, "parametrized": parametrized,
    "pruned": pruned, "hooked": hooked,
}  # fmt: skip
each = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
X, Y = torch.randn(8, 9, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return dict([*parameters, *model.named_buffers(remove_duplicate=False)])


class Snapshot:
    """What a module holds: the same objects, of the same values."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.held = model, tensors(model)
        self.values = {name: tensor.detach().clone() for name, tensor in self.held.items()}
        self.attributes = [dict(vars(module)) for module in model.modules()]

    def check(self) -> None:
        now = tensors(self.model)
        assert now.keys() == self.held.keys()
        for name, tensor in now.items():
            assert tensor is self.held[name], name
            assert torch.equal(tensor, self.values[name]), name
        for module, before in zip(self.model.modules(), self.attributes, strict=True):
            assert vars(module).keys() == before.keys()
            assert all(vars(module)[name] is value for name, value in before.items())


def teleporting(model: nn.Module, **options) -> TeleportingOptimizer:
    base = torch.optim.SGD(model.parameters(), 0.1)
    return TeleportingOptimizer(base, model, LOSS, **{"search": QUICK, **options})


def gradients(model: nn.Module) -> None:
    parameters, loss = module_loss(model, LOSS, X, Y)
    loss([2 * parameter for parameter in parameters]).backward()
    model.zero_grad()


def curvatures(model: nn.Module) -> None:
    matrix = hessian(model, LOSS, X, Y)
    assert matrix.product(torch.ones(matrix.size)).any()


CALLS = {
    "hessian": curvatures,
    "sharpness": lambda m: sharpness(m, LOSS, X, Y, torch.Generator().manual_seed(0), (0.1,), 2),
    "gradients": gradients,
    "outputs": lambda m: ModuleOutputs(m, (), X)([]),
}


@each
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_measure_leaves_all_that_a_module_holds(build, call):
    torch.manual_seed(0)
    model = build()
    before = Snapshot(model)
    for _ in range(2):
        call(model)
        before.check()
    assert all(module.training for module in model.modules())


@each
def test_teleports_keep_the_function_and_the_parameters_that_an_optimizer_holds(build):
    torch.manual_seed(0)
    model = build().eval()
    optimizer = teleporting(model)
    before, held = model(X).detach(), tensors(model)
    for _ in range(2):
        assert not optimizer.teleport(X, Y).stayed
    if build is not Held:  # whose own passes change its outputs
        assert (model(X) - before).abs().max() < 1e-5
    assert all(tensor is held[name] for name, tensor in tensors(model).items())
    losses = []
    for _ in range(9):
        optimizer.zero_grad()
        losses.append(LOSS(model(X), Y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0], "an optimizer that holds other tensors trains nothing"


@pytest.mark.parametrize("at", range(1, 9))
def test_an_exception_in_any_pass_of_a_teleport_leaves_the_module(at):
    passes = []

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.kept = nn.Linear(9, 6), nn.Linear(6, 3), None
            self.twin = self.a

        def forward(self, x):
            h = self.twin(x).relu()
            if isinstance(x, torch.Tensor):  # not while it is traced
                self.kept = h
                passes.append(x)
                if len(passes) == at:
                    raise KeyError("boom")
            return self.b(h)

    model = Fails()
    optimizer = teleporting(model)
    before = Snapshot(model)
    try:
        optimizer.teleport(X, Y)
    except KeyError:
        before.check()
    else:
        assert len(passes) < at
    assert model.training


def test_a_value_counts_under_all_names_of_its_parameter():
    model = Tied()
    values = [torch.zeros(9, 5), torch.ones(7, 5)]
    for names in (("wte.weight", "mlp.0.weight"), ("lm_head.weight", "mlp.0.weight")):
        assert not call_with(model, names, values, (X,)).any()
    held = Held()
    zero = torch.zeros(9, 9)
    outputs = [
        call_with(held, (name,), (zero,), (X,)) for name in ("again.weight", "net.0.0.weight")
    ]
    assert torch.equal(*outputs)


def test_a_recurrent_module_uses_the_values_and_then_its_own_again():
    model = Recurrent()
    own = model(X).detach()
    values = [2 * p for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    other = call_with(model, names, values, (X,))
    assert not torch.allclose(own, other)
    assert torch.equal(own, model(X))
    twice = copy.deepcopy(model)
    with torch.no_grad():
        for p in twice.parameters():
            p.mul_(2)
    assert torch.allclose(twice(X), other)


def test_a_search_over_all_parameters_of_tied_weights_keeps_them_tied():
    model = Tied()
    optimizer = teleporting(model, search=LevelSetTeleport(iterations=2))
    before = LOSS(model(X), Y)
    optimizer.teleport(X, Y)
    assert model.wte.weight is model.lm_head.weight
    assert LOSS(model(X), Y) <= before * 1.001
