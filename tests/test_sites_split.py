"""Units whose values are split, sliced, gated or shuffled: each part has a site of its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from symmetry_cases import GATED, PAIRS, QK, UNITS, VO, ShuffleNet, randomised
from torch import Tensor, nn

import metaopt
from metaopt.symmetry import Symmetries
from metaopt.symmetry.moves import orbit_of
from metaopt.symmetry.network_sites import known_symmetries
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.verify import random_elements

torch.set_num_threads(1)
Forward = Callable[..., Tensor]


class Net(nn.Module):
    """A forward written as a function of the module and x."""

    def __init__(self, forward: Forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(forward: Forward, **sizes: Any) -> nn.Module:
    """A network in float64 with layers of given sizes: two numbers, or a module."""
    torch.manual_seed(1)
    modules = {
        name: own if isinstance(own, nn.Module) else nn.Linear(*own) for name, own in sizes.items()
    }
    return randomised(Net(forward, **modules).double())


@torch.no_grad()
def change(model: nn.Module, sites: Symmetries, x: Tensor) -> float:
    """The relative change of what a network gives by a random move at all sites."""
    orbit = orbit_of(sites)
    outputs = NetworkOutputs(model, x)
    start = [model.get_parameter(name).detach() for name in orbit.names]
    before = outputs({})
    moved = orbit.move(start, random_elements(orbit, start, 0.5, 7)).parameters
    assert all(not torch.equal(a, b) for a, b in zip(start, moved, strict=True))
    after = outputs(dict(zip(orbit.names, moved, strict=True)))
    return float((after - before).norm() / before.norm())


def names(sites: Symmetries) -> dict[str, str]:
    """The sites by name, each with its kind and the number of its free directions."""
    return {site.name: f"{site.kind} {site.directions}" for site in sites}


def two(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(a.relu()) + m.v(F.leaky_relu(b))


def joined_again(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).relu().split([4, 8], dim=-1)
    return m.u(torch.cat([a, b], -1))


def swapped(m: Any, x: Tensor) -> Tensor:
    a, b = torch.split(m.fc(x), (4, 8), -1)
    return m.u(torch.cat([b.relu(), a.relu()], -1))


def added(m: Any, x: Tensor) -> Tensor:
    a, b, c = torch.chunk(m.fc(x), 3, dim=-1)
    return m.u((a + b).relu()) + m.v(c.relu())


def overlapping(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x).relu()
    return m.u(h[..., :8]) + m.v(h[..., 4:])


def shifted(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x)
    return m.u((h[..., :8] + h[..., 4:]).relu())


def uneven(m: Any, x: Tensor) -> Tensor:
    a, b, c = m.fc(x).relu().split(5, -1)
    return m.u(a) + m.v(b) + m.w(c)


def half_of_it(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(a.relu()) + m.v(b.tanh())


def narrowed(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x).relu()
    return m.u(h.narrow(-1, 2, 4)) + m.v(torch.narrow(h, -1, 6, 6))


def by_size(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x)
    middle = h.size(-1) // 3
    return m.u(h[..., :middle].relu()) + m.v(h[..., middle:].relu())


def nothing_between(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(a) + m.v(b)


def whole_too(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x).relu()
    return m.u(h[..., :3]) + m.v(h)


def gate(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(F.silu(a) * b)


def gate_of_relu(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(a.relu() * b)


def after_a_gate(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u((a * b.sigmoid()).relu())


ROWS = (6, 5)
POSITIONS = (2, 3, 5)
HALVES = {"fc": (5, 12), "u": (6, 2), "v": (6, 2)}
CASES: dict[str, tuple[Forward, dict[str, Any], tuple[int, ...], dict[str, str]]] = {
    "two readers": (two, HALVES, POSITIONS,
        {"fc[0:6] -> u": f"{UNITS} 6", "fc[6:12] -> v": f"{UNITS} 6"}),
    "split and joined again": (joined_again, {"fc": (5, 12), "u": (12, 2)}, ROWS,
        {"fc -> u": f"{UNITS} 12"}),
    "split and joined in another order": (swapped, {"fc": (5, 12), "u": (12, 2)}, ROWS,
        {"fc[0:4] -> u": f"{UNITS} 4", "fc[4:12] -> u": f"{UNITS} 8"}),
    "parts that are added": (added, {"fc": (5, 12), "u": (4, 2), "v": (4, 2)}, ROWS,
        {"fc[0:4], fc[4:8] -> u": f"{UNITS} 4", "fc[8:12] -> v": f"{UNITS} 4"}),
    "slices that overlap": (overlapping, {"fc": (5, 12), "u": (8, 2), "v": (8, 2)}, POSITIONS,
        {"fc[0:4] -> u": f"{UNITS} 4", "fc[4:8] -> u, v": f"{UNITS} 4",
         "fc[8:12] -> v": f"{UNITS} 4"}),
    "slices that overlap and are added": (shifted, {"fc": (5, 12), "u": (8, 2)}, ROWS,
        {"fc[0:4], fc[4:8], fc[8:12] -> u, u": f"{UNITS} 4"}),
    "uneven parts": (uneven, {"fc": (5, 12), "u": (5, 2), "v": (5, 2), "w": (2, 2)}, ROWS,
        {"fc[0:5] -> u": f"{UNITS} 5", "fc[5:10] -> v": f"{UNITS} 5",
         "fc[10:12] -> w": f"{UNITS} 2"}),
    "a part that ends": (half_of_it, HALVES, ROWS, {"fc[0:6] -> u": f"{UNITS} 6"}),
    "narrow": (narrowed, {"fc": (5, 12), "u": (4, 2), "v": (6, 2)}, ROWS,
        {"fc[2:6] -> u": f"{UNITS} 4", "fc[6:12] -> v": f"{UNITS} 6"}),
    "a size from the value": (by_size, {"fc": (5, 12), "u": (4, 2), "v": (8, 2)}, POSITIONS,
        {"fc[0:4] -> u": f"{UNITS} 4", "fc[4:12] -> v": f"{UNITS} 8"}),
    "nothing between": (nothing_between, HALVES, POSITIONS,
        {"fc[0:6] -> u": f"{PAIRS} 36", "fc[6:12] -> v": f"{PAIRS} 36"}),
    "a part and the whole": (whole_too, {"fc": (5, 12), "u": (3, 2), "v": (12, 2)}, ROWS,
        {"fc[0:3] -> u, v": f"{UNITS} 3", "fc[3:12] -> v": f"{UNITS} 9"}),
    "a gate of silu": (gate, {"fc": (5, 12), "u": (6, 2)}, POSITIONS,
        {"fc[6:12] -> u": f"{GATED} 6"}),
    "a gate of relu": (gate_of_relu, {"fc": (5, 12), "u": (6, 2)}, ROWS,
        {"fc[0:6] -> u": f"{UNITS} 6", "fc[6:12] -> u": f"{GATED} 6"}),
    "relu after a gate": (after_a_gate, {"fc": (5, 12), "u": (6, 2)}, ROWS,
        {"fc[0:6] -> u": f"{UNITS} 6"}),
    "nn.GLU": (lambda m, x: m.u(m.glu(m.fc(x))), {"fc": (5, 12), "glu": nn.GLU(), "u": (6, 2)},
        POSITIONS, {"fc[0:6] -> u": f"{GATED} 6"}),
    "F.glu": (lambda m, x: m.u(F.glu(m.fc(x), -1)), {"fc": (5, 12), "u": (6, 2)}, ROWS,
        {"fc[0:6] -> u": f"{GATED} 6"}),
    "a gate of channels": (
        lambda m, x: m.u(F.glu(m.conv(x), 1).flatten(1)),
        {"conv": nn.Conv1d(3, 8, 2), "u": (12, 2)}, (2, 3, 4), {"conv[0:4] -> u": f"{GATED} 4"}),
    "squeeze and excite": (
        lambda m, x: (lambda h: m.u(h * m.b(m.a(h.mean((2, 3))).relu()).sigmoid()[:, :, None, None])
            )(m.conv(x).relu()),
        {"conv": nn.Conv2d(3, 6, 3), "a": (6, 4), "b": (4, 6), "u": nn.Conv2d(6, 2, 1)},
        (2, 3, 5, 5), {"conv -> a, u": f"{UNITS} 6", "a -> b": f"{UNITS} 4"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_part_of_a_split_has_the_site_that_was_counted(case: str) -> None:
    forward, sizes, shape, expected = CASES[case]
    model = built(forward, **sizes)
    found = metaopt.symmetries(model, drawn(*shape))
    assert names(found) == expected
    assert change(model, found, drawn(*shape, seed=1)) <= 1e-12
    assert {site.name for site in metaopt.symmetries(model)} == set(expected)
    larger = {n: 3 * p.detach() for n, p in model.named_parameters()}
    outputs = NetworkOutputs(model, drawn(*shape, seed=1))
    before = outputs(larger).detach()
    for site in found:  # one side alone changes it
        half = dict(larger)
        for view in site.incoming:
            view.write_augmented(half, 2 * view.read_augmented(half))
        assert (outputs(half).detach() - before).norm() > 1e-6 * before.norm(), site.name


def of_positions(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, 1)
    return m.u(a.relu() + b.sigmoid())


def mixed_up(m: Any, x: Tensor) -> Tensor:
    """Chunks of positions, joined as if they were parts of the units."""
    a, b = m.fc(x).chunk(2, 1)
    return m.u(torch.cat([a.relu(), b.sigmoid()], 1))


def of_samples(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2)
    return m.u(a.relu() + b.relu())


def single(m: Any, x: Tensor) -> Tensor:
    return m.u(torch.stack(m.fc(x).relu().unbind(-1), -1))


def at_steps(m: Any, x: Tensor) -> Tensor:
    return m.u(m.fc(x).relu()[..., ::2])


def by_data(m: Any, x: Tensor) -> Tensor:
    h = m.fc(x).relu()
    return m.u(h[..., : x.shape[0] - 2])


def squared(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(a.relu() * a.relu() + b.tanh())


def of_rows(m: Any, x: Tensor) -> Tensor:
    a, b = m.conv(x).relu().chunk(2, 2)
    return m.u((a + b).flatten(1))


def of_blocks(m: Any, x: Tensor) -> Tensor:
    return m.u(m.conv(x).relu().flatten(1).chunk(2, 1)[0])


def added_and_multiplied(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u((a * b).relu()) + m.v((a + b).relu())


def upon_itself(m: Any, x: Tensor) -> Tensor:
    a = m.fc(x).relu()
    return m.v(a + m.u(a).relu())


def others_values(m: Any, x: Tensor) -> Tensor:
    a, b = m.fc(x).chunk(2, -1)
    return m.u(a.relu() + x[..., :1]) + m.v(b.relu() + 1)


CONV = {"conv": nn.Conv2d(3, 4, 3, padding=1)}


@pytest.mark.parametrize(
    ("forward", "sizes", "shape", "reason"),
    [
        (of_positions, {"fc": (5, 6), "u": (6, 2)}, (2, 4, 5), "a sum adds to it what has no"),
        (mixed_up, {"fc": (5, 6), "u": (6, 2)}, (2, 4, 5), "joins it with what has no such units"),
        (of_samples, {"fc": (5, 6), "u": (6, 2)}, (4, 5), "chunk does not surely split it along"),
        (single, {"fc": (5, 6), "u": (6, 2)}, ROWS, "into single features"),
        (at_steps, {"fc": (5, 6), "u": (3, 2)}, ROWS, "takes features at steps"),
        (by_data, {"fc": (5, 6), "u": (4, 2)}, ROWS, "takes a range of features that is not"),
        (squared, {"fc": (5, 12), "u": (6, 2)}, ROWS, ""),
        (of_rows, {**CONV, "u": (4 * 2 * 4, 2)}, (2, 3, 4, 4), "chunk does not surely split it"),
        (of_blocks, {**CONV, "u": (32, 2)}, (2, 3, 4, 4), "chunk does not surely split it"),
        (added_and_multiplied, HALVES, ROWS, "u takes units that are multiplied with themselves"),
        (upon_itself, {"fc": (5, 6), "u": (6, 6), "v": (6, 2)}, ROWS, "u makes such units of the"),
        (others_values, HALVES, ROWS, ""),
    ],
)
def test_a_split_that_is_not_along_the_units_has_no_site(
    forward: Forward, sizes: dict[str, Any], shape: tuple[int, ...], reason: str
) -> None:
    model = built(forward, **sizes)
    sites = metaopt.symmetries(model, drawn(*shape))
    assert not sites
    assert reason in str(sites)
    assert not known_symmetries(model)


class Torn(nn.Module):
    """An attention of two heads that takes its keys from a place that may cut through heads."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.num_heads, self.place = 2, place
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.qkv(x)
        parts = h[..., :8], h[..., self.place : self.place + 8], h[..., 16:]
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in parts)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_split_that_cuts_through_heads_leaves_the_heads_out() -> None:
    torch.manual_seed(0)
    x = drawn(2, 3, 8)
    whole = metaopt.symmetries(randomised(Torn(8).double()), x)
    assert [(site.kind, site.heads) for site in whole] == [(VO, 2), (QK, 2)]
    torn = metaopt.symmetries(randomised(Torn(6).double()), x)
    assert torn.kinds == (VO,)
    assert "a random move there changes what the model gives" in str(torn)


