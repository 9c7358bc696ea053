"""Sites of ordinary modules: what is found, what is left out and why, which actions fit."""

import copy
import functools

import pytest
import torch
from network_cases import Net, case_called, every_case, sample, site_of
from torch import nn

from metaopt import UserError
from metaopt.symmetry import (
    ACTIONS,
    Element,
    Elementwise,
    Identity,
    LayerInput,
    find_sites,
    make_action,
)
from metaopt.symmetry.functional import call_with


def pairs(sites):
    return [site.layers for site in sites.found]


def exact_actions(site, samples):
    """The actions that are exact on so many samples, each with its largest batch."""
    largest = {name: make_action(name).max_samples(site) for name in ACTIONS}
    return {name: most for name, most in largest.items() if most >= samples}


@every_case
def test_the_expected_sites_are_found_and_no_others(case):
    sites = find_sites(case.build())
    assert [site.name for site in sites.found] == [" -> ".join(site.layers) for site in sites.found]
    assert {site.name for site in sites.found} == set(case.found)
    for site in sites.found:
        expected = case.found[site.name]
        if expected.between is ...:
            assert isinstance(site.between, Elementwise)
        else:
            assert site.between == expected.between
        for name in ("scaled", "block", "plain", "homogeneous"):
            assert getattr(site, name) == getattr(expected, name), name


@every_case
def test_the_others_are_left_out_for_the_expected_reasons(case):
    reasons = {", ".join(out.names): out.reason for out in find_sites(case.build()).left_out}
    assert set(reasons) == set(case.left_out)
    for names, words in case.left_out.items():
        assert words in reasons[names]


@every_case
def test_the_report_names_each_layer_and_each_reason(case):
    model = case.build()
    sites = find_sites(model)
    text = sites.report()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for name in set(layers) - {case.alone}:
        assert f"  {name} -> " in text or f" {name}: " in text or f" {name}, " in text, name
    assert all(out.reason in text for out in sites.left_out)
    assert all(len(line) < 160 for line in text.splitlines())


@every_case
def test_looking_for_sites_changes_nothing(case):
    model, _ = sample(case)
    model.eval()
    before = copy.deepcopy(model.state_dict())
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    find_sites(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
    assert getattr(model, "seen", []) == []


def test_only_the_given_sites_are_kept():
    model = case_called("convolutions").build()
    sites = find_sites(model, sites=[("8", "10"), ("0", "3")])
    assert pairs(sites) == [("0", "3"), ("8", "10")]
    assert [(out.names, out.reason) for out in sites.left_out] == [
        (("3", "8"), "it is not among the given sites")
    ]


@pytest.mark.parametrize(
    ("label", "pair", "words"),
    [
        ("skip connection", ("fc1", "fc2"), "used 2 times, by fc2 and add: name other layers"),
        ("tied weights", ("fc2", "fc3"), "shares its weights with fc3.weight: "),
        ("called twice", ("fc1", "fc2"), "fc2 is called 2 times"),
        ("frozen", ("fc1", "fc2"), "fc1 is frozen .*: name .'fc2', 'fc3'."),
        ("data-dependent", ("fc1", "fc2"), "cannot trace the forward"),
        ("never called", ("fc1", "fc2"), "does not call it"),
        ("MLP", ("1", "5"), "5 does not consume the output of 1"),
        ("MLP", ("1", "fc"), "no layer called fc"),
        ("MLP", "13", "expected pairs of names"),
        ("MLP", ("1", "3", "5"), "expected pairs of names"),
    ],
)
def test_a_given_site_that_was_not_found_is_refused_with_the_reason(label, pair, words):
    with pytest.raises(UserError, match=words):
        find_sites(case_called(label).build(), sites=[pair])


def test_what_is_no_module_is_refused():
    with pytest.raises(UserError, match=r"expected an nn\.Module"):
        find_sites([nn.Linear(2, 2)])


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(0.1), nn.Linear(6, 4))


def with_hook():
    model = mlp()
    model[1].register_forward_hook(lambda *_: None)
    return model


def with_shared_memory():
    model = mlp()
    model.register_buffer("view", model[0].weight.detach()[2:])
    return model


