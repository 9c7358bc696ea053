"""m1 and m2: every rule of both tables, each head and feature against a naive formula."""

import math
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn

from metaopt import LearnedOptimizer, UserError
from metaopt.learned.element import (
    FEATURES,
    CoordinatewiseElement,
    CoordinatewiseElementConfig,
)
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.learned.observation import Observation, SeenLoss, flatten, log_sign
from metaopt.learned.spec import ELEMENT_RULES, UPDATE_RULES, MetaOptimizerSpec
from metaopt.learned.update import HEADS, CoordinatewiseUpdateConfig, StepSizeConfig
from metaopt.symmetry import ChainModule, Element, Identity, LayerChain, LeakyReLU, make_action
from metaopt.tasks import RegressionFamily

INPUT, HIDDEN, OUTPUT, SAMPLES = 3, 4, 5, 2
FAMILY = RegressionFamily(SAMPLES, INPUT, HIDDEN, OUTPUT)
RULES = list(product(UPDATE_RULES, ELEMENT_RULES))


class ThreeLayers(ChainModule):
    """A batch of three-layer networks with biases: 1/2 ||Y - F(X)||^2 each."""

    sizes = (4, 6, 3, 2)

    def __init__(self, batch: tuple[int, ...] = (2,), seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.chain = LayerChain(
            (LeakyReLU(0.1), LeakyReLU(0.1), Identity()), (True, True, True), len(batch)
        )
        for m in range(3):
            for name, shape in (
                ("W", self.sizes[m : m + 2][::-1]),
                ("b", self.sizes[m + 1 : m + 2]),
            ):
                start = torch.randn((*batch, *shape), generator=generator)
                self.register_parameter(f"{name}{m}", nn.Parameter(start))
        self.x = torch.randn((*batch, self.sizes[0], 3), generator=generator)
        self.y = torch.randn((*batch, self.sizes[-1], 3), generator=generator)

    def forward(self) -> Tensor:
        output = self.chain.output(self.chain.layers(list(self.parameters())), self.x)
        return 0.5 * (self.y - output).square().sum(dim=(-2, -1))


def build(seed: int = 0, **fields) -> MetaOptimizer:
    """A meta-optimizer whose m2 has a head that is not zero."""
    fields = {"hidden": 5, "flat_widths": (INPUT, HIDDEN, OUTPUT), **fields}
    meta = MetaOptimizer(MetaOptimizerSpec(**fields), seed)
    if hasattr(meta.element, "lstm"):
        generator = torch.Generator().manual_seed(seed + 1)
        nn.init.normal_(meta.element.lstm.head_weight, std=0.1, generator=generator)
    return meta


def observe(model: nn.Module) -> Observation:
    parameters = list(model.parameters())
    losses = model()
    gradients = torch.autograd.grad(losses.sum(), parameters)
    seen = SeenLoss(losses.detach())
    return Observation.of(model.chain, parameters, gradients, model.x, loss=seen)


def rule_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def propose(meta: MetaOptimizer, seen: Observation, state):
    """f_t, T_t of each site, and the next state."""
    update, following = meta.update.propose(seen, state["update"])
    if meta.element is None:
        return update, [], {"update": following}
    elements, own = meta.element.propose(seen.numbers, state["element"])
    return update, elements, {"update": following, "element": own}


def numbers(update: list[Tensor], elements: list[Element]) -> list[Tensor]:
    """All tensors of what is proposed."""
    bases = [element.basis for element in elements if element.basis is not None]
    return [*update, *(element.values for element in elements), *bases]


@pytest.mark.parametrize(("update", "element"), RULES)
def test_propose_is_pure(update, element):
    meta = build(update=update, element=element)
    model = FAMILY.sample([1, 2])
    seen = observe(model)
    *_, state = propose(meta, seen, meta.init_state(model.chain, list(model.parameters())))
    kept = {name: [t.clone() for t in tensors] for name, tensors in state.items()}
    weights = {name: t.clone() for name, t in meta.state_dict().items()}
    gradients = [g.clone() for g in seen.gradients]
    *first, following = propose(meta, seen, state)
    *second, again = propose(meta, seen, state)
    torch.testing.assert_close(numbers(*first), numbers(*second), rtol=0, atol=0)
    torch.testing.assert_close(following, again, rtol=0, atol=0)
    torch.testing.assert_close(state, kept, rtol=0, atol=0)
    torch.testing.assert_close(dict(meta.state_dict()), weights, rtol=0, atol=0)
    torch.testing.assert_close(list(seen.gradients), gradients, rtol=0, atol=0)
    for name in state:
        moved = [
            not torch.equal(new, old) for new, old in zip(following[name], state[name], strict=True)
        ]
        assert all(moved) or (update == "whitened" and any(moved))  # the m1 inside it stands still


@pytest.mark.parametrize(("update", "element"), RULES)
def test_shapes_on_tasks_that_are_not_square(update, element):
    meta = build(update=update, element=element)
    model = FAMILY.sample([1, 2, 3])
    start = meta.init_state(model.chain, list(model.parameters()))
    update, elements, following = propose(meta, observe(model), start)
    assert [f.shape for f in update] == [p.shape for p in model.parameters()]
    expected = [] if element == "none" else [(3, HIDDEN, HIDDEN)]
    assert [tuple(t.dense().shape) for t in elements] == expected
    assert following.keys() == start.keys()
    for name in start:
        assert [t.shape for t in following[name]] == [t.shape for t in start[name]]


@pytest.mark.parametrize(("update", "element"), RULES)
def test_flat_rules_refuse_other_sizes_and_the_others_take_any(update, element):
    meta = build(update=update, element=element)
    model = RegressionFamily(4, 4, 3, 2).sample([1])
    optimizer = LearnedOptimizer(model, meta)
    model().sum().backward()
    if "flat" in update or element == "flat":
        with pytest.raises(UserError, match="expected a network of 32 weights"):
            optimizer.step()
    else:
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_flat_element_refuses_another_width_with_as_many_weights():
    model = RegressionFamily(2, 8, 2, 8).sample([1])  # 2 * (8 + 8) = 4 * (3 + 5)
    optimizer = LearnedOptimizer(model, build(update="coordinatewise", element="flat"))
    model().sum().backward()
    with pytest.raises(UserError, match="site of width 2"):
        optimizer.step()


def test_flat_element_refuses_three_layers():
    model = ThreeLayers()
    weights = sum(p[0].numel() for p in model.parameters())
    meta = build(element="flat", flat_widths=(weights - 1, 1, 1))
    with pytest.raises(UserError, match="two-layer network"):
        propose(meta, observe(model), meta.init_state(model.chain, list(model.parameters())))


NAIVE_HEADS = {
    "plain": lambda o, g, seen: 0.01 * o,
    "free": lambda o, g, seen: 0.01 * o * math.tanh(100 * seen["r"]),
    "gradient": lambda o, g, seen: 0.1 * math.tanh(10 * g * math.exp(min(4 * o - 9, 0))),
    "scaled_gradient": lambda o, g, seen: (
        0.1 * math.tanh(10 * g / seen["largest"] * math.exp(min(4 * o - 1, 3)))
    ),
    "spectral_gradient": lambda o, g, seen: (
        0.1 * math.tanh(10 * g / seen["spectral"] * min(math.exp(4 * o - 1), 2))
    ),
}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("heads", [*((h,) for h in HEADS), ("gradient", "free"), tuple(HEADS)])
def test_update_is_minus_the_sum_of_its_heads(heads, batch):
    config = CoordinatewiseUpdateConfig(hidden=5, layers=2, heads=heads)
    rule = config.build(rule_generator())
    seen = observe(ThreeLayers(batch))
    row = flatten(seen.gradients)
    x, state = torch.stack(log_sign(row)), rule.lstm.init_state(row.numel())
    with torch.no_grad():  # outputs on both sides of every clamp
        rule.lstm.head_weight.mul_(1.5 / rule.lstm(x, state)[0].std(dim=1, keepdim=True))
        rule.lstm.head_bias.sub_(rule.lstm(x, state)[0].mean(dim=1)).add_(1.5)
    outputs, _ = rule.lstm(x, state)
    assert (outputs.amin(dim=1) < 1.0).all()
    assert (outputs.amax(dim=1) > 2.25).all()
    update, _ = rule.propose(seen, rule.init_state(seen.chain, seen.parameters))
    scales = {
        "largest": seen.gauss_newton_scale, "spectral": seen.spectral_scale, "r": seen.relative_rms
    }  # fmt: skip
    expected, column = [], 0
    for index, gradient in enumerate(seen.gradients):
        per_task = gradient.numel() // seen.gauss_newton_scale[index].numel()
        for entry, g in enumerate(gradient.flatten().tolist()):
            own = {
                name: values[index].flatten()[entry // per_task].item()
                for name, values in scales.items()
            }
            expected.append(
                -sum(NAIVE_HEADS[h](outputs[i, column].item(), g, own) for i, h in enumerate(heads))
            )
            column += 1
    torch.testing.assert_close(flatten(update), torch.tensor(expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("output_bias", [0.2, 3.0])
def test_step_size_rule_is_a_rate_over_the_largest_scale_times_the_gradient(output_bias):
    rule = StepSizeConfig(hidden=5, layers=2).build(rule_generator())
    nn.init.constant_(rule.lstm.head_bias, output_bias)
    seen = observe(ThreeLayers((2,)))
    update, _ = rule.propose(seen, rule.init_state(seen.chain, seen.parameters))
    for b in range(2):
        norm = math.sqrt(sum(float(g[b].square().sum()) for g in seen.gradients))
        scale = max(float(k[b]) for k in seen.gauss_newton_scale)
        logs = torch.tensor([[math.log(v) / 10] for v in (norm, scale, norm / scale)])
        output = rule.lstm(logs, rule.lstm.init_state(1))[0].item()
        eta = math.exp(min(4 * output, 4)) / scale
        for f, g in zip(update, seen.gradients, strict=True):
            torch.testing.assert_close(f[b], -eta * g[b], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("update", ["flat", "flat_step_size"])
def test_flat_rules_read_and_write_each_task_alone(update):
    rule = build(update=update, element="none").update
    nn.init.constant_(rule.lstm.head_bias, 1.0)  # a rate beyond its upper bound
    seen = observe(FAMILY.sample([1, 2]))
    proposed, _ = rule.propose(seen, rule.init_state(seen.chain, seen.parameters))
    for b in range(2):
        column = torch.cat([g[b].flatten() for g in seen.gradients])[:, None]
        output = rule.lstm(column, rule.lstm.init_state(1))[0][:, 0]
        if update == "flat_step_size":
            output = -1e-7 * 5e4 ** torch.sigmoid(output) * column[:, 0]
        own = torch.cat([f[b].flatten() for f in proposed])
        torch.testing.assert_close(own, output, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [0.01, 0.0])
def test_flat_element_has_the_norm_asked_for(norm):
    rule = build(element="flat", norm=norm).element
    seen = observe(FAMILY.sample([1, 2]))
    (element,), _ = rule.propose(seen, rule.init_state(seen.chain, seen.parameters))
    for b in range(2):
        column = torch.cat([g[b].flatten() for g in seen.gradients])[:, None]
        raw = rule.lstm(column, rule.lstm.init_state(1))[0].detach().reshape(HIDDEN, HIDDEN)
        expected = raw * (norm / float(raw.square().sum().sqrt())) if norm else raw
        torch.testing.assert_close(element.values[b], expected, rtol=1e-3, atol=1e-7)


def entries(**fields) -> CoordinatewiseElement:
    config = CoordinatewiseElementConfig(hidden=5, layers=2, **fields)
    return config.build(make_action("post_activation"), rule_generator())


NON_EMPTY = [s for n in (1, 2, 3) for s in combinations(FEATURES, n)]


@pytest.mark.parametrize("features", NON_EMPTY)
def test_any_features_can_be_left_out(features):
    rule = entries(features=features)
    assert rule.lstm.inputs == sum(FEATURES[name][0] for name in features)
    seen = observe(ThreeLayers())
    elements, _ = rule.propose(seen, rule.init_state(seen.chain, seen.parameters))
    assert [tuple(t.values.shape) for t in elements] == [(2, 6, 6), (2, 3, 3)]


def saturated(sign: float, bound: float, gain: float) -> CoordinatewiseElement:
    rule = entries(features=("balance",), bound=bound, gate=gain)
    nn.init.constant_(rule.lstm.head_bias, sign * 1e6)
    return rule


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_entries_of_an_element_reach_bound_over_width_and_no_more(sign):
    seen = observe(ThreeLayers())
    rule = saturated(sign, bound=8.0, gain=0.0)
    elements, _ = rule.propose(seen, rule.init_state(seen.chain, seen.parameters))
    for element, width in zip(elements, (6, 3), strict=True):
        t = element.values
        assert t.abs().max() <= 8.0 / width
        torch.testing.assert_close(t, torch.full_like(t, sign * 8.0 / width))


def test_gate_closes_as_the_outgoing_gradient_vanishes():
    seen = observe(ThreeLayers())
    rule = saturated(1.0, bound=3.0, gain=1000.0)
    state = rule.init_state(seen.chain, seen.parameters)
    previous = math.inf
    for scale in (1.0, 1e-3, 1e-6, 0.0):
        gradients = [g * scale for g in seen.gradients]
        scaled = Observation(seen.chain, seen.parameters, gradients, seen.x)
        element = rule.propose(scaled, state)[0][0].values
        for b in range(2):
            rms = float(gradients[2][b].square().mean().sqrt())  # of W_1, which leaves site 0
            trace = float(seen.inputs[1][b].square().sum())
            expected = 3.0 / 6 * math.tanh(1000 * rms / trace)
            torch.testing.assert_close(element[b], torch.full((6, 6), expected))
        assert element.abs().max() < previous
        previous = element.abs().max().item()
    assert previous == 0.0


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("update", ["coordinatewise", "step_size"])
@pytest.mark.parametrize("element", ["none", "coordinatewise"])
def test_three_layers_with_biases_are_stepped(update, element, batch):
    model = ThreeLayers(batch)
    optimizer = LearnedOptimizer(model, build(update=update, element=element, bound=0.5))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        optimizer.zero_grad()
        model().sum().backward()
        optimizer.step()
    assert model().isfinite().all()
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    if element != "none":
        move = optimizer.teleportation
        assert not move.rejected.any()
        assert (move.invariance_error() < 1e-4).all()  # 3 samples: eq. 78 is exact
