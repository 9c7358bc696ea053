"""Torch's checks of its own optimizers, on both classes and every shipped optimizer.

They are those of ``TestOptimRenewed`` in torch's ``test/test_optim.py``, by the same names, and
what torch checks elsewhere. ``conformance_cases.EXEMPT`` has the exceptions, each with its reason.
"""

import copy
import gc
import io
import pickle
import weakref
from functools import partial

import pytest
import torch
from conformance_cases import (
    EXEMPT,
    SUBJECTS,
    advance,
    backward,
    built,
    conforming,
    network,
    values,
)
from same_cases import assert_same
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import lr_scheduler as schedulers
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.optim.swa_utils import SWALR, AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metaopt import LearnedOptimizer, UserError

OF_TORCH = """
    can_load_from_to_named_state_dict can_load_older_state_dict complex complex_2d
    cpu_load_state_dict deepcopy_copies_all_public_attrs defaults_changed_to_foreach errors
    foreach_large_tensor foreach_matches_forloop forloop_goes_right_direction
    forloop_goes_right_direction_multigpu fused_cpu_matches_cuda fused_does_not_step_if_foundinf
    fused_error_on_params_on_meta fused_large_tensor fused_matches_forloop
    load_nontensor_step load_state_dict_post_hook load_state_dict_pre_hook_and_prepend
    load_state_dict_pre_post_hook mixed_device_dtype non_empty_state
    optim_infos_do_not_specify_global_cliquey_kwargs optimizer_can_be_printed param_groups_lr
    param_groups_weight_decay param_group_with_lrscheduler_goes_right_direction
    peak_memory_foreach rosenbrock_sparse save_load_equality_with_weights_only
    second_order_optims_return_consistent_types set_default_dtype_works_with_foreach
    state_dict_deterministic state_dict_post_hook state_dict_pre_hook state_dict_pre_post_hook
    state_dict_with_cuda_params step_all_hooks step_is_noop_for_zero_grads
    step_is_noop_when_params_have_no_grad step_post_hook step_pre_hook tensor_lr
"""
WHOLE = {exempt.check: exempt.reason for exempt in EXEMPT if not exempt.subjects}


@pytest.mark.parametrize("name", [f"test_{name}" for name in OF_TORCH.split()])
def test_every_check_of_torch_is_made_or_excepted(name):
    if name in WHOLE:
        pytest.skip(WHOLE[name])
    assert name in globals()


def test_every_exception_is_of_a_check_that_there_is():
    for exempt in EXEMPT:
        assert exempt.check in globals() or exempt.check.removeprefix("test_") in OF_TORCH.split()
        assert not exempt.subjects or any(map(exempt.holds, SUBJECTS))


def direction(subject, optimizer, model, maximize=False, schedule=lambda loss: None):
    """Check that the loss falls, or rises, within 5 to 20 steps."""
    losses = []
    for step in range(21):
        losses += advance(subject, optimizer, model)
        schedule(losses[-1])
        if step >= 5 and (losses[-1] > losses[0] if maximize else losses[-1] < losses[0]):
            return
    raise AssertionError(losses)


# Steps.


@conforming
def test_errors(subject):
    optimizer, model = built(subject, lr=torch.tensor(0.25))
    kept, groups = values(model), len(optimizer.param_groups)
    own = nn.Parameter(torch.ones(2, 2))
    for group, error, match in (
        ([own], TypeError, "param_group must be a dict"),
        ({"params": {own}}, TypeError, "ordered collections"),
        ({"params": [1]}, TypeError, "optimizer can only optimize Tensors"),
        ({"params": [2 * own]}, ValueError, "can't optimize a non-leaf Tensor"),
        ({"params": [model[0].weight]}, ValueError, "more than one parameter group"),
        ({"params": [("weight", own)]}, ValueError, "with/without names"),
    ):
        with pytest.raises(error, match=match):
            optimizer.add_param_group(group)
    with pytest.raises(ValueError, match=r"1-element|of 0 or more, got a tensor of 2 entries"):
        subject.build(network(), lr=torch.tensor([0.1, 0.1]))
    with pytest.raises(ValueError, match=r"Invalid learning rate|an lr of 0 or more"):
        subject.build(network(), lr=-1.0)
    with pytest.raises(UserError, match=r"unfreeze|is frozen"):
        subject.build(network().requires_grad_(False))
    assert len(optimizer.param_groups) == groups
    assert_same(values(model), kept)


