"""A model of characters with an LSTM, on the sources of Python's standard library."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from metaopt.tasks.suite.base import TextTask
from metaopt.tasks.suite.text import CHARACTERS, source_text


class PlainLSTM(nn.Module):
    """One layer of an LSTM in plain operations, which can be mapped over copies.

    torch's own layer computes the same; ``torch.func.vmap`` has no rule for it.

    Args:
        into: numbers of an input.
        width: numbers of the state.
    """

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        self.from_input = nn.Linear(into, 4 * width)
        self.from_state = nn.Linear(width, 4 * width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the states at all places, ``(n, places, width)``.

        Args:
            x: ``(n, places, into)``.
        """
        given = self.from_input(x)
        width = self.from_state.in_features
        state = cell = torch.zeros_like(given[:, 0, :width])
        states = []
        for at in range(x.shape[1]):
            gates = given[:, at] + self.from_state(state)
            keep, drop = gates[:, :width].sigmoid(), gates[:, width : 2 * width].sigmoid()
            new, show = gates[:, 2 * width : 3 * width].tanh(), gates[:, 3 * width :].sigmoid()
            cell = drop * cell + keep * new
            state = show * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=1)


class RecurrentModel(nn.Module):
    """Says the next character from those before it, by an LSTM.

    Args:
        embedded: numbers of a character.
        width: of the state.
        layers: number of layers of the LSTM.
        plain: whether it is made of :class:`PlainLSTM` instead of ``torch.nn.LSTM``.
    """

    def __init__(self, embedded: int, width: int, layers: int = 1, plain: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(CHARACTERS, embedded)
        self.plain = plain
        self.recurrent: nn.Module = (
            nn.Sequential(*(PlainLSTM(embedded if i == 0 else width, width) for i in range(layers)))
            if plain
            else nn.LSTM(embedded, width, layers, batch_first=True)
        )
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Return numbers of each next character, ``(windows, length, characters)``.

        Args:
            x: characters ``(windows, length)``.
        """
        states = self.recurrent(self.embed(x))
        out: Tensor = self.head(states if self.plain else states[0])
        return out


class LstmCharacters(TextTask):
    """An LSTM of 96 says the next of 48 characters of the sources; batches of 16 windows."""

    steps: ClassVar[int] = 600

    def __init__(self) -> None:
        super().__init__(16, 48)

    def text(self) -> dict[str, Tensor]:
        """Return the characters of each split."""
        return source_text()

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return RecurrentModel(embedded=32, width=96)
