"""The state of learned optimizers in ``optimizer.state``: per parameter, in its own dtype."""

import copy
import io

import pytest
import torch
from learned_network_cases import batch_for, conv_net, equal, mlp, train
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn import functional as F

from metaopt import LearnedOptimizer, list_pretrained
from metaopt.errors import UserError
from metaopt.learned.state import Columns, Kept, PerParameter, kept_of

NETWORKS = pytest.mark.parametrize("make", [mlp, conv_net])
SHIPPED = pytest.mark.parametrize("name", list_pretrained())


def entries(optimizer):
    return {
        (index, name): entry
        for index, p in enumerate(optimizer.param_groups[0]["params"])
        for name, entry in optimizer.state.get(p, {}).items()
    }


@SHIPPED
@NETWORKS
def test_every_entry_belongs_to_a_parameter_and_none_is_as_large_as_a_batch(make, name):
    model, one = make(), batch_for(make)
    optimizer = LearnedOptimizer(model, name)
    train(model, optimizer, [one] * 3)
    assert set(optimizer.state) <= set(model.parameters())
    for entry in entries(optimizer).values():
        assert isinstance(entry, torch.Tensor)
        assert entry.numel() < 200 * max(p.numel() for p in model.parameters())
    large = (one[0].repeat(50, *[1] * (one[0].dim() - 1)), one[1].repeat(50, 1))
    before = {key: entry.shape for key, entry in entries(optimizer).items()}
    train(model, optimizer, [large])
    assert {key: entry.shape for key, entry in entries(optimizer).items()} == before


@SHIPPED
@NETWORKS
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_loaded_state_has_the_same_bits_and_dtypes(make, name, dtype):
    model = make(dtype=dtype)
    optimizer = LearnedOptimizer(model, name)
    train(model, optimizer, [batch_for(make, dtype=dtype)] * 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = LearnedOptimizer(copy.deepcopy(model), name)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert entries(other).keys() == entries(optimizer).keys()
    for key, entry in entries(optimizer).items():
        assert entries(other)[key].dtype == entry.dtype
        assert torch.equal(entries(other)[key], entry)


@SHIPPED
def test_distributed_checkpoints_take_it_and_give_it_back(name):
    def start():
        model = mlp()
        return model, LearnedOptimizer(model, name, loss_fn=nn.MSELoss())

    one = batch_for(mlp)
    model, optimizer = start()
    train(model, optimizer, [one] * 4)
    saved = copy.deepcopy((model.state_dict(), get_optimizer_state_dict(model, optimizer)))
    train(model, optimizer, [one] * 4)
    other, loaded = start()
    other.load_state_dict(saved[0])
    set_optimizer_state_dict(other, loaded, saved[1])
    train(other, loaded, [one] * 4)
    assert equal(model, other)


@SHIPPED
def test_asking_for_the_state_before_the_first_step_moves_nothing(name):
    model = mlp()
    optimizer = LearnedOptimizer(model, name)
    start = copy.deepcopy(model)
    get_optimizer_state_dict(model, optimizer)
    assert equal(model, start)


def joint_form(optimizer, batches):
    """The state as it was saved before it was kept per parameter."""
    state = optimizer.state_dict()
    learned = []
    for old in copy.deepcopy(optimizer.learned_states):
        if "trust" in old:
            old["batch"] = [*old["batch"], *batches]
            old["curvature"] = [c for c in old["curvature"] if c]
        old.pop("last", None)
        learned.append(old)
    return {"state": {"learned": learned, "skipped": 2}, "param_groups": [
        {"params": group["params"], "lr": group["lr"]} for group in state["param_groups"]
    ]}  # fmt: skip


@SHIPPED
@NETWORKS
def test_a_state_of_an_older_version_goes_on(make, name):
    one = batch_for(make)
    model = make()
    optimizer = LearnedOptimizer(model, name, loss_fn=nn.MSELoss())
    train(model, optimizer, [one] * 3)
    other = copy.deepcopy(model)
    loaded = LearnedOptimizer(other, name, loss_fn=nn.MSELoss())
    loaded.load_state_dict(joint_form(optimizer, one))
    train(model, optimizer, [one] * 3)
    train(other, loaded, [one] * 3)
    assert equal(model, other)


def test_the_older_count_of_steps_was_one_for_all_tensors():
    model = mlp()
    optimizer = LearnedOptimizer(model, "lstm_layerwise_v1")
    train(model, optimizer, [batch_for(mlp)] * 3)
    old = joint_form(optimizer, ())
    old["state"]["learned"][0]["update"][0] = torch.tensor([3.0])
    loaded = LearnedOptimizer(copy.deepcopy(model), "lstm_layerwise_v1")
    loaded.load_state_dict(old)
    assert loaded.learned_state["update"][0].tolist() == [3.0] * 6


@pytest.mark.parametrize("change", ["a shape", "a name", "of Adam"])
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_lost(change):
    model = mlp()
    optimizer = LearnedOptimizer(model, "lstm_layerwise")
    train(model, optimizer, [batch_for(mlp)] * 2)
    state = copy.deepcopy(optimizer.state_dict())
    if change == "a shape":
        state["state"][0]["m1_momentum"] = torch.zeros(1, 7)
    elif change == "a name":
        state["state"][0]["exp_avg"] = torch.zeros(3)
    else:
        state = torch.optim.Adam(model.parameters()).state_dict()
    kept = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UserError, match=r"load a state of the same|start from a fresh"):
        optimizer.load_state_dict(state)
    torch.testing.assert_close(optimizer.state_dict(), kept, rtol=0, atol=0)
    train(model, optimizer, [batch_for(mlp)])