@conforming
def test_errors_of_states(subject):
    optimizer, model = built(subject, 2)
    state, kept = optimizer.state_dict(), copy.deepcopy(optimizer.state_dict())
    group = state["param_groups"][0]
    fewer = [{**group, "params": []}, *state["param_groups"][1:]]
    for wrong, match in (
        ({**state, "param_groups": [group, *state["param_groups"]]}, "number of parameter groups"),
        ({**state, "param_groups": fewer}, "match the size of optimizer's group"),
        ({"param_groups": state["param_groups"]}, "state"),
        ({"state": state["state"]}, "param_groups|in its first group"),
    ):
        with pytest.raises((ValueError, KeyError), match=match):
            optimizer.load_state_dict(wrong)
        assert_same(optimizer.state_dict(), kept)
    assert_go_on_alike(subject, optimizer, model, *resumed(subject, optimizer, model))


@pytest.mark.parametrize("name", ["lstm_layerwise", "lstm_update_tele"])
def test_errors_at_construction(name):
    one, other = (nn.Parameter(torch.ones(1, 1)) for _ in range(2))
    elsewhere = nn.Parameter(torch.ones(1, 1, device="meta"))
    for given, error, match in (
        (one, TypeError, "should be an iterable of Tensors or dicts"),
        ([], ValueError, "empty parameter list"),
        ([{"params": one}, {"params": one}], ValueError, "more than one parameter group"),
        ([("weight", one), other], ValueError, "Some param names are missing"),
        ([{"params": [one]}, {"params": [("w", other)]}], ValueError, "with/without names"),
        ([{"params": [one], "lr": -1.0}], UserError, "an lr of 0 or more"),
        ([{"params": [one], "weight_decay": -1.0}], UserError, "a weight_decay of 0 or more"),
        ([one, nn.UninitializedParameter()], UserError, "parameter 1 of group 0, which is not ini"),
        ([{"params": one}, {"params": elsewhere}], UserError, "parameter 0 of group 1, which is o"),
        ([("a", one), ("b", elsewhere)], UserError, "got b, which is on the meta device"),
    ):
        with pytest.raises(error, match=match):
            LearnedOptimizer(given, name)
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        LearnedOptimizer([one, one], name)


@conforming
def test_forloop_goes_right_direction(subject):
    for options in subject.options:
        direction(subject, *built(subject, **options), options.get("maximize", False))
    model = network(contiguous=False)
    assert not model[0].weight.is_contiguous()
    strides = [p.stride() for p in model.parameters()]
    direction(subject, subject.build(model), model)
    assert [p.stride() for p in model.parameters()] == strides


@conforming
def test_param_group_with_lrscheduler_goes_right_direction(subject):
    optimizer, model = built(subject)
    step = schedulers.StepLR(optimizer, gamma=0.9, step_size=3)
    plateau = schedulers.ReduceLROnPlateau(optimizer)
    direction(subject, optimizer, model, schedule=lambda loss: (step.step(), plateau.step(loss)))
    assert optimizer.param_groups[0]["lr"] < optimizer.defaults["lr"]


SCHEDULERS = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 5, power=2),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, 9, cycle_momentum=False),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o), schedulers.ExponentialLR(o, 0.9)], o
    ),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o), schedulers.ExponentialLR(o, 0.9)], [2]
    ),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=1.0),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=3),
}  # fmt: skip


