"""Components and methods of others: one file each, outside the package, named by ``--import``."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metaopt import LearnedOptimizer, UserError
from metaopt.cli import evaluate, sweep, train
from metaopt.cli.common import guarded
from metaopt.evaluation.methods import BASELINES
from metaopt.learned.checkpoint import read_checkpoint
from metaopt.learned.element import ELEMENT_RULES
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.learned.update import UPDATE_RULES
from metaopt.symmetry import ACTIONS
from metaopt.tasks import RegressionFamily
from metaopt.training.distributions import TASK_DISTRIBUTIONS
from metaopt.training.estimators import ESTIMATORS
from metaopt.training.meta_loss import META_LOSSES

torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another

ROOT = Path(__file__).parents[1]
TABLES = (
    UPDATE_RULES, ELEMENT_RULES, TASK_DISTRIBUTIONS, ESTIMATORS, META_LOSSES, BASELINES, ACTIONS,
)  # fmt: skip
TRAIN = [
    "--trajectories", "4", "--batch_size", "1", "--steps", "4", "--window", "2", "--hidden", "3",
    "--widths", "[4]", "--depths", "[2]", "--validation_at", "[2]", "--validation_problems", "1",
    "--validation_every", "2", "--validation_families", "[]", "--out", "run",
]  # fmt: skip
EVALUATE = [
    "--problems", "2", "--steps", "3", "--samples", "3", "--input", "4", "--hidden", "3",
    "--output", "2", "--out", "out",
]  # fmt: skip
SWEEP = ["--import", "mine", "--methods", "sign_sgd", "--problems", "1", "--steps", "1"]

UPDATE_RULE = '''
from dataclasses import dataclass

import torch
from torch import nn

from metaopt.checks import check_positive
from metaopt.learned.update import UPDATE_RULES, UpdateConfig, UpdateRule


class SignUpdate(UpdateRule):
    def __init__(self, rate):
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(rate).log())

    def init_state(self, chain, parameters):
        return []

    def propose(self, seen, state):
        return [-self.log_rate.exp() * gradient.sign() for gradient in seen.gradients], state


@UPDATE_RULES.register("sign")
@dataclass(frozen=True)
class SignConfig(UpdateConfig):
    """The sign of the gradient, with one learned rate.

    Attributes:
        sign_rate: the rate before training.
    """

    sign_rate: float = 0.01

    def __post_init__(self):
        check_positive("sign_rate", self.sign_rate, type(self).sign_rate)

    def build(self, generator):
        return SignUpdate(self.sign_rate)
'''

ESTIMATOR = '''
from dataclasses import dataclass

import torch

from metaopt.training.estimators import ESTIMATORS, Estimator
from metaopt.training.unroll import unroll


@ESTIMATORS.register("noisy")
@dataclass(frozen=True)
class Noisy(Estimator):
    """Backpropagation, with noise on the meta-gradient.

    Attributes:
        noise: its standard deviation.
    """

    noise: float = 0.1

    def windows(self, problem, optimizer, steps, window, meta_loss, generator):
        for seen in unroll(problem, optimizer, steps, window, meta_loss):
            noisy = [g + self.noise * torch.randn(g.shape, generator=generator)
                     for g in seen.gradients]
            yield seen._replace(gradients=noisy)
'''

METHOD = """
import torch

from metaopt.evaluation.methods import register_method


