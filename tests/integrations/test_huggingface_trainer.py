"""Both optimizers in the Hugging Face Trainer: clipping, schedules, teleports and resuming."""

from typing import Any

import pytest
import torch
from integration_cases import (
    LEARNED,
    LOSS,
    QUICK,
    TELEPORTS,
    assert_equal,
    assert_moved,
    every_learned,
    loader,
    network,
    plain_loop,
)
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer

pytestmark = pytest.mark.filterwarnings("default")


class Classifier(nn.Module):
    """The network of the cases, as the Trainer wants a model: it gives its loss."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": None if labels is None else LOSS(logits, labels), "logits": logits}


def dataset():
    return [{"x": x, "labels": y} for x, y in loader().dataset]


@pytest.fixture
def transformers(monkeypatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


@pytest.fixture
def trainer(transformers, tmp_path):
    class InOrder(transformers.Trainer):
        """Takes the batches in their order, and tells a teleporting optimizer what they are."""

        def _get_train_sampler(self, *given):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, model, inputs, *rest):
            optimizer = self.optimizer.optimizer  # inside accelerate's
            if isinstance(optimizer, TeleportingOptimizer):
                optimizer.next_batch = (inputs["x"], inputs["labels"])
            return super().training_step(model, inputs, *rest)

    def trainer(model, optimizer, data=None, **options):
        arguments = transformers.TrainingArguments(
            str(tmp_path), per_device_train_batch_size=5, use_cpu=True, report_to=[],
            disable_tqdm=True, **{"num_train_epochs": 1, "save_strategy": "no", **options},
        )  # fmt: skip
        how = {"optimizers": (optimizer, None)}
        if isinstance(optimizer, dict):
            how = {"optimizer_cls_and_kwargs": (LearnedOptimizer, optimizer)}
        return InOrder(model, arguments, train_dataset=data or dataset(), **how)

    return trainer


def teleporting(model: Classifier) -> TeleportingOptimizer:
    base = torch.optim.AdamW(model.parameters(), 1e-2)
    return TeleportingOptimizer(base, model.net, LOSS, schedule=TELEPORTS, search=QUICK)


@every_learned
def test_the_trainer_equals_a_plain_loop_with_clipping(trainer, build):
    model, plain = Classifier(), network()
    trainer(model, build(model.net), lr_scheduler_type="constant", max_grad_norm=0.1).train()
    plain_loop(plain, build(plain), loader(), clip=0.1)
    assert_equal(model.net, plain)
    assert_moved(plain, network())


@every_learned
def test_the_model_that_gives_its_loss_may_be_given_itself(trainer, build):
    model = Classifier()
    optimizer = build(model)
    trainer(model, optimizer).train()
    assert_moved(model.net, network())
    assert optimizer.skipped == 0


@pytest.mark.parametrize("name", LEARNED)
def test_the_trainer_may_build_it_with_weight_decay_of_the_weights_alone(trainer, name):
    model = Classifier()
    run = trainer(model, {"optimizer": name, "lr": 1.0}, weight_decay=0.1)
    run.train()
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.1, 0.0]
    assert_moved(model, Classifier())


def test_scheduled_teleports_with_clipping_equal_those_of_a_plain_loop(trainer):
    model, plain = Classifier(), Classifier()
    own, other = teleporting(model), teleporting(plain)
    trainer(model, own, lr_scheduler_type="constant", max_grad_norm=0.1).train()
    for batch in loader():
        other.zero_grad()
        LOSS(plain.net(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        other.step(batch=batch)
    assert own.made == len(TELEPORTS)
    assert_equal(model, plain)


@pytest.mark.parametrize("build", [*LEARNED.values(), teleporting], ids=[*LEARNED, "teleporting"])
def test_a_checkpoint_resumes_to_the_same_weights(trainer, tmp_path, build):
    models = Classifier(), Classifier()
    for model, resume in zip(models, (None, str(tmp_path / "checkpoint-3")), strict=True):
        optimizer = build(model)
        run = trainer(model, optimizer, max_steps=6, save_strategy="steps", save_steps=3)
        run.train(resume_from_checkpoint=resume)
    assert_equal(*models)
    if build is teleporting:
        assert optimizer.made == len(TELEPORTS), "the first from the checkpoint, the last its own"


def test_a_bert_is_trained_evaluated_and_resumed(trainer, transformers, tmp_path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    tokens = torch.randint(0, 20, (30, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": ids, "labels": int(ids[0]) % 3} for ids in tokens]
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        run = trainer(
            model, LearnedOptimizer(model, "lstm_layerwise"), data,
            max_steps=6, save_strategy="steps", save_steps=3,
        )  # fmt: skip
        before = run.evaluate(data)["eval_loss"]
        run.train(resume_from_checkpoint=resume)
        assert run.evaluate(data)["eval_loss"] < before
        ends.append(model)
    assert_equal(*ends)
