"""Learned optimizers under ``DistributedDataParallel``, and what copies of a model exchange."""

import copy

import pytest
import torch
import torch.distributed as dist
from learned_network_cases import batch_for, conv_net, mlp
from replica_cases import of_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metaopt import LearnedOptimizer, list_pretrained
from metaopt.replicas import ALONE, Replicas, replicas_now, replicas_of

STEPS = 6
NETWORKS = {"chain": mlp, "convolutions": lambda: conv_net().eval(), "tanh": lambda: mlp(nn.Tanh())}
LOSSES = {"known": nn.MSELoss(), "measured": None}
CASES = [(name, net, loss) for name in list_pretrained() for net in NETWORKS for loss in LOSSES]


def whole(net: str, step: int):
    """The same batch twice, then another twice, so that a curvature can be measured."""
    return batch_for(mlp if net != "convolutions" else conv_net, samples=10, seed=step // 2)


def trained(called, model, name, net, loss, rows=slice(None), given=None):
    optimizer = LearnedOptimizer(given or model, name, loss_fn=LOSSES[loss])
    for step in range(STEPS):
        x, y = (tensor[rows] for tensor in whole(net, step))
        optimizer.zero_grad()
        nn.functional.mse_loss(called(x), y).backward()
        optimizer.step()
    return optimizer


def everything_of(model, optimizer):
    states = [v for state in optimizer.state.values() for v in state.values()]
    return torch.cat([t.double().flatten() for t in [*model.parameters(), *states]]).detach()


def largest_gap(one, other):
    """A loss that is not known is inf in both."""
    return float(torch.where(one == other, 0.0, (one - other).abs()).max())


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {}
    for name, net, loss in CASES:
        model = NETWORKS[net]()
        ddp = DistributedDataParallel(model)
        given = ddp if loss == "known" else None
        optimizer = trained(ddp, model, name, net, loss, slice(rank * 5, rank * 5 + 5), given)
        flat = everything_of(model, optimizer)
        others = replicas_of(model).gather(flat)
        gap = max(largest_gap(flat, other) for other in others)
        found[name, net, loss] = (gap, [p.detach().clone() for p in model.parameters()])
    model = NETWORKS["chain"]()
    uneven = slice(0, 3) if rank == 0 else slice(3, 10)
    ddp = DistributedDataParallel(model)
    flat = everything_of(model, trained(ddp, model, "lstm_update_tele", "chain", "known", uneven))
    found["uneven"] = float((flat - replicas_of(ddp).gather(flat)[1 - rank]).abs().max())
    found["sums"] = sums(rank, ddp, model)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def sums(rank: int, ddp: nn.Module, model: nn.Module) -> dict[str, object]:
    replicas, own = replicas_of(model), torch.tensor([1.0 + rank, -1.0])
    seen: list[Replicas] = []
    handle = model.register_forward_hook(lambda *_: seen.append(replicas_now()))
    ddp(torch.zeros(1, 9))
    model(torch.zeros(1, 9))
    handle.remove()
    x = batch_for(mlp, samples=6)[0].double()
    w = [torch.ones(3, 9, dtype=torch.float64, requires_grad=True)]

    def objective(loss):
        (gradient,) = torch.autograd.grad(loss(w), w, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), w)[0]

    def loss_on(x):
        return lambda values: torch.tanh(x @ values[0].mT).square().mean()

    return {
        "sum": replicas.sum(own).tolist(),
        "mean": replicas.mean(own).tolist(),
        "largest": replicas.largest(torch.tensor([float(rank), float("nan")])).tolist(),
        "flags": [flag.tolist() for flag in replicas.gather(torch.tensor([rank == 0]))],
        "rows": replicas.rows(x[:2] if rank == 0 else x[2:]).equal(x),
        "sizes": [bool(of) for of in (*seen, replicas_of(nn.Linear(1, 1)))],
        "second order": torch.stack(
            (
                objective(replicas.loss(loss_on(x[3 * rank : 3 * rank + 3]))),
                objective(loss_on(x)),
            )
        ),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return of_two_processes(work, tmp_path_factory.mktemp("replicas"))


@pytest.mark.parametrize(("name", "net", "loss"), CASES)
def test_copies_stay_equal_and_equal_one_process_with_the_whole_batch(found, name, net, loss):
    for gap, _ in (each[name, net, loss] for each in found):
        assert gap == 0
    model = NETWORKS[net]()
    start = copy.deepcopy(model)
    optimizer = trained(model, model, name, net, loss)
    if "m1 sees the curvature" in optimizer.steppers[0].report():
        return  # which copies do not see, as each has its own part of the batch
    for one, two, before in zip(
        model.parameters(), found[0][name, net, loss][1], start.parameters(), strict=True
    ):
        change = (one - before).norm()
        assert change > 0
        assert (one - two).norm() <= 2e-3 * change + 1e-7


def test_copies_with_batches_of_other_sizes_stay_equal(found):
    assert [each["uneven"] for each in found] == [0, 0]


def test_what_is_gathered(found):
    for each in (of["sums"] for of in found):
        gradients = each.pop("second order")
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)
        largest = each.pop("largest")
        assert largest[0] == 1.0
        assert largest[1] != largest[1]
        assert each == {
            "sum": [3.0, -2.0],
            "mean": [1.5, -1.0],
            "flags": [[True], [False]],
            "rows": True,
            "sizes": [True, False, False],
        }


def test_a_process_alone_gathers_what_it_has():
    own = torch.tensor([2.0])
    assert not ALONE
    assert ALONE.gather(own)[0] is ALONE.sum(own) is ALONE.rows(own) is own
    assert replicas_of(nn.Linear(1, 1)) is ALONE is replicas_now()
    loss = len
    assert ALONE.loss(loss) is loss
