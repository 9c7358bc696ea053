"""Models that take and give tuples, dictionaries and data classes, or compute their loss."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from teleporting_cases import LOSS, QUICK, data, mlp
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from metaopt import TeleportingOptimizer, UserError
from metaopt.measures import hessian, sharpness
from metaopt.symmetry.auto import fingerprint
from metaopt.symmetry.functional import ModuleOutputs
from metaopt.symmetry.nested import arguments_of, mapped, samples_in, tensors_in
from metaopt.target import as_batch

Pair = namedtuple("Pair", "logits loss")
X, Y = data(8)


@dataclass
class Given:
    logits: Tensor
    loss: Tensor | None = None
    note: str = "of no tensor"


class ModelOutput(OrderedDict):
    """As in the Hugging Face libraries: an ordered dictionary with attributes."""

    loss = property(lambda self: self["loss"])


class Gives(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.net, self.give = mlp(), give

    def forward(self, x, labels=None):
        return self.give(self.net(x), labels)


# What the model gives, its loss function, x, y, and how many numbers its outputs have.
SHAPES = {
    "dict": (
        lambda o, _: {"a": o, "n": 3, "i": o.argmax(1), "none": None},
        lambda o, y: LOSS(o["a"], y), X, Y, 24,
    ),
    "nested": (lambda o, _: {"a": [o, (2 * o,)]}, lambda o, y: LOSS(o["a"][1][0], y), X, Y, 48),
    "two tensors": (lambda o, _: (o, o.relu()), lambda o, y: LOSS(o[0], y), X, Y, 48),
    "complex": (lambda o, _: torch.complex(o, o), lambda o, y: LOSS(o.real, y), X, Y, 48),
    "named tuple": (lambda o, y: Pair(o, LOSS(o, y)), lambda o, _: o.loss, (X, Y), None, 24),
    "data class": (
        lambda o, y: Given(o, LOSS(o, y)), lambda o, _: o.loss, {"x": X, "labels": Y}, None, 24
    ),
    "model output": (
        lambda o, y: ModelOutput(loss=LOSS(o, y), logits=o),
        lambda o, _: o.loss, UserDict(x=X, labels=Y), None, 24,
    ),
    "loss first": (lambda o, y: (LOSS(o, y), o), lambda o, _: o[0], [X, Y], None, 24),
    "loss alone": (LOSS, lambda o, _: o, (X, Y), None, 1),
}  # fmt: skip
each = pytest.mark.parametrize(
    ("give", "loss_fn", "x", "y", "numbers"), SHAPES.values(), ids=SHAPES
)


def teleporting(model, loss_fn, **options):
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return TeleportingOptimizer(base, model, loss_fn, **{"search": QUICK, **options})


@each
def test_a_teleport_keeps_what_the_model_gives(give, loss_fn, x, y, numbers):
    model = Gives(give)
    optimizer = teleporting(model, loss_fn, schedule=[0])
    before = model.net(X).detach()
    move = optimizer.teleport(x, y, held_out=x)
    assert not move.stayed
    assert move.outputs(move.after).shape == (1, numbers)
    assert move.invariance_error() < 1e-12
    torch.testing.assert_close(model.net(X), before)
    doubled = [2 * tensor for tensor in move.after]
    changed = move.outputs(move.before) - move.outputs(doubled)
    assert changed.norm() > 1e-3
    positional, keywords = arguments_of(x)
    loss_fn(model(*positional, **keywords), y).backward()
    optimizer.step(batch=(x, y))
    assert optimizer.made == 2


@each
def test_measures_take_the_loss_out_of_what_the_model_gives(give, loss_fn, x, y, numbers):
    plain, model = mlp(), Gives(give)
    own = (lambda o, y: LOSS(2 * o, y)) if give is SHAPES["nested"][0] else LOSS
    for measure in (
        lambda *of: hessian(*of).largest(1),
        lambda *of: sharpness(*of, torch.Generator().manual_seed(0), (0.1,), 2),
    ):
        assert measure(model, loss_fn, x, y) == pytest.approx(measure(plain, own, X, Y))


def test_a_mapping_alone_is_a_batch_of_a_model_that_computes_its_loss():
    model = Gives(lambda o, y: {"loss": LOSS(o, y), "logits": o})
    optimizer = teleporting(model, lambda o, _: o["loss"], schedule=[0])
    batch = {"x": X, "labels": Y}
    optimizer.step(batch=batch)
    assert optimizer.made == 1
    assert as_batch(batch) == (batch, None)
    for wrong in (3, (X,), (X, Y, X), X):
        with pytest.raises(UserError, match=r"expected a batch of two, \(x, y\), got"):
            optimizer.step(batch=wrong)


REFUSED = {
    "no y": (LOSS, X, None, "expected y, which CrossEntropyLoss compares the output with"),
    "no y for a function": (nn.functional.cross_entropy, X, None, "expected y, which cross_ent"),
    "many numbers": (nn.CrossEntropyLoss(reduction="none"), X, Y, r"got \(8,\)"),
    "a float": (lambda o, y: 1.0, X, Y, "one number, got float"),
    "a whole number": (lambda o, y: o.argmax(), X, Y, "one number, got"),
}


@pytest.mark.parametrize(("loss_fn", "x", "y", "words"), REFUSED.values(), ids=REFUSED)
def test_a_loss_that_is_none_is_refused_in_one_line(loss_fn, x, y, words):
    for call in (
        lambda: teleporting(mlp(), loss_fn).teleport(x, y),
        lambda: hessian(mlp(), loss_fn, x, y),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


def test_a_loss_that_cannot_take_the_output_is_named():
    model = Gives(lambda o, _: {"a": o})
    with pytest.raises(UserError, match="takes the loss out of a dict, got CrossEntropyLoss"):
        teleporting(model, LOSS).teleport(X, Y)


def test_outputs_without_a_real_number_are_refused():
    model = Gives(lambda o, _: {"class": o.argmax(1)})
    names = tuple(name for name, _ in model.named_parameters())
    with pytest.raises(UserError, match="gives floating-point tensors, got dict"):
        ModuleOutputs(model, names, X)(list(model.parameters()))


def test_what_a_model_is_called_with():
    packed = pack_padded_sequence(X.reshape(2, 4, 9), torch.tensor([4, 2]), batch_first=True)
    assert arguments_of(X) == ((X,), {})
    assert arguments_of((X, 3)) == arguments_of([X, 3]) == ((X, 3), {})
    assert arguments_of({"x": X}) == arguments_of(UserDict(x=X)) == ((), {"x": X})
    assert arguments_of(packed) == ((packed,), {})
    assert arguments_of(Pair(X, Y)) == ((Pair(X, Y),), {})
    assert mapped(lambda t: t.half(), packed).data.dtype == torch.float16
    assert mapped(lambda t: 2 * t, {"a": [X, 3], "b": None})["a"][1] == 3


def test_samples_and_fingerprints_follow_the_tensors():
    assert samples_in(X) == samples_in((X, Y)) == samples_in({"rate": torch.ones(()), "x": X}) == 8
    assert samples_in({"none": None}) == 0
    assert [t.shape for t in tensors_in({"a": (X, [Y]), "b": Given(X)})] == [(8, 9), (8,), (8, 9)]
    expected = (X.sum(), X.flatten() @ torch.linspace(1, 2, 72).double(), 8)
    torch.testing.assert_close(fingerprint(X), torch.tensor([float(v) for v in expected]).double())
    batches = [X, X.flip(0), (X, Y), (X, Y.flip(0)), {"x": X, "y": Y + 1}, X[:4], torch.ones(())]
    marks = [fingerprint(batch) for batch in batches]
    assert not any(torch.equal(a, b) for place, a in enumerate(marks) for b in marks[:place])
    assert torch.equal(fingerprint({"x": X, "y": Y}), fingerprint((X, Y)))


def test_auto_tells_batches_of_several_tensors_apart():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()

        def forward(self, x):
            return self.net(x)

    optimizer = teleporting(Sum(), LOSS)
    assert not optimizer.teleport({"x": X[:4]}, Y[:4]).stayed
    with pytest.raises(UserError, match="expected one batch that stays"):
        optimizer.teleport({"x": X[4:]}, Y[:4])