def test_chunks_of_queries_keys_and_values_are_heads_and_no_units() -> None:
    class Chunks(Torn):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                p.view(*x.shape[:2], 2, 4).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1)
            )
            weights = (q @ k.mT / 2).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))

    model, x = randomised(Chunks(8).double()), drawn(2, 3, 8)
    sites = metaopt.symmetries(model, x)
    assert [(site.kind, site.directions) for site in sites] == [(VO, 32), (QK, 32)]
    assert change(model, sites, drawn(2, 3, 8, seed=1)) <= 1e-12


def test_shuffled_channels_are_read_at_steps() -> None:
    torch.manual_seed(0)
    model = randomised(ShuffleNet().double())
    sites = metaopt.symmetries(model)
    assert any(view.at for site in sites for view in site.outgoing)
    assert change(model, sites, drawn(2, 3, 6, 6)) <= 1e-12


@pytest.mark.parametrize("shuffle", [nn.ChannelShuffle(3), lambda h: F.channel_shuffle(h, 3)])
def test_the_layers_that_shuffle_channels_are_read(shuffle: Callable[[Tensor], Tensor]) -> None:
    conv = nn.Conv2d(6, 4, 1)
    grouped = nn.Conv2d(3, 6, 1)
    model = built(lambda m, x: m.conv(shuffle(m.grouped(x).relu())), grouped=grouped, conv=conv)
    x = drawn(2, 3, 4, 4)
    sites = metaopt.symmetries(model, x)
    assert names(sites) == {f"grouped[{i}:{i + 2}] -> conv": f"{UNITS} 2" for i in (0, 2, 4)}
    assert change(model, sites, x) <= 1e-12
    model.add_module("conv", nn.Conv2d(6, 12, 1, groups=6).double())  # depthwise
    sites = metaopt.symmetries(model, x)
    assert [site.directions for site in sites] == [2, 2, 2]
    assert change(model, sites, x) <= 1e-12
    model.add_module("conv", nn.Conv2d(6, 4, 1, groups=2).double())
    sites = metaopt.symmetries(model, x)
    assert not sites
    assert "takes in its groups units at steps" in str(sites)


