"""States, hooks and copies of ``TeleportingOptimizer``, as torch documents them."""

import copy
import io
import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from teleporting_cases import BASES, LOSS, QUICK, data, mlp, train
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError
from metaopt.tasks import RegressionFamily

COUNTS = ("steps", "made", "undone", "skipped", "_last_batch", "_other_came")


def teleporting(model, base="adam", **options):
    options = {"schedule": (1, 4), "search": QUICK, **options}
    return TeleportingOptimizer(BASES[base](model.parameters()), model, LOSS, **options)


def trained(base="adam", steps=3, **options):
    model = mlp()
    optimizer = teleporting(model, base, **options)
    train(model, optimizer, [data(6, seed=seed) for seed in range(steps)], batch=True)
    return model, optimizer


def assert_same(one, other):
    """All entries of two states are the same, bit for bit and in dtype."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def counts(optimizer):
    return [getattr(optimizer, name) for name in COUNTS]


# States.


@pytest.mark.parametrize("base", BASES)
def test_the_state_has_torchs_form_and_equals_the_bases_but_for_the_counts(base):
    _, optimizer = trained(base)
    state, own = optimizer.state_dict(), optimizer.base.state_dict()
    assert state.keys() == {"state", "param_groups"}
    assert state["param_groups"][0].pop("teleports")["steps"] == 3
    assert own["param_groups"][0].pop("teleports") is None
    assert_same(state, own)


def test_a_state_that_was_taken_does_not_change_and_loading_does_not_change_it():
    model, optimizer = trained()
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    train(model, optimizer, [data(6)], batch=True)
    assert state["param_groups"][0]["teleports"]["steps"] == 3
    optimizer.load_state_dict(kept)
    train(model, optimizer, [data(6)], batch=True)
    assert str(kept["param_groups"]) == str(state["param_groups"])


def test_a_state_of_an_earlier_version_loads():
    _, optimizer = trained(base="momentum")
    earlier = {
        "base": optimizer.base.state_dict(), "steps": 3, "undone": 2, "made": 1,
        "last_batch": torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), "other_came": True,
    }  # fmt: skip
    del earlier["base"]["param_groups"][0]["teleports"]
    kept = copy.deepcopy(earlier)
    loaded = teleporting(mlp(), "momentum")
    loaded.load_state_dict(earlier)
    assert counts(loaded) == [3, 1, 2, 0, [1.0, 2.0, 5.0], True]
    assert_same(loaded.base.state_dict()["state"], optimizer.base.state_dict()["state"])
    assert_same(earlier, kept)
    del earlier["made"], earlier["last_batch"], earlier["other_came"]
    loaded.load_state_dict(earlier)
    assert counts(loaded) == [3, 0, 2, 0, None, False]


@pytest.mark.parametrize("state", [{}, {"state": {}, "param_groups": []}, {"weights": 1}])
def test_another_state_is_refused_and_nothing_changes(state):
    _, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UserError, match="expected a state of a TeleportingOptimizer"):
        optimizer.load_state_dict(state)
    assert_same(optimizer.state_dict(), before)


class Wide(torch.optim.SGD):
    """Keeps entries of other dtypes than the weights', some of them inside of others."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                third = torch.ones_like(p, dtype=torch.float64) / 3
                self.state[p]["wide"] = third
                self.state[p]["count"] = torch.tensor(2**40 + 1)
                self.state[p]["codes"] = torch.arange(p.numel()).view_as(p).to(torch.uint8)
                self.state[p]["nested"] = {"pair": [third[0] * 2, 7], "empty": None}


def test_every_entry_keeps_its_own_dtype_bit_for_bit():
    def build():
        model = mlp(torch.bfloat16)
        return model, TeleportingOptimizer(Wide(model.parameters(), 0.1), model, LOSS)

    model, optimizer = build()
    batch = data(6)
    train(model, optimizer, [type(batch)(batch.x.bfloat16(), batch.y)])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other, loaded = build()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert_same(loaded.state_dict(), optimizer.state_dict())
    assert loaded.state[other[0].weight]["wide"].dtype == torch.float64


