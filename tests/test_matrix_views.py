"""Matrices inside parameters: read and written, against loops over single entries."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import nn

from metaopt.symmetry import MatrixView, find_sites
from metaopt.symmetry.site import matrix_view


@dataclass(frozen=True)
class Layout:
    """A view, and where each of its entries stands in the parameter, written out by hand."""

    label: str
    view: MatrixView
    shape: tuple[int, ...]  # of the parameter
    size: tuple[int, ...]  # (*heads, rows, columns)
    place: Callable[..., tuple[int, ...]]  # (*heads, row, column) -> index in the parameter

    def __str__(self) -> str:
        return self.label


def views_of(*modules: nn.Module) -> tuple[MatrixView, MatrixView]:
    """(incoming, outgoing) as they are found in a module."""
    (site,) = find_sites(nn.Sequential(*modules)).found
    return site.incoming[0], site.outgoing[0]


PLAIN = matrix_view("w")
GROUPED_IN, GROUPED_OUT = views_of(
    nn.Conv2d(3, 4, (2, 3)), nn.ReLU(), nn.Conv2d(4, 6, (3, 2), groups=2)
)
_, ACROSS_FLATTEN = views_of(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
NORM, _ = views_of(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
FLAT_NORM, _ = views_of(
    nn.Conv2d(3, 4, 2), nn.Flatten(), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 5)
)
ONE_PIXEL_IN, ONE_PIXEL_OUT = views_of(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))

# 3 heads of width 2 on 5 features: rows of what makes queries, columns of what joins the heads.
LAYOUTS = (
    Layout("plain weight", PLAIN, (4, 3), (4, 3), lambda r, c: (r, c)),
    Layout("vector of gains", NORM, (4,), (4, 1), lambda r, c: (r,)),
    Layout("gains in blocks", FLAT_NORM, (24,), (4, 6), lambda r, c: (6 * r + c,)),
    Layout(
        "convolution, incoming", GROUPED_IN, (4, 3, 2, 3), (4, 18),
        lambda r, c: (r, c // 6, c // 3 % 2, c % 3),
    ),
    Layout(
        "convolution in groups, outgoing", GROUPED_OUT, (6, 2, 3, 2), (18, 4),
        lambda r, c: (3 * (c // 2) + r // 6, c % 2, r // 2 % 3, r % 2),
    ),
    Layout(
        "Linear behind a Flatten", ACROSS_FLATTEN, (5, 24), (30, 4),
        lambda r, c: (r // 6, 6 * c + r % 6),
    ),
    Layout(
        "rows of one head",
        MatrixView("w", rows=(1,), columns=(2,), shape=(3, 2, 5), at=((0, 1),)),
        (6, 5), (2, 5), lambda r, c: (2 + r, c),
    ),
    Layout(
        "columns of one head",
        MatrixView("w", rows=(0,), columns=(2,), shape=(5, 3, 2), at=((1, 2),)),
        (5, 6), (5, 2), lambda r, c: (r, 4 + c),
    ),
    Layout(
        "rows of all heads",
        MatrixView("w", rows=(1,), columns=(2,), shape=(3, 2, 5), heads=(0,)),
        (6, 5), (3, 2, 5), lambda h, r, c: (2 * h + r, c),
    ),
    Layout(
        "columns of all heads",
        MatrixView("w", rows=(0,), columns=(2,), shape=(5, 3, 2), heads=(1,)),
        (5, 6), (3, 5, 2), lambda h, r, c: (r, 2 * h + c),
    ),
    Layout(
        "all heads of the keys, among queries and values",
        MatrixView("w", rows=(3,), columns=(2,), shape=(3, 3, 2, 5), at=((0, 1),), heads=(1,)),
        (18, 5), (3, 5, 2), lambda h, r, c: (6 + 2 * h + c, r),
    ),
    Layout(
        "bias of all heads, in one row",
        MatrixView("w", rows=(), columns=(1,), shape=(3, 2), dims=1, heads=(0,)),
        (6,), (3, 1, 2), lambda h, r, c: (2 * h + c,),
    ),
    Layout(
        "bias of one head, in one column",
        MatrixView("w", rows=(1,), columns=(), shape=(3, 2), dims=1, at=((0, 2),)),
        (6,), (2, 1), lambda r, c: (4 + r,),
    ),
    Layout("one unit and one input", PLAIN, (1, 1), (1, 1), lambda r, c: (0, 0)),
    Layout("one gain", NORM, (1,), (1, 1), lambda r, c: (0,)),
    Layout("one pixel, incoming", ONE_PIXEL_IN, (1, 1, 1, 1), (1, 1), lambda r, c: (0,) * 4),
    Layout("one pixel, outgoing", ONE_PIXEL_OUT, (1, 1, 1, 1), (1, 1), lambda r, c: (0,) * 4),
    Layout(
        "one head, of one row",
        MatrixView("w", rows=(1,), columns=(2,), shape=(1, 1, 5), heads=(0,)),
        (1, 5), (1, 1, 5), lambda h, r, c: (0, c),
    ),
)  # fmt: skip

BATCHES = [(), (3,), (2, 2), (1,)]


def contiguous(tensor):
    return tensor.contiguous()


def transposed(tensor):
    """The same numbers, stored with the dimensions in the other order."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def every_second(tensor):
    """The same numbers, with others stored between them."""
    return torch.stack((tensor, torch.full_like(tensor, -7.0)), dim=-1)[..., 0]


