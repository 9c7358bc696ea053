"""Both optimizers beside ``torch.optim.swa_utils``: averages of weights, and their rates."""

import copy

import pytest
import torch
from integration_cases import (
    LOSS,
    assert_equal,
    every_optimizer,
    loader,
    network,
    plain_loop,
)
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

AVERAGES = {
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "swa": {},
}


def averaged_by_hand(kind, points):
    """The average of what was seen after each step."""
    mean = {name: value.clone() for name, value in points[0].items()}
    for count, point in enumerate(points[1:], start=1):
        weight = 0.1 if kind == "ema" else 1 / (count + 1)
        for name, value in point.items():
            mean[name].lerp_(value, weight)
    return mean


@pytest.mark.parametrize("kind", AVERAGES)
@every_optimizer
def test_the_average_is_of_the_trajectory_and_does_not_change_it(kind, build):
    model, plain, points = network(), network(), []
    optimizer, other = build(model), build(plain)
    average = AveragedModel(model, **AVERAGES[kind])
    for batch in loader():
        plain_loop(model, optimizer, [batch])
        average.update_parameters(model)
        LOSS(average(batch[0]), batch[1]).backward()  # neither watched nor stepped
        plain_loop(plain, other, [batch])
        points.append(copy.deepcopy(plain.state_dict()))
    assert_equal(model, plain)
    expected = averaged_by_hand(kind, points)
    torch.testing.assert_close(average.module.state_dict(), expected, rtol=1e-6, atol=1e-7)


@every_optimizer
def test_the_statistics_of_an_average_are_taken_anew_without_a_step(build):
    def normed():
        model = network()
        model.insert(1, torch.nn.BatchNorm1d(7))
        return model

    model, plain = normed(), normed()
    optimizer, other = build(model), build(plain)
    average = AveragedModel(model)
    for batch in loader():
        plain_loop(model, optimizer, [batch])
        average.update_parameters(model)
        update_bn(loader(), average)
        plain_loop(plain, other, [batch])
    assert_equal(model, plain)
    assert average.module[1].num_batches_tracked == len(loader())


@every_optimizer
def test_swalr_sets_the_rates(build):
    model = network()
    optimizer = build(model)
    scheduler = SWALR(optimizer, swa_lr=0.5, anneal_epochs=2, anneal_strategy="linear")
    for batch in loader():
        plain_loop(model, optimizer, [batch])
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
