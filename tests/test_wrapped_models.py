"""A wrapper that computes what its module computes is seen through."""

import pytest
import torch
import torch.distributed as dist
from teleporting_cases import LOSS, QUICK, data, mlp
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from metaopt import LearnedOptimizer, TeleportingOptimizer, list_pretrained
from metaopt.measures import hessian, network_curvature, sharpness
from metaopt.symmetry import as_chain, find_sites
from metaopt.wrappers import unwrapped


@pytest.fixture(autouse=True, scope="module")
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "DDP": DistributedDataParallel,
    "DataParallel": DataParallel,
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "averaged": AveragedModel,
    "DDP of compiled": lambda m: DistributedDataParallel(compiled(m)),
    "compiled DDP": lambda m: compiled(DistributedDataParallel(m)),
    "averaged of compiled": lambda m: AveragedModel(compiled(m)),
}
each = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def teleporting(model, **options):
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return TeleportingOptimizer(base, model, LOSS, **{"search": QUICK, **options})


@each
def test_a_teleport_of_the_wrapper_is_that_of_the_module(wrap):
    plain, wrapped, batch = mlp(), wrap(mlp()), data()
    optimizers = [teleporting(model, sites=[("0", "2")]) for model in (plain, wrapped)]
    for _ in range(2):
        for model, optimizer in zip((plain, wrapped), optimizers, strict=True):
            assert not optimizer.teleport(*batch).stayed
            optimizer.zero_grad()
            LOSS(model(batch.x), batch.y).backward()
            optimizer.step()
    assert all(map(torch.equal, plain.parameters(), wrapped.parameters()))
    assert optimizers[0].report() == optimizers[1].report()


@each
@pytest.mark.parametrize("name", list_pretrained())
def test_a_learned_optimizer_finds_the_sites_of_the_module(wrap, name):
    reports = [LearnedOptimizer(model, name).report() for model in (mlp(), wrap(mlp()))]
    assert reports[0] == reports[1]


@each
def test_sites_and_measures_are_those_of_the_module(wrap):
    plain, wrapped, batch = mlp(), wrap(mlp()), data(4)
    assert find_sites(wrapped) == find_sites(plain)
    assert as_chain(wrapped) == as_chain(plain)
    for measure in (
        lambda m: hessian(m, LOSS, *batch).dense().tolist(),
        lambda m: sharpness(m, LOSS, *batch, torch.Generator().manual_seed(0), (0.1,), 2),
        lambda m: network_curvature(m, batch.x, torch.Generator().manual_seed(0), 1),
    ):
        assert measure(wrapped) == measure(plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at it
def test_a_compiled_part_is_looked_into_and_differentiated_twice():
    torch.manual_seed(0)
    rear = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    front = nn.Sequential(nn.Linear(9, 7), nn.ReLU()).double()
    model, batch = nn.Sequential(front, torch.compile(rear, backend="aot_eager")), data()
    LOSS(model(batch.x), batch.y).backward()
    optimizer = teleporting(model)
    names = [site.layers for site in optimizer.target.sites.found]
    assert names == [("0.0", "1._orig_mod.0"), ("1._orig_mod.0", "1._orig_mod.2")]
    before = model(batch.x).detach()
    assert optimizer.teleport(*batch).invariance_error() < 1e-12
    torch.testing.assert_close(model(batch.x).detach(), before)


def test_a_module_that_only_looks_like_a_wrapper_is_itself():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = self._orig_mod = mlp()

    model = Holder()
    assert unwrapped(model) is model
