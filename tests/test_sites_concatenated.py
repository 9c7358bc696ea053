"""Units whose values are concatenated: a reader uses each part by columns of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from symmetry_cases import UNITS, UNet, randomised, squeezenet
from torch import Tensor, nn

import metaopt
from metaopt.symmetry import MatrixView

torch.set_num_threads(1)


class Joined(nn.Module):
    """Layers a, b and c, of which ``join`` makes what ``use`` reads."""

    def __init__(self, join: Callable[..., Tensor], inputs: int) -> None:
        super().__init__()
        self.join = join
        self.a, self.b, self.c = nn.Linear(5, 3), nn.Linear(5, 4), nn.Linear(5, 4)
        self.use = nn.Linear(inputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (layer(x).relu() for layer in (self.a, self.b, self.c))
        return self.use(self.join(x, a, b, c))


ROWS = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
POSITIONS = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("join", "x", "expected"),
    [
        (lambda x, a, b, c: torch.cat([a, b], 1), ROWS, {"a -> use", "b -> use"}),
        (lambda x, a, b, c: torch.cat([b, a], -1), POSITIONS, {"a -> use", "b -> use"}),
        (lambda x, a, b, c: torch.concat([a, b + c], dim=-1), ROWS, {"a -> use", "b, c -> use"}),
        (
            lambda x, a, b, c: torch.cat([a, b], 1) + torch.cat([a, c], 1),
            ROWS,
            {"a -> use", "b, c -> use"},
        ),
        (  # 0 to 2 of a and of c, 3 of c and 0 of b, 1 to 3 of b and of a
            lambda x, a, b, c: torch.cat([a, b], 1) + torch.cat([c, a], 1),
            ROWS,
            {"b[0:1], c[3:4] -> use", "b[1:4], a, c[0:3] -> use, use"},
        ),
        (lambda x, a, b, c: torch.cat([a, x[..., :4]], 1), ROWS, set()),
        (lambda x, a, b, c: torch.cat([b, c], 1), POSITIONS, set()),  # 6 positions of 4
        (lambda x, a, b, c: torch.cat([b, c]), ROWS, set()),  # 12 samples of 4
    ],
)
def test_each_layer_of_a_concatenation_has_a_site(
    join: Callable[..., Tensor], x: Tensor, expected: set[str]
) -> None:
    with torch.no_grad():
        values = [torch.zeros(*x.shape[:-1], width) for width in (3, 4, 4)]
        inputs = join(x, *values).shape[-1]
    torch.manual_seed(1)  # with which no unit is 0 on all data
    model = randomised(Joined(join, inputs))
    assert {site.name for site in metaopt.symmetries(model)} == expected
    sites = metaopt.symmetries(model, x)
    assert {site.name for site in sites} == expected
    for site in sites:
        assert "a concatenation" in site.labels


def test_units_that_are_concatenated_twice_have_two_parts_of_the_reader() -> None:
    model = randomised(Joined(lambda x, a, b, c: torch.cat([a, b, a], 1), 10))
    sites = {site.name: site for site in metaopt.symmetries(model, ROWS)}
    assert set(sites) == {"a -> use, use", "b -> use"}
    parts = [view.narrow for view in sites["a -> use, use"].outgoing]
    assert parts == [(1, 0, 3), (1, 7, 3)]


def test_the_parts_are_the_columns_of_the_concatenated_units() -> None:
    model = randomised(UNet())
    found = {site.layers[0]: site for site in metaopt.symmetries(model) if site.kind == UNITS}
    weights = dict(model.named_parameters())
    depth = model.get_parameter("depth.weight")  # (20, 1, 3, 3): two outputs a group
    up, high = found["up"].outgoing[0], found["second"].outgoing[-1]
    assert torch.equal(up.read(weights), depth[:8].reshape(4, 2, 9).permute(1, 2, 0).flatten(0, 1))
    assert torch.equal(
        high.read(weights), depth[8:].reshape(6, 2, 9).permute(1, 2, 0).flatten(0, 1)
    )


def test_a_grouped_convolution_that_mixes_parts_reads_those_of_a_group_apart() -> None:
    torch.manual_seed(0)
    model = UNet()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model.depth = nn.Conv2d(10, 20, 3, padding=1, groups=5)  # pairs of channels: 4 and 6 are even
    assert len(metaopt.symmetries(model)) == 5
    model.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
    model.second, model.down[1] = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 8, 3, padding=1)
    sites = metaopt.symmetries(randomised(model), x)
    assert {site.name for site in sites} == {
        "first -> second", "down.1 -> up", "depth -> out", "up[0:4] -> depth",
        "up[4:5] -> depth", "second[0:1] -> down.1, depth", "second[1:5] -> down.1, depth",
    }  # fmt: skip


def test_a_batch_norm_after_a_concatenation_has_the_site_of_its_own_gains() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 4, 1)
            self.norm, self.use = nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.use(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())

    x = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    (site,) = metaopt.symmetries(randomised(Dense()), x)
    assert site.name == "norm -> use"


def test_a_balance_of_concatenated_units_lessens_the_norm_and_keeps_the_network() -> None:
    torch.manual_seed(0)
    model = randomised(squeezenet())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def norm() -> float:
        return sum(float(p.detach().double().square().sum()) for p in model.parameters())

    before = norm()
    move = metaopt.balance(model, x)
    assert move.invariance_error < 1e-6
    assert norm() < before


def test_a_functional_batch_norm_by_position_is_read() -> None:
    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.use = nn.Conv2d(4, 2, 1)
            self.gain, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            norm = torch.batch_norm(
                x, self.gain, self.shift, self.mean, self.var, False, 0.1, 1e-5, False
            )
            return self.use(norm.relu())

    model, x = Positional(), torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    (site,) = metaopt.symmetries(randomised(model), x)
    assert site.incoming == (MatrixView("gain", columns=(), bias=MatrixView("shift", columns=())),)
