"""Modules that are chains of Linear layers."""

import pytest
import torch
from network_cases import RELU, case_called, every_case, sample
from torch import nn

from metaopt.symmetry import LayerChain, LeakyReLU, as_chain


@every_case
def test_a_model_is_a_chain_where_the_table_says_so(case):
    model, x = sample(case)
    chain = as_chain(model)
    assert isinstance(chain, LayerChain if case.chain else str)
    if case.chain:
        assert chain.names == tuple(name for name, _ in model.named_parameters())
        parameters = chain.parameters_of(model)
        assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
        columns = x.reshape(-1, parameters[0].shape[1]).mT  # x.flatten(1) unless it has positions
        y = chain.output(chain.layers(parameters), columns)
        torch.testing.assert_close(y, model(x).reshape(-1, y.shape[0]).mT, rtol=0, atol=1e-14)
        assert chain.batch_dims == 0


def test_a_chain_may_start_with_a_view_and_end_with_an_activation():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4, 3, bias=False), nn.Linear(6, 4)

        def forward(self, x):
            h = nn.functional.leaky_relu(self.first(x.view(-1, 6)), 0.3)
            return torch.relu(self.last(nn.functional.dropout(h, 0.0) if False else h))

    model, x = Model(), torch.randn(5, 2, 3)
    chain = as_chain(model)
    names = ("first.weight", "first.bias", "last.weight")
    assert chain == LayerChain((LeakyReLU(0.3), RELU), (True, False), names=names)
    y = chain.output(chain.layers(chain.parameters_of(model)), x.flatten(1).mT)
    torch.testing.assert_close(y, model(x).mT)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("dropout", "Dropout is not part"),
        ("convolutions", "0 is a Conv2d"),
        ("skip connection", "used 2 times"),
        ("frozen", "fc1 is frozen"),
        ("never called", "parameters outside the chain: fc2.bias, fc2.weight"),
        ("data-dependent", "cannot trace"),
        ("other in training", "used 2 times"),
        ("tied weights", "shares"),
    ],
)
def test_what_is_no_chain_says_why(label, words):
    assert words in as_chain(case_called(label).build())


class Positions(nn.Module):
    """Gives (batch, positions, classes), or the same in another shape."""

    def __init__(self, shape):
        super().__init__()
        self.body, self.shape = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), shape

    def forward(self, x):
        return self.shape(self.body(x))


SHAPES = {
    "flatten": lambda out: out.flatten(0, 1),
    "function": lambda out: torch.flatten(out, 0, -2),
    "view": lambda out: out.view(-1, out.size(-1)),
    "reshape": lambda out: out.reshape(-1, 4),
    "twice": lambda out: out.unsqueeze(0).flatten(0, 2),
    "module": nn.Unflatten(-1, (2, 2)),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_shape_of_the_output_does_not_matter(shape):
    plain = as_chain(Positions(lambda out: out))
    chain = as_chain(Positions(shape))
    assert (chain.names, chain.activations) == (plain.names, plain.activations)


def test_a_shape_between_layers_does():
    model = nn.Sequential(nn.Linear(6, 4), nn.Unflatten(-1, (2, 2)), nn.Linear(2, 3))
    assert as_chain(model) == "Unflatten between layers is not part of a chain"
