"""The shared table: pairs of layers at which every action is tested, and its naive twin.

An action added to ``ACTIONS`` is expected to be exact, to obey the group law and to equal its
twin at every case; where it is not or does not, the exception stands here with its reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from metaopt.symmetry import (
    ACTIONS,
    Action,
    Activation,
    Element,
    Identity,
    Layer,
    LayerChain,
    LayerInput,
    LeakyReLU,
    Site,
    make_action,
)
from metaopt.tasks import RegressionFamily

POST_SPAN = "eq. 78 solves W h = z for W, and the columns of h are linearly dependent"
PRE_SPAN = "eq. 79 solves W H = F for W, and the columns of H are linearly dependent"
PRE_FREE = "fewer samples than hidden units: the smallest correction depends on the way taken"


@dataclass(frozen=True)
class Case:
    label: str
    features: int
    hidden: int
    out: int
    samples: int
    biases: tuple[bool, bool] = (False, False)
    batch: tuple[int, ...] = ()
    slope: float = 0.1
    inexact: Mapping[str, str] = field(default_factory=dict)  # action -> reason
    no_law: Mapping[str, str] = field(default_factory=dict)  # action -> reason


POST, PRE, LINEAR = "post_activation", "pre_activation", "linear"
LEAKY_ACTIONS = tuple(name for name in ACTIONS if name != LINEAR)  # act across a LeakyReLU
BOTH = {POST: POST_SPAN, PRE: PRE_SPAN}
CASES = (
    Case("as many samples as units", 5, 4, 3, 4),
    Case("few samples", 7, 6, 3, 4, batch=(3,), no_law={PRE: PRE_FREE}),
    Case("few units", 6, 3, 2, 5, batch=(2,), inexact={PRE: PRE_SPAN}, no_law={PRE: PRE_SPAN}),
    Case(
        "few inputs", 3, 6, 2, 5, inexact={POST: POST_SPAN}, no_law={POST: POST_SPAN, PRE: PRE_FREE}
    ),
    Case("many samples", 3, 2, 4, 9, batch=(2,), inexact=BOTH, no_law=BOTH),
    Case("a bias carries one more sample in", 4, 5, 3, 5, (True, False), (3,)),
    Case("a bias carries one more sample out", 6, 4, 3, 5, (False, True)),
    Case("both biases, two batch dimensions", 4, 4, 3, 5, (True, True), (2, 2), slope=0.3),
    Case("one sample too many without biases", 4, 4, 3, 5, inexact=BOTH, no_law=BOTH),
)


@dataclass(frozen=True)
class Variant:
    """An action with options; ``inexact`` is a reason that holds at every case."""

    name: str
    options: Mapping[str, float | str] = field(default_factory=dict)
    inexact: str = ""

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def at(self, case: Case) -> Case:
        """The case where this action acts: "linear" needs that nothing lies between."""
        return replace(case, slope=1.0) if self.name == LINEAR else case

    def make(self, max_defect: float = float("inf")) -> Action:
        return make_action(self.name, max_defect=max_defect, **self.options)

    def exact_at(self, case: Case) -> bool:
        return not self.inexact and self.name not in case.inexact


PLAIN = tuple(Variant(name) for name in ACTIONS)
VARIANTS = (
    *PLAIN,
    Variant(PRE, {"damping": 0.1}, "damping trades exactness for bounded weights"),
    Variant(POST, {"exponential": "first_order"}, "(I - T)(I + T) is not I"),
    Variant(PRE, {"exponential": "first_order"}),  # exact: the correction repairs g^-1 too
    Variant(LINEAR, {"exponential": "first_order"}, "(I - T)(I + T) is not I"),
)


def crossed(variants: tuple[Variant, ...] = VARIANTS, keep: Callable = lambda v, c: True) -> dict:
    """Arguments of ``pytest.mark.parametrize``: every variant at every case that is kept."""
    pairs = [(v, v.at(c)) for v, c in product(variants, CASES) if keep(v, c)]
    return {
        "argnames": ("variant", "case"),
        "argvalues": pairs,
        "ids": [f"{v}@{c.label.replace(' ', '-')}" for v, c in pairs],
    }


class Drawn(NamedTuple):
    """Two layers with an activation between them, and the input of the first."""

    incoming: Layer
    outgoing: Layer
    h: Tensor
    activation: Activation

    @property
    def chain(self) -> LayerChain:
        biased = tuple(layer.bias is not None for layer in self[:2])
        return LayerChain((self.activation, Identity()), biased, self.incoming.weight.dim() - 2)

    @property
    def site(self) -> Site:
        (site,) = self.chain.sites(self.chain.parameters(self[:2]))
        return site

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.named(self[:2])

    def named(self, layers: tuple[Layer, Layer]) -> dict[str, Tensor]:
        """The tensors of a pair of such layers, under the names that the site knows."""
        return dict(zip(self.chain.names, self.chain.parameters(layers), strict=True))

    def layers(self, tensors: Mapping[str, Tensor]) -> list[Layer]:
        return self.chain.layers([tensors[name] for name in self.chain.names])


class MovedPair(NamedTuple):
    incoming: Layer
    outgoing: Layer
    invariance_error: Tensor
    rejected: Tensor


def act(action: Action, element: Element, drawn: Drawn) -> MovedPair:
    """The layers moved by exp(T), on the input that was drawn."""
    moved = action.move(element, drawn.site, drawn.weights, LayerInput(drawn.h))
    weights = drawn.weights | moved.weights
    return MovedPair(*drawn.layers(weights), moved.invariance_error, moved.rejected)


def between(slope: float) -> Activation:
    return Identity() if slope == 1.0 else LeakyReLU(slope)


def draw(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> Drawn:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*case.batch, *shape, generator=generator, dtype=dtype)

    weights = normal(case.hidden, case.features), normal(case.out, case.hidden)
    biases = normal(case.hidden), normal(case.out)
    incoming, outgoing = (
        Layer(w, b if biased else None)
        for w, b, biased in zip(weights, biases, case.biases, strict=True)
    )
    return Drawn(incoming, outgoing, normal(case.features, case.samples), between(case.slope))


def draw_element(variant: Variant, case: Case, seed: int = 1, scale: float = 0.3) -> Element:
    diagonal = ACTIONS[variant.name].diagonal
    shape = (*case.batch, case.hidden) if diagonal else (*case.batch, case.hidden, case.hidden)
    generator = torch.Generator().manual_seed(1000 + seed)
    values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return Element(values, diagonal=diagonal)


def tensors(*layers: Layer) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer if tensor is not None]


def assert_layers_close(moved: list[Layer], expected: list[Layer], rtol: float = 1e-9) -> None:
    for got, want in zip(moved, expected, strict=True):
        assert (got.bias is None) == (want.bias is None)
        for a, b in zip(tensors(got), tensors(want), strict=True):
            assert a.shape == b.shape
            assert (a - b).norm() <= rtol * b.norm()


def mixed_signs(
    samples: int, inputs: int, hidden: int, output: int, dtype: str = "float64"
) -> RegressionFamily:
    """Tasks with normal data: with the paper's, no feature is ever on the other side."""
    return RegressionFamily(samples, inputs, hidden, output, distribution="normal", dtype=dtype)


