import pytest
import torch
from cases import naive_output
from torch import nn

from metaopt.symmetry import Identity, Layer, LayerChain, LeakyReLU
from metaopt.symmetry.chain import LayerPair

SLOPES = (0.1, 0.5, 1.0)
CHAIN = LayerChain((LeakyReLU(0.1), LeakyReLU(0.5), Identity()), (True, False, True))
SHAPES = ((4, 3), (4,), (2, 4), (5, 2), (5,))


def drawn_parameters(batch=()):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*batch, *s, generator=generator, dtype=torch.float64) for s in SHAPES]


def test_parameters_are_grouped_into_layers_and_back_in_order():
    parameters = drawn_parameters()
    layers = CHAIN.layers(parameters)
    assert [layer.bias is not None for layer in layers] == [True, False, True]
    assert [tuple(layer.weight.shape) for layer in layers] == [(4, 3), (2, 4), (5, 2)]
    assert layers[2].bias is parameters[4]
    returned = CHAIN.parameters(layers)
    assert all(a is b for a, b in zip(returned, parameters, strict=True))


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        (1, ()),
        (2, (LayerPair(0, 1),)),
        (4, (LayerPair(0, 1), LayerPair(1, 2), LayerPair(2, 3))),
    ],
)
def test_there_is_a_pair_and_a_site_of_consecutive_layers(layers, pairs):
    chain = LayerChain((Identity(),) * layers, (False,) * layers)
    assert chain.pairs == pairs
    sites = chain.sites([torch.ones(3, 3)] * layers)
    assert [site.layers for site in sites] == [(f"W{m + 1}", f"W{m + 2}") for m, _ in pairs]


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_a_site_says_what_it_is_of_whatever_the_batch(batch):
    first, second = CHAIN.sites(drawn_parameters(batch))
    assert (first.name, second.name) == ("W1 -> W2", "W2 -> W3")
    assert (first.between, second.between) == CHAIN.activations[:2]
    assert (first.width, second.width) == (4, 2)
    assert (first.fan_in, second.fan_in) == (3, 4)
    assert (first.biased, second.biased) == ((True, False), (False, True))
    assert first.parameters == ("W1", "b1", "W2")
    assert second.parameters == ("W2", "W3", "b3")
    assert all(
        site.plain and site.homogeneous and site.exact == "always"
        for site in CHAIN.sites(drawn_parameters(batch))
    )
    assert [site.group for site in (first, second)] == ["positive", "positive"]


def test_gl_acts_where_nothing_lies_between():
    chain = LayerChain((Identity(), Identity()), (False, False))
    (site,) = chain.sites([torch.ones(3, 3)] * 2)
    assert site.group == "GL"
    assert site.labels == ()


def test_parameters_are_named_by_default_or_as_they_are_called():
    assert CHAIN.names == ("W1", "b1", "W2", "W3", "b3")
    named = LayerChain(CHAIN.activations, CHAIN.biased, names=("a", "b", "c", "d", "e"))
    first, second = named.sites(drawn_parameters())
    assert first.parameters == ("a", "b", "c")
    assert second.parameters == ("c", "d", "e")


def test_a_chain_needs_a_name_for_each_parameter():
    with pytest.raises(ValueError, match="expected a name for each of 5 parameters, got 2"):
        LayerChain(CHAIN.activations, CHAIN.biased, names=("a", "b"))


def test_parameters_of_a_model_come_in_the_order_of_the_names():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    chain = LayerChain(
        (Identity(), Identity()), (True, False), names=("0.weight", "0.bias", "1.weight")
    )
    own = chain.parameters_of(model)
    assert [id(p) for p in own] == [
        id(p) for p in (model[0].weight, model[0].bias, model[1].weight)
    ]


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_inputs_and_output_equal_the_naive_network(batch):
    parameters = drawn_parameters(batch)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*batch, 3, 6, generator=generator, dtype=torch.float64)
    layers = CHAIN.layers(parameters)
    inputs, output = CHAIN.inputs(layers, x), CHAIN.output(layers, x)
    assert len(inputs) == 3
    assert inputs[0] is x
    for index in range(torch.Size(batch).numel()):
        flat = [p.reshape(-1, *p.shape[len(batch) :])[index] for p in parameters]
        one, x_one = CHAIN.layers(flat), x.reshape(-1, 3, 6)[index]
        for depth, h in enumerate([*inputs, output]):
            expected = naive_output(one[:depth], SLOPES[:depth], x_one)
            torch.testing.assert_close(h.reshape(-1, *h.shape[-2:])[index], expected)


def test_the_last_activation_is_applied_to_the_output():
    chain = LayerChain((LeakyReLU(0.5),), (False,))
    output = chain.output([Layer(torch.tensor([[2.0]]))], torch.tensor([[-3.0, 3.0]]))
    assert output.tolist() == [[-3.0, 6.0]]


def test_leaky_relu_takes_its_known_values():
    z = torch.tensor([-2.0, 0.0, 3.0])
    assert LeakyReLU(0.5)(z).tolist() == [-1.0, 0.0, 3.0]
    assert LeakyReLU(0.0)(z).tolist() == [0.0, 0.0, 3.0]


@pytest.mark.parametrize("activation", [LeakyReLU(0.1), LeakyReLU(1.0), LeakyReLU(3.0), Identity()])
def test_an_inverse_undoes_its_activation(activation):
    z = torch.linspace(-3, 3, 25, dtype=torch.float64)
    assert activation.inverse is not None
    torch.testing.assert_close(activation.inverse(activation(z)), z, rtol=1e-14, atol=0)
    torch.testing.assert_close(activation(activation.inverse(z)), z, rtol=1e-14, atol=0)


@pytest.mark.parametrize("slope", [0.0, -0.1])
def test_a_slope_that_is_not_positive_has_no_inverse(slope):
    assert LeakyReLU(slope).inverse is None


@pytest.mark.parametrize("activation", [LeakyReLU(0.0), LeakyReLU(0.1), Identity()])
def test_activations_that_say_so_are_positively_homogeneous(activation):
    z = torch.linspace(-3, 3, 25, dtype=torch.float64)
    assert activation.homogeneous
    torch.testing.assert_close(activation(2.5 * z), 2.5 * activation(z), rtol=1e-14, atol=0)


def test_a_layer_adds_its_bias_to_each_sample():
    layer = Layer(torch.tensor([[1.0, 2.0]]), torch.tensor([10.0]))
    assert layer(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[11.0, 12.0]]


def test_the_augmented_weight_has_the_bias_as_its_last_column():
    layer = Layer(torch.tensor([[1.0, 2.0]]), torch.tensor([10.0]))
    assert layer.augmented().tolist() == [[1.0, 2.0, 10.0]]
    assert Layer(layer.weight).augmented() is layer.weight


def test_map_reaches_weight_and_bias_and_leaves_a_missing_bias_missing():
    layer = Layer(torch.tensor([[1.0, 2.0]]), torch.tensor([10.0])).map(torch.neg)
    assert layer.weight.tolist() == [[-1.0, -2.0]]
    assert layer.bias.tolist() == [-10.0]
    assert Layer(layer.weight).map(torch.neg).bias is None


def test_a_chain_needs_an_activation_for_each_layer():
    with pytest.raises(ValueError, match="expected as many activations as layers"):
        LayerChain((Identity(),), (False, False))