STORED = [contiguous, transposed, every_second]

every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)
every_batch = pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"batch{batch}")
every_store = pytest.mark.parametrize("stored", STORED, ids=lambda f: f.__name__)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def setting(layout, batch=(), stored=contiguous):
    """(parameters by name, the one that is viewed), and a parameter that no view names."""
    parameter = stored(normal(*batch, *layout.shape))
    return {layout.view.parameter: parameter, "other": normal(2)}, parameter


def cells(layout, batch):
    """(index in the matrix, index in the parameter), entry by entry."""
    for lead in product(*map(range, batch)):
        for entry in product(*map(range, layout.size)):
            yield (*lead, *entry), (*lead, *layout.place(*entry))


def test_each_hand_written_place_is_another_entry():
    for layout in LAYOUTS:
        places = [place for _, place in cells(layout, ())]
        assert len(set(places)) == len(places)
        assert all(0 <= i < n for place in places for i, n in zip(place, layout.shape, strict=True))
        if not layout.view.at:
            assert len(places) == normal(*layout.shape).numel(), layout.label


@every_store
@every_batch
@every_layout
def test_a_matrix_is_read_entry_by_entry(layout, batch, stored):
    parameters, parameter = setting(layout, batch, stored)
    matrix = layout.view.read(parameters)
    assert matrix.shape == (*batch, *layout.size)
    for entry, place in cells(layout, batch):
        assert matrix[entry] == parameter[place]


@every_store
@every_batch
@every_layout
def test_a_matrix_is_written_entry_by_entry_and_nothing_else_is(layout, batch, stored):
    parameters, parameter = setting(layout, batch, stored)
    other, before = parameters["other"], parameter.clone()
    value = normal(*batch, *layout.size, seed=1)
    layout.view.write(parameters, value)
    written = parameters[layout.view.parameter]
    expected = before.clone()
    for entry, place in cells(layout, batch):
        expected[place] = value[entry]
    assert written.shape == parameter.shape
    assert torch.equal(written, expected)
    assert torch.equal(layout.view.read(parameters), value)
    assert torch.equal(parameter, before), "the old tensor stays as it is"
    assert parameters["other"] is other
    assert len(parameters) == 2


@every_store
@every_layout
def test_what_is_read_and_written_back_changes_nothing(layout, stored):
    parameters, parameter = setting(layout, (2,), stored)
    layout.view.write(parameters, layout.view.read(parameters))
    assert torch.equal(parameters[layout.view.parameter], parameter)