# Ways to break the middle one of three tasks: (element, drawn) -> (element, drawn).

BROKEN = Case("three tasks, the middle one broken", 5, 4, 3, 4, (True, True), (3,))
NAN, INF = float("nan"), float("inf")


def spoil(tensor: Tensor, value: float) -> Tensor:
    spoilt = tensor.clone()
    spoilt[1].flatten()[1] = value
    return spoilt


def spoil_element(element: Element, value: float) -> Element:
    return element.map(lambda values: spoil(values, value))


def spoil_layer(drawn: Drawn, side: str, **values: float) -> Drawn:
    layer = getattr(drawn, side)
    spoilt = {name: spoil(getattr(layer, name), value) for name, value in values.items()}
    return drawn._replace(**{side: layer._replace(**spoilt)})


def spoil_product(drawn: Drawn, side: str) -> Drawn:
    h = drawn.h * drawn.h.new_tensor([1.0, 1e200, 1.0]).reshape(3, 1, 1)
    return spoil_layer(drawn, side, weight=1e200)._replace(h=h)


BREAK = {
    "NaN in T": lambda t, d: (spoil_element(t, NAN), d),
    "infinity in T": lambda t, d: (spoil_element(t, INF), d),
    "T of norm over 100": lambda t, d: (spoil_element(t, 101.0), d),
    "NaN in W_in": lambda t, d: (t, spoil_layer(d, "incoming", weight=NAN)),
    "NaN in b_in": lambda t, d: (t, spoil_layer(d, "incoming", bias=NAN)),
    "infinity in W_out": lambda t, d: (t, spoil_layer(d, "outgoing", weight=INF)),
    "NaN in b_out": lambda t, d: (t, spoil_layer(d, "outgoing", bias=NAN)),
    "infinity in h": lambda t, d: (t, d._replace(h=spoil(d.h, INF))),
    "NaN in h": lambda t, d: (t, d._replace(h=spoil(d.h, NAN))),
    "W_in h overflows": lambda t, d: (t, spoil_product(d, "incoming")),
    "the output overflows": lambda t, d: (t, spoil_product(d, "outgoing")),
}

