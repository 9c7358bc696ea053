"""Passes of any module: their derivatives, and the curvature of its layers."""

import pytest
import torch
from torch import nn

from metaopt.learned.chain_pass import ChainPass
from metaopt.learned.forward_record import ForwardRecord
from metaopt.learned.kronecker import Diagonal, Factors
from metaopt.learned.module_layout import layout_of
from metaopt.learned.module_pass import SHRUNK, SeenModule
from metaopt.output_loss import SIGMOID, SOFTMAX, SQUARE
from metaopt.symmetry import LayerInput
from metaopt.target import target_of


class Residual(nn.Module):
    """A skip past two layers, a norm, and an activation in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 5, bias=False)
        self.norm, self.act, self.last = nn.LayerNorm(5), nn.ReLU(inplace=True), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h + self.act(self.second(self.norm(h))))


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(h)))))


class Odd(torch.autograd.Function):
    """Twice the input, in a way that torch.vmap does not know."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        assert gradient.detach().numpy() is not None  # vmap's tensors have no data
        return Odd.apply(gradient)


class OddModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(Odd.apply(self.first(x))))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
        nn.Tanh(), nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip


def made(build, x, seed=0):
    torch.manual_seed(seed)
    model = build().double()
    model(x)  # lazy layers
    return model


def passed(model, x):
    names = [name for name, _ in model.named_parameters()]
    seen = SeenModule(model, layout_of(model, names))
    return seen.passed(ForwardRecord((x,), {}), list(model.parameters()))


def jacobian(model, x):
    """J of all outputs, samples in columns, in the parameters in the order of the module."""
    names, values = zip(*model.named_parameters(), strict=True)

    def outputs(*given):
        found = torch.func.functional_call(model, dict(zip(names, given, strict=True)), (x,))
        return found.reshape(-1, found.shape[-1]).mT

    return torch.autograd.functional.jacobian(outputs, values)


CASES = {
    "residual": (Residual, (7, 3)),
    "twice": (Twice, (7, 3)),
    "odd": (OddModule, (7, 3)),
    "convolutions": (convolutions, (5, 2, 4, 7)),
    "sequence": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), (5, 2, 3)),
}
ALL = pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)


@ALL
def test_derivatives_are_those_of_the_whole_jacobian(build, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = made(build, x)
    at, j = passed(model, x), jacobian(model, x)
    torch.manual_seed(2)
    layers, layout = at.layers, at.seen.layout
    directions = [torch.randn(2, *own.augmented().shape, dtype=torch.float64) for own in layers]
    expected = []
    for place, own in enumerate(directions):
        for index in range(2):
            parts = layout.parts(place, own[index : index + 1])
            expected.append(
                sum((j[p] * d[0]).flatten(start_dim=2).sum(dim=-1) for p, d in parts.items())
            )
    torch.testing.assert_close(at.tangents(directions), torch.stack(expected))
    assert at.seen.batches is (build is not OddModule)
    one = [own[0] for own in directions]
    torch.testing.assert_close(at.pushed(one), sum(expected[::2]))
    v = torch.randn_like(at.outputs)
    back = [(own * v.reshape(*v.shape, *[1] * (own.dim() - 2))).sum(dim=(0, 1)) for own in j]
    for own, layer in zip(at.gradients(v), layout.layers(back), strict=True):
        torch.testing.assert_close(own, layer.augmented())


@pytest.mark.parametrize("biased", [False, True])
def test_a_chain_has_the_derivatives_of_its_closed_form(biased):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, biased), nn.Tanh(), nn.Linear(5, 2, biased)).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    chain = target_of(model).chain
    layers = chain.layers([p.detach() for p in model.parameters()])
    closed, at = ChainPass(chain, layers, LayerInput(x.mT)), passed(model, x)
    one = [torch.randn_like(layer.augmented()) for layer in layers]
    v = torch.randn_like(at.outputs)
    torch.testing.assert_close(at.outputs, closed.outputs)
    torch.testing.assert_close(at.pushed(one), closed.pushed(one))
    torch.testing.assert_close(at.gradients(v), closed.gradients(v))
    rows = [torch.stack((own, -own)) for own in one]
    torch.testing.assert_close(at.tangents(rows), closed.tangents(rows))
    last = [own.curvatures(SQUARE, 0)[-1].curvature for own in (at, closed)]
    torch.testing.assert_close(*last)  # exact in both
    for a, b in zip(at.rounding(), closed.rounding(), strict=True):
        assert 0.05 < float(a / b) < 20  # the same up to what norms of products lose


