"""Networks, bases and loops for tests of teleporting optimizers."""

import torch
from torch import nn

from metaopt.symmetry import GradientAscent
from metaopt.target import Batch

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
}
POLICIES = ("keep", "reset", "transport")
LOSS = nn.CrossEntropyLoss()
QUICK = GradientAscent(iterations=2, initial_step=0.3)


def seeded(build):
    torch.manual_seed(0)
    return build()


def mlp(dtype=torch.float64) -> nn.Module:
    def build() -> nn.Module:
        layers = nn.Linear(9, 7), nn.LeakyReLU(0.1), nn.Linear(7, 6), nn.LeakyReLU(0.1)
        return nn.Sequential(*layers, nn.Linear(6, 3)).to(dtype)

    return seeded(build)


def convolutional() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3),
        ).double()
    )  # fmt: skip


def data(samples: int = 5, *shape: int, seed: int = 1, dtype=torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *(shape or (9,)), generator=generator, dtype=dtype)
    return Batch(x, torch.arange(samples) % 3)


def norm(model: nn.Module, batch: Batch) -> float:
    gradients = torch.autograd.grad(LOSS(model(batch.x), batch.y), list(model.parameters()))
    return sum(g.square().sum().item() for g in gradients)


def train(model: nn.Module, optimizer, batches, **options) -> None:
    for batch in batches:
        optimizer.zero_grad()
        LOSS(model(batch.x), batch.y).backward()
        optimizer.step(**dict.fromkeys(options, batch))
