"""Small problems of unusual kinds: seen ones, by which steps were chosen, and unseen ones."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from metaopt.randomness import same_randomness
from metaopt.tasks.suite.base import generator_of
from metaopt.tasks.task import Task
from studies.unusual import networks
from studies.unusual.networks import Build, mlp

HELD_OUT = 8
"""Minibatches of a split that is held out."""

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Problem(Task):
    """A network and minibatches that are drawn without end.

    Attributes:
        build: returns a fresh module.
        draw: returns a minibatch.
        measure: the loss of a module on a minibatch.
    """

    build: Build
    draw: Callable[[Generator], Batch]
    measure: Loss

    def model(self, seed: int) -> nn.Module:
        """Return a fresh module.

        Args:
            seed: of its weights.
        """
        with same_randomness(seed):
            return self.build()

    def batches(self, seed: int, split: str) -> Iterator[Batch]:
        """Return minibatches: endless ones to train on, else eight.

        Args:
            seed: draws them.
            split: one of ``SPLITS``; each has samples of its own.
        """
        drawn = iter(partial(self.draw, generator_of(seed, split)), None)
        return drawn if split == "train" else islice(drawn, HELD_OUT)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a minibatch.

        Args:
            model: what :meth:`model` returned.
            batch: what was drawn.
        """
        return self.measure(model, batch)

    def digest(self) -> str:
        """Return what names the problem: another one has another first batch, weights or loss."""
        with same_randomness(0):
            model, batch = self.model(0), next(iter(self.batches(0, "train")))
            with torch.no_grad():
                loss = self.loss(model, batch)
        drawn = (loss, *batch, *model.parameters())
        whole = b"".join(value.detach().numpy().tobytes() for value in drawn)
        return hashlib.sha256(whole).hexdigest()[:12]


