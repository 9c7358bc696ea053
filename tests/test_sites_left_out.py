"""What keeps two layers from being a site or a chain, each in words, and the steps that do not."""

import pytest
import torch
from network_cases import Net
from teleporting_cases import LOSS, data, mlp
from torch import nn

from metaopt import TeleportingOptimizer, UserError
from metaopt.optim.buffers import reset
from metaopt.symmetry import Teleportation, as_chain, find_sites
from metaopt.symmetry.functional import ModuleOutputs

SLOPE = nn.Parameter(torch.tensor(0.1))
MASK = nn.Parameter(torch.ones(6, 6), requires_grad=False)


def between(forward, **modules):
    """A Linear of 6 units, ``forward`` of its output and the module, and a Linear."""
    layers = {"first": nn.Linear(6, 6), "last": nn.Linear(6, 3)}
    return Net(lambda m, x: m.last(forward(m, m.first(x), x)), **layers, **modules)


def over_image(forward, inputs: int = 4):
    """A convolution of 4 channels, ``forward`` of its output, and a Linear."""
    layers = {"first": nn.Conv2d(1, 4, 3), "last": nn.Linear(inputs, 3)}
    return Net(lambda m, x: m.last(forward(m.first(x))), **layers)


def reason(model: nn.Module) -> str:
    (out,) = find_sites(model).left_out
    return out.reason


NO_SITE = {
    "joined": (lambda: between(lambda m, h, x: h + x), "joins it with another value"),
    "matrix": (
        lambda: between(lambda m, h, x: torch.matmul(m.mask, h), mask=MASK),
        "matmul lies between, which is not known",
    ),
    "slope": (
        lambda: between(lambda m, h, x: nn.functional.leaky_relu(h, m.slope), slope=SLOPE),
        "the slope of leaky_relu is computed in the forward",
    ),
    "two dimensions": (lambda: over_image(lambda h: h.mean((1, 2))), "other dimensions"),
    "one dimension": (lambda: over_image(lambda h: h.mean(2).flatten(1)), "other dimensions"),
    "no image": (lambda: between(lambda m, h, x: h.mean((2, 3))), "where there is no image"),
    "a norm over parts of a row": (
        lambda: between(
            lambda m, h, x: m.norm(h.view(-1, 2, 3)).flatten(1), norm=nn.BatchNorm1d(2)
        ),
        "view does not surely lay each sample out as one row",
    ),
    "rows of another width": (
        lambda: between(lambda m, h, x: h.view(-1, 3).view(-1, 6)),
        "does not surely lay each sample out as one row",
    ),
}


@pytest.mark.parametrize(("build", "words"), NO_SITE.values(), ids=NO_SITE)
def test_two_layers_are_no_site_for_the_reason_given(build, words):
    assert words in reason(build())


@pytest.mark.parametrize(
    "forward",
    [lambda h: h.mean((2, 3)), lambda h: h.amax((-2, -1)), lambda h: h.mean((-1, -2))],
    ids=["mean", "amax", "mean from the end"],
)
def test_a_pool_over_the_whole_image_keeps_the_channels_apart(forward):
    (site,) = find_sites(over_image(lambda h: forward(h.relu()))).found
    assert site.layers == ("first", "last")
    assert site.homogeneous
    (kept,) = find_sites(over_image(lambda h: h.relu().mean((2, 3), keepdim=True).flatten(1))).found
    assert kept.homogeneous


CHAINLESS = {
    "differs": (
        Net(lambda m, x: m.a(x).relu() if m.training else m.a(x).tanh(), a=nn.Linear(3, 3)),
        "differs between training and evaluation mode",
    ),
    "two tensors": (
        Net(lambda m, x: (m.a(x), 1), a=nn.Linear(3, 3)),
        "returns more than one tensor",
    ),
}


@pytest.mark.parametrize(("model", "words"), CHAINLESS.values(), ids=CHAINLESS)
def test_a_model_is_no_chain_for_the_reason_given(model, words):
    why = as_chain(model)
    assert isinstance(why, str)
    assert words in why


def test_a_model_of_two_inputs_is_no_chain():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x, y):
            return self.a(x + y)

    assert as_chain(Two()) == "the forward uses 2 inputs"


def test_a_move_shows_its_invariance_error_and_whether_it_stayed():
    model, batch = mlp(), data()
    names = tuple(name for name, _ in model.named_parameters())
    own = [p.detach().clone() for p in model.parameters()]
    outputs = ModuleOutputs(model, names, batch.x)
    for rejected in (False, True):
        move = Teleportation(outputs, own, own, torch.tensor(rejected))
        assert repr(move) == f"Teleportation(invariance_error=0.00e+00, stayed={rejected})"
    move = Teleportation(outputs, own, own, torch.tensor(False)).revert(torch.tensor(True))
    assert repr(move) == "Teleportation(invariance_error=0.00e+00, stayed=True)"
    doubled = [*own[:-2], 2 * own[-2], 2 * own[-1]]
    move = Teleportation(outputs, own, doubled, torch.tensor(False))
    assert repr(move) == "Teleportation(invariance_error=1.00e+00, stayed=False)"


def test_lbfgs_whose_buffers_are_reset_steps_as_a_new_one_does():
    twins = [mlp(), mlp()]
    batch = data()

    def step(model, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = LOSS(model(batch.x), batch.y)
            loss.backward()
            return loss

        optimizer.step(closure)

    used = torch.optim.LBFGS(twins[0].parameters(), lr=0.1, max_iter=3)
    step(twins[0], used)
    twins[1].load_state_dict(twins[0].state_dict())
    reset(used, [])
    step(twins[0], used)
    step(twins[1], torch.optim.LBFGS(twins[1].parameters(), lr=0.1, max_iter=3))
    assert all(map(torch.equal, twins[0].parameters(), twins[1].parameters()))


TANH = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
CONV = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (TANH, {"action": "rescaling"}, "Tanh is not positively homogeneous"),
        (TANH, {"action": "post_activation"}, "where Tanh has no inverse on the real line"),
        (CONV, {"action": "post_activation"}, "expected a chain of Linear layers"),
        (nn.Sequential(nn.Linear(9, 3)), {"loss_fn": None}, "expected a loss_fn for a Sequential"),
        (nn.Sequential(nn.Conv2d(1, 2, 3)), {}, "a place for a group to act"),
    ],
)
def test_a_teleport_that_cannot_be_made_is_refused_in_one_line(model, options, words):
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match=words) as error:
        TeleportingOptimizer(base, model, **{"loss_fn": LOSS, **options})
    assert "\n" not in str(error.value)


def test_a_teleport_without_a_fitting_batch_is_refused_in_one_line():
    model = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = TeleportingOptimizer(base, model, LOSS, schedule=[0])
    LOSS(model(data().x), data().y).backward()
    with pytest.raises(UserError, match=r"expected batch=\(x, y\) at a step that teleports"):
        optimizer.step()
    gl = TeleportingOptimizer(base, model, LOSS, action="post_activation")
    with pytest.raises(UserError, match="expected a batch of rows with 9 entries"):
        gl.teleport(data(5, 8).x, data().y)
    tanh = TeleportingOptimizer(torch.optim.SGD(TANH.parameters(), lr=0.1), TANH, LOSS)
    with pytest.raises(UserError, match="one of 40 samples") as error:
        tanh.teleport(data(40).x, data(40).y)
    assert "\n" not in str(error.value)