@conforming
def test_every_scheduler_sets_the_rates_that_it_sets_of_an_sgd(subject):
    optimizer, _ = built(subject, 4, lr=torch.tensor(0.25))  # behind the last teleport
    optimizer.zero_grad()
    start = copy.deepcopy(optimizer.state_dict())
    for scheduler in SCHEDULERS.values():
        optimizer.load_state_dict(start)
        groups = [{"params": [p]} for p in network().parameters()][: len(optimizer.param_groups)]
        plain = torch.optim.SGD(groups, lr=torch.tensor(0.25))
        schedule, other = scheduler(optimizer), scheduler(plain)
        held = [group["lr"] for group in optimizer.param_groups]
        for _ in range(3):
            optimizer.step(lambda: torch.tensor(1.0))
            plain.step()
            given = [1.0] if isinstance(schedule, schedulers.ReduceLROnPlateau) else []
            schedule.step(*given)
            other.step(*given)
            for own, plain_own, lr in zip(
                optimizer.param_groups, plain.param_groups, held, strict=True
            ):
                assert own["lr"] is lr
                assert_same(lr, plain_own["lr"])


@conforming
def test_a_scheduler_that_steps_first_is_warned_of(subject):
    optimizer, model = built(subject)
    scheduler = schedulers.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()
    optimizer, model = built(subject)
    scheduler = schedulers.StepLR(optimizer, 1)
    for _ in range(2):  # any warning is an error
        advance(subject, optimizer, model)
        scheduler.step()


@conforming
def test_tensor_lr(subject):
    for options in subject.options:
        others = {name: value for name, value in options.items() if name != "lr"}
        if "foreach" in others or "line_search_fn" in others:
            continue  # torch refuses a rate that is a tensor there, or rounds it to float32
        ends = [values(built(subject, 3, lr=lr, **others)[1]) for lr in (0.25, torch.tensor(0.25))]
        torch.testing.assert_close(*ends)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@conforming
def test_rosenbrock_sparse(subject):
    """A network that begins with an embedding, with sparse gradients and with dense ones."""
    ends = []
    for sparse in (True, False):
        model = nn.Sequential(nn.EmbeddingBag(7, 5, sparse=sparse), *network())
        nn.init.constant_(model[0].weight, 0.5)
        optimizer = subject.build(model)

        def closure(optimizer=optimizer, model=model):
            optimizer.zero_grad()
            loss = model(torch.tensor([[1, 2], [4, 2]])).square().mean()
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
        assert optimizer.made == 2
        ends.append(values(model))
    torch.testing.assert_close(*ends)


def beside(subject, *extra, steps=3):
    """Step a network beside other parameters, whose gradients are drawn; the last values of all."""
    model = network()
    for index, value in enumerate(extra):
        model.register_parameter(f"extra{index}", nn.Parameter(value.clone()))
    optimizer = subject.build(model)
    generator = torch.Generator().manual_seed(2)

    def closure(step):
        loss = backward(optimizer, model)
        generator.manual_seed(step)
        for own in list(model.parameters()):
            if own.grad is None:
                real = torch.view_as_real(own.data) if own.is_complex() else own.data
                drawn = torch.randn(real.shape, generator=generator).to(real.dtype)
                own.grad = torch.view_as_complex(drawn) if own.is_complex() else drawn
        return loss

    for step in range(steps):
        optimizer.step(partial(closure, step))
    return optimizer, model