def test_a_part_of_a_transposed_convolution_and_of_a_norm() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.up(x).chunk(2, 1)
        c, d = m.norm(torch.cat([a.relu(), b.relu()], 1)).relu().split([2, 4], 1)
        return m.u(c) + m.v(d)

    for groups in (1, 2):
        model = built(
            forward, up=nn.ConvTranspose2d(4, 6, 2, groups=groups), norm=nn.BatchNorm2d(6),
            u=nn.Conv2d(2, 3, 1), v=nn.Conv2d(4, 3, 1),
        )  # fmt: skip
        sites = metaopt.symmetries(model, drawn(2, 4, 3, 3))
        assert names(sites) == {"norm[0:2] -> u": f"{UNITS} 2", "norm[2:6] -> v": f"{UNITS} 4"}
        assert change(model, sites, drawn(2, 4, 3, 3, seed=1)) <= 1e-12
        model.add_module("norm", nn.Identity())
        sites = metaopt.symmetries(model, drawn(2, 4, 3, 3))
        cuts = (0, 2, 6) if groups == 1 else (0, 2, 3, 6)  # groups make 0 to 2, and 3 to 5
        parts = pairwise(cuts)
        assert names(sites) == {
            f"up[{a}:{b}] -> {'v' if a else 'u'}": f"{UNITS} {b - a}" for a, b in parts
        }
        assert change(model, sites, drawn(2, 4, 3, 3, seed=1)) <= 1e-12


