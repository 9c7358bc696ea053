"""Sites of units where torch.fx cannot trace the forward: torch.export can, on the inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from symmetry_cases import randomised
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.finders.export import exported
from metaopt.symmetry.finders.network import Network
from metaopt.symmetry.finders.trace import Trace

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("default")


class Branching(nn.Module):
    """Convolutions, a batch norm, a skip and rows; fx cannot trace it if it ``looks``."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks = looks
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.widen = nn.Conv2d(6, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.back = nn.Conv2d(8, 6, 1)
        self.up = nn.ConvTranspose2d(6, 5, 3, padding=1)
        self.act = nn.PReLU()
        self.pool = nn.MaxPool2d(2)
        self.rows = nn.Linear(5 * 16, 7)
        self.out = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.looks:
            assert x.shape[1] == 3
            if x.shape[0] > 1:
                x = 2 * x
        h = F.relu(self.norm(self.stem(x)))
        h = h + self.back(F.leaky_relu(self.depth(self.widen(h).relu()), 0.2))
        h = self.pool(self.act(self.up(h)))
        return self.out(self.rows(h.view(h.size(0), -1)).relu())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_sites_are_those_of_the_same_network_that_can_be_traced(x: Tensor) -> None:
    twin, model = randomised(Branching(False)), randomised(Branching(True))
    assert len(Network(twin, x).traces) == 2
    assert not Network(model, x).traces
    expected, found = metaopt.symmetries(twin, x), metaopt.symmetries(model, x)
    assert len(found) == 5
    assert found.verified
    assert {(s.name, s.incoming, s.outgoing, s.width) for s in found} == {
        (s.name, s.incoming, s.outgoing, s.width) for s in expected
    }
    assert "the data flow" not in str(found)


def test_without_inputs_the_data_flow_is_not_known() -> None:
    assert "torch.fx cannot trace the forward" in str(metaopt.symmetries(Branching(True)))


class Reads(nn.Module):
    """Two layers of which ``how`` says what else happens to the units between them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.make, self.use, self.beside = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        assert x.shape[0] > 1
        h = F.relu(self.make(x))
        if self.how == "sine":
            return self.use(torch.sin(h))
        if self.how == "given":
            return self.use(h), h
        if self.how == "twice":
            return self.use(h) + self.use(h[:, [1, 0, 2, 3, 4, 5]])
        if self.how == "weight":
            return self.use(h) + self.use.weight.sum()
        if self.how == "half":
            return self.use(h) + F.linear(h, self.beside.weight[:4], self.beside.bias)
        return self.use(h) + self.beside(h)


@pytest.mark.parametrize("how", ["sine", "given", "twice", "weight", "half"])
def test_other_uses_of_units_or_weights_are_seen(how: str) -> None:
    sites = metaopt.symmetries(randomised(Reads(how)), torch.rand(3, 5))
    assert not sites


def test_two_readers_move_together() -> None:
    (site,) = metaopt.symmetries(randomised(Reads("")), torch.rand(3, 5))
    assert site.name == "make -> use, beside"


def test_an_export_changes_neither_the_network_nor_the_random_numbers(x: Tensor) -> None:
    model = randomised(Branching(True)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert isinstance(exported(model, x), Trace)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_there_is_no_export_where_units_have_no_site(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*args: Any) -> None:
        raise AssertionError("it takes seconds")

    monkeypatch.setattr(torch.export, "export", export)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    assert exported(model, torch.rand(2, 3)) == "no ReLU was called, and one convolution at most"


def test_what_export_refuses_is_said(x: Tensor) -> None:
    class Counts(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    reason = exported(Counts(True), x)
    assert isinstance(reason, str)
    assert reason.startswith("torch.export cannot trace the forward: ")
