"""The tasks of the suite: what all hold, their modules against naive twins, and their data."""

import ast
import math
from itertools import islice

import pytest
import torch
from data_cases import make_dataset
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from metaopt import UserError
from metaopt.tasks import stacked
from metaopt.tasks.suite import SUITE, suite_task, tabular, text, text_digest
from metaopt.tasks.suite.attention import SelfAttention
from metaopt.tasks.suite.autoencoder import autoencoder
from metaopt.tasks.suite.characters import CharacterModel
from metaopt.tasks.suite.families import (
    AutoencoderFamily,
    LstmFamily,
    MlpFamily,
    ResidualFamily,
    SuiteFamily,
    synthetic_parts,
)
from metaopt.tasks.suite.images import image_parts
from metaopt.tasks.suite.lora import LowRank, adapt
from metaopt.tasks.suite.lstm_characters import PlainLSTM, RecurrentModel
from metaopt.tasks.suite.mlp import perceptron
from metaopt.tasks.suite.small import (
    TOKENS,
    DrawnSequences,
    DrawnValues,
    SmallFamily,
    taught_parts,
)
from metaopt.tasks.suite.vision_transformer import VisionTransformer

FAMILIES = (MlpFamily, AutoencoderFamily, ResidualFamily, LstmFamily, SuiteFamily, SmallFamily)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small images, pretrained weights, and a small table."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("mnist", "fashion-mnist"):
        make_dataset(folder / name, name, train=700, test=100)
    torch.manual_seed(0)
    save_file(CharacterModel().state_dict(), folder / "characters.safetensors")
    few = dict(islice(text.sources().items(), 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabular, "sources", lambda: few)
        tabular.functions_of_the_library.cache_clear()
        yield {"data_dir": folder, "pretrained": folder / "characters.safetensors"}
    tabular.functions_of_the_library.cache_clear()


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", SUITE)
def test_a_seed_gives_the_same_model_and_batches_and_another_seed_others(name, files):
    task = suite_task(name, **files)
    before = torch.get_rng_state()
    one, same, other = (weights(task.model(seed)) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    first, again, others = (list(islice(task.batches(s, "train"), 3)) for s in (3, 3, 4))
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(y, y_again)
    assert not torch.equal(first[0][0], others[0][0])
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("name", SUITE)
def test_held_out_batches_end_and_are_the_same_for_all_seeds(name, files):
    task = suite_task(name, **files)
    for split in ("validation", "test"):
        one, other = (list(task.batches(seed, split)) for seed in (0, 1))
        assert 1 <= len(one) == len(other)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", SUITE)
def test_training_lowers_the_loss_of_every_task(name, files):
    task = suite_task(name, **files)
    assert 500 <= task.steps <= 1000
    model = task.model(0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    batches = islice(task.batches(0, "train"), 25)
    losses = []
    torch.manual_seed(0)  # of dropout
    for batch in batches:
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        assert loss.shape == ()
        optimizer.step()
    assert all(p.grad is not None for p in trained)
    assert sum(losses[-3:]) < sum(losses[:3])
    for value in task.metrics(model, batch).values():
        assert 0 <= value <= 1


def test_five_kinds_are_held_out():
    held_out = {name for name, entry in SUITE.items() if entry.held_out}
    assert held_out == {
        "depthwise", "vision_transformer", "attention_characters", "lora", "tabular"
    }  # fmt: skip
    assert len(SUITE) == 10


def test_names_and_splits_that_there_are_not_are_refused(files):
    with pytest.raises(UserError, match="did you mean lora"):
        suite_task("lorra")
    for name in ("mnist_mlp", "lstm_characters"):
        with pytest.raises(UserError, match="a split"):
            suite_task(name, **files).batches(0, "training")


def test_images_are_pooled_and_standardized_by_training_images_and_in_one_split_alone(files):
    whole = image_parts("mnist", 28, files["data_dir"])
    small = image_parts("mnist", 7, files["data_dir"])
    x = whole["train"][0]
    assert abs(x.mean()) < 1e-5
    assert abs(x.std() - 1) < 1e-5
    naive = x[:, :, :4, 4:8].mean(dim=(1, 2, 3))  # of the first row of squares, the second one
    pooled = small["train"][0][:, 0, 0, 1]
    assert abs(torch.corrcoef(torch.stack((naive, pooled)))[0, 1] - 1) < 1e-5
    assert [len(whole[split][1]) for split in ("train", "validation", "test")] == [525, 175, 100]
    rows = torch.cat([whole[split][0].flatten(1) for split in ("train", "validation")])
    assert len(rows.unique(dim=0)) == 700


def test_texts_are_read_as_numbers_and_a_file_is_in_one_split():
    codes = text.encoded(["a\tB~", "é"])
    assert codes.tolist() == [ord("a") - 32, 0, ord("B") - 32, 94, text.END, ord("?") - 32]
    assert max(int(own.max()) for own in text.source_text().values()) < text.CHARACTERS
    sizes = {split: len(own) for split, own in text.source_text().items()}
    assert sizes["train"] > 4 * sizes["validation"] > 0
    assert sizes["train"] > 4 * sizes["test"] > 0
    assert len(text.help_text()["train"]) > 10**5
    assert text_digest() == text_digest()
    assert len(text_digest()) == 16


def test_a_python_without_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="sources of the standard library"):
        text.sources()


SOURCE = '''
import os

class A:
    @property
    def size(self):
        """Text."""
        return self.n + 1

async def far(a, b=2, *, c):
    for item in a:
        if item:
            b += 1

    def inner(x):
        return x
'''


def test_rows_of_a_table_count_the_syntax_of_each_function():
    found = list(tabular.rows(SOURCE))
    assert [kinds for _, kinds, _ in found] == [(1, 1), (0, 0), (2, 0)]
    assert tabular._decorator(ast.parse("@a.b\ndef f(): pass").body[0]) == "other"
    numbers, _, target = found[0]
    counts = dict(zip((*tabular.NODES, "depth", "arguments", "docstring"), numbers, strict=True))
    counted = {name: round(math.expm1(value)) for name, value in counts.items() if value}
    # an Expr and a Constant are the docstring's; the deepest is a Load
    assert counted == {
        "Expr": 1, "Constant": 2, "Return": 1, "BinOp": 1, "Attribute": 1, "Name": 1,
        "depth": 5, "arguments": 1, "docstring": 5,
    }  # fmt: skip
    body = SOURCE[SOURCE.index("    def size") : SOURCE.index("\nasync")]
    assert target == pytest.approx(math.log(len(body) - len("Text.")))


def test_numbers_of_the_table_are_standardized_by_training_rows(files):
    parts = suite_task("tabular").parts()
    x, y = parts["train"]
    assert x.shape[1] == tabular.NUMBERS + 2
    assert (x[:, : tabular.NUMBERS].mean(dim=0).abs() < 1e-4).all()
    assert abs(y.std() - 1) < 1e-4
    assert all(len(own) > 50 for _, own in parts.values())


def test_the_plain_lstm_is_torchs_and_can_be_mapped_over_copies():
    torch.manual_seed(0)
    plain, torchs = PlainLSTM(3, 5).double(), nn.LSTM(3, 5, batch_first=True).double()
    names = {
        "weight_ih_l0": plain.from_input.weight,
        "bias_ih_l0": plain.from_input.bias,
        "weight_hh_l0": plain.from_state.weight,
        "bias_hh_l0": plain.from_state.bias,
    }
    torchs.load_state_dict({name: own.detach() for name, own in names.items()})
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    own, theirs = plain(x), torchs(x)[0]
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-14)
    scale = torch.randn_like(own)
    (own * scale).sum().backward()
    (theirs * scale).sum().backward()
    for name, parameter in names.items():
        torch.testing.assert_close(parameter.grad, getattr(torchs, name).grad, rtol=1e-10, atol=0)
    models = [RecurrentModel(4, 5, 2, plain=True) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    tokens = torch.randint(96, (3, 2, 7))

    def call(parameters, own):
        return torch.func.functional_call(models[0], parameters, (own,))

    mapped = torch.func.vmap(call)(stacked, tokens)
    one_by_one = torch.stack([m(t) for m, t in zip(models, tokens, strict=True)])
    torch.testing.assert_close(mapped, one_by_one)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs_own(causal):
    torch.manual_seed(0)
    layer = SelfAttention(6, 2, causal).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    query, key, value = (
        part.reshape(3, 5, 2, 3).transpose(1, 2) for part in layer.into(x).chunk(3, dim=-1)
    )
    heads = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    expected = layer.out(heads.transpose(1, 2).reshape(3, 5, 6))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-14)


def test_a_character_sees_none_that_come_later():
    torch.manual_seed(0)
    for model in (CharacterModel(8, 2, 2, 10), RecurrentModel(4, 5)):
        x = torch.randint(96, (2, 9))
        later = x.clone()
        later[:, 5:] = torch.randint(96, (2, 4))
        one, other = model(x), model(later)
        torch.testing.assert_close(one[:, :5], other[:, :5])
        assert not torch.allclose(one[:, 5:], other[:, 5:])


def test_patches_of_a_vision_transformer_are_squares_of_the_image():
    model = VisionTransformer(6, 3, 9, 1, 3, 2)
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(9))
        model.embed.bias.zero_()
        model.places.zero_()
    seen = []
    model.blocks.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.arange(36.0).reshape(1, 1, 6, 6)
    model(image)
    assert torch.equal(seen[0][0, 1], image[0, 0, :3, 3:].flatten())
    assert torch.equal(seen[0][0, 2], image[0, 0, 3:, :3].flatten())