def test_a_parameter_that_comes_later_starts_its_own_state():
    """Unfrozen after three steps, it is stepped as in an optimizer that begins there."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = LearnedOptimizer(model, "lstm_layerwise_v1")
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    train(model, optimizer, [(x, y)] * 3)
    assert model[0].weight not in optimizer.state
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each[0].requires_grad_(True)
    fresh = LearnedOptimizer(twin, "lstm_layerwise_v1")
    train(model, optimizer, [(x, y)])
    train(twin, fresh, [(x, y)])
    torch.testing.assert_close(model[0].weight, twin[0].weight, rtol=1e-6, atol=1e-9)
    assert [optimizer.state[p]["m1_step"].item() for p in model.parameters()] == [1, 1, 4, 4]


def test_a_parameter_without_a_gradient_keeps_its_state():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = LearnedOptimizer(model, "lstm_layerwise")
    x, y = torch.randn(6, 4), torch.randn(6, 2)
    train(model, optimizer, [(x, y)] * 2)
    before = {name: e.clone() for name, e in optimizer.state[model[0].weight].items()}
    model[0].requires_grad_(False)
    kept = model[0].weight.clone()
    train(model, optimizer, [(x, y)] * 2)
    assert torch.equal(model[0].weight, kept)
    for name, entry in optimizer.state[model[0].weight].items():
        assert torch.equal(entry, before[name])
    model[0].requires_grad_(True)
    train(model, optimizer, [(x, y)])
    assert not torch.equal(model[0].weight, kept)


@pytest.mark.parametrize("name", ["lstm_update_tele", "lstm_lr_tele"])
def test_a_frozen_layer_of_a_chain_stays_while_others_move(name):
    model, optimizer = mlp(), None
    optimizer = LearnedOptimizer(model, name, loss_fn=nn.MSELoss())
    one = batch_for(mlp)
    train(model, optimizer, [one] * 2)
    first, last = model[0], [m for m in model if isinstance(m, nn.Linear)][-1]
    first.weight.requires_grad_(False)
    kept, other = first.weight.clone(), last.weight.clone()
    train(model, optimizer, [one] * 3)
    assert torch.equal(first.weight, kept)
    assert not torch.equal(last.weight, other)
    # frozen between backward and step, with a gradient that is still there
    last.weight.requires_grad_(False)
    first.weight.requires_grad_(True)
    optimizer.zero_grad()
    F.mse_loss(model(one[0]), one[1]).backward()
    first.weight.requires_grad_(False)
    optimizer.step()
    assert torch.equal(first.weight, kept)


def test_entries_that_a_tool_replaces_are_read_again():
    model = mlp()
    optimizer = LearnedOptimizer(model, "lstm_layerwise_v1")
    train(model, optimizer, [batch_for(mlp)] * 2)
    weight = model[0].weight
    optimizer.state[weight]["m1_momentum"] = torch.full_like(
        optimizer.state[weight]["m1_momentum"], 5.0
    )
    joint = optimizer.learned_state["update"]
    assert (joint[3][:, : weight.numel()] == 5.0).all()
    assert not (joint[3][:, weight.numel() :] == 5.0).any()


def test_joint_tensors_come_back_from_their_parts():
    owners = [nn.Parameter(torch.zeros(n)) for n in (2, 3)]
    start = [torch.zeros(4, 5), torch.ones(1)]
    kept = {
        "update": kept_of("m1", [Columns("h1", 1, [2, 3]), Columns("n", 0, [])], owners, list)[:1],
        "loss": [Kept("trust", owners[:1])],
    }
    store = PerParameter({p: {} for p in owners})

    def begin():
        return {"update": start[:1], "loss": start[1:]}

    assert torch.equal(store.read(kept, begin)["update"][0], start[0])
    joint = torch.randn(4, 5)
    store.write(kept, {"update": [joint], "loss": [torch.tensor([7.0])]})
    assert store.read(kept, begin)["update"][0] is joint, "as long as nobody replaces an entry"
    copied = PerParameter({p: {k: v.clone() for k, v in store.entries[p].items()} for p in owners})
    assert torch.equal(copied.read(kept, begin)["update"][0], joint)
    del copied.entries[owners[1]]["m1_h1"]
    half = copied.read(kept, begin)["update"][0]
    assert torch.equal(half[:, :2], joint[:, :2])
    assert not half[:, 2:].any()


def test_to_look_at_a_state_makes_no_entries():
    optimizer = LearnedOptimizer(mlp(), "lstm_layerwise")
    assert optimizer.learned_state["update"]
    assert not optimizer.state
