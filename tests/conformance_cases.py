"""The optimizers that torch's own checks run on, how they are run, and the exceptions."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaopt import LearnedOptimizer, TeleportingOptimizer, UserError, list_pretrained
from metaopt.symmetry import GradientAscent

SEARCH = GradientAscent(iterations=1, initial_step=0.3)
TELEPORTS = (1, 3)


@dataclass(frozen=True)
class Subject:
    """An optimizer as a user builds it.

    Attributes:
        label: its name in the ids of tests.
        build: makes it from a model and options, as torch's optimizers take them.
        options: the options that checks try, as torch's table has them for its own optimizers.
    """

    label: str
    build: Callable[..., torch.optim.Optimizer]
    options: Sequence[dict[str, Any]]

    @property
    def teleports(self) -> bool:
        """Whether it is a wrapper, whose steps are given a closure."""
        return self.label.startswith("teleports")


Parameters = Iterable[Any] | None
"""What is given in place of all parameters of a model, in a form that torch's optimizers take."""


def on_list(name: str, model: nn.Module, parameters: Parameters = None, **options: Any) -> Any:
    given = list(model.parameters()) if parameters is None else parameters
    return LearnedOptimizer(given, name, **options)


def on_groups(name: str, model: nn.Module, parameters: Parameters = None, **options: Any) -> Any:
    groups = [{"params": [p]} for p in model.parameters()] if parameters is None else parameters
    return LearnedOptimizer(groups, name, **options)


def on_module(name: str, model: nn.Module, **options: Any) -> LearnedOptimizer:
    return LearnedOptimizer(model, name, loss_fn=nn.MSELoss(), **options)


def of_torch(kind: Any, model: nn.Module, parameters: Parameters = None, **options: Any) -> Any:
    return kind(model.parameters() if parameters is None else parameters, **options)


def around(base: Callable[..., Any], model: nn.Module, **options: Any) -> TeleportingOptimizer:
    return TeleportingOptimizer(
        base(model, **options), model, nn.MSELoss(),
        schedule=TELEPORTS, search=SEARCH, action="rescaling",
    )  # fmt: skip


FORMS = {"list": on_list, "groups": on_groups, "module": on_module}
LEARNED: Sequence[dict[str, Any]] = (
    {},
    {"lr": torch.tensor(0.5)},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
)
BASES: dict[Any, Sequence[dict[str, Any]]] = {
    partial(torch.optim.SGD, momentum=0.9): (
        {}, {"lr": torch.tensor(1e-2), "momentum": 0.0}, {"lr": 0.1, "dampening": 0.5},
        {"nesterov": True, "weight_decay": 0.1, "maximize": True},
    ),
    torch.optim.Adam: (
        {}, {"lr": torch.tensor(1e-2)}, {"amsgrad": True, "weight_decay": 0.1}, {"maximize": True},
        {"foreach": True}, {"fused": True},
    ),
    torch.optim.AdamW: ({}, {"weight_decay": 0.9}, {"amsgrad": True, "maximize": True}),
    torch.optim.RMSprop: ({}, {"centered": True, "momentum": 0.1}, {"maximize": True}),
    torch.optim.Adagrad: (
        {}, {"initial_accumulator_value": 0.1, "lr_decay": 0.5, "weight_decay": 0.1},
        {"maximize": True},
    ),
    torch.optim.NAdam: (
        {}, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"maximize": True},
    ),
    torch.optim.LBFGS: ({}, {"lr": torch.tensor(0.5)}, {"line_search_fn": "strong_wolfe"}),
}  # fmt: skip


def name_of(kind: Any) -> str:
    return str(getattr(kind, "func", kind).__name__)


