"""A network, batches, every optimizer and a plain loop, for the tests of training frameworks."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metaopt import LearnedOptimizer, TeleportingOptimizer, list_pretrained
from metaopt.symmetry import GradientAscent

LOSS = nn.CrossEntropyLoss()
QUICK = GradientAscent(iterations=2, initial_step=0.3)
TELEPORTS = (1, 4)
Build = Callable[[nn.Module], torch.optim.Optimizer]


def network() -> nn.Sequential:
    """9 -> 7 -> 3, with a site between."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))


def loader(batches: int = 6) -> DataLoader:
    """Batches of 5, always in the same order."""
    x = torch.randn(5 * batches, 9, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % 3), batch_size=5)


def teleporting(model: nn.Module) -> TeleportingOptimizer:
    base = torch.optim.AdamW(model.parameters(), 1e-2)
    return TeleportingOptimizer(base, model, LOSS, schedule=TELEPORTS, search=QUICK)


def learned(name: str) -> Build:
    return lambda model: LearnedOptimizer(model, name)


LEARNED = {name: learned(name) for name in list_pretrained()}
OPTIMIZERS = {**LEARNED, "teleporting": teleporting}
every_learned = pytest.mark.parametrize("build", LEARNED.values(), ids=LEARNED)
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)


def plain_loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    clip: float = torch.inf,
    cast_to: torch.dtype | None = None,
) -> None:
    """The loop that every framework should equal; a closure computes the gradients."""
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", cast_to, enabled=cast_to is not None):
                loss = LOSS(model(x), y)
            loss.backward()
            if clip < torch.inf:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            return loss

        optimizer.step(closure)


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    """All parameters are the same, bit for bit."""
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def assert_moved(model: nn.Module, start: nn.Module) -> None:
    """No parameter stayed where it was."""
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    assert not any(torch.equal(own, before) for own, before in pairs)