def with_own_forward():
    model = mlp()
    model[0].forward = lambda x: 2 * x
    return model


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x) ** 2


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (with_hook, "LeakyReLU lies between and has forward hooks"),
        (with_shared_memory, "0 shares its weights with view"),
        (with_own_forward, "0 has a forward of its own"),
        (lambda: nn.Sequential(Doubled(5, 6), nn.Linear(6, 4)), "0 is a Doubled"),
        (lambda: nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 4)), "0 is a LazyLinear"),
        (lambda: mlp().to(torch.complex64), "not real numbers"),
    ],
    ids=["hook", "shared memory", "own forward", "subclass", "lazy", "complex"],
)
def test_a_layer_that_may_compute_something_else_is_left_out(build, words):
    sites = find_sites(build())
    assert not sites.found
    assert words in sites.left_out[0].reason


def test_one_module_under_two_names_is_not_shared():
    net = mlp()
    model = Net(lambda m, x: m.net(x), net=net, first=net[0])
    for sites in (None, [("first", "net.2")]):
        assert pairs(find_sites(model, sites)) == [("net.0", "net.2")]
    model = Net(lambda m, x: m.net(m.first(x)), net=mlp(), first=nn.Linear(5, 5))
    model.net[0] = model.first  # the same layer twice in the data flow
    assert "net.0 is called 2 times" in find_sites(model).report()


def test_a_model_that_holds_features_of_its_last_forward_is_traced():
    model, x = sample(case_called("features kept"))
    model(x)
    assert pairs(find_sites(model)) == [("fc2", "fc3")]


@pytest.mark.parametrize("biased", [(True, True), (False, True), (True, False)])
def test_actions_fit_up_to_as_many_samples_as_they_are_exact_for(biased):
    layers = [nn.Linear(9, 4, bias=biased[0]), nn.LeakyReLU(0.1), nn.Linear(4, 2, bias=biased[1])]
    (site,) = find_sites(nn.Sequential(*layers)).found
    post, pre = 9 + biased[0], 4 + biased[1]
    for samples in range(1, 13):
        expected = {"post_activation": post} if samples <= post else {}
        expected |= {"pre_activation": pre} if samples <= pre else {}
        assert exact_actions(site, samples) == expected | {"rescaling": float("inf")}
    assert exact_actions(site, float("inf")) == {"rescaling": float("inf")}
    text = find_sites(nn.Sequential(*layers)).report()
    assert f"post_activation: exact for a batch of at most {post} samples" in text
    assert f"pre_activation: exact for a batch of at most {pre} samples" in text


@pytest.mark.parametrize(
    ("label", "name", "expected"),
    [
        ("MLP", "1 -> 3", ["pre_activation", "rescaling"]),  # ReLU has no inverse
        ("GELU", "0 -> 2", ["pre_activation"]),
        ("nothing between", "0 -> 1", list(ACTIONS)),
        ("dropout", "0 -> 3", ["rescaling"]),
        ("PReLU", "0 -> 2", ["rescaling"]),
        ("batch norms", "0 -> 3", ["rescaling"]),
        ("convolutions", "0 -> 3", ["rescaling"]),
    ],
)
def test_which_actions_fit_for_few_samples(label, name, expected):
    site = site_of(case_called(label).build(), name)
    assert list(exact_actions(site, 2)) == expected


@every_case
def test_the_group_of_a_site_and_what_it_is_exact_for(case):
    """GL with nothing between, or where it needs a batch; else positive scales, for all data."""
    for site in find_sites(case.build()).found:
        largest = {name: make_action(name).max_samples(site) for name in ACTIONS}
        everywhere = [name for name, most in largest.items() if most == float("inf")]
        gl = any(make_action(name).group == "GL" for name in everywhere) or not everywhere
        assert site.group == ("GL" if gl else "positive")
        most = max(largest.values())
        assert site.exact == ("always" if everywhere else f"on a batch of at most {most} samples")
        assert ("linear" in everywhere) == (site.plain and site.between == Identity())


@pytest.mark.parametrize("label", ["MLP", "GELU", "nothing between", "tanh"])
def test_an_action_that_fits_keeps_the_output_of_its_batch(label):
    model, _ = sample(case_called(label))
    site = find_sites(model).found[0]
    weights = {name: value.detach() for name, value in model.named_parameters()}
    inputs = LayerInput(torch.randn(site.fan_in, 4, dtype=torch.float64))
    element = Element(0.3 * torch.randn(site.width, site.width, dtype=torch.float64))
    through_batch = [name for name in exact_actions(site, 4) if make_action(name).uses_inputs]
    assert through_batch
    for name in through_batch:
        moved = make_action(name).move(element, site, weights, inputs)
        assert moved.invariance_error < 1e-10
        assert not moved.rejected
        changed = site.incoming[0].parameter
        assert not torch.allclose(moved.weights[changed], weights[changed])