class SignSGD(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad.sign()


register_method("sign_sgd", lambda task, rate: SignSGD(task.parameters(), rate), rate=1e-3)
"""

TASKS = '''
from dataclasses import dataclass

from metaopt.symmetry import ACTIONS
from metaopt.tasks import RegressionFamily
from metaopt.training.distributions import (
    TASK_DISTRIBUTIONS, Drawn, TaskDistribution, draw_seeds
)


@TASK_DISTRIBUTIONS.register("one_size")
@dataclass(frozen=True)
class OneSize(TaskDistribution):
    """Square problems of one width."""

    one_width: int = 4

    def draw(self, batch_size, generator):
        return Drawn(RegressionFamily.square(self.one_width), draw_seeds(batch_size, generator))

    def validation(self, count):
        return [(RegressionFamily.square(self.one_width), count)]
'''

META_LOSS = '''
from dataclasses import dataclass

from metaopt.training.meta_loss import META_LOSSES, MetaLoss


@META_LOSSES.register("root")
@dataclass(frozen=True)
class Root(MetaLoss):
    """The mean of a power of the losses."""

    power: float = 0.5

    def __call__(self, losses):
        return (losses**self.power).mean()
'''

ELEMENT_RULE = '''
from dataclasses import dataclass

import torch
from torch import nn

from metaopt.learned.element import ELEMENT_RULES, ElementConfig, ElementRule
from metaopt.symmetry.element import Element


class Stretch(ElementRule):
    """One learned multiple of the identity at every site."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.01))

    def init_state(self, chain, parameters):
        return []

    def propose(self, seen, state):
        widths = [seen.layers[site.incoming].weight.shape[:-1] for site in seen.chain.pairs]
        return [Element(self.size * torch.eye(w[-1]).expand(*w, w[-1])) for w in widths], state


@ELEMENT_RULES.register("one_scale")
@dataclass(frozen=True)
class StretchConfig(ElementConfig):
    """One learned scale of all hidden units."""

    def build(self, action, generator):
        return Stretch()
'''

ACTION = '''
import torch

from metaopt.symmetry import ACTIONS, ClosedFormAction, Proposal


@ACTIONS.register("nearly")
class Nearly(ClosedFormAction):
    """g on one side and g^-1 on the other, whatever lies between: exact for the identity."""

    group = "GL"
    exact_when = "nothing lies between the two layers"

    def max_samples(self, site):
        return 0

    def obstacle(self, site):
        return None  # it may act anywhere: what changes the output too much is rejected

    def propose(self, element, matrices):
        g = self.exponential(element)
        incoming = [g.times(matrix) for matrix in matrices.incoming]
        outgoing = [matrices.after(g, view) for view in range(len(matrices.outgoing))]
        return Proposal(incoming, outgoing, torch.ones_like(matrices.trusted))
'''


@pytest.fixture(autouse=True)
def _as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own; what a test registers does not stay."""
    kept, modules, path = [dict(table) for table in TABLES], set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield
    for table, entries in zip(TABLES, kept, strict=True):
        table.clear()
        table.update(entries)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("mine"):
            del sys.modules[name]
    importlib.invalidate_caches()


def write(text: str, name: str = "mine") -> None:
    """A module of a user's in the current folder."""
    Path(f"{name}.py").write_text(text)
    importlib.invalidate_caches()


def forget() -> None:
    """As in a new process that imports nothing: its names are unknown again."""
    for table in TABLES:
        for name in [k for k in table if k in ("sign", "noisy", "sign_sgd", "one_size", "root")]:
            del table[name]
    sys.modules.pop("mine", None)


def call(command: ModuleType, *arguments: str) -> int:
    defaults = {train: TRAIN, evaluate: EVALUATE}.get(command, [])
    return guarded(lambda _: command.main([*defaults, *arguments]))()


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail, and gives its one line."""

    def run(command: ModuleType, *arguments: str) -> str:
        capsys.readouterr()
        assert call(command, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert len(line) < 300
        return line

    return run


COMPONENTS = {
    "update rule": (UPDATE_RULE, "update", "sign", "sign_rate", 0.02, ["--element", "none"]),
    "element rule": (ELEMENT_RULE, "element", "one_scale", None, None, []),
    "action": (ACTION, "action", "nearly", None, None, []),
    "estimator": (ESTIMATOR, "estimator", "noisy", "noise", 0.3, []),
    "meta-loss": (META_LOSS, "meta_loss", "root", "power", 0.25, []),
    "task distribution": (TASKS, "problems", "one_size", "one_width", 5, []),
}


@pytest.mark.parametrize("what", COMPONENTS)
def test_a_component_of_a_users_file_is_trained_with_from_the_command_line(what, complaint):
    text, kind, name, field, value, others = COMPONENTS[what]
    write(text)
    own = [f"--{kind}", name, *others] + ([f"--{field}", str(value)] if field else [])
    assert call(train, "--import", "mine", *own) == 0
    facts = read_checkpoint("run/best.safetensors").facts
    written = facts["spec"] | facts["training"]
    assert written[kind] == name
    assert field is None or written[field] == value
    assert call(evaluate, "--import", "mine", "--methods", "run/best.safetensors") == 0
    for table in TABLES:
        table.pop(name, None)
    line = complaint(train, f"--{kind}", name, *others, "--overwrite")
    assert repr(name) in line
    assert "--import" in line


def test_a_run_with_an_extension_resumes_to_the_same_bytes_and_not_without_it(complaint):
    write(UPDATE_RULE)
    own = ["--import", "mine", "--update", "sign", "--element", "none"]
    assert call(train, *own, "--out", "whole") == 0
    part = [*own, "--trajectories", "4"]
    assert call(train, *part) == 0
    before = Path("run/last.safetensors").read_bytes()
    assert before == Path("whole/last.safetensors").read_bytes()
    Path("run/last.safetensors").write_bytes(Path("run/previous.safetensors").read_bytes())
    assert call(train, *part, "--resume") == 0
    assert Path("run/last.safetensors").read_bytes() == before
    assert "sign_rate" in complaint(train, *part, "--resume", "--sign_rate", "0.5")


def test_a_checkpoint_whose_extension_is_missing_says_which(complaint):
    write(UPDATE_RULE)
    assert call(train, "--import", "mine", "--update", "sign", "--element", "none") == 0
    forget()
    line = complaint(evaluate, "--methods", "run/best.safetensors")
    assert "'sign'" in line
    assert "--import" in line
    assert "run/best.safetensors" in line
    task = RegressionFamily.square(4).sample([0])
    with pytest.raises(UserError, match="'sign'"):
        LearnedOptimizer(task, "run/best.safetensors")
    importlib.import_module("mine")
    LearnedOptimizer(task, "run/best.safetensors")


def test_a_component_that_is_not_chosen_leaves_no_trace(capsys):
    assert call(train, "--out", "plain") == 0
    write(UPDATE_RULE + ESTIMATOR)
    assert call(train, "--import", "mine", "--sign_rate", "0.5") == 0
    for name in ("best", "last"):
        plain, own = (Path(f, f"{name}.safetensors").read_bytes() for f in ("plain", "run"))
        assert plain == own
    assert "sign_rate" not in MetaOptimizerSpec().as_dict()


def test_a_method_of_a_users_file_is_evaluated_and_its_rate_swept(complaint, capsys):
    write(METHOD)
    assert call(evaluate, "--import", "mine", "--methods", "sign_sgd,sign_sgd@0.1,gd") == 0
    printed = capsys.readouterr().out
    assert "sign_sgd@0.1" in printed
    found = BASELINES["sign_sgd"]
    assert (found.rate, found.learned) == (1e-3, False)
    assert call(sweep, *SWEEP) == 0
    assert '"sign_sgd"' in capsys.readouterr().out
    forget()
    line = complaint(evaluate, "--methods", "gd,sign_sgd", "--overwrite")
    assert "'sign_sgd'" in line


@pytest.mark.parametrize("listed", ["mine", "[mine, mine_too]", "\n- mine\n- mine_too"])
def test_a_config_file_lists_extensions(listed):
    write(UPDATE_RULE)
    write(ESTIMATOR, "mine_too")
    Path("config.yaml").write_text(f"import: {listed}\nupdate: sign\nelement: none\nsign_rate: 1\n")
    assert call(train, "--config", "config.yaml") == 0
    assert read_checkpoint("run/best.safetensors").facts["spec"]["sign_rate"] == 1.0
    assert ("noisy" in ESTIMATORS) == ("mine_too" in listed)


def test_help_lists_the_methods_and_the_flags_of_extensions(capsys):
    write(UPDATE_RULE + ESTIMATOR + METHOD + ACTION)
    for command, shown in (
        (
            train,
            ("--sign_rate", "the rate before training", "sign.", "noisy", "nearly", "--import"),
        ),
        (evaluate, ("sign_sgd", "--import")),
    ):
        with pytest.raises(SystemExit) as end:
            call(command, "--import=mine", "--help")
        assert end.value.code == 0
        printed = " ".join(capsys.readouterr().out.split())
        for text in shown:
            assert text in printed


BROKEN = {
    "missing": (None, "ModuleNotFoundError"),
    "wrong": ("def f(:", "SyntaxError"),
    "raises": ("raise RuntimeError('out of\\norder')", "out of order"),
    "exits": ("raise SystemExit(3)", "SystemExit"),
    "taken": (UPDATE_RULE.replace('"sign"', '"flat"'), "'flat'"),
    "taken method": (METHOD.replace("sign_sgd", "gd"), "'gd'"),
    "taken by a learned one": (METHOD.replace("sign_sgd", "lstm_update"), "'lstm_update'"),
    "no name": (METHOD.replace("sign_sgd", "a,b"), "'a,b'"),
    "a flag of another": (UPDATE_RULE.replace("sign_rate", "out"), "'out'"),
    "another default": (UPDATE_RULE.replace("sign_rate: float = 0.01", "hidden: int = 5"), "5"),
    "no default": (ESTIMATOR.replace("noise: float = 0.1", "noise: float"), "noise"),
    "another type": (UPDATE_RULE.replace("sign_rate: float = 0.01", "bound: int = 1"), "'bound'"),
    "not frozen": (ESTIMATOR.replace("(frozen=True)", ""), "Noisy"),
    "nothing": ("from metaopt.symmetry import ACTIONS\nACTIONS.add('bad', None)", "'bad'"),
    "in the place of another": (
        "from metaopt.evaluation import BASELINES\nBASELINES['gd'] = BASELINES['adam']", "'gd'"
    ),
    "no rate": (METHOD.replace("rate=1e-3", "rate=float('nan')"), "nan"),
    "a negative rate": (METHOD.replace("rate=1e-3", "rate=-1"), "-1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_extension_is_one_line(case, complaint):
    text, named = BROKEN[case]
    if text is not None:
        write(text)
    assert named in complaint(train, "--import", "mine")
    assert not Path("run").exists()


RAISES = "raise RuntimeError('out of order')"
POST_INIT = f"\n\n    def __post_init__(self):\n        {RAISES}"
MISTAKES = {
    "update rule": ("return SignUpdate(self.sign_rate)", (RAISES, "return None")),
    "element rule": ("return Stretch()", (RAISES, "return None")),
    "action": (
        '@ACTIONS.register("nearly")',
        (
            f"@ACTIONS.register('nearly')\ndef raises():\n    {RAISES}\n",
            "@ACTIONS.register('nearly')\ndef nothing():\n    return None\n",
        ),
    ),
    "estimator": ("noise: float = 0.1", (f"noise: float = 0.1{POST_INIT}",)),
    "meta-loss": ("power: float = 0.5", (f"power: float = 0.5{POST_INIT}",)),
    "task distribution": ("one_width: int = 4", (f"one_width: int = 4{POST_INIT}",)),
}


@pytest.mark.parametrize(
    ("what", "mistake"), [(what, new) for what, (_, all_) in MISTAKES.items() for new in all_]
)
def test_a_component_that_cannot_be_built_is_named_in_a_line(what, mistake, complaint):
    text, kind, name, _, _, others = COMPONENTS[what]
    write(text.replace(MISTAKES[what][0], mistake))
    said = complaint(train, "--import", "mine", f"--{kind}", name, *others)
    assert repr(name) in said
    assert ("out of order" if RAISES in mistake else "got None") in said


IN_TRAINING = [
    ("meta-loss", "return (losses**self.power).mean()", mistake, said)
    for mistake, said in (
        (RAISES, "got RuntimeError: out of order"),
        ("return None", "to be a Tensor, got None"),
        ("return losses.mean(dim=0)", "to be a scalar, got torch.float64 of shape ("),
        ("return losses.argmax()", "to be a scalar, got torch.int64"),
        ("return losses.mean().detach()", "got a constant"),
    )
]
IN_TRAINING += [
    ("estimator", "yield seen._replace(gradients=noisy)", mistake, said)
    for mistake, said in (
        (RAISES, "got RuntimeError: out of order"),
        ("yield None", "to be a Window, got None"),
        ("yield seen._replace(gradients=noisy[1:])", "a list of gradients of the shapes"),
        ("yield seen._replace(gradients=None)", "a list of gradients of the shapes"),
        ("yield seen._replace(losses=seen.losses[0])", "losses (K, B), got the shapes (), () and"),
        ("yield seen._replace(meta_loss=1.0)", "got the shapes None, () and"),
        ("return; yield", "to be a Window, got None"),
        ("return None", "to be a Iterator, got None"),
    )
]
DRAW = "return Drawn(RegressionFamily.square(self.one_width), draw_seeds(batch_size, generator))"
IN_TRAINING += [
    ("task distribution", DRAW, mistake, said)
    for mistake, said in (
        (RAISES, "got RuntimeError: out of order"),
        ("return None", "to be a Drawn, got None"),
        ("return Drawn(None, [10**7])", "to have a task family, got None"),
        ("return Drawn(RegressionFamily.square(4), [])", "to have a list of seeds, got []"),
        ("return Drawn(RegressionFamily.square(4), [0.5])", "to have a list of seeds, got [0.5]"),
    )
]
VALIDATION = "return [(RegressionFamily.square(self.one_width), count)]"
IN_TRAINING += [
    ("task distribution", VALIDATION, mistake, said)
    for mistake, said in (
        (RAISES, "got RuntimeError: out of order"),
        ("return None", "to be a list, got None"),
        ("return []", "to be pairs of a task family and a number of tasks, got None"),
        ("return [RegressionFamily.square(4)]", "to be pairs of a task family and a number"),
        ("return [(None, count)]", "to have a task family, got None"),
    )
]
SAMPLERS = """class Own:
    coordinates = 32

    def sample(self, seeds):
        {}


@TASK_DISTRIBUTIONS.register("one_size")"""
IN_TRAINING += [
    (
        "task distribution",
        '@TASK_DISTRIBUTIONS.register("one_size")',
        SAMPLERS.format(mistake),
        said,
    )
    for mistake, said in (
        (RAISES, "tasks of problems='one_size', got RuntimeError: out of order"),
        ("return None", "tasks of problems='one_size' to be a TaskBatch, got None"),
    )
]


@pytest.mark.parametrize(
    ("what", "place", "mistake", "expected"),
    IN_TRAINING,
    ids=[f"{what}-{number}" for number, (what, *_) in enumerate(IN_TRAINING)],
)
def test_a_mistake_of_a_component_in_training_is_one_line(what, place, mistake, expected, capsys):
    text, kind, name, *_ = COMPONENTS[what]
    assert place in text
    text = text.replace(place, mistake)
    if "class Own" in mistake:
        text = text.replace("RegressionFamily.square(self.one_width)", "Own()")
    write(text)
    assert call(train, "--import", "mine", f"--{kind}", name) == 2
    printed = capsys.readouterr().err
    said = printed.splitlines()[-1]  # below those of the training until then
    assert "Traceback" not in printed
    assert said.startswith("error: ")
    assert len(said) < 300
    assert f"{name!r}" in said
    assert expected in said


@pytest.mark.parametrize("mistake", [RAISES, "return None"])
def test_a_method_that_cannot_be_built_is_named_in_a_line(mistake, capsys):
    builds = "lambda task, rate: SignSGD(task.parameters(), rate)"
    own = f"def build(task, rate):\n    {mistake}\n\n\nregister_method("
    write(METHOD.replace("register_method(", own).replace(builds, "build"))
    assert call(evaluate, "--import", "mine", "--methods", "sign_sgd") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the method 'sign_sgd'" in line
    assert ("out of order" if mistake == RAISES else "got None") in line


def test_an_action_without_the_option_that_is_asked_for_is_one_line(complaint):
    write(ACTION)
    line = complaint(train, "--import", "mine", "--action", "nearly", "--damping", "0.1")
    assert "'nearly'" in line


def test_a_field_that_its_component_refuses_is_one_line(complaint):
    write(UPDATE_RULE)
    line = complaint(train, "--import", "mine", "--update", "sign", "--sign_rate", "-1")
    assert "sign_rate" in line


def script(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def test_an_installed_package_is_found_by_its_entry_point(tmp_path):
    site = tmp_path / "site"
    facts = site / "mine-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[metaopt.extensions]\nmine = mine\n")
    (site / "mine.py").write_text(METHOD)
    run = script(str(ROOT / "eval_meta.py"), "--methods", "sign_sgd", *EVALUATE, path=site)
    assert run.returncode == 0, run.stderr
    (site / "mine.py").write_text("import nowhere")
    run = script(str(ROOT / "eval_meta.py"), "--methods", "gd", *EVALUATE, path=site)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert "'mine'" in line


def test_processes_of_torchrun_import_it_too(tmp_path):
    write(ESTIMATOR)
    own = ["--import", "mine", "--estimator", "noisy", "--batch_size", "2", "--micro_batch", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = script(*torchrun, str(ROOT / "train_meta.py"), *TRAIN, *own, path=tmp_path)
    assert run.returncode == 0, run.stderr
    assert call(train, *own, "--out", "alone") == 0
    assert Path("run/best.safetensors").read_bytes() == Path("alone/best.safetensors").read_bytes()
