"""A zoo of networks: the sites of each are those counted by hand, and a random move keeps it."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from symmetry_cases import CASES, UNITS, installed, randomised
from torch import Tensor, nn

import metaopt
from metaopt.symmetry import Symmetries
from metaopt.symmetry.element import Element
from metaopt.symmetry.moves import orbit_of, write
from metaopt.symmetry.orbit import Orbit
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.verify import random_elements

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("default")

NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(not installed(case), reason=f"{case.needs} is missing")
    )
    for name, case in CASES.items()
]


@cache
def found(name: str) -> tuple[nn.Module, Symmetries, Any]:
    """A network of the zoo, its sites, and fresh inputs that they were not found on."""
    case = CASES[name]
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = randomised(case.model())
    generator = torch.Generator().manual_seed(3)
    sites = metaopt.symmetries(model, case.inputs(generator))
    return model, sites, case.inputs(generator)


def of_size_one(orbit: Orbit, start: list[Tensor]) -> list[Element]:
    """A random T of norm 1 for each site and head."""
    elements = random_elements(orbit, start, 1.0, 5)
    sized = []
    for element, (site, _) in zip(elements, orbit.acting, strict=True):
        flat = element.values.flatten(site.head_dims)
        norm = flat.norm(dim=-1, keepdim=True)
        sized.append(element.with_values((flat / norm).reshape(element.values.shape)))
    return sized


@pytest.mark.parametrize("name", NAMES)
def test_the_sites_are_those_counted_by_hand(name: str) -> None:
    _, sites, _ = found(name)
    assert sites.verified
    assert dict(Counter(site.kind for site in sites)) == CASES[name].counts


@pytest.mark.parametrize("name", NAMES)
def test_a_random_move_at_every_site_keeps_the_network_on_fresh_data(name: str) -> None:
    model, sites, x = found(name)
    orbit = orbit_of(sites)
    outputs = NetworkOutputs(model, x)
    start = [model.get_parameter(n).detach().double() for n in orbit.names]
    elements = of_size_one(orbit, start)
    before = outputs({})
    moved = orbit.move(start, elements)
    after = outputs(dict(zip(orbit.names, moved.parameters, strict=True)))
    assert outputs.precise
    assert not moved.rejected
    assert (after - before).norm() <= 1e-12 * before.norm()
    changed = [not torch.equal(a, b) for a, b in zip(start, moved.parameters, strict=True)]
    assert all(changed), "a parameter of a site did not move"


@pytest.mark.parametrize("name", NAMES)
def test_a_random_move_of_float32_weights_changes_the_output_by_rounding(name: str) -> None:
    model, sites, x = found(name)
    moved = copy.deepcopy(model)
    orbit = orbit_of(sites)
    start = [moved.get_parameter(n).detach() for n in orbit.names]
    assert all(p.dtype == torch.float32 for p in start)
    write(moved, orbit, of_size_one(orbit, start))
    one, other = (NetworkOutputs(m, x) for m in (model, moved))
    one.precise = other.precise = False
    before, after = one({}), other({})
    assert (after - before).norm() <= 1e-5 * before.norm()


@pytest.mark.parametrize("name", NAMES)
def test_half_a_move_changes_the_network(name: str) -> None:
    """So that a site that moves nothing that counts cannot pass the tests above."""
    model, sites, x = found(name)
    outputs = NetworkOutputs(model, x)
    larger = {n: 5 * p.detach().double() for n, p in model.named_parameters() if p.dim() > 1}
    before = outputs(larger)
    for site in sites:
        orbit = orbit_of([site])
        start = {**{n: model.get_parameter(n).detach().double() for n in orbit.names}, **larger}
        element = of_size_one(orbit, [start[n] for n in orbit.names])[0]
        g = orbit.acting[0].action.project(element.dense(), site)
        half = dict(start)
        for view in site.incoming:
            view.write(half, torch.linalg.matrix_exp(g) @ view.read(half))
        assert (outputs(half) - before).norm() > 1e-5 * before.norm(), site.name


@pytest.mark.parametrize("name", ["llama by hand", "geglu", "vit"])
def test_the_signs_of_nonzero_scales_keep_the_network_too(name: str) -> None:
    model, sites, x = found(name)
    outputs = NetworkOutputs(model, x)
    weights = {n: p.detach().double() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for site in sites:
        if site.group == "nonzero":
            signs = torch.randint(0, 2, (site.width,), generator=generator).double() * 2 - 1
            for view in site.incoming:
                view.write_augmented(weights, signs[:, None] * view.read_augmented(weights))
            for view in site.outgoing:
                view.write(weights, view.read(weights) * signs)
    before = outputs({})
    assert (outputs(weights) - before).norm() <= 1e-12 * before.norm()


def test_without_inputs_nothing_was_verified_and_the_print_says_so() -> None:
    model, sites, _ = found("encoder, norms first")
    proposed = metaopt.symmetries(model)
    assert not proposed.verified
    assert {site.name for site in proposed} == {site.name for site in sites}
    assert "nothing was verified: give inputs" in str(proposed).splitlines()[0]
    assert "each verified" in str(sites).splitlines()[0]


@pytest.mark.parametrize(
    "name",
    [p for p in NAMES if p.values[0] in ("bert", "gpt2", "llama", "phi3", "gpt-neox", "adapters")],
)
def test_what_is_known_by_class_is_right_without_inputs(name: str) -> None:
    model, sites, _ = found(name)
    known = metaopt.symmetry.network_sites.known_symmetries(model)
    groups = {site.name: (site.group, site.planes) for site in sites}
    assert known
    for site in known:
        assert groups[site.name] == (site.group, site.planes)


def test_finding_changes_neither_the_network_nor_the_random_numbers() -> None:
    case = CASES["resnet"]
    torch.manual_seed(1)
    model = randomised(case.model())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    metaopt.symmetries(model, case.inputs(torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_print_counts_free_directions_by_kind() -> None:
    _, sites, _ = found("llama by hand")
    text = str(sites)
    assert "values and outputs: 2 sites, 64 free directions" in text  # 2 groups of GL(4), twice
    assert "queries and keys: 2 sites, 16 free directions" in text  # 2 planes, 2 groups, twice
    assert "gated units: 2 sites, 20 free directions" in text
    assert "norm gains: 5 sites, 80 free directions" in text
    assert text.startswith(f"11 sites, {64 + 16 + 20 + 80} free directions")
    assert sites.directions == 180
    assert "attention V-O: 2 × GL(4)" in text
    assert "attention Q-K: 2 × 2 scaled rotations" in text
    assert repr(sites) == "11 sites, 180 free directions, verified"


def test_symmetries_are_a_sequence() -> None:
    _, sites, _ = found("resnet")
    assert len(sites) == len(list(sites)) == 5
    assert sites[0] in sites
    assert isinstance(sites[:2], Symmetries)
    assert len(sites[:2]) == 2
    assert sites.of_kind(UNITS).sites == sites.sites
    with pytest.raises(metaopt.UserError, match="expected a kind of units, got 'heads'"):
        sites.of_kind("heads")
