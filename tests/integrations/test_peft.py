"""Both optimizers on low-rank adapters of peft: what is frozen stays, the adapters move."""

from typing import Any

import pytest
import torch
from integration_cases import LOSS, every_learned, loader, network, plain_loop
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer
from metaopt.symmetry import LevelSetTeleport

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def peft(monkeypatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("peft")


def adapted(peft: Any) -> nn.Module:
    """The network of the cases, frozen, with an adapter of rank 2 at each layer."""
    model = network()
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def assert_adapters_alone_moved(model: nn.Module, start: nn.Module) -> None:
    for (name, own), before in zip(model.named_parameters(), start.parameters(), strict=True):
        assert own.requires_grad == ("lora_" in name)
        assert torch.equal(own, before) != own.requires_grad, name


@every_learned
def test_the_adapters_of_a_network_are_trained(peft, build):
    model = adapted(peft)
    plain_loop(model, build(model), loader())
    assert_adapters_alone_moved(model, adapted(peft))


def test_teleports_along_the_level_set_move_the_adapters_alone(peft):
    model = adapted(peft)
    base = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = TeleportingOptimizer(base, model, LOSS, search=LevelSetTeleport())
    x, y = next(iter(loader()))
    before = LOSS(model(x), y).item()
    optimizer.teleport(x, y)
    assert LOSS(model(x), y).item() == pytest.approx(before, rel=0.05)
    assert_adapters_alone_moved(model, adapted(peft))


@pytest.mark.parametrize("name", ["lstm_layerwise", "lstm_update_tele"])
def test_the_adapters_of_a_transformer_are_trained_and_merged(peft, name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = peft.get_peft_model(
        transformers.BertForSequenceClassification(config),
        peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"]),
    )
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    tokens = torch.randint(0, 20, (16, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens[:, 0] % 3
    optimizer = LearnedOptimizer(model, name)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[n], value) for n, value in frozen.items())
    logits = model(tokens).logits
    torch.testing.assert_close(model.merge_and_unload()(tokens).logits, logits)