def test_a_split_along_a_dimension_that_may_be_of_positions_is_not_known_without_inputs() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.fc(x).chunk(2, 1)
        return m.u(a.relu()) + m.v(b.relu())

    model = built(forward, **HALVES)
    assert len(metaopt.symmetries(model, drawn(*ROWS))) == 2
    assert not known_symmetries(model)
    assert len(known_symmetries(built(two, **HALVES))) == 2


class Branching(nn.Module):
    """What torch.fx cannot trace: a branch on a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1)
        self.two, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 2:
            return x
        h = self.first(x).relu()
        a, b = h[:, :4], h[:, 4:]
        c, d = self.shuffle(torch.cat([self.one(a).relu(), b], 1)).split(4, dim=1)
        return self.last(torch.cat([c, self.two(d).relu()], dim=1))


def test_splits_are_read_from_an_export_too() -> None:
    torch.manual_seed(0)
    model = randomised(Branching().double())
    sites = metaopt.symmetries(model, drawn(2, 3, 4, 4))
    assert names(sites) == {
        "first[0:4] -> one": f"{UNITS} 4",
        "first[4:6] -> last": f"{UNITS} 2",
        "first[6:8] -> two": f"{UNITS} 2",
        "one[0:2] -> last": f"{UNITS} 2",
        "one[2:4] -> two": f"{UNITS} 2",
        "two -> last": f"{UNITS} 4",
    }
    assert change(model, sites, drawn(2, 3, 4, 4, seed=1)) <= 1e-12


def test_a_balance_of_parts_lessens_the_norm_and_keeps_the_network() -> None:
    def norm(model: nn.Module) -> float:
        return sum(float(p.detach().square().sum()) for p in model.parameters())

    for case in ("two readers", "nothing between", "slices that overlap and are added"):
        forward, sizes, shape, _ = CASES[case]
        model = built(forward, **sizes)
        before, given = norm(model), model(drawn(*shape))
        move = metaopt.balance(model, drawn(*shape))
        assert move.invariance_error < 1e-12
        assert norm(model) < before
        assert torch.allclose(model(drawn(*shape)), given)
