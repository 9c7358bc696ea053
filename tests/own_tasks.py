"""Tasks of modules that no table knows, for tests, and tasks with a mistake."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from metaopt.tasks import RegressionFamily, Task, TaskFamily

DTYPE = torch.float64


class Images(Task):
    """Convolutions with batch norm, on batches that are dictionaries."""

    dropout = 0.0

    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Flatten(),
            nn.Linear(4 * 12, 3),
        ).to(DTYPE)

    def batches(self, seed, split):
        generator = torch.Generator().manual_seed(seed + 1000 * len(split))
        while True:
            x = torch.randn(8, 1, 6, 5, generator=generator, dtype=DTYPE)
            yield {"x": x, "y": (x.mean(dim=(1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long()}

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    def metrics(self, model, batch):
        return {"accuracy": (model(batch["x"]).argmax(dim=1) == batch["y"]).double().mean()}


class Dropped(Images):
    """With dropout."""

    dropout = 0.5


class Attention(Task):
    """A block with attention, layer norm and GELU, whose batches end after three."""

    def model(self, seed):
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        return nn.ModuleDict({"layer": layer, "out": nn.Linear(8, 3)}).to(DTYPE)

    def batches(self, seed, split):
        generator = torch.Generator().manual_seed(seed + 1000 * len(split))
        x = torch.randn(3, 6, 5, 8, generator=generator, dtype=DTYPE)
        return [(batch, batch.sum(dim=(1, 2)).gt(0).long()) for batch in x]

    def loss(self, model, batch):
        x, y = batch
        return F.cross_entropy(model["out"](model["layer"](x).mean(dim=1)), y)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.inner = nn.Linear(5, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.inner(self.embedding(tokens))))


class Tokens(Task):
    """Tied weights, and two inputs of which one is whole numbers."""

    def model(self, seed):
        torch.manual_seed(seed)
        return Tied().to(DTYPE)

    def batches(self, seed, split):
        generator = torch.Generator().manual_seed(seed + 1000 * len(split))
        while True:
            tokens = torch.randint(0, 7, (9,), generator=generator)
            yield tokens, tokens.roll(1), torch.rand(9, generator=generator, dtype=DTYPE)

    def loss(self, model, batch):
        tokens, following, weights = batch
        return (weights * F.cross_entropy(model(tokens), following, reduction="none")).mean()


class Recurrent(Tokens):
    """An LSTM, which torch.vmap cannot run."""

    def model(self, seed):
        torch.manual_seed(seed)
        parts = {"in": nn.Embedding(7, 4), "lstm": nn.LSTM(4, 6), "out": nn.Linear(6, 7)}
        return nn.ModuleDict(parts).to(DTYPE)

    def loss(self, model, batch):
        tokens, following, _ = batch
        return F.cross_entropy(model["out"](model["lstm"](model["in"](tokens))[0]), following)


class Adversarial(Tokens):
    """A loss that uses one of two networks, and a frozen layer."""

    def model(self, seed):
        torch.manual_seed(seed)
        network = nn.ModuleDict(
            {"used": nn.Linear(1, 4), "fixed": nn.Linear(4, 1), "other": nn.Linear(2, 3)}
        ).to(DTYPE)
        network["fixed"].requires_grad_(False)
        return network

    def loss(self, model, batch):
        x = batch[2].unsqueeze(1)
        return (model["fixed"](torch.sigmoid(model["used"](x))) - x).square().mean()


class PlainRegression(Task):
    """Section 5.2's regression as an ordinary module."""

    family = RegressionFamily(4, 5, 6, 3, dtype="float64")

    def model(self, seed):
        first, second = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)
        drawn = self.family.sample([seed])
        first.weight = nn.Parameter(drawn.W1.detach()[0])
        second.weight = nn.Parameter(drawn.W2.detach()[0])
        return nn.Sequential(first, nn.LeakyReLU(0.1), second)

    def batches(self, seed, split):
        drawn = self.family.sample([seed])
        return [(drawn.x[0].mT, drawn.y[0].mT)]

    def loss(self, model, batch):
        x, y = batch
        return 0.5 * (model(x) - y).square().sum()


