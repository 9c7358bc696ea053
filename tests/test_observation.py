"""What the networks see: preprocessing, the Gauss-Newton scale, and the order of coordinates."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from metaopt.learned.element import FEATURES, channels
from metaopt.learned.observation import Observation, flatten, log_sign, unflatten
from metaopt.symmetry import Identity, LayerChain, LeakyReLU

SLOPE = 0.1
NETWORKS = {
    "two layers": ((3, 4, 2), (False, False)),
    "two layers, biases": ((3, 4, 2), (True, True)),
    "three layers, biases": ((3, 5, 4, 2), (True, True, True)),
    "three layers, one bias": ((2, 3, 4, 5), (False, True, False)),
    "one layer, bias": ((4, 3), (True,)),
}
BATCHES = ((), (2,), (2, 3))


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_network(name: str, batch: tuple[int, ...], samples: int = 6):
    """A chain, its parameters and its input, in float64."""
    sizes, biased = NETWORKS[name]
    depth = len(biased)
    chain = LayerChain((LeakyReLU(SLOPE),) * (depth - 1) + (Identity(),), biased, len(batch))
    parameters = []
    for m in range(depth):
        parameters.append(normal(*batch, sizes[m + 1], sizes[m], seed=2 * m))
        if biased[m]:
            parameters.append(normal(*batch, sizes[m + 1], seed=2 * m + 1))
    return chain, parameters, normal(*batch, sizes[0], samples, seed=99)


def observe(name: str, batch: tuple[int, ...], samples: int = 6):
    chain, parameters, x = make_network(name, batch, samples)
    gradients = [normal(*p.shape, seed=200 + i) for i, p in enumerate(parameters)]
    return Observation.of(chain, parameters, gradients, x)


def naive_layers(seen: Observation, task: tuple[int, ...]) -> list[tuple[Tensor, Tensor | None]]:
    """(W, b) of one task, in float64."""
    remaining = [parameter[task].double() for parameter in seen.parameters]
    layers = []
    for biased in seen.chain.biased:
        weight = remaining.pop(0)
        layers.append((weight, remaining.pop(0) if biased else None))
    return layers


def naive_inputs(seen: Observation, task: tuple[int, ...]) -> list[Tensor]:
    """h_0 ... h_{L-1} of one task, a sample at a time."""
    h, inputs = seen.x[task].double(), []
    for weight, bias in naive_layers(seen, task):
        inputs.append(h)
        columns = []
        for n in range(h.shape[1]):
            z = weight @ h[:, n]
            z = z if bias is None else z + bias
            columns.append(torch.where(z > 0, z, SLOPE * z))
        h = torch.stack(columns, dim=1)
    return inputs


def naive_scales(seen: Observation, task: tuple[int, ...]) -> list[float]:
    """The Gauss-Newton scale of each parameter of one task."""
    layers, inputs = naive_layers(seen, task), naive_inputs(seen, task)
    scales = []
    for m, (_, bias) in enumerate(layers):
        downstream = math.prod(float((w**2).sum()) for w, _ in layers[m + 1 :])
        scales.append(float((inputs[m] ** 2).sum()) * downstream)
        if bias is not None:
            scales.append(inputs[m].shape[1] * downstream)
    return scales


def tasks(batch: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(i.tolist()) for i in torch.ones(batch).nonzero()] if batch else [()]


@pytest.mark.parametrize("p", [10.0, 5.0])
def test_log_sign_is_the_formula_of_andrychowicz_et_al(p):
    edge = math.exp(-p)
    values = [0.0, 1e-30, 1e-8, 0.5 * edge, 0.999 * edge, 1.001 * edge, 1e-2, 1.0, 3.0, 1e20]
    values += [-v for v in values]
    first, second = log_sign(torch.tensor(values), p)
    for v, a, b in zip(values, first.tolist(), second.tolist(), strict=True):
        if abs(v) >= edge:
            expected = (math.log(abs(v)) / p, math.copysign(1.0, v))
        else:
            expected = (-1.0, math.exp(p) * v)
        assert (a, b) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_log_sign_uses_p_10_by_default_and_keeps_the_shape():
    values = normal(2, 3, 4, seed=1)
    torch.testing.assert_close(log_sign(values), log_sign(values, 10.0), rtol=0, atol=0)
    assert all(channel.shape == values.shape for channel in log_sign(values))
    assert not torch.equal(log_sign(values)[0], log_sign(values, 9.0)[0])


def test_log_sign_is_continuous_at_its_threshold():
    edge = torch.tensor([math.exp(-10) * (1 - 1e-9), math.exp(-10) * (1 + 1e-9)]).double()
    for channel in log_sign(edge):
        assert channel[0].item() == pytest.approx(channel[1].item(), abs=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_and_scales_equal_their_naive_twins(name, batch):
    seen = observe(name, batch)
    for task in tasks(batch):
        for own, naive in zip(seen.inputs, naive_inputs(seen, task), strict=True):
            torch.testing.assert_close(own[task].double(), naive, rtol=1e-4, atol=1e-5)
        own = [float(scale[task]) for scale in seen.gauss_newton_scale]
        assert own == pytest.approx(naive_scales(seen, task), rel=1e-5)


def gauss_newton_eigenvalues(name: str, samples: int) -> tuple[list[float], list[float]]:
    """Largest eigenvalue of each parameter's block of J^T J by brute force, and its scale."""
    chain, parameters, x = make_network(name, (), samples)
    seen = Observation.of(chain, parameters, parameters, x)

    def output(*values: Tensor) -> Tensor:
        h = x
        remaining = list(values)
        for activation, biased in zip(chain.activations, chain.biased, strict=True):
            h = remaining.pop(0) @ h
            h = activation(h + remaining.pop(0)[:, None] if biased else h)
        return h.flatten()

    jacobians = jacrev(output, argnums=tuple(range(len(parameters))))(*parameters)
    largest = [float(torch.linalg.eigvalsh(j.flatten(1).mT @ j.flatten(1))[-1]) for j in jacobians]
    return largest, [float(scale) for scale in seen.gauss_newton_scale]