# Naive twins: one task at a time, plain loops, inverses where the package solves.


def naive_leaky(z: Tensor, slope: float) -> Tensor:
    return torch.tensor(
        [[v if v > 0 else slope * v for v in row] for row in z.tolist()], dtype=z.dtype
    )


def naive_exp(t: Tensor) -> Tensor:
    total = term = torch.eye(t.shape[-1], dtype=t.dtype)
    for n in range(1, 60):
        term = term @ t / n
        total = total + term
    return total


def naive_output(layers: list[Layer], slopes: list[float], x: Tensor) -> Tensor:
    """h_L of one task."""
    for (weight, bias), slope in zip(layers, slopes, strict=True):
        z = weight @ x
        if bias is not None:
            z = torch.stack([column + bias for column in z.T], dim=1)
        x = naive_leaky(z, slope)
    return x


def with_ones(h: Tensor, biased: bool) -> Tensor:
    return torch.cat((h, h.new_ones(1, h.shape[1]))) if biased else h


def twin_post(g, g_inverse, incoming, outgoing, h, slope):
    """Eq. 78 for one task."""
    augmented, h = incoming.augmented(), with_ones(h, incoming.bias is not None)
    wanted = naive_leaky(g @ naive_leaky(augmented @ h, slope), 1 / slope)
    augmented = augmented + (wanted - augmented @ h) @ torch.linalg.pinv(h)
    k = incoming.weight.shape[1]
    moved = Layer(augmented[:, :k], None if incoming.bias is None else augmented[:, k])
    return moved, Layer(outgoing.weight @ g_inverse, outgoing.bias)


def twin_pre(g, g_inverse, incoming, outgoing, h, slope, damping=0.0):
    """Eq. 79 for one task."""
    moved = incoming.map(lambda t: g @ t)
    h_in, biased = with_ones(h, incoming.bias is not None), outgoing.bias is not None
    old = with_ones(naive_leaky(incoming.augmented() @ h_in, slope), biased)
    new = with_ones(naive_leaky(moved.augmented() @ h_in, slope), biased)
    linear = Layer(outgoing.weight @ g_inverse, outgoing.bias).augmented()
    inverse = torch.linalg.pinv(new)
    if damping:
        size = damping * (new**2).sum() / new.shape[0]
        inverse = new.T @ torch.linalg.inv(new @ new.T + size * torch.eye(len(new)).double())
    augmented = linear + (outgoing.augmented() @ old - linear @ new) @ inverse
    k = outgoing.weight.shape[1]
    return moved, Layer(augmented[:, :k], augmented[:, k] if biased else None)


