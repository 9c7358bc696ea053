"""The fused LSTM step against nn.LSTMCell: two layers, ten steps, forward and backward.

python benchmarks/lstm_step.py [--rows 6400] [--threads 1]
"""

from __future__ import annotations

import json

import torch
from command import parse
from interleaved import interleaved
from torch import nn

from metaopt.learned.lstm import LSTM

STEPS, INPUTS, HIDDEN = 10, 2, 20


def fused(rows: int) -> None:
    lstm = LSTM(INPUTS, HIDDEN, 2, 1, torch.Generator().manual_seed(0))
    state = lstm.init_state(rows)
    x = torch.ones(INPUTS, rows)
    total = torch.zeros(())
    for _ in range(STEPS):
        output, state = lstm(x, state)
        total = total + output.sum()
    total.backward()


def cells(rows: int) -> None:
    layers = [nn.LSTMCell(INPUTS, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)]
    head = nn.Linear(HIDDEN, 1)
    states = [(torch.zeros(rows, HIDDEN), torch.zeros(rows, HIDDEN)) for _ in layers]
    total = torch.zeros(())
    for _ in range(STEPS):
        h = torch.ones(rows, INPUTS)
        for index, layer in enumerate(layers):
            states[index] = layer(h, states[index])
            h = states[index][0]
        total = total + head(h).sum()
    total.backward()


def main() -> None:
    options = parse(__doc__, rows=6400, threads=1)
    result = interleaved(lambda: fused(options.rows), lambda: cells(options.rows))
    print(json.dumps({"benchmark": "fused LSTM step / nn.LSTMCell", **vars(options), **result}))


if __name__ == "__main__":
    main()
