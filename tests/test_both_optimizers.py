"""What the two optimizers share: what a batch of tasks is, and the words for one fault."""

import copy

import pytest
import torch
from learned_network_cases import build
from network_cases import case_called, every_case
from teleporting_cases import LOSS, QUICK, data, mlp, train
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError, list_pretrained
from metaopt.errors import unknown
from metaopt.symmetry import ACTIONS, LayerChain, find_sites


def teleporting(model, **options):
    base = torch.optim.SGD(model.parameters(), lr=1e-2)
    return TeleportingOptimizer(base, model, **{"loss_fn": LOSS, "search": QUICK, **options})


def learned(model, **options):
    return LearnedOptimizer(model, build(), **options)


BOTH = {"teleporting": teleporting, "learned": learned}
both = pytest.mark.parametrize("make", BOTH.values(), ids=BOTH.keys())


class Holding(nn.Module):
    """Has a ``chain`` and an ``x`` of its own, as any module may, and is called with a batch."""

    def __init__(self, net, chain, x):
        super().__init__()
        self.net, self.chain, self.x = net, chain, x

    def forward(self, x):
        return self.net(x)


HELD = {
    "texts": ("a chain of shops", "x marks the spot"),
    "a chain and a tensor": (LayerChain((), ()), torch.zeros(9, 5)),
    "modules": (nn.Sequential(nn.ReLU()), nn.Identity()),
    "none": (None, None),
}


@both
@pytest.mark.parametrize(("chain", "x"), HELD.values(), ids=HELD.keys())
def test_a_module_that_happens_to_have_a_chain_and_an_x_is_an_ordinary_module(make, chain, x):
    plain, holding = mlp(), Holding(mlp(), chain, x)
    batch = data()
    optimizers = [make(model) for model in (plain, holding)]
    for model, optimizer in zip((plain, holding), optimizers, strict=True):
        for _ in range(2):
            if make is teleporting:
                assert not optimizer.teleport(*batch).stayed
            train(model, optimizer, [batch])
    for own, other in zip(plain.parameters(), holding.parameters(), strict=True):
        assert torch.equal(own, other)
    assert not torch.equal(plain[0].weight, mlp()[0].weight)
    assert "net.0 -> net.2" in optimizers[1].report()
    copied = copy.deepcopy(holding)
    assert make(copied).report().startswith("Found: 2")


def complaint(call):
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    return text


def without_choices(text):
    """The names of actions differ: m2 proposes elements of its own group and of scales alone."""
    before, _, after = text.partition("an action of ")
    return before + after[after.index(", got") :] if after else text


def deep(*between, layers=12):
    """A Linear and these modules, twelve times."""
    blocks = [(nn.Linear(9, 9), *copy.deepcopy(between)) for _ in range(layers)]
    return nn.Sequential(*(module for block in blocks for module in block))


def transformers(layers=12):
    kinds = (nn.TransformerEncoderLayer(8, 2, 16, activation="gelu") for _ in range(layers))
    return nn.Sequential(*kinds)


