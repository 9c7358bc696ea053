"""Losses as functions of the output: their curvature, and how they are recognised."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metaopt.output_loss import NORM, SIGMOID, SOFTMAX, SQUARE, recognise
from metaopt.tasks import NetworkFamily

GENERATOR = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(7, 3, generator=GENERATOR, dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
LABELS = F.one_hot(CLASSES, 3).double()

LOSSES = {
    SQUARE: lambda f: 0.5 * (f - LABELS).square().sum(),
    SOFTMAX: lambda f: F.cross_entropy(f, CLASSES, reduction="sum"),
    SIGMOID: lambda f: F.binary_cross_entropy_with_logits(f, LABELS, reduction="sum"),
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_the_product_is_that_with_the_hessian(loss):
    hessian = torch.autograd.functional.hessian(LOSSES[loss], OUTPUT).reshape(21, 21)
    v = torch.randn(2, 3, 7, generator=GENERATOR, dtype=torch.float64)
    found = loss.product(OUTPUT.mT, v)
    for own, given in zip(found, v, strict=True):
        torch.testing.assert_close(own.mT.flatten(), hessian @ given.mT.flatten())
    mean = sum(hessian[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] for n in range(7)) / 7
    torch.testing.assert_close(loss.mean(OUTPUT.mT), mean)
    batch = torch.stack((OUTPUT.mT, 2 * OUTPUT.mT))
    torch.testing.assert_close(loss.mean(batch).expand(2, 3, 3)[0], mean)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID], ids=lambda loss: loss.name)
def test_a_cross_entropy_is_recognised_with_its_unit_and_value(loss, scale, dtype, reduction):
    f = (scale * OUTPUT).to(dtype).requires_grad_()
    if loss is SOFTMAX:
        value, terms = F.cross_entropy(f, CLASSES, reduction=reduction), 7
    else:
        labels = LABELS.to(dtype)
        value, terms = F.binary_cross_entropy_with_logits(f, labels, reduction=reduction), 21
    value.backward()
    found = recognise(f, f.grad)
    assert found.loss is loss
    assert found.unit == pytest.approx(1 / terms if reduction == "mean" else 1.0, rel=1e-4)
    assert found.value * found.unit == pytest.approx(value.item(), rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(), nn.HuberLoss(), nn.L1Loss(), nn.SmoothL1Loss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]).double()),
    ],
)  # fmt: skip
def test_other_losses_are_not_taken_for_one(loss):
    f = OUTPUT.clone().requires_grad_()
    loss(f, CLASSES if isinstance(loss, nn.CrossEntropyLoss) else LABELS).backward()
    assert recognise(f, f.grad) is None


@pytest.mark.parametrize(
    ("output", "gradient"),
    [
        (torch.zeros(2, 1), torch.ones(2, 1)),  # too few entries
        (torch.zeros(9), torch.ones(9)),  # no samples in rows
        (torch.randn(5, 3), torch.zeros(5, 3)),
        (torch.randn(5, 3), torch.full((5, 3), torch.nan)),
    ],
)
def test_what_says_nothing_is_not_recognised(output, gradient):
    assert recognise(output, gradient) is None


def test_a_norm_has_the_curvature_of_the_square_that_it_is_the_root_of():
    torch.testing.assert_close(NORM.mean(OUTPUT.mT), SQUARE.mean(OUTPUT.mT))


def test_copies_of_tasks_have_the_same_loss():
    tasks = NetworkFamily(4, 5, 3, depth=2, samples=12, loss="cross_entropy").sample([1, 2])
    for other in (copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))):
        assert other.output_loss is SOFTMAX
        torch.testing.assert_close(other(), tasks())


def test_labels_are_seen_where_their_gradient_is_rounded_to_zero():
    f = torch.tensor([[40.0, 0.0], [0.0, 1.0], [40.0, 0.0], [0.3, 0.0]], requires_grad=True)
    classes = torch.tensor([0, 0, 0, 1])
    F.cross_entropy(f, classes).backward()
    assert (recognise(f, f.grad).targets.argmax(dim=0) == classes).all()
    f = torch.tensor([[200.0], [1.0], [-0.5], [-200.0]], requires_grad=True)
    labels = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    F.binary_cross_entropy_with_logits(f, labels).backward()
    assert torch.equal(recognise(f, f.grad).targets, labels.mT.double())