@pytest.mark.parametrize("loss", [SQUARE, SOFTMAX, SIGMOID], ids=lambda own: own.name)
@ALL
def test_the_curvature_is_that_of_naive_sums(build, shape, loss):
    """S = mean of J_z^T H J_z over samples, and C = sum of a a^T, from hooks and jacobians."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = made(build, x)
    at = passed(model, x)
    outputs = at.outputs
    hessians = [loss.product(outputs, torch.eye(2).double()[:, [k]].expand_as(outputs))
                for k in range(2)]  # fmt: skip
    root = torch.stack([torch.linalg.cholesky(torch.stack([h[:, n] for h in hessians], dim=1)
                        + 1e-300 * torch.eye(2).double()) if loss is not SOFTMAX
                        else _root(torch.stack([h[:, n] for h in hessians], dim=1))
                        for n in range(outputs.shape[1])])  # fmt: skip
    found = at.curvatures(loss, 3)
    for place, matrix in enumerate(at.seen.layout.matrices):
        module, uses = model.get_submodule(matrix.module), []
        handle = module.register_forward_hook(
            lambda _, given, out, uses=uses: uses.append((given[0], out)) or out.clone()
        )
        output = model(x)
        handle.remove()
        output = output.reshape(-1, output.shape[-1])
        inputs, slopes = [], []
        for given, out in uses:
            per_output = [
                torch.autograd.grad((output * root[:, :, k]).sum(), out, retain_graph=True)[0]
                for k in range(2)
            ]
            slopes.append(torch.stack([_rows(g) for g in per_output]))
            inputs.append(_patches(module, given.detach()))
        a, g = torch.cat(inputs), torch.cat(slopes, dim=1)
        if module.bias is not None:
            a = torch.cat((a, torch.ones(len(a), 1).double()), dim=1)
        own = found[place]
        assert isinstance(own, Factors)
        s, c = sum(each.mT @ each for each in g) / g.shape[1], a.mT @ a
        torch.testing.assert_close(own.left * own.of_output.values @ own.left.mT, s)
        torch.testing.assert_close(own.right * own.of_input.values @ own.right.mT, c)


def _root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()


def _rows(out):
    return out.movedim(1, -1).flatten(end_dim=-2) if out.dim() == 4 else out.flatten(end_dim=-2)


def _patches(module, given):
    if isinstance(module, nn.Linear):
        return given.flatten(end_dim=-2)
    unfolded = nn.functional.unfold(
        given, module.kernel_size, module.dilation, module.padding, module.stride
    )
    return unfolded.mT.flatten(end_dim=1)


def test_what_belongs_to_no_matrix_has_its_own_curvatures():
    """Of one sample the squares of J are exact; they are drawn half-way to their mean."""
    x = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = made(Residual, x)
    at, j = passed(model, x), jacobian(model, x)
    own = at.curvatures(SQUARE, 0)[-1]
    assert isinstance(own, Diagonal)
    places = at.seen.layout.others
    assert [at.seen.layout.names[p] for p in places] == ["norm.weight", "norm.bias"]
    expected = [j[p].square().sum(dim=(0, 1)) for p in places]
    expected = torch.cat([torch.lerp(each, each.mean(), SHRUNK) for each in expected])
    torch.testing.assert_close(own.curvature[0], expected)
    matrix = torch.randn(1, 10)
    assert own.into(matrix) is matrix
    assert own.back(matrix) is matrix


def test_with_many_outputs_curvatures_are_right_in_the_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 9)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    at, total = passed(model, x), 0
    for seed in range(400):
        own = at.curvatures(SQUARE, seed)[0]
        total = total + own.left * own.of_output.values @ own.left.mT / 400
    w, h = model[2].weight.detach(), torch.tanh(model[0](x)).detach()
    slopes = (1 - h.square()).mT  # (units, samples)
    expected = w.mT @ w * (slopes @ slopes.mT) / len(x)
    torch.testing.assert_close(total, expected, rtol=0.1, atol=0.02 * float(expected.max()))


def test_parameters_of_a_layout_come_back():
    x = torch.randn(5, 2, 4, 7, dtype=torch.float64)
    model = made(convolutions, x)
    layout = layout_of(model, [name for name, _ in model.named_parameters()])
    parameters = [torch.randn(3, *p.shape) for p in model.parameters()]
    for own, back in zip(parameters, layout.parameters(layout.layers(parameters)), strict=True):
        assert torch.equal(own, back)
    assert layout.coefficients(parameters) == [39, 0, 74, 0]


def test_frozen_tied_and_wide_parameters_are_no_matrices():
    model = nn.ModuleDict(
        {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "wide": nn.Linear(1025, 2),
         "grouped": nn.Conv1d(4, 4, 3, groups=2), "free": nn.Linear(4, 5)}
    )  # fmt: skip
    model["b"].weight = model["a"].weight
    names = [n for n, _ in model.named_parameters() if n != "free.bias"]
    layout = layout_of(model, names)
    assert [own.module for own in layout.matrices] == ["free"]
    assert layout.matrices[0].bias is None


def test_the_model_is_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    before = {name: own.clone() for name, own in model.state_dict().items()}
    state = torch.get_rng_state()
    at = passed(model, x)
    at.curvatures(SOFTMAX, 0)
    at.at(at.layers).gradients(at.outputs)
    assert torch.equal(torch.get_rng_state(), state)
    for name, own in model.state_dict().items():
        assert torch.equal(own, before[name])
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
