"""What is no site, what is declared, and what is rotated: each with its reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from symmetry_cases import GAINS, QK, STREAM, VO, Fused, Gate, Llama, encoder, randomised
from torch import Tensor, nn

import metaopt
from metaopt import UserError, symmetries
from metaopt.symmetry import Pair, fold_norms
from metaopt.symmetry.moves import orbit_of
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.verify import random_elements

torch.set_num_threads(1)


def seeded(build: object, *args: object) -> nn.Module:
    torch.manual_seed(0)
    return randomised(build(*args))  # type: ignore[operator]


def reasons(sites: metaopt.symmetry.Symmetries) -> str:
    return "\n".join(f"{out.names} {out.reason}" for out in sites.left_out)


class Transformed(nn.Module):
    """What looks like an attention, but puts a tanh between values and outputs, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q_proj(x).tanh() @ self.k_proj(x).mT).softmax(-1)
        return self.o_proj((weights @ self.v_proj(x)).tanh())


def test_a_layer_that_only_looks_like_an_attention_has_no_site() -> None:
    sites = symmetries(seeded(Transformed), torch.randn(2, 5, 6))
    assert not sites
    assert "a random move there changes what the model gives by" in reasons(sites)


class Wide(Transformed):
    """An attention of one head whose module says that it has two."""

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q_proj(x) @ self.k_proj(x).mT).softmax(-1)
        return self.o_proj(weights @ self.v_proj(x))


def test_a_smaller_group_that_holds_is_a_site() -> None:
    sites = symmetries(seeded(Wide), torch.randn(2, 5, 6))
    assert [(site.kind, site.heads, site.width) for site in sites] == [(VO, 2, 3), (QK, 2, 3)]


def test_an_input_that_reaches_nothing_verifies_nothing() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.unused = Fused(6, 2, False), Fused(6, 2, False)

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x)

    sites = symmetries(seeded(Two), torch.randn(2, 5, 6))
    assert {site.name for site in sites} == {"attn V-O", "attn Q-K"}
    assert "hardly depends on it" in reasons(sites)


def test_weights_that_are_zero_at_the_start_hide_nothing() -> None:
    """An adapter's B = 0 would keep the network under any move of A."""

    class Nonlinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A, self.lora_B = nn.Linear(5, 3, bias=False), nn.Linear(3, 4, bias=False)
            nn.init.zeros_(self.lora_B.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.lora_B(torch.tanh(self.lora_A(x)))

    assert not symmetries(seeded(Nonlinear), torch.randn(3, 5))


def test_added_keys_frozen_and_shared_weights_are_left_out() -> None:
    model = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, activation="gelu")
    model.self_attn = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)
    sites = symmetries(randomised(model), torch.randn(2, 4, 6))
    assert not sites
    assert "add_bias_kv" in reasons(sites)
    frozen = seeded(Gate, 6, 5)
    frozen.w3.weight.requires_grad_(False)
    sites = symmetries(frozen, torch.randn(3, 6))
    assert not sites
    assert "w3.weight is frozen (requires_grad is False)" in reasons(sites)
    assert len(symmetries(frozen.requires_grad_(False), torch.randn(3, 6))) == 1
    tied = seeded(Gate, 6, 5)
    tied.w1.weight = tied.w3.weight
    sites = symmetries(tied, torch.randn(3, 6))
    assert not sites
    assert "shares its weights with" in reasons(sites)


def test_a_merged_adapter_is_refused_until_it_is_unmerged() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(5, 4)), config)
    x = torch.randn(3, 5)
    assert len(symmetries(model, x)) == 1
    model.merge_adapter()
    sites = symmetries(model, x)
    assert not sites
    assert "is merged: unmerge it first" in reasons(sites)
    model.unmerge_adapter()
    assert len(symmetries(model, x)) == 1