def itself(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that a module gives by itself.

    Args:
        model: the module.
        batch: its inputs.
    """
    found: Tensor = model(*batch)
    return found


def against(measure: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """Return a loss of what a module says and the last part of the batch.

    Args:
        measure: of the two.
    """
    return lambda model, batch: measure(model(*batch[:-1]), batch[-1])


def each(said: Tensor, y: Tensor) -> Tensor:
    """Return the cross entropy of classes behind several dimensions.

    Args:
        said: numbers of each class, in the last dimension.
        y: classes.
    """
    return functional.cross_entropy(said.flatten(0, -2), y.flatten())


def normal(generator: Generator, *shape: int) -> Tensor:
    """Return normal numbers.

    Args:
        generator: draws them.
        shape: of what is drawn.
    """
    return torch.randn(shape, generator=generator)


def whole(generator: Generator, most: int, *shape: int) -> Tensor:
    """Return whole numbers from 0 on.

    Args:
        generator: draws them.
        most: above the largest.
        shape: of what is drawn.
    """
    return torch.randint(0, most, shape, generator=generator)


@cache
def fixed(seed: int, *shape: int) -> Tensor:
    """Return normal numbers that are the same each time.

    Args:
        seed: of the numbers.
        shape: of what is drawn.
    """
    return normal(Generator().manual_seed(seed), *shape)


def teacher(inputs: int, outputs: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Return a network of one hidden layer that says what is to be learned.

    Args:
        inputs: numbers of an input.
        outputs: numbers of an output.
        seed: of its weights.
    """
    first, second = fixed(seed, inputs, 32), fixed(seed + 1000, 32, outputs)
    return lambda x: torch.tanh(x @ first / inputs**0.5) @ second / 32**0.5


def regression(
    batch: int = 32,
    outputs: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.mse_loss,
    seen: Callable[[Tensor], Tensor] = lambda x: x,
    size: float = 1.0,
    middle: float = 0.0,
) -> Problem:
    """Return a regression on what a network says of ten numbers, with noise.

    Args:
        batch: samples of a minibatch.
        outputs: numbers of an output.
        loss: of what is said and what is to be said.
        seen: what becomes of the inputs.
        size: by which what is to be said is multiplied.
        middle: what is added to it.
    """
    says = teacher(10, outputs, 77)

    def draw(generator: Generator) -> Batch:
        x = normal(generator, batch, 10)
        y = says(x) + 0.05 * normal(generator, batch, outputs)
        return seen(x), size * y + middle

    return Problem(partial(mlp, 10, 64, outputs, 2), draw, against(loss))


def classes(build: Build, inputs: int, count: int, seed: int, batch: int = 32) -> Problem:
    """Return the classification of normal inputs by the largest output of a network.

    Args:
        build: returns a fresh module.
        inputs: numbers of an input.
        count: of classes.
        seed: of the network that says them.
        batch: samples of a minibatch.
    """
    says = teacher(inputs, count, seed)

    def draw(generator: Generator) -> Batch:
        x = normal(generator, batch, inputs)
        return x, says(x).argmax(dim=1)

    return Problem(build, draw, against(functional.cross_entropy))


def _copied(generator: Generator) -> Batch:
    x = whole(generator, 12, 16, 20)
    return x, x.roll(3, dims=1)


def _copy_loss(model: nn.Module, batch: Batch) -> Tensor:
    return each(model(batch[0])[:, 3:], batch[1][:, 3:])


def _ratings(generator: Generator) -> Batch:
    user, thing = whole(generator, 500, 256), whole(generator, 500, 256)
    truth = (fixed(5, 500, 4)[user] * fixed(6, 500, 4)[thing]).sum(dim=1)
    return user, thing, truth + 0.1 * normal(generator, 256)


def _wave(generator: Generator) -> Batch:
    x = 2 * torch.rand(256, 2, generator=generator) - 1
    return x, torch.sin(7 * x[:, :1]) * torch.cos(5 * x[:, 1:] * x[:, :1])


def _poisson(model: nn.Module, batch: Batch) -> Tensor:
    """u'' + 4 pi^2 sin(2 pi x) = 0 with u(0) = u(1) = 0."""
    x = batch[0].clone().requires_grad_()
    with torch.enable_grad():
        u = model(x) * x * (1 - x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        bend = torch.autograd.grad(slope.sum(), x, create_graph=True)[0]
    return (bend + 4 * math.pi**2 * torch.sin(2 * math.pi * x)).square().mean()


def _heat(model: nn.Module, batch: Batch) -> Tensor:
    """u_t = u_xx / 10 with u(x, 0) = sin(pi x) and u(0, t) = u(1, t) = 0."""
    inner = batch[0].clone().requires_grad_()
    with torch.enable_grad():
        slopes = torch.autograd.grad(model(inner).sum(), inner, create_graph=True)[0]
        bend = torch.autograd.grad(slopes[:, 0].sum(), inner, create_graph=True)[0][:, 0]
    start = torch.stack((inner[:, 0].detach(), torch.zeros(len(inner))), dim=1)
    sides = torch.stack((inner[:, 0].detach().round(), inner[:, 1].detach()), dim=1)
    begins: Tensor = (model(start).squeeze(1) - torch.sin(math.pi * start[:, 0])).square().mean()
    flows = (slopes[:, 1] - bend / 10).square().mean()
    ends: Tensor = model(sides).square().mean()
    return begins + flows + ends


def _pairs(generator: Generator) -> Batch:
    x = normal(generator, 64, 32)
    return x, torch.tanh(x @ fixed(9, 32, 24) / 5) + 0.1 * normal(generator, 64, 24)


def _rare(generator: Generator) -> Batch:
    x = normal(generator, 128, 20)
    return x, (teacher(20, 1, 8)(x) > 0.9).float()


def _sparse(generator: Generator) -> Batch:
    x = (torch.rand(32, 2000, generator=generator) < 0.01).float()
    return x, (x @ fixed(2, 2000) > 0).long()


def _places(generator: Generator) -> Batch:
    x = normal(generator, 32, 10, 8)
    products = (x[..., 0] * x[..., 1]).mean(dim=1, keepdim=True)
    return x, 3 * products + x[..., 2].amax(dim=1, keepdim=True)


def _spots(generator: Generator) -> Batch:
    middle = 2 * torch.rand(16, 2, 1, 1, generator=generator) - 1
    line = torch.linspace(-1, 1, 16)
    distance = (line.reshape(-1, 1) - middle[:, 0]).square() + (line - middle[:, 1]).square()
    y = torch.exp(-8 * distance).unsqueeze(1)
    return y + 0.3 * normal(generator, *y.shape), y


def _codes(generator: Generator) -> Batch:
    return (torch.sigmoid(normal(generator, 64, 6) @ fixed(3, 6, 64)),)


SEEN: dict[str, Problem] = {
    "regression": regression(),
    "large_targets": regression(size=100.0, middle=1000.0),
    "small_targets": regression(size=1e-3),
    "large_inputs": regression(seen=lambda x: 300 * x),
    "small_inputs": regression(seen=lambda x: x / 100),
    "one_sample": regression(batch=1),
    "large_batch": regression(batch=2048),
    "absolute_error": regression(outputs=3, loss=functional.l1_loss),
    "heavy_tails": regression(seen=lambda x: x**3),
    "gru_copies": Problem(partial(networks.Recurrent, nn.GRU), _copied, _copy_loss),
    "rnn_copies": Problem(partial(networks.Recurrent, nn.RNN), _copied, _copy_loss),
    "ratings": Problem(networks.Factorisation, _ratings, against(functional.mse_loss)),
    "variational": Problem(networks.Autoencoder, _codes, itself),
    "sines": Problem(networks.siren, _wave, against(functional.mse_loss)),
    "poisson_equation": Problem(
        partial(mlp, 1, 32, 1, 3, nn.Tanh), lambda g: (torch.rand(64, 1, generator=g),), _poisson
    ),
    "contrastive": Problem(networks.Contrast, _pairs, itself),
    "deep_tanh": classes(partial(mlp, 16, 48, 5, 20, nn.Tanh), 16, 5, 4),
    "deep_relu_norm": classes(partial(mlp, 16, 48, 5, 20, nn.ReLU, True), 16, 5, 4),
    "deep_sigmoid_norm": classes(partial(mlp, 16, 48, 5, 12, nn.Sigmoid, True), 16, 5, 4),
    "rare_class": Problem(
        partial(mlp, 20, 64, 1, 2), _rare, against(functional.binary_cross_entropy_with_logits)
    ),
    "sparse_inputs": Problem(
        partial(nn.Linear, 2000, 2), _sparse, against(functional.cross_entropy)
    ),
    "post_norm": Problem(networks.PostNorm, _places, against(functional.mse_loss)),
    "denoising": Problem(networks.denoiser, _spots, against(functional.mse_loss)),
}  # fmt: skip
"""Problems by which the lengths of steps were chosen, by name."""


def _reversed(generator: Generator) -> Batch:
    x = whole(generator, 12, 16, 12)
    return x, x.flip(1)


def _moons(generator: Generator) -> Batch:
    angle = math.pi * torch.rand(128, 2, generator=generator)
    points = torch.stack((angle.cos(), angle.sin()), dim=2).flatten(1)
    return (points + 0.1 * normal(generator, 128, 4),)


def _branches(generator: Generator) -> Batch:
    x = normal(generator, 64, 4)
    sign = 2.0 * whole(generator, 2, 64, 1) - 1
    return x, sign * (1 + x[:, :1].square()) + x[:, 1:2] + 0.1 * normal(generator, 64, 1)


def _signal(generator: Generator) -> Batch:
    pitch = 0.1 + 0.4 * torch.rand(16, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(16, 1, 1, generator=generator)
    wave = torch.sin(pitch * torch.arange(96.0) + phase)
    return (torch.sign(wave) * wave.abs().sqrt() + 0.05 * normal(generator, 16, 1, 96),)


def _nodes(generator: Generator) -> Batch:
    x, average = normal(generator, 8, 100, 8), networks.averages(100)
    return x, teacher(8, 3, 21)(average @ (average @ x)).argmax(dim=2)


def _flowing(generator: Generator) -> Batch:
    x = normal(generator, 64, 6)
    return x, torch.stack(((x[:, :3] * x[:, 3:]).sum(dim=1), torch.sin(3 * x[:, 0])), dim=1)


def _pinball(said: Tensor, y: Tensor) -> Tensor:
    levels = torch.tensor([0.05, 0.5, 0.95])
    short = y - said
    return torch.maximum(levels * short, (levels - 1) * short).mean()


def _skewed(generator: Generator) -> Batch:
    x = normal(generator, 32, 6)
    return x, x[:, :1] * x[:, 1:2] + normal(generator, 32, 1).exp() * (1 + x[:, 2:3].abs())


def _counts(generator: Generator) -> Batch:
    x = normal(generator, 64, 12)
    rate = (2 + 1.5 * teacher(12, 1, 31)(x)).exp()
    return x, torch.poisson(rate, generator=generator)


def _sets(generator: Generator) -> Batch:
    x = normal(generator, 32, 40, 3)
    return x, x.square().sum(dim=(1, 2)).sqrt().unsqueeze(1) + x[..., 0].amax(dim=1, keepdim=True)


def _sums(generator: Generator) -> Batch:
    """The sum of two of twenty numbers, which are marked."""
    values = torch.rand(32, 20, generator=generator)
    places = torch.rand(32, 20, generator=generator).argsort(dim=1)[:, :2]
    marks = torch.zeros(32, 20).scatter(1, places, 1.0)
    return torch.stack((values, marks), dim=2), (values * marks).sum(dim=1, keepdim=True)


class _Adder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(2, 48, 2, batch_first=True), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x)[0][:, -1])
        return out


def _bags(generator: Generator) -> Batch:
    x = whole(generator, 1000, 64, 20)
    return x, fixed(41, 1000, 8)[x].sum(dim=1).argmax(dim=1)


def _bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(1000, 32), mlp(32, 32, 8, 1))


