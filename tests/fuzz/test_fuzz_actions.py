"""Actions, teleportations and searches on hostile numbers: rejected, or refused in one line."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from fuzz_cases import attempt, fuzzed
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt.symmetry import (
    ACTIONS,
    Element,
    GradientAscent,
    Identity,
    Layer,
    LayerChain,
    LayerInput,
    LeakyReLU,
    LevelSetTeleport,
    Teleportation,
    chain_orbit,
    make_action,
)
from metaopt.symmetry.teleportation import ChainOutputs

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
def elements(draw: st.DrawFn, batch: tuple[int, ...], width: int) -> Element:
    """In any form; one that rarely does not fit."""
    trailing = draw(st.sampled_from(((width,), (width, width), (width + 1,), ())))
    values = tensor(draw, (*batch, *trailing), torch.float64)
    if draw(st.booleans()):
        return Element(values, diagonal=len(trailing) == 1)
    basis = torch.eye(width, dtype=torch.float64).expand(*batch, width, width)
    return Element(values, basis if draw(st.booleans()) else None, diagonal=draw(st.booleans()))


@st.composite
def sites(draw: st.DrawFn) -> dict[str, Any]:
    """What an action acts on; the element rarely does not fit, and there may be no sample."""
    inputs, width, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    samples = draw(sizes)
    batch = draw(st.sampled_from(((), (), (2,), (0,))))
    dtype = draw(kinds)
    biased = draw(st.booleans())
    return {
        "incoming": Layer(
            tensor(draw, (*batch, width, inputs), dtype),
            tensor(draw, (*batch, width), dtype) if biased else None,
        ),
        "outgoing": Layer(tensor(draw, (*batch, outputs, width), dtype)),
        "h": tensor(draw, (*batch, inputs, samples), dtype),
        "element": draw(elements(batch, width)),
    }


@fuzzed(150, 1500)
@given(
    st.sampled_from(sorted(ACTIONS)),
    sites(),
    activations,
    st.sampled_from((0.0, 1e-3)),
    st.booleans(),
)
def test_an_action(
    name: str, parts: dict[str, Any], activation: Any, damping: float, on_data: bool
) -> None:
    options = {"damping": damping} if name == "pre_activation" else {}
    layers = parts["incoming"], parts["outgoing"]
    biased = tuple(layer.bias is not None for layer in layers)
    chain = LayerChain((activation, Identity()), biased, layers[0].weight.dim() - 2)
    own = chain.parameters(layers)
    before = [t.clone() for t in own]
    (site,) = chain.sites(own)
    inputs = LayerInput(parts["h"]) if on_data else None
    moved, complaint = attempt(
        lambda: make_action(name, **options).move(
            parts["element"], site, dict(zip(chain.names, own, strict=True)), inputs
        )
    )
    for a, b in zip(own, before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    if complaint is not None:
        return
    taken = ~moved.rejected
    assert (moved.invariance_error is None) == (inputs is None)
    for name, start in zip(chain.names, before, strict=True):
        new = moved.weights[name].flatten(start_dim=chain.batch_dims)
        assert new.isfinite().all(dim=-1)[taken].all()
        old = start.flatten(start_dim=chain.batch_dims)[~taken]
        torch.testing.assert_close(new[~taken], old, rtol=0, atol=0, equal_nan=True)


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
def test_making_a_search(iterations, size, backtracks, most, ratio) -> None:
    for make in (
        lambda: GradientAscent(iterations, size, backtracks, max_value=most, max_ratio=ratio),
        lambda: LevelSetTeleport(iterations, size, most, backtracks, ratio),
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
def test_a_teleportation(name: str, parts: Any, seed: int, size: float) -> None:
    chain, layers, x = parts
    parameters = chain.parameters(layers)
    orbit = chain_orbit(chain, parameters, LayerInput(x), make_action(name))
    generator = torch.Generator().manual_seed(seed)
    steps = [
        zero.map(lambda t: size * torch.randn(t.shape, generator=generator, dtype=t.dtype))
        for zero in orbit.identity(parameters)
    ]
    point, complaint = attempt(lambda: orbit.move(parameters, steps))
    if complaint is None:
        move = Teleportation(
            ChainOutputs(chain, x), parameters, point.parameters, point.rejected
        ).revert_rounding(parameters, 0.1)
        shape = x.shape[:1] if chain.pairs else ()
        assert move.rejected.shape == shape
        assert move.invariance_error().shape == move.reverted.shape == x.shape[:1]
