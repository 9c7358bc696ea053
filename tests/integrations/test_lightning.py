"""Both optimizers in Lightning: automatic and manual optimization, clipping, resuming."""

from typing import Any

import pytest
import torch
from integration_cases import (
    LOSS,
    OPTIMIZERS,
    TELEPORTS,
    assert_equal,
    assert_moved,
    every_optimizer,
    loader,
    network,
    plain_loop,
    teleporting,
)

pytestmark = pytest.mark.filterwarnings("default")  # of the framework's own


@pytest.fixture(scope="module")
def lightning() -> Any:
    return pytest.importorskip("lightning")


@pytest.fixture
def classifier(lightning):
    class Classifier(lightning.LightningModule):
        """The network of the cases; ``by_hand`` calls backward and step itself."""

        def __init__(self, build, by_hand=False, whole=False, scheduler=None):
            super().__init__()
            self.net, self.build, self.whole, self.scheduler = network(), build, whole, scheduler
            self.automatic_optimization = not by_hand

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            loss = LOSS(self(x) if self.whole else self.net(x), y)
            if not self.automatic_optimization:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                teleports = OPTIMIZERS["teleporting"] is self.build
                optimizer.step(**({"batch": batch} if teleports else {}))
            return loss

        def configure_optimizers(self):
            self.built = self.build(self if self.whole else self.net)
            if self.scheduler is None:
                return self.built
            return [self.built], [{"scheduler": self.scheduler(self.built), "interval": "step"}]

    return Classifier


@pytest.fixture
def fit(lightning, tmp_path):
    def fit(module, epochs=1, batches=6, ckpt_path=None, **options):
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=epochs,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
            **options,
        )  # fmt: skip
        trainer.fit(module, loader(batches), ckpt_path=ckpt_path)
        return trainer

    return fit


@every_optimizer
def test_automatic_optimization_equals_a_plain_loop(classifier, fit, build):
    module, model = classifier(build), network()
    fit(module)
    plain_loop(model, build(model), loader())
    assert_equal(module.net, model)
    assert_moved(module.net, network())


@every_optimizer
def test_the_module_itself_may_be_given(classifier, fit, build):
    module, model = classifier(build, whole=True), network()
    fit(module)
    plain_loop(model, build(model), loader())
    assert_equal(module.net, model)


def test_a_closure_alone_is_enough_for_the_scheduled_teleports(classifier, fit):
    module = classifier(teleporting)
    fit(module)
    assert module.built.made == len(TELEPORTS)


@every_optimizer
def test_manual_optimization_equals_a_plain_loop(classifier, fit, build):
    module, model = classifier(build, by_hand=True), network()
    fit(module)
    optimizer = build(model)
    for x, y in loader():
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step(**({"batch": (x, y)} if build is teleporting else {}))
    assert_equal(module.net, model)


@every_optimizer
def test_bf16_mixed_with_clipping_equals_a_plain_loop(classifier, fit, build):
    module, model = classifier(build), network()
    fit(module, precision="bf16-mixed", gradient_clip_val=0.1)
    plain_loop(model, build(model), loader(), clip=0.1, cast_to=torch.bfloat16)
    assert_equal(module.net, model)


@every_optimizer
def test_scaled_float16_with_clipping_equals_a_plain_loop(lightning, classifier, fit, build):
    """Lightning then calls ``step`` with neither a closure nor a batch."""

    class Told(classifier):
        def training_step(self, batch, index):
            if build is teleporting:
                self.built.next_batch = batch
            return super().training_step(batch, index)

    module, model = Told(build), network()
    scaled = lightning.pytorch.plugins.MixedPrecision(
        "16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu")
    )
    fit(module, plugins=[scaled], gradient_clip_val=0.1)
    optimizer, scaler = build(model), torch.amp.GradScaler("cpu")
    for x, y in loader():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = LOSS(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer, **({"batch": (x, y)} if build is teleporting else {}))
        scaler.update()
    assert_equal(module.net, model)


@every_optimizer
def test_a_checkpoint_resumes_to_the_same_weights(classifier, fit, build, tmp_path):
    whole, half, resumed = (classifier(build) for _ in range(3))
    fit(whole, epochs=2, batches=3)
    fit(half, batches=3).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, epochs=2, batches=3, ckpt_path=tmp_path / "half.ckpt")
    assert_equal(resumed.net, whole.net)


@every_optimizer
def test_a_scheduler_reaches_the_steps(classifier, fit, build):
    module = classifier(
        build, scheduler=lambda own: torch.optim.lr_scheduler.StepLR(own, 2, gamma=0.5)
    )
    fit(module)
    model = network()
    optimizer = build(model)
    first = optimizer.param_groups[0]["lr"]
    assert module.built.param_groups[0]["lr"] == first / 8
    for index, batch in enumerate(loader()):
        optimizer.param_groups[0]["lr"] = first / 2 ** (index // 2)
        plain_loop(model, optimizer, [batch])
    assert_equal(module.net, model)


@every_optimizer
def test_accumulated_gradients_are_stepped_on_once(classifier, fit, build):
    module, model = classifier(build), network()
    fit(module, accumulate_grad_batches=2)
    optimizer = build(model)
    for index, (x, y) in enumerate(loader()):

        def closure(x=x, y=y, first=index % 2 == 0):
            if first:
                optimizer.zero_grad()
            loss = LOSS(model(x), y) / 2
            loss.backward()
            return loss

        optimizer.step(closure) if index % 2 else closure()
    assert_equal(module.net, model)


@every_optimizer
def test_fabric_equals_a_plain_loop_and_goes_on_from_its_checkpoint(lightning, build, tmp_path):
    """Its ``step`` takes a closure alone."""
    fabric = lightning.Fabric(accelerator="cpu")
    model, plain = network(), network()
    inner, other = build(model), build(plain)
    prepared, optimizer = fabric.setup(model, inner)

    def epoch():
        for x, y in loader(3):
            optimizer.zero_grad()
            fabric.backward(LOSS(prepared(x), y))
            if build is teleporting:
                inner.next_batch = (x, y)
            optimizer.step()

    epoch()
    for x, y in loader(3):
        other.zero_grad()
        LOSS(plain(x), y).backward()
        other.step(**({"batch": (x, y)} if build is teleporting else {}))
    assert_equal(model, plain)
    state = {"model": prepared, "optimizer": optimizer}
    fabric.save(tmp_path / "state.ckpt", state)
    epoch()
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    fabric.load(tmp_path / "state.ckpt", state)
    epoch()
    torch.testing.assert_close(model.state_dict(), whole, rtol=0, atol=0)