def test_an_adapter_is_nothing_at_first_and_then_a_product_of_low_rank():
    torch.manual_seed(0)
    base = nn.Linear(5, 3).double()
    layer = LowRank(base, 2, alpha=3.0).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(layer(x), base(x))
    with torch.no_grad():
        layer.up.normal_()
    whole = base.weight + 1.5 * layer.up @ layer.down
    torch.testing.assert_close(layer(x), F.linear(x, whole, base.bias), rtol=1e-12, atol=1e-14)
    layer(x).sum().backward()
    assert base.weight.grad is None
    assert layer.up.grad is not None
    model = adapt(CharacterModel(8, 2, 2, 10), 2, 4.0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 4  # two matrices, two blocks, four layers
    assert isinstance(model.head, nn.Linear)


def test_lora_needs_its_pretrained_weights(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"python -m studies\.suite"):
        suite_task("lora").model(0)
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="got SafetensorError"):
        suite_task("lora", pretrained=tmp_path / "other.safetensors").model(0)
    save_file(CharacterModel(8, 1, 2).state_dict(), tmp_path / "characters.safetensors")
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    with pytest.raises(UserError, match="got RuntimeError"):
        suite_task("lora").model(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_same_task_for_a_seed_and_tasks_that_can_be_trained(family, files):
    own = family() if family is LstmFamily else family(files["data_dir"])
    start = 10**7
    for seed in range(start, start + 4):
        one, same = own.sample(seed), own.sample(seed)
        assert torch.equal(weights(one.model(seed)), weights(same.model(seed)))
        model, batch = one.model(seed), next(iter(one.batches(seed, "train")))
        loss = one.loss(model, batch)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None for p in model.parameters())
        for split in ("validation", "test"):
            held_out = next(iter(one.batches(seed, split)))
            assert one.loss(model, held_out).isfinite()
            assert all(0 <= value <= 1 for value in one.metrics(model, held_out).values())