FORMS = {
    "plain": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("base", "form"),
    # Torch itself cannot load a full state that has no tensor, as of SGD.
    [
        (base, form)
        for base in ("sgd", "momentum", "adam")
        for form in FORMS
        if base != "sgd" or form != "full"
    ],
)
def test_distributed_checkpoints_carry_the_state_through_a_folder(base, form, tmp_path):
    form = FORMS[form]
    model, optimizer = trained(base)
    before = copy.deepcopy(optimizer.state_dict())
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=form)},
             checkpoint_id=tmp_path)  # fmt: skip
    assert_same(optimizer.state_dict(), before)
    other = mlp()
    loaded = teleporting(other, base)
    state = {"optimizer": get_optimizer_state_dict(other, loaded, options=form)}
    assert loaded.steps == 0, "setting the state up is no step"
    dcp.load(state, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, loaded, state["optimizer"], options=form)
    assert counts(loaded) == counts(optimizer)
    after = loaded.state_dict()
    assert_same({k: v for k, v in after["state"].items() if v}, before["state"])
    for own, saved in zip(after["param_groups"], before["param_groups"], strict=True):
        assert json.dumps(own) == json.dumps(saved)  # tuples come back as lists


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_checkpoint_before_the_first_step_does_not_shift_the_schedule(form):
    model = mlp()
    optimizer = teleporting(model, "sgd", schedule=(0,))
    start = copy.deepcopy(model.state_dict())
    for _ in range(3):
        get_optimizer_state_dict(model, optimizer, options=form)
    assert str(model.state_dict()) == str(start)
    assert optimizer.steps == 0
    train(model, optimizer, [data(6)], batch=True)
    assert optimizer.made == 1


# Hooks.


def test_hooks_of_states_run_once_each_with_their_arguments_on_the_wrapper_and_on_the_base():
    _, optimizer = trained()
    ran = []
    for own in (optimizer, optimizer.base):
        own.register_state_dict_pre_hook(lambda o: ran.append(("pre state", o)))
        own.register_state_dict_post_hook(lambda o, s: ran.append(("post state", o, set(s))))
        own.register_load_state_dict_pre_hook(lambda o, s: ran.append(("pre load", o, set(s))))
        own.register_load_state_dict_post_hook(lambda o: ran.append(("post load", o)))
    base, keys = optimizer.base, {"state", "param_groups"}
    state = optimizer.state_dict()
    assert ran == [
        ("pre state", optimizer), ("pre state", base), ("post state", base, keys),
        ("post state", optimizer, keys),
    ]  # fmt: skip
    ran.clear()
    optimizer.load_state_dict(state)
    assert ran == [
        ("pre load", optimizer, keys), ("pre load", base, keys), ("post load", base),
        ("post load", optimizer),
    ]  # fmt: skip


def test_hooks_may_replace_states():
    _, optimizer = trained()
    hooks = [
        optimizer.register_state_dict_post_hook(lambda o, s: {"packed": s}),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: s["packed"]),
    ]
    state = optimizer.state_dict()
    assert state.keys() == {"packed"}
    other = teleporting(mlp())
    other.register_load_state_dict_pre_hook(lambda o, s: s["packed"])
    other.load_state_dict(state)
    assert other.steps == 3
    for hook in hooks:
        hook.remove()
    assert "packed" not in optimizer.state_dict()