class Block(nn.Module):
    """A block of a vision transformer, or of BERT."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.intermediate, self.output = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.output(nn.functional.gelu(self.intermediate(self.norm2(x))))


class Classifier(nn.Module):
    """A vision transformer; with ``checks`` its forward looks at what it is given."""

    def __init__(self, layers=12, checks=False):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.encoder = nn.ModuleList(Block() for _ in range(layers))
        self.head, self.checks = nn.Linear(8, 3), checks

    def forward(self, pixels=None, mask=None, labels=None):
        if pixels is None or (self.checks and pixels.isnan().any()):
            raise ValueError("no pixels")
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        for block in self.encoder:
            x = block(x)
        return {"logits": self.head(x[:, 0])}


def long_names():
    """Layers whose names fill a line."""
    inner = mlp()
    for _ in range(6):
        inner = nn.ModuleDict({"a_module_with_a_long_name": inner})
    return Named(inner)


class Named(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        inner = self.inner
        while isinstance(inner, nn.ModuleDict):
            inner = inner["a_module_with_a_long_name"]
        return inner(x)


MODELS = {
    "one layer": lambda: nn.Sequential(nn.Linear(9, 3)),
    "no layer": lambda: nn.Sequential(nn.PReLU()),
    "GELU and dropout": lambda: deep(nn.GELU(), nn.Dropout()),
    "GELU": lambda: deep(nn.GELU()),
    "ReLU": lambda: deep(nn.ReLU(), layers=40),
    "layer norm": lambda: deep(nn.LayerNorm(9), nn.ReLU()),
    "transformers": transformers,
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True), 12
    ),
    "vision transformer": Classifier,
    "checks its input": lambda: Classifier(checks=True),
    "long names": long_names,
    "residual": case_called("skip connection").build,
    "data-dependent": case_called("data-dependent").build,
    "frozen": lambda: deep(nn.ReLU()).requires_grad_(False).append(nn.Linear(9, 3)),
}
NOWHERE = ["one layer", "no layer", "GELU and dropout", "layer norm", "transformers", "encoder",
    "checks its input", "residual", "data-dependent", "frozen"]  # fmt: skip
CHAINS = ["GELU", "ReLU", "long names"]


def same_words(build_model, **options):
    """What both say, which is the same."""
    texts = [complaint(lambda make=make: make(build_model(), **options)) for make in BOTH.values()]
    assert len(set(map(without_choices, texts))) == 1
    return texts[0]


@pytest.mark.parametrize("name", NOWHERE)
def test_a_model_without_a_site_is_refused_in_the_same_words(name):
    """Without an action one has no place to teleport, and the other steps without teleportation."""
    text = same_words(MODELS[name], action="rescaling")
    assert text.startswith("expected a site for RescalingAction, got none (")
    assert text.endswith("): leave the action out")
    alone = complaint(lambda: teleporting(MODELS[name]()))
    assert alone.startswith("expected a model with a place for a group to act, got none (")
    reasons = [t[t.index("got none (") : t.rindex("): ")] for t in (text, alone)]
    assert reasons[0] == reasons[1]
    assert len(text) < 600
    assert len(alone) < 600
    optimizer = learned(MODELS[name]())
    assert optimizer.report().startswith("Found: 0")


def test_a_model_whose_sites_are_exact_on_a_batch_alone_is_refused_by_what_lies_between():
    text = complaint(lambda: teleporting(Classifier()))
    assert "got none (12 × gelu between two Linear layers: no group is exact for all data" in text
    assert text.endswith("use the base alone, or search=LevelSetTeleport(), which needs no group")
    assert len(text) < 600
    assert len(same_words(Classifier, action="rescaling")) < 600


@pytest.mark.parametrize("name", MODELS)
def test_a_chain_that_is_none_is_refused_in_the_same_words(name):
    if name in CHAINS:
        assert isinstance(find_sites(MODELS[name]()).chain, LayerChain)
        return
    text = same_words(MODELS[name], action="post_activation")
    words = (
        "with two layers or more" if name == "one layer" else "a chain of Linear layers for Post"
    )
    assert words in text
    assert len(text) < 300


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("action", ["sideways", "", "Rescaling"])
def test_an_unknown_action_is_refused_in_the_same_words(name, action):
    text = same_words(MODELS[name], action=action)
    assert text == unknown("an action", action, ("auto", *ACTIONS))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss_fn", ["mse", 3, ()])
def test_a_loss_that_is_no_function_is_refused_in_the_same_words(name, loss_fn):
    text = same_words(MODELS[name], loss_fn=loss_fn)
    assert text.startswith(f"expected a loss_fn that can be called, got {loss_fn!r}: give a ")
    assert len(text) < 300


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "pair", [("0", "nowhere"), ("2", "0"), ("0", "1", "2"), "02", (0, 2)], ids=str
)
def test_sites_that_do_not_exist_are_refused_in_the_same_words(name, pair):
    text = same_words(MODELS[name], sites=[pair])
    pair_of_names = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
    if pair_of_names:
        assert text.startswith(f"expected sites that were found, got {pair}, where ")
    else:
        assert text == f"expected pairs of names, got {pair!r}: give (incoming, outgoing)"
    assert len(text) < (600 if name == "long names" else 300)


@pytest.mark.parametrize("name", list_pretrained())
def test_sites_are_looked_at_whatever_a_shipped_optimizer_sees(name):
    expected = complaint(lambda: teleporting(mlp(), sites=[("0", "3")]))
    assert complaint(lambda: LearnedOptimizer(mlp(), name, sites=[("0", "3")])) == expected
    LearnedOptimizer(mlp(), name, sites=[("0", "2")])


@pytest.mark.parametrize("name", ["ReLU", "GELU"])
def test_an_action_that_fits_no_site_names_the_layers_and_counts_them(name):
    text = same_words(MODELS[name], action="post_activation")
    assert text == (
        f"expected sites where PostActivationAction can act, got 0 -> 2, where {name} has no "
        "inverse on the real line: leave the action out"
    )
    text = complaint(lambda: teleporting(MODELS[name](), action="linear"))
    count = {"ReLU": 39, "GELU": 11}[name]
    assert f"({count} × {name} lies between the two layers (0, 2, 4, ...))" in text


def test_scales_that_pass_nowhere_name_the_layers_and_count_them():
    assert same_words(MODELS["GELU"], action="rescaling") == (
        "expected a site for RescalingAction, got none (11 × GELU is not positively homogeneous "
        "(0, 2, 4, ...)): leave the action out"
    )
    text = same_words(lambda: deep(nn.GELU(), layers=2), action="rescaling")
    assert "got none (0, 2: GELU is not positively homogeneous)" in text


# The reasons for what was left out, in one line.

WHY = {
    "one layer": "it has too few layers",
    "no layer": "it has too few layers",
    "GELU": "11 × GELU between two Linear layers: no group is exact for all data, ReLU has one "
    "(0, 2, 4, ...)",
    "GELU and dropout": "11 × GELU is not positively homogeneous, so no group is exact for all "
    "data, ReLU has one (0, 3, 6, ...)",
    "layer norm": "11 × LayerNorm lies between, which normalises or mixes over the units "
    "(0, 3, 6, ...)",
    "transformers": "12 × gelu is not positively homogeneous, so no group is exact for all data, "
    "ReLU has one (0.linear1, 1.linear1, 2.linear1, ...); 11 × add joins it with another value, as "
    "a skip connection does (0.linear2, 1.linear2, 2.linear2, ...); and 1 more reason",
    "vision transformer": "12 × gelu between two Linear layers: no group is exact for all data, "
    "ReLU has one (encoder.0.intermediate, encoder.1.intermediate, encoder.2.intermediate, ...); "
    "patches, encoder.0.intermediate, encoder.1.intermediate and 11 more: flatten does not lay "
    "each sample out as one row; and 2 more reasons",
    "checks its input": "patches, encoder.0.attention.out_proj, encoder.0.intermediate and 35 "
    "more: torch.fx cannot trace the forward: symbolically traced variables cannot be used as "
    "inputs to control flow",
    "frozen": "12 × 0 is frozen (requires_grad is False) (0, 2, 4, ...)",
    "residual": "fc1, fc2, fc3: the output of relu is used 2 times, by fc2 and add; fc2, fc3: add "
    "joins it with another value, as a skip connection does",
}


@pytest.mark.parametrize(("name", "expected"), WHY.items())
def test_alike_reasons_are_given_once_with_their_count_and_the_first_layers(name, expected):
    assert find_sites(MODELS[name]()).why() == expected


@pytest.mark.parametrize("name", MODELS)
def test_reasons_stay_in_one_short_line_however_many_layers_there_are(name):
    text = find_sites(MODELS[name]()).why()
    assert "\n" not in text
    assert len(text) < 400


def test_what_does_not_fit_is_counted():
    kinds = nn.LayerNorm(9), nn.Softmax(-1), nn.RMSNorm(9), nn.LogSoftmax(-1), nn.Bilinear(9, 9, 9)
    kinds += nn.Upsample(9), nn.Hardtanh(), nn.CosineSimilarity(), nn.BatchNorm1d(9, affine=False)
    layers = [nn.Linear(9, 9)]
    for kind in kinds:
        layers += [kind, nn.Dropout(), nn.Linear(9, 9)]
    sites = find_sites(nn.Sequential(*layers))
    assert not sites.found
    text = sites.why()
    *shown, rest = text.split("; ")
    assert rest == f"and {len(kinds) - len(shown)} more reasons"
    assert len(shown) >= 3
    assert [reason.split(":")[0] for reason in shown] == [
        f"{3 * n}, {3 * n + 3}" for n in range(len(shown))
    ]
    assert len(text) < 400


@every_case
def test_each_reason_of_a_small_model_is_given_with_the_layers_concerned(case):
    sites = find_sites(case.build())
    text = sites.why()
    for out in sites.left_out:
        alone = f"{', '.join(out.names)}: {out.reason}" in text
        assert alone or (out.names[0] in text and " × " in text), out
