"""A new finder: the sites of an attention that holds a matrix for each head, as no layer does.

Its weights are parameters of the shape (heads, inputs, features), which einsum multiplies. No
finder of the library knows such a module. A finder says which dimensions of a parameter are the
features of a head; the rest follows: moves, their check, balance, teleports, transport.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import metaopt
from metaopt.symmetry import KINDS, Candidate, Identity, LeftOut, MatrixView, Network, Site


class HeadwiseAttention(nn.Module):
    """An attention whose parameters have the heads in their first dimension."""

    def __init__(self, width: int, heads: int, features: int) -> None:
        super().__init__()
        shape = (heads, width, features)
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.randn(shape) / 3) for _ in range(3))
        self.W_O = nn.Parameter(torch.randn(heads, features, width) / 3)
        self.b_V = nn.Parameter(torch.randn(heads, features) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, length, width)`` to the same."""
        q, k, v = (torch.einsum("bld,hdf->bhlf", x, w) for w in (self.W_Q, self.W_K, self.W_V))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        heads = weights @ (v + self.b_V[:, None])
        return torch.einsum("bhlf,hfd->bld", heads, self.W_O)


def headwise(network: Network) -> Iterator[Candidate | LeftOut]:
    """Propose GL of the values of each head, and of its queries, as the library does elsewhere."""
    for path, module in network.modules.items():
        if not isinstance(module, HeadwiseAttention):
            continue
        before = f"{path}." if path else ""
        heads, _, features = shape = tuple(module.W_V.shape)
        # Of (heads, inputs, features) the rows of a view are the features, and the inputs its
        # columns; or the other way round for keys, which take the inverse transpose.
        bias = MatrixView(f"{before}b_V", (1,), (), (heads, features), dims=2, heads=(0,))
        values = MatrixView(f"{before}W_V", (2,), (1,), shape, dims=3, heads=(0,), bias=bias)
        queries = MatrixView(f"{before}W_Q", (2,), (1,), shape, dims=3, heads=(0,))
        keys = MatrixView(f"{before}W_K", (1,), (2,), shape, dims=3, heads=(0,))
        turned = tuple(module.W_O.shape)  # (heads, features, outputs)
        output = MatrixView(f"{before}W_O", (2,), (1,), turned, dims=3, heads=(0,))
        for name, kind, into, out_of in (
            ("V-O", "values and outputs", values, output),
            ("Q-K", "queries and keys", queries, keys),
        ):
            site = Site(
                name=f"{path} {name}".strip(),
                incoming=(into,),
                outgoing=(out_of,),
                between=Identity(),  # nothing lies between the two matrices
                group="GL",
                width=features,
                layers=(into.parameter, out_of.parameter),
                plain=True,
                homogeneous=True,
                kind=kind,
            )
            yield Candidate.of(site, known=True)  # so it needs no inputs to be taken


KINDS.add("headwise", headwise)  # metaopt.symmetries knows it now


def main() -> dict[str, float]:
    """Find the sites of a network of two such layers, and balance it."""
    torch.manual_seed(0)
    model = nn.Sequential(HeadwiseAttention(6, 2, 3), nn.LayerNorm(6), HeadwiseAttention(6, 3, 4))
    x = torch.randn(4, 7, 6)
    sites = metaopt.symmetries(model, x)  # each is verified on x
    print(sites)
    before = sum(float(p.detach().square().sum()) for p in model.parameters())
    move = metaopt.balance(model, x)
    after = sum(float(p.detach().square().sum()) for p in model.parameters())
    return {
        "sites": len(sites),
        "squared norm before": before,
        "squared norm after": after,
        "invariance error": move.invariance_error or 0.0,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, value in main().items():
        print(f"{name}: {value:.6g}")
