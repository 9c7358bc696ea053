"""Transported gradients: along with a move, a gradient still measures the same changes."""

import copy

import pytest
import torch
from cases import CASES, PLAIN, act, between, draw, draw_element, tensors
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import (
    ACTIONS,
    ClosedFormAction,
    GradientAscent,
    Layer,
    Proposal,
    RescalingAction,
    make_action,
)

EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.label.replace(" ", "-"))


class OneScale(ClosedFormAction):
    """All units of a site by one scale, with a transport of its own, as a user writes it."""

    group = "positive"
    exact_when = "the activation is positively homogeneous"
    diagonal = True

    def max_samples(self, site):
        return float("inf") if site.homogeneous else 0

    def _scale(self, values):
        return values.mean(dim=-1).exp()

    def propose(self, element, matrices):
        scale = self._scale(element.values)[..., None, None]
        (w_in,), (w_out,) = matrices.incoming, matrices.outgoing
        weight = matrices.weight_of(w_out)
        w_out = torch.cat((weight / scale, w_out[..., weight.shape[-1] :]), dim=-1)
        return Proposal([scale * w_in], [w_out], torch.ones_like(scale[..., 0, 0]).bool())

    def transport(self, element, site, buffers, squares=False):
        scale = self._scale(element.values)[..., None, None]
        scale = scale.square() if squares else scale
        moved = {}
        for view in site.incoming:
            moved |= {name: buffers[name] for name in view.parameters}
            view.write_augmented(moved, view.read_augmented(buffers) / scale)
        for view in site.outgoing:
            view.write(moved, view.read(buffers) * scale)
        return moved


class Silent(ClosedFormAction):
    """Each unit by its own scale; says nothing of buffers."""

    group = "positive"
    exact_when = "the activation is positively homogeneous"
    diagonal = True

    def max_samples(self, site):
        return float("inf") if site.homogeneous else 0

    def propose(self, element, matrices):
        return RescalingAction().propose(element, matrices)


def actions():
    return {name: make_action(name, max_defect=float("inf")) for name in ACTIONS} | {
        "a user's": OneScale(max_defect=float("inf"))
    }


def site_with(case, slope):
    return draw(case)._replace(activation=between(slope))


def element_for(action, drawn):
    zero = action.identity(drawn.site, drawn.weights)
    generator = torch.Generator().manual_seed(3)
    return zero.map(lambda t: 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype))


def drawn_like(drawn, seed):
    """A tensor for each parameter: a gradient, or a change of the weights."""
    return drawn.named(draw_pair(drawn, seed))


def draw_pair(drawn, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        layer.map(lambda t: torch.randn(t.shape, generator=generator, dtype=t.dtype))
        for layer in drawn[:2]
    ]


def inner(left, right):
    assert left.keys() == right.keys()
    return sum((left[name] * right[name]).sum() for name in left)


def derivative_of_move(action, element, drawn, change):
    """J dw, by forward differentiation of the move in the weights."""

    def moved(weights):
        incoming, outgoing = drawn.layers(weights)
        at = drawn._replace(incoming=incoming, outgoing=outgoing)
        return drawn.named(act(action, element, at)[:2])

    return torch.func.jvp(moved, (drawn.weights,), (change,))[1]


@EVERY_CASE
@pytest.mark.parametrize("name", actions())
def test_a_transported_gradient_measures_a_moved_change_as_the_gradient_does_the_change(name, case):
    """<transported, J dw> = <gradient, dw>, where the move is linear in the weights."""
    action, drawn = actions()[name], site_with(case, slope=1.0)
    if name == "post_activation" and case.samples < case.features + case.biases[0]:
        # W_in moves on the span of h alone, so that J is no longer g.
        h = torch.eye(case.features).double().expand(*case.batch, -1, -1)
        extra = torch.zeros(*case.batch, case.features, 1).double()
        drawn = drawn._replace(h=torch.cat((h, extra), dim=-1))
    element = element_for(action, drawn)
    gradient, change = drawn_like(drawn, 5), drawn_like(drawn, 6)
    moved_change = derivative_of_move(action, element, drawn, change)
    transported = gradient | action.transport(element, drawn.site, gradient)
    assert transported.keys() == drawn.weights.keys()
    expected = inner(gradient, change)
    assert (inner(gradient, moved_change) - expected).abs() > 1e-2 * expected.abs(), "J is not I"
    torch.testing.assert_close(inner(transported, moved_change), expected, rtol=1e-9, atol=1e-9)


