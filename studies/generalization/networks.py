"""Many networks of section 4.3 trained together by SGD on the same minibatches.

The first layers, nearly all of the weights, are read and written once in a block of steps instead
of twice a step. Within a block W changes by -rate sum_j dz_j x_j^T, so what a later minibatch x
sees of it is W x - rate sum_j dz_j (x_j . x), with products of minibatches that are computed once
for all networks. It is the same mathematics; a test compares it with torch's own SGD.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from metaopt.symmetry import Identity, LayerChain, LeakyReLU

SLOPE = 0.1
BLOCK = 10  # steps; more make the products of the first layer better and the corrections longer
CHUNK = 2**24  # features of all networks at a time where losses are evaluated

CHAIN = LayerChain(
    (LeakyReLU(SLOPE), LeakyReLU(SLOPE), Identity()), (False, False, False), batch_dims=1
)
"""The three layers of all networks together, for the actions and the measures."""

ALONE = LayerChain(CHAIN.activations, CHAIN.biased)
"""The three layers of one network."""

Weights = list[Tensor]
"""The weights of many networks: one tensor a layer, ``(models, out, in)``."""


def initial_weights(
    seeds: Sequence[int], sizes: Sequence[int], dtype: torch.dtype = torch.float32
) -> Weights:
    """Draw initial weights, uniform in +-1 / sqrt(in) as those of ``torch.nn.Linear``.

    Args:
        seeds: one a network, of which it alone depends.
        sizes: inputs, widths, outputs.
        dtype: of the weights.
    """
    networks = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        networks.append(
            [
                (2 * torch.rand(out, inputs, generator=generator, dtype=torch.float64) - 1)
                / inputs**0.5
                for inputs, out in pairwise(sizes)
            ]
        )
    return [torch.stack(layer).to(dtype) for layer in zip(*networks, strict=True)]


def train_epoch(
    weights: Weights, x: Tensor, y: Tensor, order: Tensor, minibatch: int, rate: float
) -> None:
    """Train all networks for one epoch of SGD on the mean cross entropy, in place.

    Args:
        weights: of all networks; they are changed.
        x: ``(images, pixels)``.
        y: classes, ``(images,)``.
        order: of the images; the last minibatch may be smaller.
        minibatch: images of a step.
        rate: of SGD.
    """
    first, *rest = weights
    models, width, pixels = first.shape
    rows = first.view(models * width, pixels)
    for indices in torch.split(order, BLOCK * minibatch):
        seen, labels = x[indices], y[indices]
        product = (rows @ seen.mT).view(models, width, -1)
        overlaps = seen @ seen.mT
        slopes = torch.empty_like(product)
        for start in range(0, len(indices), minibatch):
            now = slice(start, min(start + minibatch, len(indices)))
            z = product[..., now]
            if start:
                z = torch.baddbmm(
                    z,
                    slopes[..., :start],
                    overlaps[:start, now].expand(models, -1, -1),
                    alpha=-rate,
                )
            slopes[..., now] = _step(rest, z, labels[now], rate)
        rows.addmm_(slopes.view(models * width, -1), seen, alpha=-rate)


def _step(rest: Sequence[Tensor], z: Tensor, labels: Tensor, rate: float) -> Tensor:
    """Take a step of SGD on all layers but the first, in place.

    Args:
        rest: weights of the second and of the third layer.
        z: W_1 x, ``(models, width, samples)``.
        labels: classes, ``(samples,)``.
        rate: of SGD.

    Returns:
        The gradient with respect to z.
    """
    second, third = rest
    h1 = functional.leaky_relu(z, SLOPE)
    z2 = torch.bmm(second, h1)
    h2 = functional.leaky_relu(z2, SLOPE)
    error = torch.softmax(torch.bmm(third, h2), dim=1)
    error -= functional.one_hot(labels, third.shape[1]).mT.to(error.dtype)
    error /= len(labels)
    back = torch.bmm(third.mT, error)
    back = torch.where(z2 > 0, back, SLOPE * back)
    further = torch.bmm(second.mT, back)
    third.baddbmm_(error, h2.mT, alpha=-rate)
    second.baddbmm_(back, h1.mT, alpha=-rate)
    return torch.where(z > 0, further, SLOPE * further)


def evaluate(weights: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and accuracy of each network, ``(models,)``, float64."""
    models, width, _ = weights[0].shape
    size = max(1, CHUNK // (models * width))
    total = torch.zeros(models, dtype=torch.float64)
    right = torch.zeros(models, dtype=torch.float64)
    for images, labels in zip(torch.split(x, size), torch.split(y, size), strict=True):
        output = _output(weights, images)
        each = functional.cross_entropy(output, labels.expand(models, -1), reduction="none")
        total += each.sum(dim=1, dtype=torch.float64)
        right += (output.argmax(dim=1) == labels).sum(dim=1)
    return total / len(y), right / len(y)


def _output(weights: Weights, images: Tensor) -> Tensor:
    """``(models, classes, samples)``."""
    first, second, third = weights
    z = (first.flatten(0, 1) @ images.mT).view(*first.shape[:2], -1)
    h = functional.leaky_relu(torch.bmm(second, functional.leaky_relu(z, SLOPE)), SLOPE)
    return torch.bmm(third, h)


def single(weights: Weights) -> Iterator[Weights]:
    """Each network alone, without the dimension of models."""
    for tensors in zip(*weights, strict=True):
        yield list(tensors)
