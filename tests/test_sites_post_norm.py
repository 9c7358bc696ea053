"""Gains of norms that come after a sum: which have an exact site, and why others have none."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from symmetry_cases import BERT, GAINS, Decoder, encoder, hugging_face, randomised
from torch import Tensor, nn

import metaopt
from metaopt.symmetry import Symmetries, fold_norms
from metaopt.symmetry.moves import orbit_of
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.verify import random_elements

torch.set_num_threads(1)
SUM = "is used by a sum, as a residual connection after the norm is, which takes no inverse"
GIVEN = "is used by the network's output, which takes no inverse"


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def change(model: nn.Module, sites: Symmetries, x: Any) -> float:
    """The relative change of what a network gives by a random move at all sites, in float64."""
    orbit = orbit_of(sites)
    outputs = NetworkOutputs(model, x)
    start = [model.get_parameter(name).detach().double() for name in orbit.names]
    moved = orbit.move(start, random_elements(orbit, start, 0.5, 7)).parameters
    after = outputs(dict(zip(orbit.names, moved, strict=True)))
    return float((after - outputs({})).norm() / outputs({}).norm())


def gains(sites: Symmetries) -> set[str]:
    return {site.name for site in sites if site.kind == GAINS}


def reasons(sites: Symmetries) -> dict[str, str]:
    return {out.names[0]: out.reason for out in sites.left_out}


class Tagger(nn.Module):
    """An encoder with norms last, with heads of several kinds on the last norm alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.encoder, self.how = encoder(False, "gelu"), how
        self.head, self.other = nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.encoder(x)
        if self.how == "each position":
            return self.head(h)
        if self.how == "two heads":
            return self.head(h), self.other(h[:, 0])
        if self.how == "average":
            return self.head(h.mean(1))
        if self.how == "masked average":
            mask = (torch.arange(x.shape[1]) < 3).to(h)[None, :, None]
            return self.head((h * mask).sum(1) / mask.sum(1))
        if self.how == "last position":
            return self.head(h[torch.arange(len(h)), -1])
        if self.how == "dropout":
            return self.head(nn.functional.dropout(h, 0.1, self.training))
        if self.how == "maximum":
            return self.head(h.amax(1))
        if self.how == "activation":
            return self.head(h.tanh())
        if self.how == "given too":
            return self.head(h), h
        if self.how == "other norm":
            return self.head(nn.functional.normalize(h, dim=-1))
        return self.head(h + h.roll(1, 1))


LAST = "encoder.layers.1.norm2"


@pytest.mark.parametrize(
    "how",
    ["each position", "two heads", "average", "masked average", "last position", "dropout"],
)
def test_the_last_norm_into_heads_alone_has_a_site(how: str) -> None:
    torch.manual_seed(0)
    model = randomised(Tagger(how))
    sites = metaopt.symmetries(model, drawn(2, 5, 12))
    readers = "head, other" if how == "two heads" else "head"
    assert gains(sites) == {f"{LAST} -> {readers}"}
    assert change(model, sites.of_kind(GAINS), drawn(2, 5, 12, seed=1)) <= 1e-12
    inside = {f"encoder.layers.{i}.norm{j}" for i, j in ((0, 1), (0, 2), (1, 1))}
    assert all(SUM in reasons(sites)[name] for name in inside)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("maximum", "is used by amax,"),
        ("activation", "is used by tanh,"),
        ("given too", GIVEN),
        ("other norm", "is used by normalize,"),
        ("sum", "is used by roll,"),
    ],
)
def test_what_takes_no_inverse_of_the_last_gain_is_named(how: str, reason: str) -> None:
    torch.manual_seed(0)
    model = randomised(Tagger(how))
    sites = metaopt.symmetries(model, drawn(2, 5, 12))
    assert not gains(sites)
    found = reasons(sites)[LAST]
    assert reason in found or (how == "sum" and SUM in found)
    assert not gains(metaopt.symmetries(model))


def test_without_inputs_the_trace_tells_the_same() -> None:
    torch.manual_seed(0)
    for how in ("each position", "average", "dropout"):
        sites = metaopt.symmetries(randomised(Tagger(how)))
        assert gains(sites) == {f"{LAST} -> head"}
        assert SUM in reasons(sites)["encoder.layers.0.norm1"]