class Own(nn.Module):
    """Features of a name that no finder knows: three heads, then an average over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.use = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(torch.cumsum(self.make(x), dim=1))


def test_a_site_is_declared_in_one_line_and_verified_like_the_others() -> None:
    model, x = seeded(Own), torch.randn(2, 7, 5)
    assert not symmetries(model, x)
    sites = symmetries(model, x, also=[Pair("make.weight", "use.weight")])
    assert [(s.kind, s.group, s.directions) for s in sites] == [("declared", "GL", 36)]
    assert "make.bias" in sites[0].parameters
    heads = symmetries(model, x, also=[Pair("make.weight", "use.weight", heads=3)])
    assert heads[0].directions == 12
    scales = symmetries(model, x, also=[Pair("make.weight", "use.weight", group="nonzero")])
    assert scales[0].directions == 6
    wrong = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    assert not symmetries(wrong, x, also=[Pair("0.weight", "2.weight")])


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair("make.weigth", "use.weight"), "expected the name of a matrix of the model"),
        (Pair("make.bias", "use.weight"), "expected the name of a matrix of the model"),
        (Pair("make.weight", "make.weight"), "expected one number of features on both sides"),
        (Pair("make.weight", "use.weight", heads=4), "expected 6 features .* in 4 heads"),
        (Pair("make.weight", "use.weight", group="O"), "expected a group of GL, positive, nonzero"),
        (("make.weight", "use.weight"), r"give Pair\(incoming, outgoing\)"),
    ],
)
def test_what_cannot_be_declared_is_refused(pair: Pair, message: str) -> None:
    with pytest.raises(UserError, match=message):
        symmetries(Own(), also=[pair])


def test_what_is_no_module_or_gives_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected an nn\.Module, got list"):
        symmetries([])  # type: ignore[arg-type]

    class Silent(Gate):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(-1)

    with pytest.raises(UserError, match="expected a model that gives floating-point tensors"):
        symmetries(Silent(6, 5), torch.randn(3, 6))


def test_wrappers_are_seen_through() -> None:
    model = seeded(Gate, 6, 5)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    sites = symmetries(averaged, torch.randn(3, 6))
    assert sites[0].parameters == ("w3.weight", "w2.weight")


def test_several_inputs_and_keywords_are_taken() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate(6, 5)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.gate(x) * scale

    model = seeded(Two)
    x, scale = torch.randn(3, 6), torch.rand(3, 1)
    assert len(symmetries(model, x, scale)) == 1
    assert len(symmetries(model, {"x": x, "scale": scale})) == 1


# ---- the residual stream


class PreNorm(nn.Module):
    """A small model with norms first, of either kind, whose readers have biases."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.attn = norm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2, self.up, self.down = norm(8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.norm, self.head = norm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.places
        n = self.norm1(h)
        h = h + self.attn(n, n, n, need_weights=False)[0]
        h = h + self.down(F.gelu(self.up(self.norm2(h))))
        return self.head(self.norm(h))


@pytest.mark.parametrize(
    ("build", "group", "free"),
    [
        (lambda: PreNorm(nn.RMSNorm), "orthogonal", 28),
        (lambda: PreNorm(nn.LayerNorm), "orthogonal_of_ones", 21),
        (Llama, "orthogonal", 120),
    ],
)
def test_a_stream_is_rotated_once_gains_are_folded(build: object, group: str, free: int) -> None:
    model = seeded(build)
    x = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(0))
    assert STREAM not in symmetries(model, x).kinds
    assert "fold_norms() takes them into the readers" in reasons(symmetries(model, x))
    before = NetworkOutputs(model, x)({})
    assert fold_norms(model, x) == ()
    folded = NetworkOutputs(model, x)({})
    assert (folded - before).norm() < 1e-6 * before.norm()
    sites = symmetries(model, x)
    assert GAINS not in sites.kinds, "what is folded is frozen"
    stream = sites.of_kind(STREAM)
    assert [(site.group, site.directions) for site in stream] == [(group, free)]
    orbit = orbit_of(stream)
    start = [model.get_parameter(name).detach().double() for name in orbit.names]
    moved = orbit.move(start, random_elements(orbit, start, 1.0, 2)).parameters
    after = NetworkOutputs(model, x)(dict(zip(orbit.names, moved, strict=True)))
    assert (after - folded).norm() < 1e-12 * folded.norm()
    old, new = (sum(p.square().sum() for p in side) for side in (start, moved))
    assert abs(new - old) < 1e-10 * old, "a rotation changes no norm"


def test_a_norm_whose_output_is_used_elsewhere_is_not_folded() -> None:
    model = seeded(encoder, False, "gelu")
    x = torch.randn(2, 4, 12)
    before = model(x)
    stay = fold_norms(model, x)
    assert {out.names[0] for out in stay} == {
        f"layers.{layer}.norm{norm}" for layer in (0, 1) for norm in (1, 2)
    }
    assert torch.equal(model(x), before)
    with pytest.raises(UserError, match="expected inputs, which tell who reads a norm"):
        fold_norms(model)
