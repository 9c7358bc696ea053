"""Equalise a network, and then quantise its weights to four bits with torchao.

The network has units of very different sizes, as trained ones have. Four bits round the small
entries of each row away. Equalisation moves the weights to where rounding costs less, and keeps the
function until then.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis

import metaopt


class Gated(nn.Module):
    """A network of gated layers, as in Llama, with a norm before each."""

    def __init__(self, width: int = 32, hidden: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width) for _ in range(depth)])
        self.gate_proj, self.up_proj = (
            nn.ModuleList([nn.Linear(width, hidden, bias=False) for _ in range(depth)])
            for _ in range(2)
        )
        self.down_proj = nn.ModuleList([nn.Linear(hidden, width, bias=False) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        """From rows to rows."""
        for norm, gate, up, down in zip(
            self.norms, self.gate_proj, self.up_proj, self.down_proj, strict=True
        ):
            h = norm(x)
            x = x + down(nn.functional.silu(gate(h)) * up(h))
        return x


def uneven() -> Gated:
    """The network; a few of its features are far larger than the others."""
    torch.manual_seed(0)
    model = Gated()
    with torch.no_grad():
        for norm, down in zip(model.norms, model.down_proj, strict=True):
            norm.weight.mul_(torch.randn(32).exp())
            down.weight.mul_(torch.randn(64).exp())
    return model


def loss_by_rounding(model: nn.Module, x: Tensor) -> float:
    """The relative change of the output by torchao's weights of four bits a channel."""
    exact = model(x)
    rounded = copy.deepcopy(model)
    quantize_(rounded, IntxWeightOnlyConfig(torch.int4, PerAxis(0)))
    return float((rounded(x) - exact).norm() / exact.norm())


@torch.no_grad()
def main() -> dict[str, float]:
    """What rounding costs on data that the equalisation did not see, before and after it."""
    model = uneven()
    generator = torch.Generator().manual_seed(1)
    seen, fresh = torch.randn(2, 256, 32, generator=generator)
    plain = loss_by_rounding(model, fresh)
    result = metaopt.equalize(model, seen, bits=4, per="channel")
    closed = loss_by_rounding(model, fresh)
    metaopt.equalize(model, seen, bits=4, per="channel", steps=50)
    return {
        "plain": plain,
        "equalised in closed form": closed,
        "and by 50 steps of a search": loss_by_rounding(model, fresh),
        "invariance error": result.invariance_error or 0.0,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, value in main().items():
        print(f"{name}: {value:.3g}")
