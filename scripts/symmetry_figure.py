"""Draw the picture of docs/symmetries.md: a block of a transformer, and the sites found in it.

    python scripts/symmetry_figure.py --out docs/figures/symmetries.png

The sites and their free directions are those that ``metaopt.symmetries`` finds in the network that
the picture shows.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

import metaopt
from metaopt.evaluation.styles import LIGHT
from metaopt.storage import write_atomically
from metaopt.symmetry import Symmetries, fold_norms

KINDS = ("values and outputs", "queries and keys", "gated units", "residual streams")
COLOURS = dict(zip((*KINDS, "norm gains"), LIGHT, strict=False))
GREY = "#5a5a5a"
PLACES = {  # of the layers, from left to right along the stream
    "embed": (0.0, 0.0), "norm1": (1.25, 0.0), "attn.q_proj": (2.6, 1.0), "attn.k_proj": (2.6, 0.0),
    "attn.v_proj": (2.6, -1.0), "attn.o_proj": (4.6, 0.0), "norm2": (6.0, 0.0),
    "mlp.gate_proj": (7.3, 0.6), "mlp.up_proj": (7.3, -0.6), "mlp.down_proj": (9.2, 0.0),
    "norm": (10.5, 0.0), "head": (11.6, 0.0),
}  # fmt: skip
STREAM = 2.1  # the height of the residual stream


class Attention(nn.Module):
    """Causal attention of four heads, whose queries share the keys and values of two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = 4, 2
        own = width // 2
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, own, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """From ``(batch, length, width)`` to the same."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, x.shape[-1] // 4)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A gated layer, as in Llama."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows to rows."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Network(nn.Module):
    """One block under RMSNorm, between an embedding and a head."""

    def __init__(self, width: int = 64, hidden: int = 160) -> None:
        super().__init__()
        self.embed, self.norm1, self.attn = nn.Embedding(50, width), nn.RMSNorm(width), None
        self.attn = Attention(width)
        self.norm2, self.mlp = nn.RMSNorm(width), Gated(width, hidden)
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 50, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to logits."""
        h = self.embed(x)
        h = h + self.attn(self.norm1(h))
        return self.head(self.norm(h + self.mlp(self.norm2(h))))


def found() -> tuple[Symmetries, Symmetries]:
    """The sites of the network, and those that it has once its gains are folded."""
    torch.manual_seed(0)
    model, x = Network(), torch.randint(0, 50, (2, 9))
    sites = metaopt.symmetries(model, x)
    fold_norms(model, x)
    return sites, metaopt.symmetries(model, x).of_kind("residual streams")


def draw(path: Path) -> dict[str, int]:
    """Draw the picture; returns the free directions of each kind.

    Args:
        path: of the PNG file.
    """
    sites, streams = found()
    figure = Figure(figsize=(9.6, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    _layers(axes)
    for site in (*sites, *streams):
        _mark(axes, site)
    free = {kind: sites.of_kind(kind).directions for kind in sites.kinds}
    free["residual streams"] = streams.directions
    for place, (kind, count) in enumerate(free.items()):
        text = f"{kind}: {count:,} free directions"
        axes.text(
            0.0 + 4.1 * (place % 3), -2.05 - 0.45 * (place // 3), text, color=COLOURS[kind], size=9
        )
    axes.set_xlim(-0.7, 12.3)
    axes.set_ylim(-2.9, 2.9)
    axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=95, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return free


def _layers(axes: Axes) -> None:
    axes.add_patch(
        FancyArrowPatch((0, STREAM), (10.5, STREAM), arrowstyle="-", color=GREY, linewidth=1.2)
    )
    for name, (x, y) in PLACES.items():
        box = FancyBboxPatch(
            (x - 0.45, y - 0.24), 0.9, 0.48, boxstyle="round,pad=0.02,rounding_size=0.08",
            facecolor="white", edgecolor=GREY, zorder=3,
        )  # fmt: skip
        axes.add_patch(box)
        label = name.rpartition(".")[2].replace("_proj", "")
        axes.text(x, y, label, ha="center", va="center", size=9, zorder=4)
    for name in ("embed", "attn.o_proj", "mlp.down_proj"):
        _arrow(axes, PLACES[name], (PLACES[name][0], STREAM))
    for name in ("norm1", "norm2", "norm"):
        _arrow(axes, (PLACES[name][0], STREAM + 0.2), (PLACES[name][0], 0.24))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", color=GREY, linewidth=1, shrinkA=13, shrinkB=3,
            mutation_scale=9, zorder=2,
        )
    )  # fmt: skip


def _mark(axes: Axes, site: metaopt.symmetry.Site) -> None:
    """Join what makes the features with what uses them, in the colour of the kind."""
    colour = COLOURS[site.kind]
    made, used = (
        dict.fromkeys(view.parameter.rpartition(".")[0] for view in side)
        for side in (site.incoming, site.outgoing)
    )
    if site.kind == "residual streams":
        axes.plot([0, 10.5], [STREAM + 0.1] * 2, color=colour, linewidth=4, alpha=0.8)
        for name in (*made, *used):
            x, y = PLACES[name]
            axes.plot([x - 0.4, x + 0.4], [y + 0.27] * 2, color=colour, linewidth=3, zorder=5)
        return
    bend = {"queries and keys": 0.5, "values and outputs": 0.15}.get(site.kind, 0.0)
    for start in made:
        for end in used:
            axes.add_patch(
                FancyArrowPatch(
                    PLACES[start], PLACES[end], arrowstyle="-", color=colour, linewidth=2.6,
                    alpha=0.8, connectionstyle=f"arc3,rad={bend}", zorder=1,
                )
            )  # fmt: skip


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/symmetries.png"))
    path = parser.parse_args().out
    for kind, count in draw(path).items():
        print(f"{kind}: {count}")


if __name__ == "__main__":
    main()