@conforming
def test_complex(subject):
    given = torch.randn(3, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    _, whole = beside(subject, given)
    _, real = beside(subject, torch.view_as_real(given))
    assert_same(torch.view_as_real(whole.extra0.data), real.extra0.data)
    assert_same(values(whole[0]), values(real[0]))
    assert not torch.equal(whole.extra0, given)


@conforming
def test_complex_2d(subject):
    given = torch.tensor([1.0 + 2.0j])
    _, whole = beside(subject, given)
    _, halves = beside(subject, given.real, given.imag)
    torch.testing.assert_close(whole.extra0.data.real, halves.extra0.data)
    torch.testing.assert_close(whole.extra0.data.imag, halves.extra1.data)


@pytest.mark.filterwarnings("ignore:m1 sees gradients alone")  # some gradients are drawn
@conforming
def test_mixed_dtype(subject):
    dtypes = torch.float64, torch.float32, torch.bfloat16
    start = [torch.linspace(0.01, 0.02, 6).reshape(2, 3).to(dtype) for dtype in dtypes]
    _, model = beside(subject, *start)
    for index, value in enumerate(start):
        own = getattr(model, f"extra{index}")
        assert own.dtype == value.dtype
        assert own.isfinite().all()
        assert not torch.equal(own, value)


@conforming
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_set_default_dtype_works_with_foreach(subject, dtype):
    optimizer, model = built(subject, 2)
    torch.set_default_dtype(dtype)
    try:
        other, twin = built(subject, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(values(twin), values(model))
    if not subject.teleports:  # torch counts steps in another dtype then
        assert_same(other.state_dict()["state"], optimizer.state_dict()["state"])


class Allocated(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, and the most that were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.alive = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, memory):
        place = memory._cdata
        if place not in self.alive:
            self.alive[place] = weakref.ref(memory, lambda _: self.free(place, size))
            size = memory.nbytes()
            self.now += size
            self.most = max(self.most, self.now)

    def free(self, place, size):
        del self.alive[place]
        self.now -= size


@conforming
def test_peak_memory_foreach(subject):
    """Steps leave no bytes behind, and take in between a bounded multiple of what is kept."""
    optimizer, model = built(subject, 4)
    kept = [*values(model), *tree_leaves(optimizer.state_dict()["state"])]
    size = sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))
    left, most = [], []
    for _ in range(3):
        with Allocated() as allocated:
            advance(subject, optimizer, model, 2)
        left.append(allocated.now)
        most.append(allocated.most)
    assert left[2] <= max(left[:2])
    assert max(most) <= 6 * size


@conforming
def test_param_groups_weight_decay(subject):
    ends = []
    for decay in (0.0, 0.5):
        model = network()
        weights, biases = ([p for p in model.parameters() if p.dim() == n] for n in (2, 1))
        optimizer = subject.build(
            model, parameters=[{"params": weights, "weight_decay": decay}, {"params": biases}],
            weight_decay=0.0,
        )  # fmt: skip
        advance(subject, optimizer, model)
        ends.append((weights, biases))
        direction(subject, optimizer, model)
    assert not torch.equal(ends[0][0][0], ends[1][0][0])


@conforming
def test_param_groups_lr(subject):
    model = network()
    model.register_parameter("extra", nn.Parameter(torch.ones(3)))
    groups = [{"params": list(model[0].parameters()) + list(model[2].parameters()), "lr": 0.125},
              {"params": [model.extra]}]  # fmt: skip
    optimizer = subject.build(model, parameters=groups, lr=1e-28)

    def closure():
        loss = backward(optimizer, model)
        model.extra.grad = torch.full((3,), 0.5)
        return loss

    first = float(closure())
    for _ in range(10):
        optimizer.step(closure)
    assert float(closure()) < first
    assert_same(model.extra.data, torch.ones(3))


@conforming
def test_step_is_noop_when_params_have_no_grad(subject):
    optimizer, model = built(subject, 4)  # a teleport needs a closure with gradients
    kept = values(model)
    optimizer.zero_grad()
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        optimizer.step(lambda: torch.tensor([1.0]))
    assert_same(values(model), kept)


@conforming
def test_step_is_noop_for_zero_grads(subject):
    for options in subject.options:
        if "weight_decay" in options:
            continue
        optimizer, model = built(subject, **options)
        kept = values(model)

        def closure(optimizer=optimizer, model=model):
            optimizer.zero_grad()
            loss = 0.0 * model(torch.ones(3, 5)).sum()
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)
        assert_same(values(model), kept)