@every_batch
@every_layout
def test_writing_is_differentiable_in_the_value_and_in_what_stays(layout, batch):
    parameters, parameter = setting(layout, batch)
    weights = normal(*parameter.shape, seed=2)
    value = normal(*batch, *layout.size, seed=1).requires_grad_()
    old = parameter.clone().requires_grad_()
    parameters[layout.view.parameter] = old
    layout.view.write(parameters, value)
    total = (weights * parameters[layout.view.parameter]).sum()
    in_value, in_old = torch.autograd.grad(total, (value, old), materialize_grads=True,
                                           allow_unused=True)  # fmt: skip
    stays = weights.clone()
    for entry, place in cells(layout, batch):
        assert in_value[entry] == weights[place]
        stays[place] = 0.0
    assert torch.equal(in_old, stays)


@every_layout
def test_reading_is_differentiable_in_the_parameter(layout):
    parameters, parameter = setting(layout, (2,))
    leaf = parameter.clone().requires_grad_()
    matrix = layout.view.read(parameters | {layout.view.parameter: leaf})
    weights = normal(*matrix.shape, seed=2)
    (gradient,) = torch.autograd.grad((weights * matrix).sum(), leaf)
    expected = torch.zeros_like(parameter)
    for entry, place in cells(layout, (2,)):
        expected[place] = weights[entry]
    assert torch.equal(gradient, expected)


def test_heads_written_one_after_another_are_all_written():
    parameters = {"w": normal(6, 5)}
    values = normal(3, 2, 5, seed=1)
    for head, value in enumerate(values):
        view = MatrixView("w", rows=(1,), columns=(2,), shape=(3, 2, 5), at=((0, head),))
        view.write(parameters, value)
    assert torch.equal(parameters["w"], torch.cat(list(values)))


# With biases: the augmented weight [W b].

HEADS = MatrixView(
    "w", rows=(1,), columns=(2,), shape=(3, 2, 5), heads=(0,),
    bias=MatrixView("b", rows=(1,), columns=(), shape=(3, 2), dims=1, heads=(0,)),
)  # fmt: skip
WITH_BIAS = {
    "plain": (matrix_view("w", "b"), (4, 3), (4,)),
    "convolution": (GROUPED_IN, (4, 3, 2, 3), (4,)),
    "gains": (NORM, (4,), (4,)),
    "gains in blocks": (FLAT_NORM, (24,), (24,)),
    "all heads": (HEADS, (6, 5), (6,)),
    "one unit": (matrix_view("w", "b"), (1, 1), (1,)),
}


@every_store
@every_batch
@pytest.mark.parametrize("kind", WITH_BIAS)
def test_an_augmented_weight_is_the_weight_and_then_the_bias(kind, batch, stored):
    view, weight_shape, bias_shape = WITH_BIAS[kind]
    weight, bias = view.parameters
    shapes = {weight: weight_shape, bias: bias_shape}
    parameters = {name: stored(normal(*batch, *shape)) for name, shape in shapes.items()}
    before = dict(parameters)
    both = view.read_augmented(parameters)
    columns = view.read(parameters).shape[-1]
    assert torch.equal(both[..., :columns], view.read(parameters))
    assert torch.equal(both[..., columns:], view.bias.read(parameters))
    view.write_augmented(parameters, 2 * both)
    for name, old in before.items():
        assert torch.equal(parameters[name], 2 * old)
        assert parameters[name].shape == old.shape


def test_without_a_bias_the_augmented_weight_is_the_weight():
    parameters = {"w": normal(4, 3)}
    assert torch.equal(PLAIN.read_augmented(parameters), parameters["w"])
    PLAIN.write_augmented(parameters, normal(4, 3, seed=1))
    assert torch.equal(parameters["w"], normal(4, 3, seed=1))
    assert PLAIN.parameters == ("w",)