class Widths(TaskFamily):
    """Images and tokens: tasks of different modules."""

    def sample(self, seed):
        return Images() if seed % 2 else Tokens()


TOGETHER = [Images, Attention, Tokens, Adversarial, PlainRegression]
"""Tasks that torch.vmap can run."""


class Unseeded(Images):
    def model(self, seed):
        torch.manual_seed(torch.seed())
        return nn.Linear(3, 1)


class UnseededData(Images):
    def batches(self, seed, split):
        generator = torch.Generator()
        generator.seed()
        x = torch.randn(8, 1, 6, 5, generator=generator, dtype=DTYPE)
        yield {"x": x, "y": torch.zeros(8, dtype=torch.long)}


class Empty(Images):
    def batches(self, seed, split):
        return []


class PerSample(Images):
    def loss(self, model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


class Raising(Images):
    def loss(self, model, batch):
        raise ValueError("no loss today")


class NoParameters(Images):
    def model(self, seed):
        return nn.ReLU()


class NoModule(Images):
    def model(self, seed):
        return None


class Detached(Images):
    def loss(self, model, batch):
        return super().loss(model, batch).detach()


class NotFinite(Images):
    def loss(self, model, batch):
        return super().loss(model, batch) * float("nan")


class VectorMetric(Images):
    def metrics(self, model, batch):
        return {"each": batch["y"]}


class LossMetric(Images):
    def metrics(self, model, batch):
        return {"loss": 7.0}


class Exits(Images):
    def loss(self, model, batch):
        raise SystemExit(3)


class Negative(Images):
    def loss(self, model, batch):
        return super().loss(model, batch) - 9.0


class Lazy(Images):
    def model(self, seed):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


class Writing(Images):
    def loss(self, model, batch):
        batch["x"].add_(0.1)
        return super().loss(model, batch)


class Complex(Task):
    """A parameter of complex numbers."""

    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Linear(3, 2, bias=False, dtype=torch.complex128)

    def batches(self, seed, split):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(5, 3, dtype=torch.complex128, generator=generator)]

    def loss(self, model, batch):
        return model(batch).abs().square().mean()


class NoTask:
    pass


class Needs(Images):
    def __init__(self, size):
        self.size = size


MISTAKES = {
    "Unseeded": "expected Unseeded.model to give the same weights",
    "UnseededData": "expected UnseededData.batches to give the same batches",
    "Empty": "expected Empty.batches(1000000, 'train') to give a batch, got none",
    "PerSample": "expected PerSample.loss to return a scalar tensor, got (8,)",
    "Raising": "expected Raising.loss to run, got ValueError: no loss today (own_tasks.py:",
    "Detached": "expected Detached.loss to depend on the weights, got one without a gradient",
    "NotFinite": "expected NotFinite.loss to be finite at the initial weights, got nan",
    "VectorMetric": "expected VectorMetric.metrics to give scalars by names of their own, got (8,)",
    "LossMetric": "expected LossMetric.metrics to give scalars by names of their own, got one with",
    "Exits": "expected Exits.loss to run, got SystemExit: 3",
    "NoParameters": "expected NoParameters.model to return a module with trainable parameters",
    "NoModule": "expected NoModule.model to return an nn.Module, got None",
    "Lazy": "expected Lazy.model to return a module whose sizes are known, got 1.weight, which is",
    "Writing": "expected Writing.loss to leave its batch as it is",
    "NoTask": "expected a Task or a TaskFamily of metaopt.tasks under 'own_tasks:NoTask'",
    "Needs": "expected to build 'own_tasks:Needs', got TypeError",
    "Imagse": "expected a class of own_tasks",
}
"""Names of what is no good task, with the beginning of the line that says so."""