@pytest.mark.parametrize("led_by", ["nothing due", "batch", "closure"])
def test_hooks_of_steps_run_once_each_with_their_arguments(led_by):
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, schedule=() if led_by == "nothing due" else (0,))
    ran = []

    def closure():
        optimizer.zero_grad()
        loss = LOSS(model(batch.x), batch.y)
        loss.backward()
        return loss

    closure()
    for own in (optimizer, optimizer.base):
        own.register_step_pre_hook(lambda o, a, k: ran.append(("pre", o, a, k)))
        own.register_step_post_hook(lambda o, a, k: ran.append(("post", o, a, k)))
    everywhere = [
        register_optimizer_step_pre_hook(lambda o, a, k: ran.append(("global pre", o, a, k))),
        register_optimizer_step_post_hook(lambda o, a, k: ran.append(("global post", o, a, k))),
    ]
    try:
        given = (closure,) if led_by == "closure" else ()
        keywords = {"batch": batch} if led_by == "batch" else {}
        optimizer.step(*given, **keywords)
    finally:
        for hook in everywhere:
            hook.remove()
    base = optimizer.base
    assert ran == [
        ("global pre", optimizer, (optimizer, *given), keywords),
        ("pre", optimizer, (optimizer, *given), keywords),
        ("pre", base, (base, *given), {}),
        ("post", base, (base, *given), {}),
        ("post", optimizer, (optimizer, *given), keywords),
        ("global post", optimizer, (optimizer, *given), keywords),
    ]
    plain = torch.optim.SGD(model.parameters(), 0.1)
    once = []
    hook = register_optimizer_step_pre_hook(lambda o, a, k: once.append(o))
    plain.step()
    hook.remove()
    assert once == [plain], "torch's own hooks are where they were"


def test_a_step_hook_may_change_the_arguments():
    model, batch = mlp(), data(6)
    optimizer = teleporting(model, schedule=(0,))
    optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {"batch": batch}))
    LOSS(model(batch.x), batch.y).backward()
    optimizer.step()
    assert optimizer.made == 1


# Copies.


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("buffers", ["keep", "reset", "transport"])
def test_a_copy_of_the_pair_goes_on_alike(duplicate, buffers):
    model, optimizer = trained(buffers=buffers)
    optimizer.next_batch = data(6)
    other, copied = duplicate((model, optimizer))
    assert copied.next_batch is None
    assert counts(copied) == counts(optimizer)
    optimizer.next_batch = None
    for own, stepper in ((model, optimizer), (other, copied)):
        train(own, stepper, [data(6, seed=seed) for seed in range(3, 6)], batch=True)
    assert optimizer.made == 2
    assert_same(copied.state_dict(), optimizer.state_dict())
    assert_same(other.state_dict(), model.state_dict())
    copied.base.step()
    assert copied.base.param_groups[0]["params"][0] is other[0].weight


# Bases that are no optimizers of torch.


class Lookahead(torch.optim.SGD):
    """Makes its state at construction and expects it; a part of it is a copy of the weights."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            self._init(group)

    def _init(self, group):
        for p in group["params"]:
            self.state[p].update(slow=p.detach().clone(), trust=torch.full_like(p, 0.5), k=[0])

    def add_param_group(self, group):
        super().add_param_group(group)
        if hasattr(self, "state") and len(self.param_groups) > 1:
            self._init(self.param_groups[-1])

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow"].lerp_(p.detach(), 0.5)
                self.state[p]["trust"].mul_(0.9)
                self.state[p]["k"][0] += 1


class Around(torch.optim.Optimizer):
    """Holds another optimizer, whose groups it shares."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


@pytest.mark.parametrize("around", [lambda base: base, Around])
def test_what_a_foreign_base_made_at_construction_survives_a_reset(around):
    model = mlp()
    inner = Lookahead([*model[0].parameters(), *model[2].parameters()], 0.1)
    optimizer = TeleportingOptimizer(
        around(inner), model, LOSS, buffers="reset", search=QUICK, action="rescaling"
    )
    if around is not Around:
        optimizer.add_param_group({"params": model[4].parameters()})
    train(model, optimizer, [data(6)] * 2)
    for _ in range(2):  # the second time it is as new again
        move = optimizer.teleport(*data(6))
        assert not move.stayed
        for parameter in (model[0].weight, model[2].weight):
            entries = inner.state[parameter]
            assert torch.equal(entries["slow"], parameter)
            assert torch.equal(entries["trust"], torch.full_like(parameter, 0.5))
            assert entries["k"] == [0]
        train(model, optimizer, [data(6)])