def _gated(generator: Generator) -> Batch:
    x = normal(generator, 64, 10)
    one, other = teacher(10, 3, 51)(x), teacher(10, 3, 52)(x)
    return x, 2 * torch.where(x[:, :1] > 0, one, -other)


def _modulated(generator: Generator) -> Batch:
    x, y = normal(generator, 64, 8), normal(generator, 64, 4)
    return x, y, teacher(8, 2, 61)(x) * (1 + y[:, :1]) + torch.sin(2 * y[:, 1:2])


def _words(generator: Generator) -> Batch:
    """Each token follows one of three of the one before; small ones are frequent at first."""
    first = (300 * torch.rand(16, 1, generator=generator) ** 3).long()
    tokens = [first]
    for _ in range(23):
        choice = whole(generator, 3, 16, 1)
        tokens.append((7 * tokens[-1] + 31 * choice * choice + 1) % 300)
    return (torch.cat(tokens, dim=1),)


def _count_loss(said: Tensor, y: Tensor) -> Tensor:
    return functional.poisson_nll_loss(said, y, full=True)


UNSEEN: dict[str, Problem] = {
    "reversal": Problem(networks.Translator, _reversed, itself),
    "couplings": Problem(networks.Flow, _moons, itself),
    "mixture": Problem(networks.Mixture, _branches, itself),
    "dilated": Problem(networks.Dilated, _signal, itself),
    "graph": Problem(networks.Graph, _nodes, against(each)),
    "tied_layers": Problem(networks.Tied, _flowing, against(functional.mse_loss)),
    "quantiles": Problem(partial(mlp, 6, 48, 3, 2, nn.SiLU), _skewed, against(_pinball)),
    "counts": Problem(partial(mlp, 12, 48, 1, 2), _counts, against(_count_loss)),
    "many_classes": classes(partial(mlp, 24, 64, 200, 2, nn.GELU), 24, 200, 71, 64),
    "sets": Problem(networks.Sum, _sets, against(functional.mse_loss)),
    "adding": Problem(_Adder, _sums, against(functional.mse_loss)),
    "bags_of_words": Problem(_bag, _bags, against(functional.cross_entropy)),
    "experts": Problem(networks.Experts, _gated, against(functional.mse_loss)),
    "modulated": Problem(networks.Modulated, _modulated, against(functional.mse_loss)),
    "tied_words": Problem(networks.TiedWords, _words, itself),
    "deep_selu": classes(partial(mlp, 12, 32, 6, 24, nn.SELU), 12, 6, 81),
    "heat_equation": Problem(
        partial(mlp, 2, 32, 1, 4, nn.Tanh), lambda g: (torch.rand(64, 2, generator=g),), _heat
    ),
}
"""Problems that nothing was chosen by, by name."""
