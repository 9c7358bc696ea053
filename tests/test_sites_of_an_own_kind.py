"""Finders from outside the package: a new kind of site is found, moved, transported and stepped.

Nothing here but ``FINDERS`` is told that there is such a kind.
"""

import copy
import operator

import pytest
import torch
from learned_network_cases import build
from teleporting_cases import LOSS, QUICK, data
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError
from metaopt.symmetry import (
    FINDERS,
    Findings,
    Identity,
    LeftOut,
    LinearAction,
    MatrixView,
    RescalingAction,
    Site,
    find_sites,
)
from metaopt.symmetry.finders import between_layers


class LowRank(nn.Module):
    """Two matrices with nothing between, which are parameters and no layers."""

    def __init__(self, reads_twice=False):
        super().__init__()
        self.A = nn.Parameter(torch.randn(4, 9).double())
        self.B = nn.Parameter(torch.randn(6, 4).double())
        self.reads_twice = reads_twice

    def forward(self, x):
        y = x @ self.A.T @ self.B.T
        return y + self.A.sum() if self.reads_twice else y


class Gated(nn.Module):
    """down(tanh(gate(x)) * up(x)): positive scales pass from the units of ``up`` to ``down``."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(6, 5).double(), nn.Linear(6, 5).double()
        self.down = nn.Linear(5, 3).double()

    def forward(self, x):
        return self.down(torch.tanh(self.gate(x)) * self.up(x))


class Network(nn.Module):
    """Both, one behind the other: 9 -> 4 -> 6, tanh, 6 -> 5 -> 3."""

    def __init__(self, reads_twice=False):
        super().__init__()
        self.low, self.gated = LowRank(reads_twice), Gated()

    def forward(self, x):
        return self.gated(torch.tanh(self.low(x)))


def network(seed=0, **options):
    torch.manual_seed(seed)
    return Network(**options)


def factor(node):
    """The node of the parameter P in a product x @ P.T."""
    if node.target is not operator.matmul or node.args[1].target is not getattr:
        return None
    parameter, attribute = node.args[1].args
    return parameter if parameter.op == "get_attr" and attribute == "T" else None


def low_rank_pairs(trace):
    """x @ A.T @ B.T, where nothing else uses A, B or the features between."""
    found, left_out = [], []
    for node in trace.graph.nodes:
        for user in trace.users(node):
            parameters = (factor(node), factor(user))
            if None in parameters or user.args[0] is not node:
                continue
            pair = tuple(parameter.target for parameter in parameters)
            if any(len(trace.users(value)) > 1 for value in (node, *parameters)):
                left_out.append(LeftOut(pair, f"{pair[0]} is used elsewhere too"))
                continue
            width, fan_in = trace.model.get_parameter(pair[0]).shape
            found.append(
                Site(
                    name=" -> ".join(pair),
                    incoming=(MatrixView(pair[0]),),
                    outgoing=(MatrixView(pair[1]),),
                    between=Identity(),
                    group="GL",
                    width=width,
                    layers=pair,
                    fan_in=fan_in,
                    plain=True,
                    homogeneous=True,
                )
            )
    return Findings(found, left_out)


def gated_units(trace):
    """A product of two values into one layer, of which one is a layer's output as it is."""
    found = []
    for down in trace.layers():
        product = down.args[0]
        if product.target is not operator.mul or len(trace.users(product)) > 1:
            continue
        for value in product.args:
            if not trace.is_layer(value) or len(trace.users(value)) > 1:
                continue
            up = str(value.target)
            bias = MatrixView(f"{up}.bias", columns=())
            found.append(
                Site(
                    name=f"{up} -> {down.target}",
                    incoming=(MatrixView(f"{up}.weight", bias=bias),),
                    outgoing=(MatrixView(f"{down.target}.weight"),),
                    between=None,
                    group="positive",
                    width=trace.model.get_submodule(up).out_features,
                    layers=(up, str(down.target)),
                    labels=("a gate",),
                    homogeneous=True,
                )
            )
    return Findings(found)


PAIR, UNIT = ("low.A", "low.B"), ("gated.up", "gated.down")


@pytest.fixture
def registered(monkeypatch):
    for finder in (low_rank_pairs, gated_units):
        monkeypatch.setitem(FINDERS, finder.__name__, finder)