def test_momentum_inside_of_another_optimizer_is_reset_and_transported():
    def build(buffers):
        model = mlp()
        base = Around(torch.optim.SGD(model.parameters(), 1e-30, momentum=0.9))
        optimizer = TeleportingOptimizer(
            base, model, LOSS, "rescaling", buffers=buffers, search=QUICK
        )
        train(model, optimizer, [data(6)])
        optimizer.teleport(*data(6))
        return model, base.inner.state

    model, state = build("reset")
    assert model[0].weight not in state
    model, state = build("transport")
    loss = LOSS(model(data(6).x), data(6).y)
    (gradient,) = torch.autograd.grad(loss, [model[0].weight])
    torch.testing.assert_close(state[model[0].weight]["momentum_buffer"], gradient)
    with pytest.raises(UserError, match="'mu_product' of NAdam"):
        TeleportingOptimizer(
            Around(torch.optim.NAdam(model.parameters())), model, LOSS, buffers="transport"
        )


@pytest.mark.parametrize("name", ["Lookahead", "SAM"])
def test_wrappers_of_another_library_can_be_reset_and_saved(name):
    library = pytest.importorskip("pytorch_optimizer")
    model, batch = mlp(), data(6)

    def build(model):
        if name == "SAM":
            base = library.SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        else:
            base = library.Lookahead(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), k=2)
        return TeleportingOptimizer(base, model, LOSS, buffers="reset", schedule=(2,), search=QUICK)

    def run(model, optimizer, steps):
        def closure():
            optimizer.zero_grad()
            loss = LOSS(model(batch.x), batch.y)
            loss.backward()
            return loss

        for _ in range(steps):
            closure()
            optimizer.step(closure, batch)

    optimizer = build(model)
    run(model, optimizer, 2)
    twin = copy.deepcopy(model)
    other = build(twin)
    other.load_state_dict(optimizer.state_dict())
    for own, stepper in ((model, optimizer), (twin, other)):
        run(own, stepper, 3)
    assert optimizer.made == other.made == 1
    for own, copied in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, copied)


@pytest.mark.parametrize("led_by", ["batch", "closure"])
def test_a_search_leaves_the_records_of_a_learned_base_alone(led_by):
    """A teleport that is reverted changes nothing afterwards."""
    batch = data(6, dtype=torch.float32)

    def run(schedule):
        model = mlp(torch.float32)
        optimizer = TeleportingOptimizer(
            LearnedOptimizer(model, "lstm_update_tele", loss_fn=LOSS), model, LOSS,
            schedule=schedule, search=lambda orbit, own, loss: QUICK(orbit, own, lambda w: loss(w)),
            max_defect=1e-300, action="rescaling",
        )  # fmt: skip
        optimizer.search = Reverted()

        def closure():
            optimizer.zero_grad()
            loss = LOSS(model(batch.x), batch.y)
            loss.backward()
            return loss

        for _ in range(4):
            if led_by == "batch":
                closure()
                optimizer.step(batch=batch)
            else:
                optimizer.step(closure)
        return model, optimizer

    (moved, with_teleports), (plain, _) = run((1, 2)), run(())
    assert with_teleports.undone == 2
    assert_same(moved.state_dict(), plain.state_dict())


class Reverted:
    """Evaluates the loss, and goes where the outputs are others."""

    def __call__(self, orbit, parameters, loss):
        found = QUICK(orbit, parameters, loss)
        return type(found)([9.0 * own for own in parameters], found.rejected)


def test_tasks_keep_their_counts_too():
    tasks = RegressionFamily(samples=4, input=5, hidden=6, output=3).sample([0])
    optimizer = TeleportingOptimizer(torch.optim.Adam(tasks.parameters()), tasks, schedule=2)

    def closure():
        optimizer.zero_grad()
        loss = tasks().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    other = TeleportingOptimizer(torch.optim.Adam(tasks.parameters()), tasks, schedule=2)
    other.load_state_dict(optimizer.state_dict())
    assert counts(other) == counts(optimizer)


def test_a_module_without_sites_still_says_so():
    model = nn.Linear(3, 3)
    with pytest.raises(UserError, match="expected a model with a place for a group to act"):
        TeleportingOptimizer(torch.optim.Adam(model.parameters()), model, LOSS)