def test_families_have_varied_sizes_and_nothing_of_the_held_out_kinds(files):
    family = SuiteFamily(files["data_dir"])
    deepest, batches = 0, set()
    for seed in range(10**7, 10**7 + 60):
        task = family.sample(seed)
        batches.add(task.batch)
        modules = list(task.model(seed).modules())
        assert not any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in modules)
        assert not any(isinstance(m, SelfAttention | LowRank | nn.Hardswish) for m in modules)
        if not any(isinstance(m, nn.Conv2d | nn.Embedding) for m in modules):
            deepest = max(deepest, sum(isinstance(m, nn.Linear) for m in modules) - 1)
    assert 8 <= deepest <= 12
    assert len(batches) > 20


def test_perceptrons_and_autoencoders_have_the_layers_that_are_asked_for():
    model = perceptron(6, 5, 3, 2, nn.Tanh, "layer", residual=True)
    assert model(torch.randn(4, 2, 3)).shape == (4, 2)
    assert [m.in_features for m in model.modules() if isinstance(m, nn.Linear)] == [6, 5, 5, 5]
    x = torch.randn(4, 6)
    first = model[:3](x)
    torch.testing.assert_close(model[3](first), first + model[3].inner(first))
    layers = list(autoencoder(6, 5, 2, 2, nn.Tanh))
    widths = [m.out_features for m in layers if isinstance(m, nn.Linear)]
    assert widths == [5, 5, 2, 5, 5, 6]
    kinds = "".join("T" if isinstance(m, nn.Tanh) else "L" for m in layers[1:])
    assert kinds == "LTLTLLTLTL"  # none behind the code and the image