@conforming
def test_an_empty_batch_is_passed_over(subject):
    optimizer, model = built(subject, 2)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.empty(0, 5)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 0
    advance(subject, optimizer, model)
    assert all(value.isfinite().all() for value in values(model))


@conforming
def test_optimizer_can_be_printed(subject):
    for options in subject.options:
        optimizer, _ = built(subject, **options)
        text = repr(optimizer)
        assert text.startswith(type(optimizer).__name__)
        assert "Parameter Group 0" in text
        assert f"lr: {optimizer.param_groups[0]['lr']}" in text
        assert optimizer.defaults.items() >= options.items()


# States.


def resumed(subject, optimizer, model, **options):
    """Another optimizer on a copy of the network, with the state of the first."""
    twin = copy.deepcopy(model)
    other = subject.build(twin, **copy.deepcopy(options))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    other.load_state_dict(state)
    assert_same(state, kept)
    return other, twin


def assert_go_on_alike(subject, optimizer, model, other, twin, steps=2):
    advance(subject, optimizer, model, steps)
    advance(subject, other, twin, steps)
    assert_same(values(twin), values(model))


@conforming
def test_state_dict_deterministic(subject):
    for options in subject.options:
        optimizer, model = built(subject, 2, **options)
        other, twin = resumed(subject, optimizer, model, **options)
        assert_go_on_alike(subject, optimizer, model, other, twin)
        assert_same(other.state_dict(), optimizer.state_dict())
        other.param_groups.extend(other.param_groups)
        first, last = (own.state_dict()["param_groups"][-1] for own in (optimizer, other))
        assert_same(first, last)


@conforming
def test_can_load_older_state_dict(subject):
    newer = ("foreach", "differentiable", "maximize", "capturable", "fused", "skipped")
    optimizer, model = built(subject, 3)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        for flag in newer:
            group.pop(flag, None)
    twin = copy.deepcopy(model)
    other = subject.build(twin)
    other.load_state_dict(state)
    assert_go_on_alike(subject, optimizer, model, other, twin)


@conforming
@pytest.mark.parametrize("names", [(True, False), (False, True), (True, True)], ids=str)
def test_can_load_from_to_named_state_dict(subject, names):
    built_ones = []
    for named in names:
        model = network()
        parameters = list(model.named_parameters() if named else model.parameters())
        built_ones.append((subject.build(model, parameters=parameters), model))
    (optimizer, model), (other, twin) = built_ones
    advance(subject, optimizer, model, 3)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert_go_on_alike(subject, optimizer, model, other, twin)
    expected = [name for name, _ in model.named_parameters()]
    assert other.state_dict()["param_groups"][0]["param_names"] == expected


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@conforming
def test_save_load_equality_with_weights_only(subject):
    for options in subject.options:
        optimizer, _ = built(subject, 2, **options)
        assert_same(through_a_file(optimizer.state_dict()), optimizer.state_dict())


@conforming
def test_load_nontensor_step(subject):
    optimizer, model = built(subject, 3)
    state = copy.deepcopy(optimizer.state_dict())
    for entries in state["state"].values():
        if isinstance(entries.get("step"), torch.Tensor):
            entries["step"] = entries["step"].item()
    twin = copy.deepcopy(model)
    other = subject.build(twin)
    other.load_state_dict(state)
    assert_go_on_alike(subject, optimizer, model, other, twin)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@conforming
def test_state_dict_with_cuda_params(subject):
    optimizer, model = built(subject, 3)
    twin = copy.deepcopy(model).cuda()
    other = subject.build(twin)
    state = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(state)
    assert_same(state, optimizer.state_dict())
    for own, of in ((optimizer, model), (other, twin)):
        for _ in range(2):
            for index, parameter in enumerate(of.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * (index + 1))
            own.step()
    torch.testing.assert_close(values(twin.cpu()), values(model), rtol=1e-4, atol=1e-5)


