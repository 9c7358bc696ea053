"""Actions, teleports and searches on hostile numbers: refused by ``refused``, or in one line."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from fuzz_cases import attempt, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt.symmetry import ACTIONS, GradientAscent, LayerInput, make_action, teleport
from metaopt.symmetry.chain import Identity, Layer, LayerChain, LeakyReLU
from metaopt.symmetry.level_set import LevelSetTeleport

ENTRIES = (
    0.0, 1.0, -1.0, 0.3, 1e-30, 1e30, -1e38, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
sizes = st.integers(0, 3)
kinds = st.sampled_from((torch.float32, torch.float64))
activations = st.sampled_from((LeakyReLU(0.1), LeakyReLU(0.0), LeakyReLU(1e-30), Identity()))
numbers = st.floats() | st.integers(-3, 9) | st.sampled_from((0.0, 1e308, 10**30, -1e308))


def tensor(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random entries, one of them anything."""
    seed = draw(st.integers(0, 3))
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if drawn.numel() and draw(st.booleans()):
        drawn.view(-1)[draw(st.integers(0, drawn.numel() - 1))] = draw(st.sampled_from(ENTRIES))
    return drawn * draw(st.sampled_from((1.0, 1.0, 0.0, 1e-30, 1e30)))


@st.composite
def sites(draw: st.DrawFn) -> dict[str, Any]:
    """What an action acts on; the element rarely does not fit, and there may be no sample."""
    inputs, width, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    samples = draw(sizes)
    batch = draw(st.sampled_from(((), (), (2,), (0,))))
    dtype = draw(kinds)
    biased = draw(st.booleans())
    trailing = draw(st.sampled_from(((width,), (width, width), (width + 1,), ())))
    return {
        "incoming": Layer(
            tensor(draw, (*batch, width, inputs), dtype),
            tensor(draw, (*batch, width), dtype) if biased else None,
        ),
        "outgoing": Layer(tensor(draw, (*batch, outputs, width), dtype)),
        "h": tensor(draw, (*batch, inputs, samples), dtype),
        "element": tensor(draw, (*batch, *trailing), torch.float64),
    }


@fuzzed(150, 1500)
@given(st.sampled_from(sorted(ACTIONS)), sites(), activations, st.sampled_from((0.0, 1e-3)))
def test_an_action(name: str, site: dict[str, Any], activation: Any, damping: float) -> None:
    options = {"damping": damping} if name == "pre_activation" else {}
    incoming, outgoing = site["incoming"], site["outgoing"]
    before = [t.clone() for layer in (incoming, outgoing) for t in layer if t is not None]
    move, complaint = attempt(
        lambda: make_action(name, **options).act(
            site["element"], incoming, outgoing, LayerInput(site["h"]), activation
        )
    )
    own = [t for layer in (incoming, outgoing) for t in layer if t is not None]
    for a, b in zip(own, before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    if complaint is not None:
        return
    taken = ~move.refused
    for layer in (move.incoming, move.outgoing):
        finite = layer.weight.isfinite().all(dim=-1).all(dim=-1)
        assert bool(finite[taken].all() if finite.dim() else finite or not taken)


@fuzzed(60, 500)
@given(
    st.sampled_from([*ACTIONS, "", "x", "POST_ACTIVATION"]), numbers, numbers, st.text(max_size=3)
)
@example("rescaling", 0.1, 0.0, "exact")
def test_making_an_action(name: str, defect: float, damping: float, exponential: str) -> None:
    for options in ({}, {"max_defect": defect}, {"damping": damping}, {"exponential": exponential}):
        attempt(lambda options=options: make_action(name, **options))


@fuzzed(60, 500)
@given(numbers, numbers, numbers, numbers, numbers)
def test_making_a_search(iterations, size, halvings, most, ratio) -> None:
    for make in (
        lambda: GradientAscent(iterations, size, halvings, most=most, most_ratio=ratio),
        lambda: LevelSetTeleport(iterations, size, most, halvings, ratio),
    ):
        attempt(make)


@st.composite
def chains(draw: st.DrawFn) -> tuple[LayerChain, list[Layer], torch.Tensor]:
    depth, dtype = draw(st.integers(1, 3)), draw(kinds)
    widths = [draw(st.integers(1, 3)) for _ in range(depth + 1)]
    batch = draw(st.sampled_from(((1,), (2,))))
    chain = LayerChain(
        tuple(draw(activations) for _ in range(depth)), (False,) * depth, batch_dims=1
    )
    layers = [Layer(tensor(draw, (*batch, o, i), dtype)) for i, o in pairwise(widths)]
    return chain, layers, tensor(draw, (*batch, widths[0], draw(sizes)), dtype)


@fuzzed(60, 600)
@given(st.sampled_from(sorted(ACTIONS)), chains(), st.integers(0, 3), st.floats(0, 1e3))
def test_a_teleport(name: str, parts: Any, seed: int, size: float) -> None:
    chain, layers, x = parts
    action = make_action(name)
    generator = torch.Generator().manual_seed(seed)
    elements = []
    for site in chain.sites:
        width = layers[site.incoming].weight.shape[-2]
        shape = (x.shape[0], width) if action.diagonal else (x.shape[0], width, width)
        elements.append(size * torch.randn(shape, generator=generator, dtype=torch.float64))
    move, complaint = attempt(lambda: teleport(chain, layers, LayerInput(x), elements, action))
    if complaint is None:
        assert move.hold(layers, 0.1).defect().shape == move.refused.shape