def test_synthetic_classes_are_drawn_by_their_seed_and_can_be_told_apart():
    one, same, other = (synthetic_parts(8, 3, seed, 512) for seed in (1, 1, 2))
    assert torch.equal(one["train"][0], same["train"][0])
    assert not torch.equal(one["train"][0], other["train"][0])
    assert set(one["test"][1].tolist()) == {0, 1, 2}
    x, y = one["train"]
    nearest = torch.cdist(one["test"][0], x).argmin(dim=1)
    assert (y[nearest] == one["test"][1]).float().mean() > 0.5


def test_small_tasks_of_every_kind_run_as_copies_in_one_pass(files):
    family, seen = SmallFamily(files["data_dir"]), set()
    for seed in range(40):
        task = family.sample(seed)
        kind = type(task.model(0)).__name__, type(task).__name__
        if kind in seen:
            continue
        seen.add(kind)
        tasks = stacked(task, [1, 2])
        tasks(0).sum().backward()
        assert tasks.together
        assert all(p.grad is not None for p in tasks.parameters())
    assert {name for _, name in seen} == {
        "DrawnPairs", "DrawnValues", "DrawnText", "DrawnSequences"
    }  # fmt: skip


@pytest.mark.parametrize(("norm", "residual"), [("none", False), ("layer", True)])
def test_a_stretched_perceptron_says_what_it_would_say_without(norm, residual):
    sizes = 5, 7, 3, 2, nn.Tanh
    x = torch.randn(4, 5)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        usual = perceptron(*sizes, norm, residual)
        torch.manual_seed(2)
        stretched = perceptron(*sizes, norm, residual, stretch=10.0)
    torch.testing.assert_close(stretched(x), usual(x))
    for one, other in zip(usual.parameters(), stretched.parameters(), strict=True):
        assert one.shape == other.shape
    assert (stretched[1].weight * 10).allclose(usual[1].weight)
    assert torch.equal(stretched[-1].weight, usual[-1].weight)


def test_values_that_are_taught_are_drawn_by_their_seed_and_can_be_learned():
    one, same, other = (taught_parts(3, 2, seed, 512) for seed in (1, 1, 2))
    assert torch.equal(one["train"][1], same["train"][1])
    assert not torch.equal(one["train"][1], other["train"][1])
    assert {name: len(x) for name, (x, _) in one.items()} == {
        "train": 512, "validation": 64, "test": 64
    }  # fmt: skip
    task = DrawnValues(lambda: one, lambda: perceptron(3, 32, 2, 2, nn.Tanh), 64)
    model = task.model(0)
    before = task.loss(model, one["test"]).item()
    x, y = one["test"]
    expected = (model(x) - y).square().mean().item() / 2
    assert before == pytest.approx(expected)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _, batch in zip(range(300), task.batches(0, "train"), strict=False):
        adam.zero_grad()
        task.loss(model, batch).backward()
        adam.step()
    assert task.loss(model, one["test"]) < 0.5 * before
    assert task.metrics(model, one["test"]) == {}


def test_tokens_follow_those_some_places_before():
    for seed in range(6):
        task = DrawnSequences(nn.Identity, 64, 20, seed)
        x, y = next(iter(task.batches(3, "train")))
        assert x.shape == y.shape == (64, 20)
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert x.max() < TOKENS
        whole = torch.cat((x, y[:, -1:]), dim=1)
        follows = task.permutation[whole[:, : -task.lag]] == whole[:, task.lag :]
        by_chance = task.noise / TOKENS
        assert follows.double().mean() == pytest.approx(1 - task.noise + by_chance, abs=0.03)