@conforming
def test_a_state_loads_into_a_model_of_another_dtype(subject):
    optimizer, _ = built(subject, 4)
    state = optimizer.state_dict()
    for dtype in (torch.float64, torch.bfloat16):
        other, twin = built(subject, dtype=dtype)
        other.load_state_dict(state)
        if not subject.teleports:
            assert_same(other.state_dict(), state)
        first = values(twin)
        advance(subject, other, twin)
        assert all(value.dtype == dtype and value.isfinite().all() for value in values(twin))
        assert not torch.equal(first[0], twin[0].weight)


@conforming
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints_give_back_what_they_took(subject, flat):
    form = StateDictOptions(flatten_optimizer_state_dict=flat)
    optimizer, model = built(subject, 3)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=form))
    twin = copy.deepcopy(model)
    other = subject.build(twin)
    set_optimizer_state_dict(twin, other, state, options=form)
    assert_go_on_alike(subject, optimizer, model, other, twin)


# Hooks.


def state_dict_pre_hook(optimizer):
    optimizer.state["test"] = 1


def state_dict_post_hook(optimizer, state):
    state["ran_state_dict_pre_hook"] = state["state"].pop("test", None) == 1
    return state


@conforming
def test_state_dict_pre_hook(subject):
    optimizer, model = built(subject, 1)
    optimizer.register_state_dict_pre_hook(state_dict_pre_hook)
    state = optimizer.state_dict()
    assert state["state"]["test"] == 1
    optimizer.load_state_dict(state)
    advance(subject, optimizer, model)


@conforming
def test_state_dict_post_hook(subject):
    optimizer, _ = built(subject, 1)
    optimizer.register_state_dict_post_hook(state_dict_post_hook)
    assert optimizer.state_dict()["ran_state_dict_pre_hook"] is False


@conforming
def test_state_dict_pre_post_hook(subject):
    optimizer, _ = built(subject, 1)
    optimizer.register_state_dict_pre_hook(state_dict_pre_hook)
    optimizer.register_state_dict_post_hook(state_dict_post_hook)
    state = optimizer.state_dict()
    assert "test" not in state["state"]
    assert state["ran_state_dict_pre_hook"] is True


def load_state_dict_pre_hook1(optimizer, state):
    state["param_groups"][0]["lr"] = 0.002


def load_state_dict_pre_hook2(optimizer, state):
    state = copy.deepcopy(state)
    state["param_groups"][0]["lr"] = 0.003
    return state


def load_state_dict_post_hook(optimizer):
    optimizer.state["ran_load_state_dict_pre_hook2"] = optimizer.param_groups[0]["lr"] == 0.003
    optimizer.state["ran_load_state_dict_post_hook"] = True


@conforming
def test_load_state_dict_pre_hook_and_prepend(subject):
    optimizer, _ = built(subject, 1)
    state = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(load_state_dict_pre_hook1)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(load_state_dict_pre_hook2, prepend=True)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.002, "the first hook runs last"


def load_hooks(subject, before):
    optimizer, model = built(subject, 1)
    if before:
        optimizer.register_load_state_dict_pre_hook(load_state_dict_pre_hook2)
    optimizer.register_load_state_dict_post_hook(load_state_dict_post_hook)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["ran_load_state_dict_pre_hook2"] is before
    assert optimizer.state["ran_load_state_dict_post_hook"] is True
    advance(subject, optimizer, model)


@conforming
def test_load_state_dict_post_hook(subject):
    load_hooks(subject, before=False)


@conforming
def test_load_state_dict_pre_post_hook(subject):
    load_hooks(subject, before=True)