def twin_rescaling(g, g_inverse, incoming, outgoing, h, slope):
    """Each hidden unit in turn: its row and bias times d, its outgoing column over d."""
    moved_in, moved_out = incoming.map(torch.clone), outgoing.map(torch.clone)
    for unit in range(len(g)):
        for row in tensors(moved_in):
            row[unit] *= g[unit, unit]
        moved_out.weight[:, unit] /= g[unit, unit]
    return moved_in, moved_out


def twin_linear(g, g_inverse, incoming, outgoing, h, slope):
    """Each new row is a sum of old rows, each new outgoing column a sum of old columns."""
    moved_in, moved_out = incoming.map(torch.zeros_like), outgoing.map(torch.clone)
    moved_out.weight.zero_()
    for new, old in product(range(len(g)), repeat=2):
        for rows, moved in zip(tensors(incoming), tensors(moved_in), strict=True):
            moved[new] += g[new, old] * rows[old]
        moved_out.weight[:, new] += outgoing.weight[:, old] * g_inverse[old, new]
    return moved_in, moved_out


TWINS = {POST: twin_post, PRE: twin_pre, LINEAR: twin_linear, "rescaling": twin_rescaling}


def group_elements(variant: Variant, element: Element) -> tuple[Tensor, Tensor]:
    """g and g^-1 as matrices, task by task."""
    matrices = torch.diag_embed(element.values) if element.diagonal else element.values
    width = matrices.shape[-1]
    if variant.options.get("exponential") == "first_order":
        identity = torch.eye(width, dtype=torch.float64)
        return identity + matrices, identity - matrices
    g = torch.stack([naive_exp(t) for t in matrices.reshape(-1, width, width)])
    return g.reshape(matrices.shape), torch.linalg.inv(g).reshape(matrices.shape)


def one_task(tensor: Tensor, batch: tuple[int, ...], index: int) -> Tensor:
    return tensor.reshape(-1, *tensor.shape[len(batch) :])[index]


def each_task(case: Case, layers: list[Layer], *others: Tensor):
    """For each task of the batch: its layers, and its part of the other tensors."""
    for i in range(torch.Size(case.batch).numel()):
        one = [layer.map(lambda t, i=i: one_task(t, case.batch, i)) for layer in layers]
        yield (one, *(one_task(t, case.batch, i) for t in others))


def twin(variant: Variant, case: Case, drawn: Drawn, g: Tensor, g_inverse: Tensor) -> list[Layer]:
    """The moved pair of layers."""
    options = {key: value for key, value in variant.options.items() if key == "damping"}
    moved = [
        TWINS[variant.name](g_one, inverse, *pair, h, case.slope, **options)
        for pair, g_one, inverse, h in each_task(case, drawn[:2], g, g_inverse, drawn.h)
    ]
    return [_stack([pair[side] for pair in moved], case.batch) for side in (0, 1)]


def pair_output(case: Case, drawn: Drawn, layers: list[Layer]) -> Tensor:
    """W_m sigma(W_{m-1} h + b) + b_m, ``(tasks, out, samples)``."""
    tasks = each_task(case, layers, drawn.h)
    return torch.stack([naive_output(pair, [case.slope, 1.0], h) for pair, h in tasks])


def _stack(layers: list[Layer], batch: tuple[int, ...]) -> Layer:
    def stacked(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).reshape(*batch, *parts[0].shape)

    bias = None if layers[0].bias is None else stacked([layer.bias for layer in layers])
    return Layer(stacked([layer.weight for layer in layers]), bias)
