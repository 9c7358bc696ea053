"""Equalisation: the rounding against a naive twin, the closed form, the search, and rejections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from symmetry_cases import CASES, installed, randomised
from torch import Tensor, nn

import metaopt
from metaopt import UserError, equalize
from metaopt.symmetry import rounded, rounding_error
from metaopt.symmetry.rounding import rounded_weights

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("default")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def naive(weight: Tensor, bits: int, per: str) -> Tensor:
    """Entry by entry; the output channels are the rows."""
    levels = 2 ** (bits - 1) - 1
    result = torch.zeros_like(weight)
    rows = weight.flatten(1)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            near = {"tensor": rows, "channel": rows[i], "group": rows[i, j // 32 * 32 :][:32]}[per]
            step = near.abs().max() / levels
            result.view(rows.shape)[i, j] = torch.round(rows[i, j] / step) * step
    return result


@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
@pytest.mark.parametrize("shape", [(4, 40), (3, 5, 3, 3), (6, 33)])
@pytest.mark.parametrize("bits", [2, 5])
def test_weights_are_rounded_as_a_naive_twin_does(per: str, shape: Any, bits: int) -> None:
    weight = drawn(*shape)
    torch.testing.assert_close(rounded(weight, bits, per), naive(weight, bits, per))
    turned = weight.movedim(0, 1).contiguous()
    torch.testing.assert_close(
        rounded(turned, bits, per, channels=1), rounded(weight, bits, per).movedim(0, 1)
    )


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_the_gradient_passes_straight_through_and_that_of_the_step_is_exact(per: str) -> None:
    """With the whole numbers held, rounding is linear in the largest entry of each part."""
    weight = drawn(3, 5).double().requires_grad_()
    direction = drawn(3, 5, seed=1).double()
    (got,) = torch.autograd.grad((rounded(weight, 4, per) * direction).sum(), weight)
    levels = 7
    expected = direction.clone()
    for part in [slice(None)] if per == "tensor" else [slice(i, i + 1) for i in range(3)]:
        own = weight[part].detach()
        units = own / (own.abs().max() / levels)
        place = own.abs().argmax()
        slope = ((units.round() - units) * direction[part]).sum() / levels
        expected[part].view(-1)[place] += slope * own.view(-1)[place].sign()
    torch.testing.assert_close(got, expected)


def test_biases_norms_and_embeddings_stay() -> None:
    names = rounded_weights(CASES["gpt, tied"].model())
    assert "blocks.0.attn.c_attn.weight" in names
    assert not [n for n in names if "ln_" in n or "bias" in n or "places" in n]
    convolutions = rounded_weights(CASES["autoencoder"].model())
    assert convolutions == {"0.weight": 0, "2.weight": 0, "4.weight": 1, "6.weight": 1}
    assert "layers.0.self_attn.in_proj_weight" in rounded_weights(
        CASES["encoder, norms first"].model()
    )


def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """The network with units of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                sizes = torch.randn(parameter.shape[0], generator=generator).exp()
                parameter.mul_(sizes.view(-1, *[1] * (parameter.dim() - 1)))
    return model


def test_the_closed_form_gives_each_unit_one_range_on_both_sides() -> None:
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)))
    x = drawn(30, 9)
    before = model(x)
    result = equalize(model, x, bits=4)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    made, used = model[0].weight.abs().amax(1), model[2].weight.abs().amax(0)
    torch.testing.assert_close(made, used, rtol=1e-5, atol=0)
    assert result.error_after is not None
    assert result.error_before is not None
    assert result.error_after < result.error_before
    assert result.error_after == pytest.approx(rounding_error(model, x, bits=4), rel=1e-4)
    assert result.invariance_error is not None
    assert result.invariance_error < 1e-6


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "llama by hand", "vit", "gpt2"])
@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
def test_the_error_never_rises_and_the_network_stays(name: str, per: str) -> None:
    case = CASES[name]
    if not installed(case):
        pytest.skip(f"{case.needs} is missing")
    torch.manual_seed(1)
    model = uneven(randomised(case.model()))
    x = case.inputs(torch.Generator().manual_seed(2))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = equalize(model, x, bits=5, per=per, steps=3 if per == "tensor" else 0)
    assert result.error_before is not None
    assert result.error_after is not None
    assert result.error_after <= result.error_before
    assert result.invariance_error is not None
    assert result.invariance_error < 1e-5
    result.undo()
    for n, value in model.named_parameters():
        assert (value - start[n]).norm() <= 1e-6 * start[n].norm(), n


def test_a_search_goes_below_the_closed_form() -> None:
    case = CASES["llama by hand"]
    errors = []
    for steps in (0, 15):
        torch.manual_seed(1)
        model = uneven(randomised(case.model()))
        x = case.inputs(torch.Generator().manual_seed(2))
        errors.append(equalize(model, x, bits=5, steps=steps).error_after)
    assert errors[1] < 0.9 * errors[0]


def test_a_move_that_does_not_help_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4))
    x = drawn(30, 9)
    equalize(model, x, bits=8)
    start = [p.detach().clone() for p in model.parameters()]
    result = equalize(model, x, bits=8)
    if result.error_after == result.error_before:
        assert all(map(torch.equal, model.parameters(), start))
        assert result.move.steps == []
    again = equalize(model, x, bits=8)
    assert again.error_after == again.error_before or again.error_after < result.error_after


def test_without_inputs_nothing_is_measured() -> None:
    model = uneven(nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)))
    result = equalize(model)
    assert result.error_before is None
    assert result.error_after is None
    assert repr(result).startswith("Equalized(rounding error not measured")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits"),
        ({"bits": 17}, "expected 2 to 16 bits, got 17"),
        ({"per": "row"}, "expected a part that shares its step of tensor, channel, group"),
        ({"steps": -1}, "steps"),
        ({"steps": 3}, "expected inputs for a search, got none"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(UserError, match=message):
        equalize(model, **options)
    with pytest.raises(UserError, match="expected inputs to measure an error on"):
        rounding_error(model)


def test_the_front_door_has_them() -> None:
    assert metaopt.equalize is equalize
    assert {"balance", "equalize", "symmetries"} <= set(metaopt.__all__)