# Torch's Transformer modules, of which the feed-forward part is a pair of layers.

TRANSFORMERS = {
    "encoder layer": lambda **o: nn.TransformerEncoderLayer(6, 2, 8, 0.1, **o),
    "encoder": lambda **o: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 8, 0.1, **o), 2, nn.LayerNorm(6), False
    ),
    "decoder": lambda **o: nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 8, 0.1, **o), 2),
    "both": lambda **o: nn.Transformer(6, 2, 1, 1, 8, 0.1, **o),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_feed_forward_part_of_a_transformer_is_found_and_rescaled(kind, norm_first):
    torch.manual_seed(0)
    model = TRANSFORMERS[kind](norm_first=norm_first, batch_first=True).double()
    sites = find_sites(model).found
    layers = [name for name, _ in model.named_modules() if name.endswith("linear1")]
    assert [site.layers[0] for site in sites] == layers
    x = torch.randn(3, 4, 6).double()
    arguments = (x,) if kind.startswith("encoder") else (x, x.flip(0))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    action = make_action("rescaling")
    for training in (False, True):
        model.train(training)
        moved = dict(weights)
        for site in sites:
            scales = Element(torch.randn(site.width).double(), diagonal=True)
            moved |= action.move(scales, site, moved).weights
        for gradients in (False, True):  # without them torch takes its fast way
            outputs = []
            for own in (weights, moved):
                torch.manual_seed(1)
                with torch.set_grad_enabled(gradients):
                    outputs.append(call_with(model, list(own), list(own.values()), arguments))
            torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
        assert not torch.equal(moved[f"{layers[0]}.weight"], weights[f"{layers[0]}.weight"])


class Gated(nn.TransformerEncoderLayer):
    """Uses the hidden features of its feed-forward part twice."""

    def _ff_block(self, x):
        hidden = self.linear1(x).relu()
        return self.linear2(hidden) + hidden[..., :6]


class Own(nn.TransformerEncoderLayer):
    def forward(self, src, **options):
        return super().forward(src, **options) + 1


def test_a_transformer_layer_of_an_own_kind_is_looked_at_as_it_is():
    class Same(nn.TransformerEncoderLayer):
        pass

    def reasons(kind):
        sites = find_sites(nn.Sequential(nn.Linear(5, 6), kind(6, 2, 8, batch_first=True)))
        return pairs(sites), sites.why()

    assert reasons(Same)[0] == [("1.linear1", "1.linear2")]
    assert reasons(Gated)[0] == []
    assert "the output of relu is used 2 times" in reasons(Gated)[1]
    assert "torch.fx cannot trace the forward of 1 (Own): " in reasons(Own)[1]


def test_a_model_whose_forward_was_replaced_is_not_read_as_its_class():
    def doubled(forward):
        return lambda x: 2 * forward(x)

    model = mlp()
    model.forward = doubled(model.forward)
    assert "the model has a forward of its own" in find_sites(model).why()
    wrapped = mlp()
    wrapped.forward = functools.wraps(wrapped.forward)(doubled(wrapped.forward))  # as autocast is
    assert pairs(find_sites(wrapped)) == [("0", "2")]


def test_a_module_that_the_model_does_not_hold_is_traced_inside():
    loss = nn.CrossEntropyLoss()
    model = Net(lambda m, x: loss(m.net(x), torch.arange(3)), net=mlp())
    assert pairs(find_sites(model)) == [("net.0", "net.2")]


def test_a_forward_whose_arguments_are_all_optional_works_on_the_first():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x=None, mask=None, labels=None):
            out = self.net(x)
            return out if mask is None else out * mask

    assert pairs(find_sites(Optional())) == [("net.0", "net.2")]


def test_a_sparse_buffer_is_no_obstacle():
    model = mlp()
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    assert pairs(find_sites(model)) == [("0", "2")]


@pytest.mark.parametrize("given", [5, "0", object(), 0.5, True])
def test_sites_that_are_no_list_are_refused(given):
    with pytest.raises(UserError, match="expected sites in a list, got") as error:
        find_sites(mlp(), given)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("given", [[5], [None], [("0",)], [("0", 2)], ["02"], ("0", "2")])
def test_sites_that_are_no_pairs_are_refused(given):
    with pytest.raises(UserError, match="expected pairs of names, got"):
        find_sites(mlp(), given)