@EVERY_CASE
@pytest.mark.parametrize("variant", PLAIN, ids=str)
def test_it_follows_the_linear_part_across_an_activation_too(variant, case):
    """<g^-T G_in, g dW_in> + <G_out g^T, dW_out g^-1>, the biases of the outgoing side staying."""
    drawn = draw(variant.at(case))
    action, element = variant.make(), draw_element(variant, case)
    g = element.exponential()
    change_in, change_out = draw_pair(drawn, 6)
    gradient = drawn_like(drawn, 5)
    bias = None if change_in.bias is None else g.times(change_in.bias.unsqueeze(-1)).squeeze(-1)
    linear_in = Layer(g.times(change_in.weight), bias)
    linear_out = change_out._replace(weight=g.after(change_out.weight))
    transported = gradient | action.transport(element, drawn.site, gradient)
    kept = inner(transported, drawn.named((linear_in, linear_out)))
    expected = inner(gradient, drawn.named((change_in, change_out)))
    torch.testing.assert_close(kept, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["rescaling", "a user's"])
@EVERY_CASE
def test_squares_of_a_diagonal_action_are_transported_as_the_squares_of_the_gradient(name, case):
    action, drawn = actions()[name], draw(case)
    element, gradient = element_for(action, drawn), drawn_like(drawn, 5)
    squares = {name: t.square() for name, t in gradient.items()}
    found = squares | action.transport(element, drawn.site, squares, squares=True)
    expected = gradient | action.transport(element, drawn.site, gradient)
    for own, gradient in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(own, gradient.square(), rtol=1e-12, atol=0)


@EVERY_CASE
@pytest.mark.parametrize("variant", [v for v in PLAIN if v.name != "rescaling"], ids=str)
def test_squares_of_gl_take_the_squares_of_each_entry_of_the_matrix(variant, case):
    drawn = draw(variant.at(case))
    element, squares = draw_element(variant, case), drawn_like(drawn, 5)
    squares = {name: t.square() for name, t in squares.items()}
    moved = drawn.layers(squares | variant.make().transport(element, drawn.site, squares, True))
    g = torch.linalg.matrix_exp(element.values)
    inverse = torch.linalg.matrix_exp(-element.values)
    incoming, outgoing = drawn.layers(squares)
    weight = torch.einsum("...kj,...ki->...ji", inverse**2, incoming.weight)
    bias = incoming.bias
    bias = None if bias is None else torch.einsum("...kj,...k->...j", inverse**2, bias)
    expected_in = Layer(weight, bias)
    weight = torch.einsum("...ok,...jk->...oj", outgoing.weight, g**2)
    expected_out = outgoing._replace(weight=weight)
    for own, want in zip(tensors(*moved), tensors(expected_in, expected_out), strict=True):
        torch.testing.assert_close(own, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", actions())
def test_transport_by_the_identity_changes_nothing_and_leaves_the_buffers_given(name):
    action, drawn = actions()[name], site_with(CASES[-2], slope=1.0)
    zero = action.identity(drawn.site, drawn.weights)
    buffers = drawn_like(drawn, 5)
    before = {name: t.clone() for name, t in buffers.items()}
    for squares in (False, True):
        moved = buffers | action.transport(zero, drawn.site, buffers, squares)
        for name in before:
            assert torch.equal(moved[name], before[name])
            assert torch.equal(buffers[name], before[name])


# Through TeleportingOptimizer.

LOSS = nn.functional.mse_loss
QUICK = GradientAscent(iterations=2)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.0)


def training(action, buffers, base=sgd):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    optimizer = TeleportingOptimizer(
        base(model.parameters()), model, LOSS, action, search=QUICK, buffers=buffers
    )
    LOSS(model(x), y).backward()
    optimizer.step()  # at a rate of 0, so that the momentum is the gradient where the weights are
    return model, optimizer, x, y


def momenta(model, optimizer):
    return [optimizer.base.state[p].get("momentum_buffer") for p in model.parameters()]


def test_an_action_that_does_not_say_how_is_refused_in_one_line():
    with pytest.raises(UserError) as error:
        training(Silent(), "transport")
    message = str(error.value)
    assert "expected an action that says how buffers are transported, got Silent" in message
    assert "use buffers='keep' or 'reset'" in message
    assert "\n" not in message
    assert len(message) < 300
    drawn = draw(CASES[0])
    with pytest.raises(UserError, match="got Silent"):
        Silent().transport(element_for(Silent(), drawn), drawn.site, drawn.weights)