SUBJECTS = [
    *(
        Subject(f"{name} on a {form}", partial(make, name), LEARNED)
        for name in list_pretrained()
        for form, make in FORMS.items()
    ),
    *(
        Subject(f"teleports of {name_of(kind)}", partial(around, partial(of_torch, kind)), own)
        for kind, own in BASES.items()
    ),
    *(
        Subject(f"teleports of {name} on a {form}", partial(around, partial(FORMS[form], name)),
                LEARNED)
        for name, form in (("lstm_layerwise", "list"), ("lstm_update_tele", "module"))
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Exempt:
    """What is excepted from a check, and why.

    Attributes:
        check: the name of the check, as in torch's ``test/test_optim.py`` where it is one of those.
        reason: why, in words.
        subjects: parts of the labels of those that are excepted; all, if it is empty.
        raises: the error with which it is refused, which is checked; None if it is not run.
    """

    check: str
    reason: str
    subjects: tuple[str, ...] = ()
    raises: type[Exception] | tuple[type[Exception], ...] | None = None

    def holds(self, subject: Subject) -> bool:
        return not self.subjects or any(part in subject.label for part in self.subjects)

    @property
    def mark(self) -> pytest.MarkDecorator:
        if self.raises is None:
            return pytest.mark.skip(reason=self.reason)
        return pytest.mark.xfail(reason=self.reason, raises=self.raises, strict=True)


ONE_LOOP = "there is one form of a step, and no option foreach, fused, capturable or differentiable"
TWO_DEVICES = "parameters of one optimizer that lie on several devices are refused"
A_MODULE = "a module is one group; groups are given as parameters, or added to it"
LBFGS = ("LBFGS",)
MODULE = ("on a module",)
OF_LAYERS = tuple(f"{name} on a module" for name in list_pretrained() if "layerwise" not in name)
EXEMPT = (
    Exempt("test_optim_infos_do_not_specify_global_cliquey_kwargs", "it checks torch's own table"),
    Exempt("test_forloop_goes_right_direction_multigpu", TWO_DEVICES),
    Exempt("test_mixed_device_dtype", f"{TWO_DEVICES}; test_mixed_dtype mixes dtypes"),
    Exempt("test_foreach_matches_forloop", ONE_LOOP),
    Exempt("test_foreach_large_tensor", ONE_LOOP),
    Exempt("test_fused_matches_forloop", ONE_LOOP),
    Exempt("test_fused_error_on_params_on_meta", ONE_LOOP),
    Exempt("test_fused_large_tensor", ONE_LOOP),
    Exempt("test_fused_cpu_matches_cuda", ONE_LOOP),
    Exempt("test_cpu_load_state_dict", ONE_LOOP),
    Exempt("test_defaults_changed_to_foreach", ONE_LOOP),
    Exempt(
        "test_rosenbrock_sparse", "a learned rule looks at whole tensors, and refuses sparse "
        "gradients", ("lstm",), UserError,
    ),
    Exempt(
        "test_rosenbrock_sparse", "the base takes no sparse gradients",
        ("Adam", "AdamW", "RMSprop", "NAdam"), RuntimeError,
    ),
    Exempt(
        "test_complex", "an m1 that looks at the layers of a module takes real parameters",
        OF_LAYERS, UserError,
    ),
    Exempt(
        "test_complex_2d", "a learned rule looks at the norm of a tensor, so half of one is not "
        "stepped as in the whole", ("lstm",),
    ),
    Exempt(
        "test_step_is_noop_for_zero_grads", "f of lstm_update is the output of its LSTM, which is "
        "not 0 where the gradient is", ("lstm_update on",), AssertionError,
    ),
    Exempt(
        "test_step_is_noop_for_zero_grads", "the weight decay of AdamW is not 0 by default",
        ("AdamW",), AssertionError,
    ),
    Exempt("test_param_groups_weight_decay", A_MODULE, MODULE, TypeError),
    Exempt("test_param_groups_weight_decay", "the base takes no weight decay", LBFGS, TypeError),
    Exempt("test_param_groups_lr", A_MODULE, MODULE, TypeError),
    Exempt("test_param_groups_lr", "the base takes no groups", LBFGS, ValueError),
    Exempt(
        "test_groups_may_be_added_and_duplicates_are_warned_of", "the base takes no groups", LBFGS,
    ),
    Exempt(
        "test_can_load_from_to_named_state_dict", "the parameters of a module are not given by "
        "name", MODULE, TypeError,
    ),
    Exempt(
        "test_distributed_checkpoints_give_back_what_they_took", "torch takes a step without a "
        "closure to set up a state, which the base cannot", LBFGS, (TypeError, NotImplementedError),
    ),
    Exempt(
        "test_fused_does_not_step_if_foundinf", "GradScaler tells a wrapper no scale, so a learned "
        "base does not know the size of the loss, and makes other steps",
        ("teleports of lstm_update_tele on a module",),
    ),
    Exempt(
        "test_fused_does_not_step_if_foundinf", "torch's GradScaler passes on no closure, which "
        "the base needs", LBFGS, TypeError,
    ),
    Exempt(
        "test_float16_goes_in_the_right_direction_and_stays", "the base itself gives NaN in "
        "float16", ("Adam", "AdamW", "NAdam", "LBFGS"),
    ),
    Exempt(
        "test_deepcopy_copies_all_public_attrs", "a copy of torch's LBFGS lacks an attribute",
        LBFGS, AttributeError,
    ),
    Exempt(
        "test_a_pickle_goes_on_alike_and_has_no_hooks", "a copy of torch's LBFGS lacks an "
        "attribute", LBFGS, AttributeError,
    ),
)  # fmt: skip


def conforming(check: Callable[..., None]) -> Callable[..., None]:
    """Run a check on every optimizer, but for the exceptions of its name."""
    own = [exempt for exempt in EXEMPT if exempt.check == check.__name__]
    cases = [
        pytest.param(
            subject, id=subject.label, marks=[own.mark for own in own if own.holds(subject)]
        )
        for subject in SUBJECTS
    ]
    return pytest.mark.parametrize("subject", cases)(check)


def network(dtype: torch.dtype = torch.float32, contiguous: bool = True) -> nn.Sequential:
    """5 -> 4 -> 2, with one place to rescale; its weights depend on no default dtype."""
    torch.manual_seed(0)
    first, last = (nn.Linear(*sizes, dtype=torch.float32) for sizes in ((5, 4), (4, 2)))
    model = nn.Sequential(first, nn.LeakyReLU(0.1), last).to(dtype)
    if not contiguous:
        for own in model.parameters():
            own.data = torch.stack([own.data] * 2, dim=-1)[..., 0]
    return model


@cache
def batch(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = (torch.randn(6, n, generator=generator, dtype=torch.float32) for n in (5, 2))
    return [values.to(dtype) for values in drawn]


def backward(optimizer: torch.optim.Optimizer, model: nn.Sequential) -> Tensor:
    """Compute the loss on one batch, and its gradients."""
    x, y = batch(model[0].weight.dtype)
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), y)
    loss.backward()
    return loss.detach()


def advance(
    subject: Subject, optimizer: torch.optim.Optimizer, model: nn.Module, steps: int = 1
) -> list[float]:
    """Take steps as a user would; the losses before each."""
    losses = []
    for _ in range(steps):
        if subject.teleports:
            loss = optimizer.step(partial(backward, optimizer, model))
        else:
            loss = backward(optimizer, model)
            optimizer.step()
        losses.append(float(loss))
    return losses


def built(
    subject: Subject, steps: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[torch.optim.Optimizer, nn.Module]:
    """An optimizer and its network, after some steps."""
    model = network(dtype)
    optimizer = subject.build(model, **copy.deepcopy(options))
    advance(subject, optimizer, model, steps)
    return optimizer, model


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]