def teleporting(model, action, base=None, **options):
    base = torch.optim.SGD(model.parameters(), 1e-2) if base is None else base
    return TeleportingOptimizer(base, model, LOSS, action, search=QUICK, **options)


def test_without_its_finder_no_such_site_is_known():
    model = network()
    assert not set(FINDERS) & {"low_rank_pairs", "gated_units"}
    assert find_sites(model).found == ()
    with pytest.raises(UserError, match="expected a model with a place for a group to act"):
        teleporting(model, "auto")


def test_the_sites_are_found_and_reported_and_no_reason_contradicts_them(registered):
    sites = find_sites(network())
    assert [site.layers for site in sites.found] == [PAIR, UNIT]
    text = sites.report()
    exact = "    linear: exact for all data\n    rescaling: exact for all data"
    assert f"low.A -> low.B: 4 units, nothing between\n{exact}" in text
    assert "gated.up -> gated.down: 5 units, a gate between\n    rescaling: exact" in text
    names = [out.names for out in sites.left_out]
    assert names == [("gated.gate", "gated.down")], "the units' own way alone is left out"
    assert [site.layers for site in find_sites(network(), [PAIR]).found] == [PAIR]


def test_a_finder_says_why_it_leaves_a_pair_out(registered):
    sites = find_sites(network(reads_twice=True))
    assert [site.layers for site in sites.found] == [UNIT]
    assert LeftOut(PAIR, "low.A is used elsewhere too") in sites.left_out
    with pytest.raises(UserError, match=r"low\.A is used elsewhere too: name .'gated\.up'"):
        find_sites(network(reads_twice=True), [PAIR])


def test_a_site_that_is_one_in_a_single_mode_is_left_out(monkeypatch):
    def only_in_training(trace):
        found = low_rank_pairs(trace)
        seen.append(trace)
        return found if len(seen) == 1 else Findings(())  # training comes first

    seen = []
    monkeypatch.setitem(FINDERS, "only_in_training", only_in_training)
    sites = find_sites(network())
    assert sites.found == ()
    assert LeftOut(PAIR, "they are such a site only in training mode") in sites.left_out


MOVED = {
    "auto": {*PAIR, "gated.up.weight", "gated.up.bias", "gated.down.weight"},
    "linear": set(PAIR),
    "rescaling": {*PAIR, "gated.up.weight", "gated.up.bias", "gated.down.weight"},
}


@pytest.mark.parametrize("action", MOVED)
def test_a_teleport_moves_them_and_keeps_the_output_on_fresh_data(registered, action):
    model, batch = network(), data(8)
    start = copy.deepcopy(model)
    optimizer = teleporting(model, action)
    move = optimizer.teleport(*batch)
    differing = {
        name
        for name, value in model.named_parameters()
        if not torch.equal(value, start.get_parameter(name))
    }
    assert differing == MOVED[action]
    assert set(optimizer.target.moving(action)) == MOVED[action]
    fresh = data(50, seed=7).x
    torch.testing.assert_close(model(fresh), start(fresh), rtol=1e-10, atol=1e-12)
    assert move.invariance_error() < 1e-12
    assert move.invariance_error(fresh) < 1e-12
    norms = [
        sum(
            g.square().sum() for g in torch.autograd.grad(LOSS(m(batch.x), batch.y), m.parameters())
        )
        for m in (start, model)
    ]
    assert norms[1] > 1.01 * norms[0]


def test_auto_lets_gl_act_between_the_matrices_and_scales_on_the_units(registered):
    optimizer = teleporting(network(), "auto")
    acting = optimizer.orbit(*data(8)).acting
    assert [site.layers for site, _ in acting] == [PAIR, UNIT]
    assert [type(action) for _, action in acting] == [LinearAction, RescalingAction]


@pytest.mark.parametrize("action", MOVED)
def test_a_gradient_transported_is_the_gradient_at_the_new_point(registered, action):
    model, batch = network(), data(8)
    base = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    optimizer = teleporting(model, action, base, buffers="transport")
    LOSS(model(batch.x), batch.y).backward()
    optimizer.step()
    optimizer.teleport(*batch)
    gradients = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        momentum = base.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(momentum, gradient, rtol=1e-9, atol=1e-12)


