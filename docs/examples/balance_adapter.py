"""Fine-tune with low-rank adapters of peft, balanced at each step.

An adapter adds B A to a layer, where A is drawn and B is 0 at first. How fast it learns depends on
the sizes of the two, which say nothing about B A. Balance makes them equal: A A^T = B^T B, at each
step, with AdamW's averages taken along. Then it matters little at which scale A was drawn.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from metaopt import TeleportingOptimizer

STEPS = 150


def task() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, and outputs of it after a change of low rank, which the adapters are to learn."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
    x = torch.randn(256, 32, generator=generator)
    wanted = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
    wanted.load_state_dict(network.state_dict())
    with torch.no_grad():
        for layer in (wanted[0], wanted[2]):
            rows, columns = layer.weight.shape
            change = torch.randn(rows, 4, generator=generator) @ torch.randn(
                4, columns, generator=generator
            )
            layer.weight.add_(0.3 * change / columns**0.5)
        return network, x, wanted(x)


def tuned(scale: float, balance: bool) -> float:
    """The loss after tuning with A drawn ``scale`` times as large as usual."""
    network, x, y = task()
    model = get_peft_model(network, LoraConfig(r=8, lora_alpha=8, target_modules=["0", "2"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.mul_(scale)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, 3e-3, weight_decay=0.0)
    if balance:  # B is 0 before the first step, so it begins after it
        optimizer = TeleportingOptimizer(optimizer, model, search="balance", schedule=1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return nn.functional.mse_loss(model(x), y).item()


def main() -> dict[str, dict[float, float]]:
    """Final losses by the scale of A, without and with balance."""
    scales = (0.1, 1.0, 10.0)
    return {
        name: {scale: tuned(scale, balance) for scale in scales}
        for name, balance in (("AdamW", False), ("AdamW, balanced", True))
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, losses in main().items():
        worst = max(losses.values()) / min(losses.values())
        line = ", ".join(f"{scale:g}: {loss:.4f}" for scale, loss in losses.items())
        print(f"{name}: {line}; worst over best {worst:.2f}")
