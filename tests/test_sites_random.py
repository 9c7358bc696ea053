"""Random networks of splits, sums, products and shuffles: what is proposed from the trace is exact.

Nothing is verified by the library here, so a false site would be seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.moves import orbit_of
from metaopt.symmetry.outputs import NetworkOutputs
from metaopt.symmetry.verify import random_elements

torch.set_num_threads(1)
Operation = Callable[[Any, list[Tensor]], list[Tensor]]


class Drawn(nn.Module):
    """A network of random operations, each on values that earlier ones gave.

    Args:
        seed: of the operations.
        images: whether its layers are convolutions of images; else they are Linear layers.
    """

    def __init__(self, seed: int, images: bool) -> None:
        super().__init__()
        self.draw, self.images, self.dim = random.Random(seed), images, 1 if images else -1
        self.layers = nn.ModuleList()
        self.operations: list[Operation] = []
        self.widths = [4]
        for _ in range(2):
            self._add(self._layer(4, width := self.draw.choice([6, 8, 12]), 0), width)
        names = ("layer", "relu", "relu", "chunk", "split", "slice", "cat", "add", "mul", "sigmoid",
            "glu", "shuffle", "norm")  # fmt: skip
        for _ in range(self.draw.randint(5, 12)):
            self._operation(self.draw.choice(names))
        ends = range(max(1, len(self.widths) - 8), len(self.widths))
        self.ends = [self._layer(self.widths[place], 3, place) for place in ends]

    def _add(self, operation: Operation, *widths: int) -> None:
        self.operations.append(operation)
        self.widths += widths

    def _layer(self, inputs: int, outputs: int, place: int) -> Operation:
        if self.images:
            groups = self.draw.choice([g for g in (1, 1, 2, 3) if not (inputs % g or outputs % g)])
            kind: Any = self.draw.choice([nn.Conv2d, nn.Conv2d, nn.ConvTranspose2d])
            self.layers.append(kind(inputs, outputs, 1, groups=groups))
        else:
            self.layers.append(nn.Linear(inputs, outputs))
        index = len(self.layers) - 1
        return lambda m, v: [m.layers[index](v[place])]

    def _operation(self, name: str) -> None:
        place = self.draw.randrange(1, len(self.widths))
        width, dim = self.widths[place], self.dim
        same = self.draw.choice([i for i, own in enumerate(self.widths) if i and own == width])
        other = self.draw.randrange(1, len(self.widths))
        start = self.draw.randrange(width)
        end = self.draw.randint(start + 1, width)
        if name == "layer":
            outputs = self.draw.choice([4, 6, 8, 12])
            self._add(self._layer(width, outputs, place), outputs)
        elif name == "norm" and self.images:
            self.layers.append(nn.BatchNorm2d(width))
            index = len(self.layers) - 1
            self._add(lambda m, v: [m.layers[index](v[place])], width)
        elif name == "chunk":
            sizes = [len(own) for own in torch.zeros(width).chunk(3)]
            self._add(lambda m, v: _listed(v[place].chunk(3, dim), len(sizes)), *sizes)
        elif name == "split" and start:
            sizes = [start, width - start]
            self._add(lambda m, v: _listed(torch.split(v[place], sizes, dim), 2), *sizes)
        elif name == "slice":
            index_of: Any = (
                (slice(None), slice(start, end)) if self.images else (..., slice(start, end))
            )
            self._add(lambda m, v: [v[place][index_of]], end - start)
        elif name == "glu" and width % 2 == 0:
            self._add(lambda m, v: [F.glu(v[place], dim)], width // 2)
        elif name == "shuffle" and self.images and width % 2 == 0:
            self._add(lambda m, v: [_shuffled(v[place])], width)
        elif name in ("add", "mul"):
            run = torch.add if name == "add" else torch.mul
            self._add(lambda m, v: [run(v[place], v[same])], width)
        elif name == "cat":
            self._add(
                lambda m, v: [torch.cat([v[place], v[other]], dim)], width + self.widths[other]
            )
        elif name in ("relu", "sigmoid"):
            call = torch.relu if name == "relu" else torch.sigmoid
            self._add(lambda m, v: [call(v[place])], width)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for operation in self.operations:
            values += operation(self, values)
        return sum((end(self, values)[0] for end in self.ends), torch.zeros(()))


def _listed(parts: Any, count: int) -> list[Tensor]:
    return [parts[place] for place in range(count)]


def _shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@pytest.mark.parametrize("images", [False, True])
def test_no_site_of_a_random_network_is_false(images: bool) -> None:
    count = 0
    for seed in range(40):
        torch.manual_seed(seed)
        model = Drawn(seed, images).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        x = torch.randn((3, 4, 2, 2) if images else (3, 4), dtype=torch.float64)
        sites = metaopt.symmetries(model)
        assert not sites.verified
        assert "the data flow" not in str(sites)  # it is traced
        outputs = NetworkOutputs(model, x)
        with torch.no_grad():
            before = outputs({})
            for site in sites:
                orbit = orbit_of([site])
                start = [model.get_parameter(name).detach() for name in orbit.names]
                moved = orbit.move(start, random_elements(orbit, start, 0.5, 3)).parameters
                after = outputs(dict(zip(orbit.names, moved, strict=True)))
                assert (after - before).norm() <= 1e-12 * before.norm(), (seed, site.name)
                count += 1
    assert count > 60