@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_scale_bounds_each_block_of_the_gauss_newton_matrix(name, samples):
    largest, scales = gauss_newton_eigenvalues(name, samples)
    assert len(largest) == len(scales)
    for eigenvalue, scale in zip(largest, scales, strict=True):
        assert 0 < eigenvalue <= scale * (1 + 1e-5)


def test_the_scale_is_tight_for_one_layer_and_one_sample():
    largest, scales = gauss_newton_eigenvalues("one layer, bias", samples=1)
    assert scales == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_relative_rms_is_the_rms_of_gradient_over_scale(batch):
    seen = observe("three layers, biases", batch)
    for task in tasks(batch):
        scales = naive_scales(seen, task)
        for gradient, scale, r in zip(seen.gradients, scales, seen.relative_rms, strict=True):
            entries = [(g / scale) ** 2 for g in gradient[task].flatten().tolist()]
            naive = math.sqrt(sum(entries) / len(entries))
            assert float(r[task]) == pytest.approx(naive, rel=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_unflatten_inverts_flatten(batch):
    _, parameters, _ = make_network("three layers, one bias", batch)
    row = flatten(parameters)
    assert row.shape == (sum(p.numel() for p in parameters),)
    torch.testing.assert_close(unflatten(row, parameters), parameters, rtol=0, atol=0)
    assert torch.equal(flatten(unflatten(row, parameters)), row)


@pytest.mark.parametrize("batch", BATCHES)
def test_coordinates_puts_each_value_beside_the_entries_of_its_parameter(batch):
    seen = observe("three layers, biases", batch)
    values = [normal(*batch, seed=300 + i) for i in range(len(seen.parameters))]
    spread = unflatten(seen.coordinates(values), seen.parameters)
    for value, entries in zip(values, spread, strict=True):
        for task in tasks(batch):
            assert (entries[task] == value[task]).all()


def gram_of_rows(matrix: Tensor) -> Tensor:
    rows = range(matrix.shape[0])
    return torch.tensor([[float((matrix[i] * matrix[j]).sum()) for j in rows] for i in rows])


def naive_pair(layers, seen: Observation, site) -> list[Tensor]:
    incoming, outgoing = layers[site.incoming], layers[site.outgoing]
    augmented = torch.cat((incoming.weight[0], incoming.bias[0][:, None]), dim=1)
    grams = gram_of_rows(augmented), gram_of_rows(outgoing.weight[0].mT)
    return [channel for gram in grams for channel in log_sign(gram)]


def naive_covariance_of(h: Tensor) -> list[Tensor]:
    c = gram_of_rows(h)
    k = c.shape[0]
    scaled = [[min(3.0, max(-3.0, v * k / float(c.trace()))) for v in row] for row in c.tolist()]
    return [*log_sign(c), torch.tensor(scaled), torch.eye(k)]


def naive_covariance(seen: Observation, site) -> list[Tensor]:
    return naive_covariance_of(seen.inputs[site.outgoing][0])


def naive_preactivations(seen: Observation, site) -> list[Tensor]:
    layer, h = seen.layers[site.incoming], seen.inputs[site.incoming][0]
    z = layer.weight[0] @ h
    return naive_covariance_of(z if layer.bias is None else z + layer.bias[0][:, None])


NAIVE_FEATURES = {
    "gradients": lambda seen, site: naive_pair(seen.layer_gradients, seen, site),
    "balance": lambda seen, site: naive_pair(seen.layers, seen, site),
    "covariance": naive_covariance,
    "preactivations": naive_preactivations,
}


def test_every_feature_has_a_naive_twin():
    assert NAIVE_FEATURES.keys() == FEATURES.keys()


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_equals_its_naive_formula_at_each_site(name):
    count, feature = FEATURES[name]
    seen = observe("three layers, biases", (1,))
    for site in seen.chain.pairs:
        own = channels([feature], seen, site)
        naive = NAIVE_FEATURES[name](seen, site)
        assert len(own) == len(naive) == count
        for a, b in zip(own, naive, strict=True):
            torch.testing.assert_close(a[0], b, rtol=1e-4, atol=1e-5)


def test_everything_seen_is_detached_and_float32_and_the_originals_stay():
    chain, parameters, x = make_network("three layers, biases", (2,))
    parameters = [p.requires_grad_() * 1.0 for p in parameters]
    x.requires_grad_()
    seen = Observation.of(chain, parameters, [p * 2 for p in parameters], x * 1.0)
    layers = seen.layers + seen.layer_gradients
    tensors = [*seen.parameters, *seen.gradients, seen.x, *seen.inputs, *seen.gauss_newton_scale]
    tensors += [*seen.relative_rms, *(t for layer in layers for t in layer if t is not None)]
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in tensors)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in parameters)
