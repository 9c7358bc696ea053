"""Fields of a config that several update rules and element rules have."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metaopt.checks import check_whole
from metaopt.errors import UserError
from metaopt.learned.lstm import LSTM

MOST_HIDDEN, MOST_LAYERS, WIDEST = 1000, 100, 1000
"""The largest sizes that are built: a damaged or hostile file could ask for all memory."""

Size = tuple[int, int, int]
"""The input, hidden and output width of a two-layer network."""


class RuleConfig:
    """The config of an update rule or of an element rule: what the rule asks of the tasks."""

    @property
    def needs_chain(self) -> bool:
        """Whether the rule needs a chain of layers."""
        return True

    @property
    def one_size(self) -> Size | None:
        """The one size of network that the rule fits; None if it fits any."""
        return None


@dataclass(frozen=True)
class LSTMFields:
    """The size of an LSTM.

    Attributes:
        hidden: number of hidden units of each LSTM.
        layers: number of layers of each LSTM.
    """

    hidden: int = 20
    layers: int = 1

    def __post_init__(self) -> None:
        check_whole("hidden", self.hidden, 1, MOST_HIDDEN)
        check_whole("layers", self.layers, 1, MOST_LAYERS)

    def lstm(self, inputs: int, outputs: int, generator: torch.Generator) -> LSTM:
        """Return an LSTM of this size.

        Args:
            inputs: the number of its inputs.
            outputs: the number of its outputs.
            generator: of the initial weights.
        """
        return LSTM(inputs, self.hidden, self.layers, outputs, generator)


@dataclass(frozen=True)
class FlatFields(LSTMFields):
    """The size of an LSTM over all coordinates at once, which fits networks of one size alone.

    Attributes:
        flat_widths: input, hidden and output width of the tasks, all of one size, that flat rules
            fit.
    """

    flat_widths: Size = (20, 20, 20)

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = self.flat_widths
        if len(widths) != 3 or not all(1 <= width <= WIDEST for width in widths):
            raise UserError(
                f"expected three flat_widths of 1 to {WIDEST}, got {widths}: "
                "give input, hidden and output"
            )

    @property
    def one_size(self) -> Size | None:
        """The one size of network that these networks fit."""
        return self.flat_widths

    @property
    def coordinates(self) -> int:
        """The number of weights of a network of that size."""
        inputs, hidden, outputs = self.flat_widths
        return hidden * (inputs + outputs)
