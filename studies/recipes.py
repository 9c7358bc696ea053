"""Which configs the studies train; ``metaopt.cli.recipes.load_recipe`` reads one."""

from __future__ import annotations

LAYERWISE = ("lstm_layerwise_v1",)
"""For ordinary networks on minibatches."""

SHIPPED = (
    "lstm_update_tele", "lstm_whitened", "lstm_update_tele_v1", "lstm_update", "lstm_lr_tele",
)  # fmt: skip
"""The methods of Figure 6, each in the form that was best on validation problems."""

PAPER = (
    "paper/lstm_update_tele",
    "paper/lstm_update",
    "paper/lstm_lr_tele",
    "paper/released_code",
)
"""Section 5.2 as printed, and as in the released code."""