def test_every_norm_of_an_encoder_that_gives_its_last_norm_has_a_reason() -> None:
    torch.manual_seed(0)
    sites = metaopt.symmetries(randomised(encoder(False, "relu")), drawn(2, 5, 12))
    found = reasons(sites)
    assert not gains(sites)
    assert all(SUM in found[f"layers.{i}.norm{j}"] for i, j in ((0, 1), (0, 2), (1, 1)))
    assert GIVEN in found["layers.1.norm2"]
    found = reasons(metaopt.symmetries(randomised(Decoder()), drawn(2, 7, 12)))
    assert all(SUM in found[f"inner.layers.0.norm{j}"] for j in (1, 2))
    assert GIVEN in found["inner.layers.0.norm3"]


class Translator(nn.Module):
    """``nn.Transformer`` with a head; it ends its encoder and its decoder with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(12, 3, 2, 2, 10, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x[:, :3], x[:, 3:]))


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor")
def test_the_memory_of_a_post_norm_transformer_has_the_site_of_its_norm() -> None:
    """The keys and values of all layers of the decoder read it, and nothing else."""
    torch.manual_seed(0)
    model = randomised(Translator())
    sites = metaopt.symmetries(model, drawn(2, 7, 12))
    readers = ", ".join(f"inner.decoder.layers.{i}.multihead_attn" for i in (0, 1))
    assert gains(sites) == {f"inner.encoder.norm -> {readers}", "inner.decoder.norm -> head"}
    assert change(model, sites.of_kind(GAINS), drawn(2, 7, 12, seed=1)) <= 1e-12
    assert "is used by inner.encoder.norm" in reasons(sites)["inner.encoder.layers.1.norm2"]


def test_a_norm_of_a_branch_before_its_sum_has_a_reason() -> None:
    class Sandwich(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.RMSNorm(6), nn.RMSNorm(6)
            self.wide, self.narrow, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.after(self.narrow(self.wide(self.before(x)).tanh())))

    torch.manual_seed(0)
    for inputs in ((drawn(3, 6),), ()):
        sites = metaopt.symmetries(randomised(Sandwich()), *inputs)
        assert gains(sites) == {"before -> wide"}
        assert SUM in reasons(sites)["after"]


def test_folding_says_why_a_norm_after_a_sum_stays() -> None:
    torch.manual_seed(0)
    stay = fold_norms(randomised(Tagger("average")), drawn(2, 5, 12))
    assert {out.names[0] for out in stay} == {
        f"encoder.layers.{i}.norm{j}" for i, j in ((0, 1), (0, 2), (1, 1))
    }
    assert all("a sum, as a residual connection" in out.reason for out in stay)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
def test_of_bert_with_a_head_the_last_norm_alone_has_a_site() -> None:
    build = hugging_face("BertForSequenceClassification", "BertConfig", **BERT)
    model = randomised(build())
    x = {"input_ids": torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))}
    sites = metaopt.symmetries(model, x)
    assert gains(sites) == {"bert.encoder.layer.1.output.LayerNorm -> bert.pooler.dense"}
    assert change(model, sites.of_kind(GAINS), x) <= 1e-12
    found = reasons(sites)
    assert sum(SUM in reason for reason in found.values()) == 4


def test_what_is_left_out_has_no_direction_that_keeps_the_network() -> None:
    """The null space of the derivative of all outputs by all weights, which knows no finder."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        4, 2, 3, dropout=0.0, batch_first=True, activation="gelu", layer_norm_eps=0.1
    )
    inner = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = randomised(nn.Sequential(inner, nn.Linear(4, 3)).double())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(60, 3, 4, dtype=torch.float64)

    def given(values: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(model, values, (x,))
        return out.flatten()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        derivatives = torch.func.jacrev(given)(weights)
    matrix = torch.cat([derivatives[name].flatten(1) for name in weights], dim=1)
    _, values, directions = torch.linalg.svd(matrix, full_matrices=True)
    kept = directions[int((values > 1e-11 * values[0]).sum()) :]
    parts = kept.split([p.numel() for p in weights.values()], dim=1)
    free = dict(zip(weights, parts, strict=True))
    moves = {
        name: int((torch.linalg.svdvals(own) > 1e-6).sum())
        for name, own in free.items()
        if name.endswith(("norm1.weight", "norm2.weight"))
    }
    assert list(moves.values()) == [0, 0, 0, 4]  # the last norm goes into the head alone
    sites = metaopt.symmetries(model, x)
    assert gains(sites) == {"0.layers.1.norm2 -> 1"}
