"""Ordinary networks, batches and loops for the tests of ``LearnedOptimizer``."""

import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec


def build(seed: int = 0, **fields) -> MetaOptimizer:
    """A meta-optimizer that teleports from the start: m2's head is not zero."""
    meta = MetaOptimizer(MetaOptimizerSpec(**{"hidden": 5, "bound": 1.0, **fields}), seed)
    if meta.element is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        nn.init.normal_(meta.element.lstm.head_weight, std=0.3, generator=generator)
    return meta


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(9, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h + self.inner(h).relu())


def mlp(between=None, bias: bool = True, dtype=torch.float32, seed: int = 0) -> nn.Sequential:
    """9 -> 7 -> 6 -> 3."""
    between = nn.LeakyReLU(0.1) if between is None else between
    torch.manual_seed(seed)
    layers = nn.Linear(9, 7, bias), between, nn.Linear(7, 6, bias), between, nn.Linear(6, 3, bias)
    return nn.Sequential(*layers).to(dtype)


def conv_net(dropout: float = 0.0, dtype=torch.float32, seed: int = 0) -> nn.Sequential:
    """Of images 1 x 6 x 6, with batch norm; 3 outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3),
    ).to(dtype)  # fmt: skip


SHAPES = {mlp: (9,), conv_net: (1, 6, 6)}


def batch(*shape: int, seed: int = 1, targets: int = 3, dtype=torch.float32):
    """(x, y) for the mean squared error."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=dtype)
    y = torch.randn(shape[0], targets, generator=generator, dtype=dtype)
    return x, y


def batch_for(make, samples: int = 6, seed: int = 1, dtype=torch.float32):
    return batch(samples, *SHAPES[make], seed=seed, dtype=dtype)


def halves(output: Tensor, y: Tensor) -> Tensor:
    """What meta-optimizers are trained on; its curvature is 1."""
    return 0.5 * (output - y).square().sum()


def train(model, optimizer: LearnedOptimizer, batches, loss_fn=nn.functional.mse_loss) -> list:
    """The ordinary loop; the losses before each step."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def made(make, samples: int = 6, dtype=torch.float64, meta=None, **options):
    """(model, optimizer, batch)."""
    model = make(dtype=dtype)
    batch = batch_for(make, samples, dtype=dtype)
    return model, LearnedOptimizer(model, build() if meta is None else meta, **options), batch


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters are the same, bit for bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two weights over the largest weight."""
    pairs = list(zip(weights(one), weights(other), strict=True))
    most = max(float((a - b).abs().max()) for a, b in pairs)
    return most / max(float(a.abs().max()) for a, _ in pairs)
