"""The zoo: small modules, the sites that each has, and why other layers are left out.

A model added here is tested for everything: what is found, invariance, derivatives, the report.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from metaopt.symmetry import Identity, LeakyReLU, Site, find_sites

RELU = LeakyReLU(0.0)


@dataclass(frozen=True)
class Expected:
    """Of a site: what differs from a plain ReLU site."""

    between: object = RELU
    scaled: str | None = None
    block: int = 1
    plain: bool = False
    homogeneous: bool = True


PLAIN = Expected(plain=True)


@dataclass(frozen=True)
class Case:
    label: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of the input
    found: Mapping[str, Expected] = field(default_factory=dict)  # "incoming -> outgoing"
    left_out: Mapping[str, str] = field(default_factory=dict)  # "incoming, next layers" -> words
    chain: bool = False  # whether it is wholly a chain
    alone: str = ""  # a layer with no other before or behind it, which the report passes over


class Net(nn.Module):
    """A forward written as a function of the module and x."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def lin(fan_in, fan_out, bias=True):
    return nn.Linear(fan_in, fan_out, bias)


def conv(fan_in, fan_out, **options):
    return nn.Conv2d(fan_in, fan_out, 3, padding=1, **options)


def mlp(*between):
    return lambda: nn.Sequential(lin(5, 6), *copy.deepcopy(between), lin(6, 3))


def three(forward, **changes):
    """fc1, fc2, fc3 of 5 -> 6 -> 6 -> 3."""
    layers = {"fc1": lin(5, 6), "fc2": lin(6, 6), "fc3": lin(6, 3)} | changes
    return lambda: Net(forward, **copy.deepcopy(layers))


def frozen(module):
    return module.requires_grad_(False)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Sequential(lin(5, 6), nn.ReLU()), nn.Identity(), lin(6, 4))
        self.head = nn.ModuleDict({"out": nn.Sequential(nn.LeakyReLU(0.2), lin(4, 2, False))})

    def forward(self, x):
        return self.head["out"](self.trunk(x))


