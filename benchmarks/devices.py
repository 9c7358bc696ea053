"""Milliseconds a step, with its backward pass, of learned and other optimizers on several devices.

Tasks of section 5.2 together, a network of Linear layers and one of convolutions.

python benchmarks/devices.py [--devices cuda,cpu] [--steps 20] [--tasks 8,64,512]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from command import integers
from torch import nn

from metaopt import LearnedOptimizer, TeleportingOptimizer
from metaopt.tasks import RegressionFamily

Step = Callable[[], None]


def tasks(name: str, count: int, device: torch.device) -> Step:
    """Section 5.2's, by a learned optimizer or Adam."""
    batch = RegressionFamily().sample(range(count)).to(device)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(batch.parameters(), 0.1)
        if name == "adam"
        else LearnedOptimizer(batch, name)
    )

    def step() -> None:
        optimizer.zero_grad()
        batch().sum().backward()
        optimizer.step()

    return step


def linear() -> tuple[nn.Module, torch.Tensor]:
    """256-512-512-10 on 128 rows."""
    layers = nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    return nn.Sequential(*layers), torch.randn(128, 256)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    """Two convolutions with batch norms on 64 images."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 13 * 13, 10),
    )  # fmt: skip
    return model, torch.randn(64, 3, 32, 32)


NETWORKS = {"linear": linear, "convolutions": convolutions}


def network(kind: str, name: str, device: torch.device) -> Step:
    """A network on one batch; "adamw_teleporting" teleports at every step."""
    model, x = NETWORKS[kind]()
    model, x = model.to(device), x.to(device)
    y, loss_fn = torch.arange(len(x), device=device) % 10, nn.CrossEntropyLoss()
    optimizer: torch.optim.Optimizer
    if name.startswith("adamw"):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    else:
        optimizer = LearnedOptimizer(model, name, loss_fn=loss_fn)
    teleporting = None
    if name == "adamw_teleporting":
        optimizer = teleporting = TeleportingOptimizer(optimizer, model, loss_fn)

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
        if teleporting is not None:
            teleporting.teleport(x, y)

    return step


def milliseconds(step: Step, device: torch.device, steps: int) -> float:
    """The mean of ``steps`` after three that are not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return 1e3 * (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--tasks", default="8,64,512")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    integers(parser, steps=20, threads=0)
    values = parser.parse_args()
    if values.threads:
        torch.set_num_threads(values.threads)
    torch.manual_seed(0)
    times: dict[str, float] = {}
    for device in map(torch.device, values.devices.split(",")):
        for name in ("adam", "lstm_update", "lstm_update_tele_v1"):
            for count in map(int, values.tasks.split(",")):
                step = tasks(name, count, device)
                times[f"{device} {count} tasks {name}"] = milliseconds(step, device, values.steps)
        for kind in filter(None, values.networks.split(",")):
            for name in ("adamw", "adamw_teleporting", "lstm_layerwise", "lstm_update_tele_v1"):
                step = network(kind, name, device)
                times[f"{device} {kind} {name}"] = milliseconds(step, device, values.steps)
    print(json.dumps({"benchmark": "milliseconds a step", **vars(values), **times}))


if __name__ == "__main__":
    main()