def test_a_learned_optimizer_scales_the_units_that_a_layer_uses(registered):
    """What the pair of matrices is given no layer is given, so m2 does not see it."""
    model, batch = network(), data(8)
    optimizer = LearnedOptimizer(model, build())
    loss = None
    for _ in range(3):
        optimizer.zero_grad()
        loss = LOSS(model(batch.x), batch.y)
        loss.backward()
        optimizer.step()
        move = optimizer.teleportation
        assert move.invariance_error() < 1e-12
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        moved = {
            name
            for name, before, after in zip(names, move.before, move.after, strict=True)
            if not torch.equal(before, after)
        }
        assert moved == {"gated.up.weight", "gated.up.bias", "gated.down.weight"}
    assert "rescaling: 3 steps" in optimizer.report()
    assert "low.A -> low.B" in optimizer.report()
    with_pair_alone = LearnedOptimizer(model, build(), sites=[PAIR])
    with_pair_alone.zero_grad()
    LOSS(model(batch.x), batch.y).backward()
    with_pair_alone.step()
    assert with_pair_alone.teleportation is None


def chain(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).to(dtype)


def backwards(trace):
    findings = between_layers(trace)
    return Findings(findings.found[::-1], findings.left_out)


def test_sites_act_in_the_order_of_the_data_flow_whatever_a_finder_gives(monkeypatch):
    optimizers = [teleporting(chain(), "pre_activation")]
    monkeypatch.delitem(FINDERS, "between_layers")
    monkeypatch.setitem(FINDERS, "backwards", backwards)
    optimizers.append(teleporting(chain(), "pre_activation"))
    for optimizer in optimizers:
        assert [site.layers for site in optimizer.target.sites.found] == [("0", "2"), ("2", "4")]
        assert optimizer.teleport(*data(6)).invariance_error() < 1e-10
    moved = [list(optimizer.moving) for optimizer in optimizers]
    assert all(map(torch.equal, *moved))


def test_sites_of_several_finders_stand_in_the_order_of_the_data_flow(registered, monkeypatch):
    finders = dict(FINDERS)
    for order in (list(finders), list(finders)[::-1]):
        for name in order:
            monkeypatch.delitem(FINDERS, name)
            monkeypatch.setitem(FINDERS, name, finders[name])
        assert [site.layers for site in find_sites(network()).found] == [PAIR, UNIT]


def raises(trace):
    raise KeyError("nothing\nof that name")


def misfit(**options):
    site = {"incoming": (MatrixView("0.weight"),), "outgoing": (MatrixView("2.weight"),),
        "between": None, "group": "positive", "width": 7, "layers": ("0", "2")}  # fmt: skip
    return lambda trace: Findings([Site(**{"name": "0 -> 2", **site, **options})])


BAD = {
    "raises": (raises, "got KeyError: 'nothing\\nof that name'"),
    "none": (lambda trace: None, "got AttributeError"),
    "a list": (lambda trace: [], "got AttributeError"),
    "no sites": (lambda trace: Findings(["0 -> 2"]), "got a str"),
    "no reasons": (lambda trace: Findings((), [(("0",), "why")]), "got a tuple"),
    "no such parameter": (
        misfit(incoming=(MatrixView("1.weight"),)), "where the model has no parameter 1.weight"
    ),
    "another width": (misfit(width=6), "where 0.weight has 7 units, not 6"),
    "another outgoing": (
        misfit(outgoing=(MatrixView("4.weight"),)), "where 4.weight has 6 units, not 7"
    ),
    "another shape": (
        misfit(outgoing=(MatrixView("2.weight", (0,), (1, 2), (6, 5, 5)),)),
        "where the view of 2.weight does not fit its shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("finder", "words"), BAD.values(), ids=BAD)
def test_a_finder_that_fails_is_named_in_one_line(monkeypatch, finder, words):
    monkeypatch.setitem(FINDERS, "mine", finder)
    for call in (
        lambda: find_sites(chain()),
        lambda: teleporting(chain(), "auto"),
        lambda: LearnedOptimizer(chain(), build()),
    ):
        with pytest.raises(UserError) as error:
            call()
        text = str(error.value)
        assert text.startswith("expected the finder 'mine' to give Findings of sites that the mo")
        assert words in text
        assert "\n" not in text
        assert len(text) < 300
