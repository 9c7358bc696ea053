"""Modules of the unusual problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

Build = Callable[[], nn.Module]


def mlp(
    inputs: int,
    width: int,
    outputs: int,
    hidden: int,
    activation: Build = nn.ReLU,
    norm: bool = False,
) -> nn.Sequential:
    """Return a multilayer perceptron without shortcuts.

    Args:
        inputs: numbers of an input.
        width: of the hidden layers.
        outputs: numbers of an output.
        hidden: number of hidden layers.
        activation: makes the activation of a hidden layer.
        norm: whether each hidden layer has a layer norm.
    """
    layers: list[nn.Module] = []
    for index in range(hidden):
        layers.append(nn.Linear(width if index else inputs, width))
        layers += [nn.LayerNorm(width), activation()] if norm else [activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Sine(nn.Module):
    """The sine of a multiple."""

    def forward(self, x: Tensor) -> Tensor:
        """Return sin(30 x).

        Args:
            x: any.
        """
        return torch.sin(30 * x)


def siren() -> nn.Sequential:
    """Return a network of sines with the weights of its source.

    Source: Sitzmann et al. (2020), arXiv 2006.09661.
    """
    model = mlp(2, 64, 1, 3, Sine)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            first = layer is layers[0]
            bound = 0.5 if first else math.sqrt(6 / layer.in_features) / 30
            layer.weight.uniform_(-bound, bound)
    return model


class Recurrent(nn.Module):
    """Embeddings, a recurrent layer of torch, and a head.

    Args:
        kind: the class of the layer.
        tokens: how many there are.
        width: of the layer.
    """

    def __init__(self, kind: Callable[..., nn.Module], tokens: int = 12, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 32)
        self.layer = kind(32, width, batch_first=True)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each token at each place.

        Args:
            x: tokens ``(n, places)``.
        """
        out: Tensor = self.head(self.layer(self.embed(x))[0])
        return out


class Factorisation(nn.Module):
    """Says a rating from the vectors of a user and of a thing.

    Args:
        count: of users, and of things.
        width: of their vectors.
    """

    def __init__(self, count: int = 5000, width: int = 16) -> None:
        super().__init__()
        self.users, self.things = nn.Embedding(count, width), nn.Embedding(count, width)
        self.bias, self.head = nn.Embedding(count, 1), nn.Linear(width, 1)

    def forward(self, user: Tensor, thing: Tensor) -> Tensor:
        """Return ratings ``(n,)``.

        Args:
            user: numbers of users ``(n,)``.
            thing: numbers of things ``(n,)``.
        """
        product = self.users(user) * self.things(thing)
        return (self.head(product) + self.bias(user)).squeeze(-1)  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """A variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 16, 1), mlp(8, 64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative evidence lower bound, a number.

        Args:
            x: ``(n, 64)``.
        """
        mean, logarithm = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (logarithm / 2).exp()
        distance = functional.mse_loss(self.decoder(code), x, reduction="sum") / len(x)
        divergence: Tensor = (mean.square() + logarithm.exp() - 1 - logarithm).sum(dim=1).mean()
        return distance + divergence / 2


class Contrast(nn.Module):
    """Two towers and the scale of what compares them.

    Source: Radford et al. (2021), arXiv 2103.00020.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = mlp(32, 64, 16, 2), mlp(24, 64, 16, 2)
        self.scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cross entropy of which x belongs to which y, a number.

        Args:
            x: ``(n, 32)``.
            y: ``(n, 24)``.
        """
        one = functional.normalize(self.first(x), dim=1)
        other = functional.normalize(self.second(y), dim=1)
        products, pairs = one @ other.mT * self.scale.exp(), torch.arange(len(x))
        forth = functional.cross_entropy(products, pairs)
        back = functional.cross_entropy(products.mT, pairs)
        return (forth + back) / 2


class PostNorm(nn.Module):
    """A transformer with norms after its sums, and the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, 1)``.

        Args:
            x: ``(n, places, 8)``.
        """
        out: Tensor = self.head(self.blocks(self.embed(x)).mean(dim=1))
        return out