@conforming
def test_step_all_hooks(subject):
    """Each hook runs once a step, for this optimizer alone, and sees what step was given."""
    optimizer, model = built(subject)
    plain = torch.optim.SGD(network().parameters())
    called = []

    def hook(name):
        return lambda own, given, options: called.append((name, own, len(given), dict(options)))

    handles = [
        register_optimizer_step_pre_hook(hook(0)), register_optimizer_step_post_hook(hook(5)),
        optimizer.register_step_pre_hook(hook(1)), optimizer.register_step_post_hook(hook(2)),
        plain.register_step_pre_hook(hook(1)), plain.register_step_post_hook(hook(2)),
    ]  # fmt: skip
    try:
        advance(subject, optimizer, model, 2)
        plain.step()
        advance(subject, optimizer, model, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert [name for name, *_ in called] == [0, 1, 2, 5] * 5
    assert [own for _, own, *_ in called[::4]] == [optimizer] * 2 + [plain] + [optimizer] * 2
    assert all(own is called[index - index % 4][1] for index, (_, own, *_) in enumerate(called))
    advance(subject, optimizer, model)
    assert len(called) == 20


@conforming
def test_step_pre_hook(subject):
    """A hook sees what ``step`` was given, may exchange it, and goes with its handle."""
    optimizer, model = built(subject)
    seen = []

    def hook(own, given, options):
        seen.append((len(given), options))
        return (own, partial(backward, optimizer, model)), {}

    handle = optimizer.register_step_pre_hook(hook)
    loss = optimizer.step(closure=None)
    torch.testing.assert_close(loss, backward(*built(subject)))
    handle.remove()
    advance(subject, optimizer, model)
    assert seen == [(1, {"closure": None})]


@conforming
def test_step_post_hook(subject):
    optimizer, model = built(subject)
    seen = []
    handle = optimizer.register_step_post_hook(
        lambda own, given, options: seen.append((own, len(given), options, values(model)))
    )
    optimizer.step(partial(backward, optimizer, model))
    handle.remove()
    (found,) = seen
    assert found[:3] == (optimizer, 2, {})
    assert_same(found[3], values(model))
    advance(subject, optimizer, model)
    assert len(seen) == 1


# Copies.


@conforming
def test_deepcopy_copies_all_public_attrs(subject):
    optimizer, model = built(subject, 3)
    twin, other = copy.deepcopy((model, optimizer))
    public = [{k for k in own.__dict__ if not k.startswith("_")} for own in (optimizer, other)]
    assert public[0] == public[1]
    assert_go_on_alike(subject, optimizer, model, other, twin)


@conforming
def test_a_pickle_goes_on_alike_and_has_no_hooks(subject):
    optimizer, model = built(subject, 3)
    optimizer.register_step_pre_hook(lambda *given: None)  # could not be pickled
    optimizer.register_state_dict_post_hook(lambda *given: None)
    twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    assert not other._optimizer_step_pre_hooks
    assert not other._optimizer_state_dict_post_hooks
    assert_go_on_alike(subject, optimizer, model, other, twin)


# What else torch checks.


@conforming
def test_second_order_optims_return_consistent_types(subject):
    """The closure runs with gradients, and what it returned comes back, under no_grad as well."""
    optimizer, model = built(subject)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        return backward(optimizer, model)

    for _ in range(4):
        expected, before = backward(optimizer, model), len(calls)
        with torch.no_grad():
            loss = optimizer.step(closure)
        assert isinstance(loss, torch.Tensor)
        torch.testing.assert_close(loss, expected)
        once = optimizer.teleportation is None or not subject.teleports
        assert len(calls) == before + 1 or not once or "LBFGS" in subject.label
    assert all(calls)


@conforming
def test_non_empty_state(subject):
    optimizer, _ = built(subject, 1)
    assert optimizer.state
    for entries in optimizer.state.values():
        assert entries


@conforming
def test_fused_does_not_step_if_foundinf(subject):
    """With a GradScaler; its steps are those without one where gradients are finite."""
    optimizer, model = built(subject)
    x, y = torch.ones(3, 5), torch.zeros(3, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=100)
    kept = values(model)
    for factor in (float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * nn.functional.mse_loss(model(x), y)).backward()
        scaler.step(optimizer, **({"batch": (x, y)} if subject.teleports else {}))
        scaler.update()
        assert torch.equal(model[0].weight, kept[0]) == (factor != 1.0)
    assert scaler.get_scale() == 128.0
    other, twin = built(subject)
    for _ in range(2):
        other.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        other.step(**({"batch": (x, y)} if subject.teleports else {}))
    torch.testing.assert_close(values(model), values(twin), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("subject", [SUBJECTS[0], SUBJECTS[-1]], ids=lambda own: own.label)
def test_steps_are_profiled(subject):
    optimizer, model = built(subject, 1)
    with torch.autograd.profiler.profile() as profile:
        advance(subject, optimizer, model)
    names = {event.name for event in profile.function_events}
    assert f"Optimizer.step#{type(optimizer).__name__}.step" in names
    assert any(name.startswith("Optimizer.zero_grad#") for name in names)


@conforming
def test_gradients_are_set_to_none_or_to_zero(subject):
    optimizer, model = built(subject, 1)
    backward(optimizer, model)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:m1 sees gradients alone")  # some gradients are drawn
@conforming
def test_parameters_may_be_empty_or_scalars(subject):
    extra = torch.empty(0), torch.tensor(1.0), torch.ones(1), torch.empty(3, 0)
    optimizer, model = beside(subject, *extra)
    assert not torch.equal(model.extra1, extra[1])
    assert not torch.equal(model.extra2, extra[2])
    for entry in tree_leaves(optimizer.state_dict()["state"]):
        assert not isinstance(entry, torch.Tensor) or not entry.isnan().any()


@conforming
def test_parameters_must_have_memory_of_their_own(subject):
    model = network()
    model[0].weight.data = torch.ones(4, 1).expand(4, 5)
    optimizer = subject.build(model)
    with pytest.raises(RuntimeError, match="Please clone"):
        advance(subject, optimizer, model)


@conforming
def test_groups_may_be_added_and_duplicates_are_warned_of(subject):
    optimizer, model = built(subject, 2)
    own = nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        built(subject)[0].add_param_group({"params": [own, own]})
    optimizer.add_param_group({"params": own, "lr": 0.125})
    assert optimizer.param_groups[-1]["lr"] == 0.125

    def closure():
        loss = backward(optimizer, model)
        own.grad = torch.full((3,), 0.5)
        return loss

    optimizer.step(closure)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step(closure)
    assert (own < 1.0).all()


def dtype_stays(subject, dtype):
    optimizer, model = built(subject, dtype=dtype)
    direction(subject, optimizer, model)
    assert all(parameter.dtype == dtype for parameter in model.parameters())


@conforming
def test_other_dtypes_go_in_the_right_direction_and_stay(subject):
    for dtype in (torch.float64, torch.bfloat16):
        dtype_stays(subject, dtype)


@conforming
def test_float16_goes_in_the_right_direction_and_stays(subject):
    dtype_stays(subject, torch.float16)


@conforming
def test_no_graph_is_kept(subject):
    optimizer, model = built(subject, 4)
    for parameter in model.parameters():
        assert parameter.is_leaf
        assert parameter.requires_grad
    for entry in tree_leaves([dict(entries) for entries in optimizer.state.values()]):
        assert not isinstance(entry, torch.Tensor) or not entry.requires_grad


@conforming
def test_nothing_stays_alive(subject):
    """Without the garbage collector: there are no cycles, and no hooks stay on the model."""
    optimizer, model = built(subject, 5)
    states = [weakref.ref(own) for own in (optimizer, model)]
    gc.disable()
    try:
        del optimizer
        assert states[0]() is None
        assert not any(module._forward_hooks for module in model.modules())
        del model
        assert states[1]() is None
    finally:
        gc.enable()


@conforming
def test_averaged_models_take_the_weights_of_each_step(subject):
    optimizer, model = built(subject)
    averaged = AveragedModel(model)
    seen = []
    for _ in range(3):
        advance(subject, optimizer, model)
        averaged.update_parameters(model)
        seen.append(values(model))
    for index, own in enumerate(averaged.module.parameters()):
        torch.testing.assert_close(own.data, torch.stack([s[index] for s in seen]).mean(dim=0))
