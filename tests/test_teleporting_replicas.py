"""Teleports under ``DistributedDataParallel``: two processes equal one with the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
from replica_cases import of_two_processes
from teleporting_cases import LOSS, QUICK, data, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metaopt import TeleportingOptimizer, UserError
from metaopt.symmetry import GradientAscent, LevelSetTeleport, gradient_norm
from metaopt.tasks import RegressionFamily

STEPS = 5
SCHEDULE = (1, 3)
HALF = 3  # samples of each process, of few enough for GL
OPTIONS = {
    "auto": {},
    "transported": {"action": "rescaling", "buffers": "transport"},
    "features": {"action": "post_activation", "buffers": "reset"},
    "pre-activations": {"action": "pre_activation", "buffers": "transport"},
    "level set": {"search": LevelSetTeleport(iterations=2)},
    "second order": {
        "search": GradientAscent(iterations=2, objective=lambda w, f: gradient_norm(w, f).sqrt())
    },
}
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}
LED_BY = {
    "batch": [*((name, "sgd") for name in OPTIONS), ("auto", "adam"), ("transported", "adamw")],
    "closure": [(name, "sgd") for name in ("auto", "transported", "level set", "second order")],
    "both": [("features", "adam")],
}


def trained(wrapped, model, options, base, batches, led_by):
    options = {"search": QUICK, "schedule": SCHEDULE, **options}
    optimizer = TeleportingOptimizer(BASES[base](model.parameters()), model, LOSS, **options)
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = LOSS(wrapped(batch.x), batch.y)
            loss.backward()
            return loss

        if led_by == "batch":
            closure()
        optimizer.step(
            None if led_by == "batch" else closure, None if led_by == "closure" else batch
        )
    return optimizer


def whole(step: int):
    return data(2 * HALF, seed=step)


def part(step: int, rank: int):
    x, y = whole(step)
    own = slice(rank * HALF, (rank + 1) * HALF)
    return type(whole(step))(x[own], y[own])


def everything_of(model, optimizer):
    states = [v for state in optimizer.state.values() for v in state.values()]
    return [*model.state_dict().values(), *(torch.as_tensor(v).double() for v in states)]


def gap(values) -> float:
    """The largest difference between the processes."""
    flat = torch.cat([value.detach().double().flatten() for value in values])
    first, second = (torch.empty_like(flat) for _ in range(2))
    dist.all_gather([first, second], flat)
    return float((first - second).abs().max())


def copies(rank: int) -> dict[str, object]:
    """What the two processes do, by case: the weights, and how far they are apart."""
    found: dict[str, object] = {}
    for led_by in LED_BY:
        for name, base in LED_BY[led_by]:
            model = mlp()
            ddp = DistributedDataParallel(model)
            batches = [part(step, rank) for step in range(STEPS)]
            options = copy.copy(OPTIONS[name])
            torch.manual_seed(rank)  # what is drawn must not matter
            optimizer = trained(ddp, model, options, base, batches, led_by)
            found[f"{name}, {base}, {led_by}"] = {
                "gap": gap(everything_of(model, optimizer)),
                "made": optimizer.made,
                "weights": [p.detach() for p in model.parameters()],
            }
    found["uneven"] = uneven(rank)
    found["judged"] = judged(rank)
    found["several batches"] = several_batches(rank)
    found["drawn"] = drawn(rank)
    found["tasks"] = tasks()
    return found


def uneven(rank: int) -> float:
    """Batches of different sizes, so that the ranks alone would choose differently."""
    model = mlp()
    ddp = DistributedDataParallel(model)
    batches = [data(2 + 3 * rank, seed=10 * step + rank) for step in range(STEPS)]
    for action in ("auto", "post_activation"):
        optimizer = trained(ddp, model, {"action": action}, "adam", batches, "batch")
    return gap(everything_of(model, optimizer))


def judged(rank: int) -> tuple[float, int]:
    """Held-out data of one rank alone; the other rank reverts, too."""
    model = mlp()
    ddp = DistributedDataParallel(model)
    optimizer = TeleportingOptimizer(
        BASES["sgd"](model.parameters()), model, LOSS, "post_activation", search=QUICK,
        max_defect=1e-6,
    )  # fmt: skip
    held_out = data(30, seed=3).x if rank == 0 else None
    optimizer.teleport(*part(0, rank), held_out=held_out)
    assert ddp.module is model
    return gap(model.parameters()), optimizer.undone


def several_batches(rank: int) -> str:
    """Rank 0 sees the same batch again, and rank 1 another: no batch stands for all data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    ddp = DistributedDataParallel(model)
    optimizer = TeleportingOptimizer(BASES["sgd"](model.parameters()), model, LOSS, search=QUICK)
    optimizer.teleport(*part(0, rank))
    assert optimizer.made == 1
    try:
        optimizer.teleport(*part(rank, rank))
    except UserError as error:
        assert ddp.module is model
        return str(error)
    return "not refused"


def drawn(rank: int) -> float:
    """A search that draws random numbers, which differ between the ranks."""

    def search(orbit, parameters, loss):
        return GradientAscent(iterations=1, initial_step=0.1 + torch.rand(()).item())(
            orbit, parameters, loss
        )

    model = mlp()
    ddp = DistributedDataParallel(model)
    torch.manual_seed(rank)
    options = {"search": search, "buffers": "transport", "action": "rescaling"}
    batches = [part(step, rank) for step in range(STEPS)]
    optimizer = trained(ddp, model, options, "sgd", batches, "batch")
    assert optimizer.made
    return gap(everything_of(model, optimizer))


def tasks() -> str:
    own = RegressionFamily(samples=4, input=5, hidden=6, output=3).sample([0])
    ddp = DistributedDataParallel(own)
    optimizer = TeleportingOptimizer(BASES["sgd"](own.parameters()), own)
    try:
        optimizer.teleport()
    except UserError as error:
        assert ddp.module is own
        return str(error)
    return "not refused"


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(copies(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    return of_two_processes(work, tmp_path_factory.mktemp("copies"))


@pytest.mark.parametrize("led_by", LED_BY)
def test_two_processes_equal_one_with_the_whole_batch(found, led_by):
    for name, base in LED_BY[led_by]:
        model = mlp()
        batches = [whole(step) for step in range(STEPS)]
        optimizer = trained(model, model, OPTIONS[name], base, batches, led_by)
        for of_rank in found:
            case = of_rank[f"{name}, {base}, {led_by}"]
            assert case["gap"] == 0, name
            assert case["made"] == optimizer.made == len(SCHEDULE), name
            for own, expected in zip(case["weights"], model.parameters(), strict=True):
                torch.testing.assert_close(own, expected.detach(), rtol=1e-6, atol=1e-9)


def test_what_differs_between_the_processes_makes_no_difference(found):
    for of_rank in found:
        assert of_rank["uneven"] == 0
        assert of_rank["judged"] == (0, 1)
        assert "got several: name an action" in of_rank["several batches"]
        assert of_rank["drawn"] == 0
        assert "expected one process for tasks with their own data" in of_rank["tasks"]
