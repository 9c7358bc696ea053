"""Things that look alike are not taken for one another: names, views, sites and activations."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError
from metaopt.symmetry import (
    ACTIONS,
    ChainModule,
    Elementwise,
    Identity,
    LayerChain,
    LeakyReLU,
    LinearAction,
    MatrixView,
    as_chain,
    find_sites,
)
from metaopt.symmetry.activations import Activation
from metaopt.symmetry.auto import for_all_data
from metaopt.symmetry.finders.find import choose_sites
from metaopt.symmetry.finders.sites import Sites
from metaopt.symmetry.site import Site


class Chain(ChainModule):
    """Two square layers without biases, registered in the order that is given."""

    first: Tensor
    second: Tensor

    def __init__(self, order: str, between: Activation, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name in order.split():
            self.register_parameter(
                name, nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64))
            )
        self.between = between
        self.chain = LayerChain((between, Identity()), (False, False), 0, names)
        self.x = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def output(self) -> Tensor:
        return self.second @ self.between(self.first @ self.x)

    def forward(self) -> Tensor:
        extra = getattr(self, "extra", None)
        loss = self.output().square().mean()
        return loss if extra is None else loss + extra.square().mean()


def teleporting(model: Chain) -> TeleportingOptimizer:
    return TeleportingOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model)


def learned(model: Chain) -> LearnedOptimizer:
    return LearnedOptimizer(model, "lstm_update_tele")


@pytest.mark.parametrize("make", [teleporting, learned])
@pytest.mark.parametrize("order", ["second first", "extra first second", "first"])
def test_a_chain_whose_parameters_are_registered_otherwise_is_refused(make, order):
    names = ("first", "second") if order != "first" else ()
    model = Chain(order, LeakyReLU(0.1), names)
    expected = re.escape(f"got {', '.join(order.split())}: register them so")
    with pytest.raises(UserError, match=expected):
        make(model)


@pytest.mark.parametrize("names", [(), ("first", "second")])
def test_a_chain_in_its_order_keeps_its_output(names):
    model = Chain("first second extra", LeakyReLU(0.1), names)
    before = model.output().detach()
    move = teleporting(model).teleport()
    assert float(move.invariance_error()) < 1e-10
    torch.testing.assert_close(model.output().detach(), before, rtol=1e-9, atol=1e-9)


def test_activations_of_one_name_are_not_taken_for_one_another():
    for function in (torch.tanh, torch.sin):
        model = Chain("first second", Elementwise("f", function))
        before = model.output().detach()
        teleporting(model).teleport()
        torch.testing.assert_close(model.output().detach(), before, rtol=1e-6, atol=1e-6)


@dataclass  # which is not hashable, as it can be changed
class Scaled:
    """A leaky ReLU of a user's own."""

    slopes: list[float]
    homogeneous = True

    @property
    def inverse(self) -> Scaled:
        return Scaled([1 / slope for slope in self.slopes])

    def __call__(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, self.slopes[0] * z, self.slopes[1] * z)


@pytest.mark.parametrize("action", ["auto", "rescaling", "post_activation", "pre_activation"])
def test_an_activation_need_not_be_hashable(action):
    model = Chain("first second", Scaled([1.0, 0.2]))
    before = model.output().detach()
    optimizer = TeleportingOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.01), model, action=action
    )
    assert float(optimizer.teleport().invariance_error()) < 1e-10
    torch.testing.assert_close(model.output().detach(), before, rtol=1e-9, atol=1e-9)
    (site,) = model.chain.sites([model.first, model.second])
    assert site.without_outgoing_bias() == site


def test_activations_are_equal_only_with_their_functions():
    assert Elementwise("f", torch.tanh) == Elementwise("f", torch.tanh)
    assert Elementwise("f", torch.tanh) != Elementwise("f", torch.sin)
    assert Elementwise("f", torch.tanh) != Elementwise("g", torch.tanh)
    assert len({Elementwise("f", torch.tanh), Elementwise("f", torch.tanh)}) == 1


def sequence(between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), between, nn.Linear(3, 2))


class Functional(nn.Module):
    """Between the layers is a function with options, not a module."""

    def __init__(self, *options: float, **others: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
        self.options, self.others = options, others

    def forward(self, x: Tensor) -> Tensor:
        run = nn.functional.gelu if self.others else nn.functional.elu
        return self.b(run(self.a(x), *self.options, **self.others))


def test_functions_that_are_read_twice_are_equal_and_others_are_not():
    def between(model: nn.Module) -> Activation | None:
        (site,) = find_sites(model).found
        return site.between

    assert between(Functional(0.5)) == between(Functional(0.5))
    assert between(Functional(0.5)) != between(Functional(0.7))
    assert between(Functional(approximate="tanh")) != between(Functional(approximate="none"))
    assert between(sequence(nn.ELU(0.5))) == between(sequence(nn.ELU(0.5)))
    assert between(sequence(nn.ELU(0.5))) != between(sequence(nn.ELU(0.7)))
    assert between(sequence(nn.ELU(0.5))) != between(Functional(0.5))
    for model in (Functional(0.5), sequence(nn.GELU())):
        assert copy.deepcopy(find_sites(model)) == find_sites(model)
        assert not isinstance(as_chain(model), str)


@pytest.mark.parametrize(
    "options", [{"rows": (1,), "columns": (0,)}, {"heads": (0,)}, {"at": ((0, 1),)}]
)
def test_a_view_that_needs_a_shape_says_so(options):
    with pytest.raises(UserError, match="expected the shape of w beside rows"):
        MatrixView("w", **options)


def head(number: int) -> Site:
    """The site of one of two heads, each between the same two layers."""
    return Site(
        name=f"head {number}",
        incoming=(MatrixView("in.weight", (1,), (2,), (2, 3, 5), at=((0, number),)),),
        outgoing=(MatrixView("out.weight", (0,), (2,), (5, 2, 3), at=((1, number),)),),
        between=Identity(),
        group="GL",
        width=3,
        layers=("in", "out"),
        plain=True,
    )


def test_sites_between_the_same_layers_are_kept_or_left_out_together():
    model = nn.ModuleDict({"in": nn.Linear(5, 6), "out": nn.Linear(6, 5), "last": nn.Linear(5, 5)})
    found = Sites((head(0), head(1)), (), "it is no chain")
    assert choose_sites(model, found, [("in", "out")]).found == found.found
    assert len(choose_sites(model, found, []).left_out) == 2


def test_a_registered_action_is_one_that_auto_chooses_from(monkeypatch):
    class Everywhere(LinearAction):
        def max_samples(self, site: Site) -> float:
            return math.inf

    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    (site,) = find_sites(model).found
    assert for_all_data(site) is None
    monkeypatch.setitem(ACTIONS, "everywhere", Everywhere)
    chosen = for_all_data(site)
    assert chosen is not None
    assert isinstance(chosen.action, Everywhere)


def test_an_empty_batch_is_no_batch_on_which_a_group_is_exact():
    sites = find_sites(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    assert not sites.exact_everywhere(ACTIONS["post_activation"](), 0)