class Optional(nn.Module):
    """Optional arguments, one of them only by keyword, at their defaults in the trace."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = lin(5, 6), lin(6, 3)

    def forward(self, x, skip=None, *, hidden=False, scale=1.0):
        h = self.fc1(x).relu()
        if skip is not None:
            h = h + skip
        return (self.fc2(h), h) if hidden else self.fc2(h)


def tied():
    model = three(straight, fc3=lin(6, 6))()
    model.fc3.weight = model.fc2.weight
    return model


def keeping():
    """Hidden features stay behind in an attribute, where a loss could find them."""

    def forward(m, x):
        h = m.fc1(x).relu()
        m.seen.append(h)
        return m.fc3(m.fc2(h).relu())

    model = three(forward)()
    model.seen = []
    return model


def conv_net():
    return nn.Sequential(
        conv(2, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 3), nn.LeakyReLU(0.1),
        nn.AvgPool2d(2), nn.Dropout2d(), nn.Flatten(), lin(12, 5), nn.ReLU(), lin(5, 2),
    )  # fmt: skip


def functional_conv(m, x):
    x = F.max_pool2d(F.relu(m.conv1(x)), 2)
    x = F.dropout(m.bn(m.conv2(x)), 0.3, m.training)
    x = F.adaptive_avg_pool2d(F.leaky_relu(x, negative_slope=0.2), 2)
    return m.fc2(F.relu(m.fc1(x.view(x.size(0), -1))))


def branching(m, x):
    h = torch.relu(m.fc1(x))
    return m.fc3(m.fc2(h if h.sum() > 0 else -h))


def auxiliary(m, x):
    """Hidden features are a second output, but only in training mode."""
    h = m.fc1(x).relu()
    out = m.fc3(m.fc2(h).relu())
    return torch.cat((out, h), dim=1) if m.training else out


def residual(m, x):
    h = torch.relu(m.fc1(x))
    return m.fc3(h + torch.relu(m.fc2(h)))


def joined(m, x):
    h = torch.relu(m.fc1(x))
    return m.fc3(torch.cat((h, m.fc2(h)), dim=-1))


def twice(m, x):
    return m.fc3(m.fc2(m.fc2(m.fc1(x).relu()).relu()).relu())


def straight(m, x):
    return m.fc3(m.fc2(m.fc1(x).relu()).relu())


def penalised(m, x):
    return straight(m, x) + m.fc1.weight.square().sum()


def weighed(m, x):
    return straight(m, x) * float(m.fc1._parameters["weight"].detach().norm())


def shapes(m, x):
    hidden = m.conv1(torch.tanh(x))
    n, c, h, w = hidden.shape
    hidden = m.conv2(torch.relu(hidden).contiguous())
    return m.fc(hidden.reshape((n, c * h * w)).view(x.size(0), -1))


def frames(m, x):
    return m.fc(m.conv(x.view(-1, 2, 4, 4)).view(x.size(0), -1))


def block_net():
    """Convolution, batch norm and pooling as in a small ResNet."""

    def forward(m, x):
        x = m.bn1(m.conv1(x)).relu()
        x = x + m.bn3(m.conv3(m.bn2(m.conv2(x)).relu()))
        return m.fc(x.relu().mean(dim=(2, 3)))

    convs = {f"conv{i}": conv(2 if i == 1 else 4, 4, bias=False) for i in (1, 2, 3)}
    norms = {f"bn{i}": nn.BatchNorm2d(4) for i in (1, 2, 3)}
    return Net(forward, **convs, **norms, fc=lin(4, 3))


ZOO = (
    Case("MLP", lambda: nn.Sequential(nn.Flatten(), lin(6, 5), nn.ReLU(), lin(5, 4), nn.ReLU(),
        lin(4, 2)), (7, 2, 3), {"1 -> 3": PLAIN, "3 -> 5": PLAIN}, chain=True),
    Case("functional", three(lambda m, x: m.fc3(F.leaky_relu(m.fc2(torch.relu(m.fc1(x))), 0.3))),
        (7, 5), {"fc1 -> fc2": PLAIN, "fc2 -> fc3": Expected(LeakyReLU(0.3), plain=True)},
        chain=True),
    Case("nested", Nested, (7, 5), {"trunk.0.0 -> trunk.2": PLAIN,
        "trunk.2 -> head.out.1": Expected(LeakyReLU(0.2), plain=True)}, chain=True),
    Case("nothing between", mlp(), (7, 5), {"0 -> 1": Expected(Identity(), plain=True)},
        chain=True),
    Case("convolutions", conv_net, (3, 2, 8, 8), {"0 -> 3": Expected(),
        "3 -> 8": Expected(LeakyReLU(0.1), block=4), "8 -> 10": PLAIN}),
    Case("functional convolutions", lambda: Net(functional_conv, conv1=conv(2, 4),
        conv2=conv(4, 3, bias=False), bn=nn.BatchNorm2d(3), fc1=lin(12, 5), fc2=lin(5, 2)),
        (3, 2, 8, 8), {"conv1 -> conv2": Expected(), "fc1 -> fc2": PLAIN,
        "conv2 -> fc1": Expected(LeakyReLU(0.2), "bn", 4)}),
    Case("batch norms", mlp(nn.BatchNorm1d(6), nn.ReLU()), (7, 5),
        {"0 -> 3": Expected(scaled="1")}),
    Case("batch norm last", mlp(nn.GELU(), nn.BatchNorm1d(6)), (7, 5),
        {"0 -> 3": Expected(..., scaled="2")}),
    Case("batch norm of a flattened image", lambda: nn.Sequential(conv(2, 3), nn.ReLU(),
        nn.Flatten(), nn.BatchNorm1d(12), lin(12, 2)), (5, 2, 2, 2),
        {"0 -> 4": Expected(scaled="3", block=4)}),
    Case("batch norm without a scale", mlp(nn.BatchNorm1d(6, affine=False), nn.ReLU()), (7, 5),
        left_out={"0, 3": "affine=False"}),
    Case("block", block_net, (3, 2, 4, 4), {"conv2 -> conv3": Expected(scaled="bn2")},
        {"conv1, conv2, fc": "relu is used 2 times, by conv2 and add", "conv3, fc": "skip"}),
    Case("dropout", mlp(nn.Dropout(0.4), nn.ReLU()), (7, 5), {"0 -> 3": Expected()}),
    Case("GELU", mlp(nn.GELU()), (7, 5), {"0 -> 2": Expected(..., plain=True, homogeneous=False)},
        chain=True),
    Case("tanh", three(lambda m, x: m.fc3(F.dropout(m.fc2(m.fc1(x).tanh()).tanh(), 0.1))), (7, 5),
        {"fc1 -> fc2": Expected(..., plain=True, homogeneous=False)},
        {"fc2, fc3": "tanh is not positively homogeneous"}),
    Case("softmax", mlp(nn.Softmax(-1)), (7, 5), left_out={"0, 2": "mixes over the units"}),
    Case("layer norm", mlp(nn.LayerNorm(6), nn.ReLU()), (7, 5), left_out={"0, 3": "LayerNorm"}),
    Case("group norm", lambda: nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4), conv(4, 3),
        nn.InstanceNorm2d(3), nn.ReLU(), conv(3, 2)), (3, 2, 4, 4),
        left_out={"0, 2": "GroupNorm", "2, 5": "InstanceNorm2d"}),
    Case("PReLU", mlp(nn.PReLU(6)), (7, 5), {"0 -> 2": Expected(None)}),
    Case("skip connection", three(residual), (7, 5),
        left_out={"fc1, fc2, fc3": "used 2 times", "fc2, fc3": "joins it with another value"}),
    Case("concatenation", three(joined, fc3=lin(12, 3)), (7, 5),
        left_out={"fc1, fc2, fc3": "by fc2 and cat", "fc2, fc3": "cat joins it"}),
    Case("tied weights", tied, (7, 5), left_out={"fc1, fc2": "fc2 shares its weights with fc3",
        "fc2, fc3": "fc2 shares its weights with fc3.weight"}),
    Case("called twice", three(twice), (7, 5),
        left_out={"fc1, fc2": "called 2 times", "fc2": "called 2 times", "fc2, fc3": "called 2"}),
    Case("frozen", three(straight, fc1=frozen(lin(5, 6))), (7, 5), {"fc2 -> fc3": PLAIN},
        {"fc1, fc2": "frozen"}),
    Case("weight norm", three(straight, fc2=weight_norm(lin(6, 6))), (7, 5),
        left_out={"fc1, fc2": "computed from other tensors", "fc2, fc3": "computed from other"}),
    Case("weights read by the forward", three(penalised), (7, 5), {"fc2 -> fc3": PLAIN},
        {"fc1, fc2": "outside of fc1"}),
    Case("weights that become a number", three(weighed), (7, 5), {"fc2 -> fc3": PLAIN},
        {"fc1, fc2": "outside of fc1"}),
    Case("data-dependent", three(branching), (7, 5), left_out={"fc1, fc2, fc3": "control flow"}),
    Case("optional arguments", Optional, (7, 5), {"fc1 -> fc2": PLAIN}, chain=True),
    Case("other in training", three(auxiliary), (7, 5), {"fc2 -> fc3": PLAIN},
        {"fc1, fc2": "used 2 times"}),
    Case("features kept", keeping, (7, 5), {"fc2 -> fc3": PLAIN}, {"fc1, fc2": "keeps the output"}),
    Case("grouped", lambda: nn.Sequential(conv(2, 6, groups=2), nn.ReLU(), conv(6, 6, groups=6),
        nn.ReLU(), conv(6, 4, groups=2), nn.AdaptiveMaxPool2d(1), nn.Flatten(1), lin(4, 2)),
        (3, 2, 4, 4), {"0 -> 2": Expected(), "2 -> 4": Expected(), "4 -> 7": Expected(Identity())}),
    Case("transposed", lambda: nn.Sequential(conv(2, 3), nn.ReLU(), nn.ConvTranspose2d(3, 4, 2),
        nn.ReLU(), conv(4, 2)), (3, 2, 4, 4),
        left_out={"0, 2": "transposed", "2, 4": "transposed"}),
    Case("three dimensions", mlp(nn.ReLU()), (3, 4, 5), {"0 -> 2": PLAIN}, chain=True),
    Case("units mixed over positions", lambda: nn.Sequential(lin(5, 6), nn.ReLU(), nn.Flatten(),
        lin(24, 2)), (3, 4, 5), left_out={"0, 3": "has 24 inputs"}),
    Case("pooling of rows", lambda: nn.Sequential(lin(5, 6), nn.MaxPool2d((1, 2)), lin(3, 2)),
        (2, 3, 4, 5), left_out={"0, 2": "no image"}),
    Case("Linear on an image", lambda: nn.Sequential(conv(2, 3), nn.ReLU(), lin(4, 3)),
        (3, 2, 4, 4), left_out={"0, 2": "last dimension of an image"}),
    Case("shapes", lambda: Net(shapes, conv1=conv(2, 3), conv2=conv(3, 3), fc=lin(48, 2)),
        (3, 2, 4, 4), {"conv1 -> conv2": Expected(),
        "conv2 -> fc": Expected(Identity(), block=16)}),
    Case("batch guessed", lambda: Net(lambda m, x: m.fc(m.conv(x).view(-1, 48)), conv=conv(2, 3),
        fc=lin(48, 2)), (3, 2, 4, 4), left_out={"conv, fc": "use flatten"}),
    Case("frames", lambda: Net(frames, conv=conv(2, 3), fc=lin(96, 2)), (5, 2, 2, 4, 4),
        left_out={"conv, fc": "use flatten"}),
    Case("batch norm of other dimensions", lambda: nn.Sequential(lin(5, 6), nn.BatchNorm2d(6),
        lin(6, 3)), (2, 6, 3, 5), left_out={"0, 2": "no image"}),
    Case("noise", three(lambda m, x: straight(m, x + torch.rand(5))), (7, 5),
        {"fc1 -> fc2": PLAIN, "fc2 -> fc3": PLAIN}),
    Case("never called", three(lambda m, x: m.fc3(m.fc1(x))), (7, 5),
        {"fc1 -> fc3": Expected(Identity(), plain=True)}, {"fc2": "does not call it"}),
    Case("opaque", lambda: Net(lambda m, x: m.fc(m.attention(x, x, x)[0]), fc=lin(4, 2),
        attention=nn.MultiheadAttention(4, 2)), (3, 2, 4),
        left_out={"attention.out_proj": "inside attention"}, alone="fc"),
)  # fmt: skip


def sample(case: Case, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The model in float64 with every parameter away from its initial value, and an input."""
    torch.manual_seed(seed)
    model = case.build().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, torch.randn(case.shape, dtype=torch.float64)


every_case = pytest.mark.parametrize("case", ZOO, ids=lambda case: case.label)
RESCALED = [(case, name) for case in ZOO for name, site in case.found.items() if site.homogeneous]
every_rescaled_site = pytest.mark.parametrize(
    ("case", "name"), RESCALED, ids=lambda v: getattr(v, "label", v)
)


def case_called(label: str) -> Case:
    return next(case for case in ZOO if case.label == label)


def site_of(model: nn.Module, name: str) -> Site:
    """The site of this name, "incoming -> outgoing"."""
    return next(site for site in find_sites(model).found if site.name == name)


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """With the same dropout masks each time, and without a trace of batch statistics."""
    torch.manual_seed(3)
    return copy.deepcopy(model)(x)
