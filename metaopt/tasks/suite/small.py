"""Small tasks of the kinds that may be trained on, fast enough for thousands of meta-steps.

They are those of :mod:`metaopt.tasks.suite.families` in smaller sizes, with attention blocks on
sequences of random numbers beside them, the only attention that anything is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.randomness import same_randomness
from metaopt.tasks.suite.autoencoder import autoencoder
from metaopt.tasks.suite.base import Pair, Parts, generator_of
from metaopt.tasks.suite.families import (
    ACTIVATIONS,
    Draw,
    DrawnPairs,
    DrawnText,
    ImageFamily,
    synthetic_parts,
)
from metaopt.tasks.suite.images import CLASSES, image_parts
from metaopt.tasks.suite.lstm_characters import RecurrentModel
from metaopt.tasks.suite.mlp import NORMS, perceptron
from metaopt.tasks.suite.residual import residual_network
from metaopt.tasks.task import Task

TOKENS = 16
HIDDEN = 16  # units of the network that says the values
FEWEST, MOST = 1_000, 20_000  # images to train on, so that runs have a tenth of an epoch, or ten


STRETCHES = (1.0, 1.0, 1.0, 3.0, 10.0)  # weights so many times smaller, activations steeper


@cache
def _images(name: str, side: int, data_dir: str | Path | None) -> Parts:
    return image_parts(name, side, data_dir)


def _some_images(name: str, side: int, data_dir: str | Path | None, count: int) -> Parts:
    parts = _images(name, side, data_dir)
    x, y = parts["train"]
    return parts | {"train": (x[:count], y[:count])}


def taught_parts(inputs: int, outputs: int, seed: int, samples: int) -> Parts:
    """Return normal inputs, and what a network of one hidden layer says of them, with noise.

    Args:
        inputs: numbers of an input.
        outputs: numbers of an output.
        seed: draws the network, how large its outputs and the noise are, and the inputs.
        samples: of the training split; the others have an eighth of it each.

    Returns:
        For each split float32 ``(n, inputs)`` and ``(n, outputs)``.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(inputs, HIDDEN, generator=generator) / inputs**0.5
    second = torch.randn(HIDDEN, outputs, generator=generator) / HIDDEN**0.5
    size, noise = (float(torch.rand((), generator=generator)) for _ in range(2))
    size, noise = 10 ** (2 * size - 1), 0.05 + 0.25 * noise**2
    parts = {}
    for split, n in (("train", samples), ("validation", samples // 8), ("test", samples // 8)):
        x = torch.randn(n, inputs, generator=generator)
        y = torch.sin(2 * x @ first) @ second
        parts[split] = x, size * (y + noise * torch.randn(n, outputs, generator=generator))
    return parts


class DrawnValues(DrawnPairs):
    """A task of a family that says numbers, with half the mean squared error."""

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return half the mean squared error.

        Args:
            model: what :meth:`build` returned.
            batch: inputs, and what is to be said of them.
        """
        x, y = batch
        return functional.mse_loss(model(x), y) / 2

    def metrics(self, model: nn.Module, batch: Pair) -> dict[str, Tensor]:
        """Return none.

        Args:
            model: what :meth:`build` returned.
            batch: a minibatch.
        """
        return {}


class Block(nn.Module):
    """A pre-norm block of attention to earlier places and a perceptron.

    Args:
        width: of the stream.
        heads: of the attention; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block.

        Args:
            x: ``(sequences, places, width)``.
        """
        heads = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        added: Tensor = x + self.down(functional.gelu(self.up(self.second(x))))
        return added


class SequenceModel(nn.Module):
    """Embeddings of tokens and places, blocks, and a head.

    Args:
        width: of the stream.
        heads: of each block.
        blocks: how many.
        length: the most places.
    """

    def __init__(self, width: int, heads: int, blocks: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each next token, ``(sequences, places, tokens)``.

        Args:
            x: tokens ``(sequences, places)``.
        """
        stream = self.tokens(x) + self.places.weight[: x.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(stream)))
        return out


class DrawnSequences(Task):
    """A token is that of some places before, permuted, or with some probability any.

    Args:
        build: returns a fresh module.
        batch: sequences of a minibatch.
        length: places of a sequence.
        seed: draws the permutation, how many places back, and how often it is any token.
    """

    def __init__(self, build: Callable[[], nn.Module], batch: int, length: int, seed: int) -> None:
        self._build, self.batch, self.length = build, batch, length
        generator = torch.Generator().manual_seed(seed)
        self.permutation = torch.randperm(TOKENS, generator=generator)
        self.lag = int(torch.randint(1, max(2, length // 3), (), generator=generator))
        self.noise = 0.3 * float(torch.rand((), generator=generator))

    def model(self, seed: int) -> nn.Module:
        """Return a fresh module.

        Args:
            seed: of its weights.
        """
        with same_randomness(seed):
            return self._build()

    def batches(self, seed: int, split: str) -> Iterator[Pair]:
        """Return endless sequences, and what follows each token.

        Args:
            seed: draws them.
            split: one of ``SPLITS``; each has sequences of its own.
        """
        generator = generator_of(seed, split)
        while True:
            drawn = torch.randint(0, TOKENS, (self.batch, self.length + 1), generator=generator)
            kept = torch.rand(drawn.shape, generator=generator) >= self.noise
            for place in range(self.lag, self.length + 1):
                follows = self.permutation[drawn[:, place - self.lag]]
                drawn[:, place] = torch.where(kept[:, place], follows, drawn[:, place])
            yield drawn[:, :-1], drawn[:, 1:]

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        """Return the mean cross entropy, in nats a token.

        Args:
            model: says numbers of each token.
            batch: tokens, and the next ones.
        """
        x, y = batch
        return functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


class SmallFamily(ImageFamily):
    """Small perceptrons, autoencoders, residual networks, LSTMs, and attention on random numbers.

    Half of the tasks are perceptrons. They have up to 12 hidden layers, with shortcuts or without,
    and some begin with weights that are small for their activations. They classify, or say what
    another network says. Images to train on are 1,000 to 20,000, so that what fits them need not
    fit others.

    Args:
        data_dir: the folder that has a folder of each data set; by default ``$METAOPT_DATA``.
    """

    KINDS = ("mlp", "mlp", "mlp", "values", "autoencoder", "residual", "lstm", "attention")

    def sample(self, seed: int) -> Task:
        """Return the task of a seed.

        Args:
            seed: from 0 to 2^63 - 1.
        """
        draw = Draw(seed)
        kind = draw.one_of(self.KINDS)
        made: Task = getattr(self, f"_{kind}")(draw)
        return made

    def _parts(self, draw: Draw, data: str, side: int) -> Callable[[], Parts]:
        return partial(_some_images, data, side, self.data_dir, draw.size(FEWEST, MOST))

    def _mlp(self, draw: Draw) -> Task:
        data, batch = draw.one_of(("mnist", "fashion-mnist", "synthetic")), draw.size(8, 64)
        if data == "synthetic":
            inputs, classes = draw.size(8, 48), draw.size(2, 16)
            samples = draw.size(1024, 8192)
            parts: Callable[[], Parts] = partial(
                synthetic_parts, inputs, classes, draw.seed(), samples
            )
        else:
            side, classes = draw.one_of((7, 8)), CLASSES
            inputs, parts = side * side, self._parts(draw, data, side)
        return DrawnPairs(parts, self._perceptron(draw, inputs, classes), batch)

    def _values(self, draw: Draw) -> Task:
        inputs, outputs, batch = draw.size(1, 24), draw.size(1, 4), draw.size(2, 128)
        parts = partial(taught_parts, inputs, outputs, draw.seed(), draw.size(256, 8192))
        return DrawnValues(parts, self._perceptron(draw, inputs, outputs), batch)

    def _perceptron(self, draw: Draw, inputs: int, outputs: int) -> Callable[[], nn.Module]:
        hidden, width = draw.size(1, 12), draw.size(12, 64)
        residual, norm = draw.one_of((False, True)), draw.one_of(list(NORMS))
        activation = ACTIVATIONS[draw.one_of(list(ACTIVATIONS))]
        sizes = inputs, width, hidden, outputs
        stretch = draw.one_of(STRETCHES)
        return partial(perceptron, *sizes, activation, norm, residual, stretch)

    def _autoencoder(self, draw: Draw) -> Task:
        data = draw.one_of(("mnist", "fashion-mnist"))
        activation = ACTIVATIONS[draw.one_of(list(ACTIVATIONS))]
        sizes = draw.size(24, 64), draw.size(4, 16), draw.size(1, 3)
        build = partial(autoencoder, 64, *sizes, activation)
        parts = self._parts(draw, data, 8)
        return DrawnPairs(parts, build, draw.size(16, 64), reproduces=True)

    def _residual(self, draw: Draw) -> Task:
        data = draw.one_of(("mnist", "fashion-mnist"))
        first, stages = draw.size(4, 10), draw.size(1, 2)
        widths = tuple(first * 2**stage for stage in range(stages))
        blocks = draw.size(1, 4 // stages)
        activation = ACTIVATIONS[draw.one_of(list(ACTIVATIONS))]
        build = partial(residual_network, widths, blocks, CLASSES, activation)
        return DrawnPairs(self._parts(draw, data, 7), build, draw.size(8, 24))

    def _lstm(self, draw: Draw) -> Task:
        sizes = draw.size(8, 24), draw.size(16, 40), draw.size(1, 2)
        build = partial(RecurrentModel, *sizes, plain=True)
        return DrawnText(build, draw.size(4, 12), draw.size(8, 16))

    def _attention(self, draw: Draw) -> Task:
        heads, of_head = draw.one_of((1, 2, 4)), draw.one_of((8, 12))
        length, blocks = draw.size(8, 20), draw.size(1, 4)
        build = partial(SequenceModel, heads * of_head, heads, blocks, length)
        return DrawnSequences(build, draw.size(4, 12), length, draw.seed())