@pytest.mark.parametrize("buffers", ["keep", "reset"])
def test_an_action_that_does_not_say_how_takes_the_other_policies(buffers):
    model, optimizer, x, y = training(Silent(), buffers)
    before = copy.deepcopy(momenta(model, optimizer))
    weights = [p.detach().clone() for p in model.parameters()]
    move = optimizer.teleport(x, y)
    assert not move.stayed.any()
    assert move.invariance_error() < 1e-12
    assert not torch.equal(model[0].weight, weights[0])
    if buffers == "keep":
        assert all(map(torch.equal, before, momenta(model, optimizer)))
    else:
        assert not any(optimizer.base.state.get(p) for p in model.parameters())


def test_a_users_own_transport_makes_the_momentum_the_gradient_at_the_new_point():
    model, optimizer, x, y = training(OneScale(), "transport")
    before = copy.deepcopy(momenta(model, optimizer))
    assert not optimizer.teleport(x, y).stayed.any()
    gradients = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))
    after = momenta(model, optimizer)
    torch.testing.assert_close(after, list(gradients), rtol=1e-9, atol=1e-12)
    assert (after[0] - before[0]).norm() > 1e-2 * before[0].norm()


class Late(OneScale):
    """Fails only when it is asked."""

    def transport(self, element, site, buffers, squares=False):
        raise UserError("expected other buffers")


class NoSquares(OneScale):
    """Knows what to do with gradients alone."""

    def transport(self, element, site, buffers, squares=False):
        if squares:
            raise UserError("expected other buffers")
        return super().transport(element, site, buffers)


@pytest.mark.parametrize(("action", "base"), [(Late, sgd), (NoSquares, adam)])
def test_a_transport_that_is_refused_leaves_weights_and_buffers_where_they_were(action, base):
    model, optimizer, x, y = training(action(), "transport", base)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    with pytest.raises(UserError, match="expected other buffers"):
        optimizer.teleport(x, y)
    after = model.state_dict(), optimizer.state_dict()["state"]
    for now, then in zip(after, before, strict=True):
        torch.testing.assert_close(dict(now), dict(then), rtol=0, atol=0)
    assert (optimizer.made, optimizer.undone) == (0, 0)


def changed(method, change):
    """The action with what one of its methods gives changed."""

    class Changed(OneScale):
        pass

    def call(self, *arguments, **options):
        return change(getattr(OneScale, method)(self, *arguments, **options))

    setattr(Changed, method, call)
    return Changed()


def cut(tensors):
    return {name: tensor[:1] for name, tensor in tensors.items()}


MISSHAPEN = {
    "transport, shapes": ("transport", cut, "Changed.transport() to give tensors of the shapes"),
    "transport, names": (
        "transport", lambda t: {**t, "4.bias": next(iter(t.values()))}, "got '4.bias' of (5, 4)"
    ),
    "transport, no tensor": ("transport", lambda t: dict.fromkeys(t), "got '0.weight' of"),
    "move": ("move", lambda m: m._replace(weights=cut(m.weights)), "got '0.weight' of (1, 4) for"),
    "propose, shapes": (
        "propose", lambda p: p._replace(incoming=[p.incoming[0][:1]]),
        "of the shapes [[(5, 5)], [(2, 5)]], incoming and outgoing, got [[(1, 5)], [(2, 5)]]: mend",
    ),
    "propose, none": ("propose", lambda p: None, "to give a Proposal of matrices"),
    "propose, too many": (
        "propose", lambda p: p._replace(outgoing=[*p.outgoing] * 2), "got [[(5, 5)], [(2, 5), (2"
        ),
}  # fmt: skip


@pytest.mark.parametrize(("method", "change", "words"), MISSHAPEN.values(), ids=MISSHAPEN)
def test_what_an_action_gives_is_checked_before_anything_is_moved(method, change, words):
    model, optimizer, x, y = training(changed(method, change), "transport")
    before = copy.deepcopy((model.state_dict(), optimizer.base.state_dict()["state"]))
    with pytest.raises(UserError) as error:
        optimizer.teleport(x, y)
    text = str(error.value)
    assert words in text
    assert "\n" not in text
    assert len(text) < 300
    after = model.state_dict(), optimizer.base.state_dict()["state"]
    for now, then in zip(after, before, strict=True):
        torch.testing.assert_close(dict(now), dict(then), rtol=0, atol=0)