def denoiser() -> nn.Sequential:
    """Return a network of convolutions that gives an image for an image of 16×16."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.SiLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )  # fmt: skip


class Translator(nn.Module):
    """Reads a sequence with an encoder, and says another with a decoder.

    Args:
        tokens: how many there are; one more begins what is said.
        length: places of a sequence.
        width: of the streams.
    """

    def __init__(self, tokens: int = 12, length: int = 12, width: int = 48) -> None:
        super().__init__()
        self.tokens = tokens
        self.embed, self.places = nn.Embedding(tokens + 1, width), nn.Embedding(length, width)
        sizes = width, 4, 2 * width, 0.0
        reads = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
        says = nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=True)
        self.reader = nn.TransformerEncoder(reads, 2, enable_nested_tensor=False)
        self.speaker = nn.TransformerDecoder(says, 2)
        self.head = nn.Linear(width, tokens)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cross entropy of what is to be said, a number.

        Args:
            x: tokens ``(n, places)``.
            y: what is to be said, ``(n, places)``.
        """
        places = self.places.weight[: x.shape[1]]
        before = torch.cat((torch.full_like(y[:, :1], self.tokens), y[:, :-1]), dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        read = self.reader(self.embed(x) + places)
        found = self.speaker(self.embed(before) + places, read, mask, tgt_is_causal=True)
        return functional.cross_entropy(self.head(found).flatten(0, 1), y.flatten())


class Flow(nn.Module):
    """Affine couplings that turn samples into normal ones.

    Source: Dinh et al. (2016), arXiv 1605.08803.

    Args:
        dims: numbers of a sample, even.
        couplings: how many.
    """

    def __init__(self, dims: int = 4, couplings: int = 6) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            mlp(dims // 2, 32, dims, 2, nn.Tanh) for _ in range(couplings)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean negative log-likelihood without its constant.

        Args:
            x: ``(n, dims)``.
        """
        one, other = x.chunk(2, dim=1)
        volume = torch.zeros(len(x))
        for coupling in self.couplings:
            scale, shift = coupling(one).chunk(2, dim=1)
            scale = torch.tanh(scale)
            one, other = other * scale.exp() + shift, one
            volume = volume + scale.sum(dim=1)
        return ((one.square() + other.square()).sum(dim=1) / 2 - volume).mean()


class Mixture(nn.Module):
    """Says a mixture of normal distributions of a number.

    Args:
        parts: of the mixture.
    """

    def __init__(self, parts: int = 6) -> None:
        super().__init__()
        self.inner = mlp(4, 64, 3 * parts, 2, nn.SiLU)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean negative log-likelihood.

        Args:
            x: ``(n, 4)``.
            y: ``(n, 1)``.
        """
        weight, mean, logarithm = self.inner(x).chunk(3, dim=1)
        distance = (y - mean) * (-logarithm).exp()
        each = weight.log_softmax(dim=1) - logarithm - distance.square() / 2
        likelihood: Tensor = each.logsumexp(dim=1).mean()
        return math.log(2 * math.pi) / 2 - likelihood


class Dilated(nn.Module):
    """Causal convolutions, each of twice the dilation of the one before, added to a stream.

    Args:
        layers: how many.
        width: of the stream.
    """

    def __init__(self, layers: int = 6, width: int = 24) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(1, width, 1), nn.Conv1d(width, 1, 1)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=2**index) for index in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean squared error of each next number.

        Args:
            x: ``(n, 1, places)``.
        """
        stream = self.first(x[..., :-1])
        for index, layer in enumerate(self.layers):
            value, gate = layer(functional.pad(stream, (2**index, 0))).chunk(2, dim=1)
            stream = stream + torch.tanh(value) * torch.sigmoid(gate)
        return functional.mse_loss(self.head(stream), x[..., 1:])


@cache
def averages(nodes: int) -> Tensor:
    """Return the matrix that averages over neighbours in a graph that is drawn.

    Args:
        nodes: of the graph.
    """
    generator = torch.Generator().manual_seed(11)
    edges = (torch.rand(nodes, nodes, generator=generator) < 4 / nodes).float()
    edges = ((edges + edges.mT + torch.eye(nodes)) > 0).float()
    return edges / edges.sum(dim=1, keepdim=True)


class Graph(nn.Module):
    """Layers that average over the neighbours in a graph that is drawn.

    Args:
        nodes: of the graph.
    """

    def __init__(self, nodes: int = 100) -> None:
        super().__init__()
        self.average = averages(nodes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in ((8, 48), (48, 48), (48, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of three classes of each node, ``(n, nodes, 3)``.

        Args:
            x: ``(n, nodes, 8)``.
        """
        for index, layer in enumerate(self.layers):
            x = layer(self.average @ x)
            x = torch.relu(x) if index < len(self.layers) - 1 else x
        return x


class Tied(nn.Module):
    """One layer that is applied many times, as a step of Euler's method.

    Args:
        times: how often.
    """

    def __init__(self, times: int = 20) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 32), nn.Linear(32, 2)
        self.field, self.times = mlp(32, 32, 32, 1, nn.Tanh), times

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, 2)``.

        Args:
            x: ``(n, 6)``.
        """
        state = self.first(x)
        for _ in range(self.times):
            state = state + self.field(state) / self.times
        out: Tensor = self.head(state)
        return out


class Sum(nn.Module):
    """Sums over the elements of a set."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.whole = mlp(3, 48, 24, 2), mlp(24, 48, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, 1)``.

        Args:
            x: ``(n, elements, 3)``.
        """
        out: Tensor = self.whole(self.each(x).sum(dim=1))
        return out


class Experts(nn.Module):
    """Experts, and a gate that weighs them.

    Args:
        count: how many experts.
    """

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.gate = nn.Linear(10, count)
        self.experts = nn.ModuleList(mlp(10, 24, 3, 1, nn.GELU) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, 3)``.

        Args:
            x: ``(n, 10)``.
        """
        weights = self.gate(x).softmax(dim=1)
        found = torch.stack([expert(x) for expert in self.experts], dim=2)
        out: Tensor = (found * weights.unsqueeze(1)).sum(dim=2)
        return out


class Modulated(nn.Module):
    """A perceptron whose units are scaled and shifted by what another one says.

    Source: Perez et al. (2017), arXiv 1709.07871.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 48), nn.Linear(48, 2)
        self.other = mlp(4, 32, 96, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, 2)``.

        Args:
            x: ``(n, 8)``.
            y: ``(n, 4)``.
        """
        scale, shift = self.other(y).chunk(2, dim=1)
        out: Tensor = self.head(torch.relu(self.first(x) * (1 + scale) + shift))
        return out


class TiedWords(nn.Module):
    """A recurrent network that says tokens by the same vectors that it reads them with.

    Args:
        tokens: how many there are.
        width: of their vectors.
    """

    def __init__(self, tokens: int = 300, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.layer = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the cross entropy of each next token, a number.

        Args:
            x: tokens ``(n, places)``.
        """
        found = self.layer(self.embed(x[:, :-1]))[0] @ self.embed.weight.mT
        return functional.cross_entropy(found.flatten(0, 1), x[:, 1:].flatten())
