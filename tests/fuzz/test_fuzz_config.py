"""Config files and command lines: one line of complaint, or success."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from fuzz_cases import TEXTS, call, fuzzed, mutated, scalars, snapshot, values
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt.cli import evaluate, sweep, train
from metaopt.learned.spec import MetaOptimizerSpec
from metaopt.registry import Settings, defaults
from metaopt.tasks import RegressionFamily
from metaopt.training.spec import TrainingSpec

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
TINY = {
    evaluate: "--methods gd --problems 1 --steps 1 --samples 2 --input 2 --hidden 2 --output 2",
    train: "--trajectories 1 --batch_size 1 --steps 2 --window 1 --widths [2] --depths [2] "
    "--validation_at [1] --validation_problems 1 --validation_every 1 --validation_families [] "
    "--hidden 2 --layers 1 --heads [free] --pes_pairs 1",
    sweep: "--methods gd --problems 1 --steps 1",
}
LONG = {
    "steps", "trajectories", "batch_size", "window", "pes_pairs", "max_skips", "validation_every",
    "validation_at",
}  # fmt: skip
"""Counts whose large values are work that somebody asked for."""


def of_spec(spec: type[Any]) -> dict[str, Any]:
    """The fields of a config with their defaults."""
    return spec.all_defaults() if issubclass(spec, Settings) else defaults(spec)


SPECS = {evaluate: (RegressionFamily,), train: (TrainingSpec, MetaOptimizerSpec)}
KEYS: dict[ModuleType, dict[str, Any]] = {
    module: {name: default for spec in specs for name, default in of_spec(spec).items()}
    for module, specs in SPECS.items()
}
KEYS[evaluate] |= {"methods": "", "seeds": "", "problems": 1, "steps": 1}
KEYS[evaluate] |= {"tensorboard": False, "redraw": False, "together": 0}
KEYS[train] |= {"resume": False}
for keys in KEYS.values():
    keys |= {
        "import": "",
        "threads": 1,
        "overwrite": False,
        "device": "cpu",
        "timeout": 45.0,
        "nonsense": 0,
    }

NAMES = (
    "regression", "minibatches", "half_squared", "norm", "float32", "float64", "truncated", "pes",
    "first_order", "log", "sum", "cosine", "constant", "uniform", "normal", "none", "flat",
    "coordinatewise", "spectral", "layerwise", "step_size", "flat_step_size", "whitening",
    "gradient_direction", "pre_activation", "post_activation", "rescaling", "exact", "free",
    "plain", "gradient", "covariance", "width_8", "gd", "adam@0.1", "muon", "lstm_update",
    "lstm_update_tele", "paper",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # drawing takes 0.2 s
    monkeypatch.setattr("metaopt.evaluation.figure.loss_figure", lambda results, title: b"")


def of_kind(default: Any) -> st.SearchStrategy[Any]:
    """Values that a field may well take."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(1, 3)
    if isinstance(default, float):
        return st.sampled_from((0.0, 1e-3, 0.5, 1, 2.0))
    if isinstance(default, tuple):
        return st.lists(of_kind(default[0]), max_size=3)
    return st.sampled_from(NAMES)


def hostile(key: str) -> st.SearchStrategy[Any]:
    return values.filter(lambda value: not (key in LONG and large(value)))


def large(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(large(v) for v in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and value > 3


@st.composite
def settings_of(draw: st.DrawFn, module: ModuleType) -> dict[str, Any]:
    """A few keys, most of them of the right kind, and at least one of any."""
    keys = KEYS[module]
    wild = draw(st.sampled_from(sorted(keys)))
    tame = draw(st.lists(st.sampled_from(sorted(keys)), max_size=3))
    chosen = {key: draw(of_kind(keys[key])) for key in tame}
    return {**chosen, wild: draw(hostile(wild))}


def run(module: ModuleType, *arguments: str) -> int:
    """With tiny sizes; later flags win. What another run left is not touched by one that fails."""
    before = snapshot(Path("kept")) if Path("kept").exists() else {}
    code = call(
        module.main,
        [*TINY[module].split(), *([] if module is sweep else ["--out", "out"]), *arguments],
        out=Path.cwd() / "out",
        git=module is evaluate,
    )
    torch.set_num_threads(1)
    assert before == (snapshot(Path("kept")) if before else {})
    return code


def in_file(module: ModuleType, content: bytes) -> int:
    """With a config file of that content."""
    Path("config.yaml").write_bytes(content)
    code = run(module, "--config", "config.yaml", "--overwrite")
    assert Path("config.yaml").read_bytes() == content
    return code


@pytest.mark.parametrize("module", [train, evaluate], ids=lambda m: m.__name__)
def test_a_tiny_run_succeeds(module: ModuleType) -> None:
    assert run(module) == 0
    assert any(Path("out").iterdir())


@fuzzed(40, 1200)
@given(settings_of(evaluate))
@example({"steps": None})
@example({"hidden": 10**19})
@example({"hidden": 2**62})
@example({"depth": 10**12})
@example({"problems": 10**18})
@example({"problems": 10**30})
@example({"threads": 2**31})
@example({"config": "a\0b"})
@example({"out": "a\0b"})
@example({"overwrite": None})
def test_keys_of_an_evaluation(chosen: dict[str, Any]) -> None:
    in_file(evaluate, yaml.safe_dump(chosen).encode())


@fuzzed(40, 1200)
@given(settings_of(train))
@example({"widths": None})
@example({"hidden": 2**62})
@example({"layers": 10**9})
@example({"depths": [10**12]})
@example({"widths": [10**30]})
@example({"flat_widths": [2**40, 2**40, 2**40], "update": "flat", "element": "none"})
@example({"validation_problems": 10**18})
@example({"out": "a\0b"})
@example({"seed": None})
def test_keys_of_a_training(chosen: dict[str, Any]) -> None:
    in_file(train, yaml.safe_dump(chosen).encode())


def as_flags(chosen: dict[str, Any]) -> list[str]:
    flags = []
    for key, value in chosen.items():
        flags += [f"--{key}", value if isinstance(value, str) else yaml.safe_dump(value).strip()]
    return flags


@fuzzed(40, 800)
@given(settings_of(evaluate), st.lists(st.sampled_from(TEXTS), max_size=1))
def test_flags_of_an_evaluation(chosen: dict[str, Any], stray: list[str]) -> None:
    run(evaluate, "--overwrite", *as_flags(chosen), *stray)


@fuzzed(40, 800)
@given(settings_of(train), st.lists(st.sampled_from(TEXTS), max_size=1))
def test_flags_of_a_training(chosen: dict[str, Any], stray: list[str]) -> None:
    run(train, "--overwrite", *as_flags(chosen), *stray)


@fuzzed(25, 400)
@given(
    st.dictionaries(st.sampled_from(("methods", "problems", "threads", "nonsense")), scalars)
    | st.fixed_dictionaries({"methods": st.lists(st.sampled_from(NAMES)).map(",".join)})
)
@example({"steps": 0})
@example({"methods": ","})
def test_flags_of_a_sweep(chosen: dict[str, Any]) -> None:
    run(sweep, *as_flags(chosen))


@fuzzed(40, 1000)
@given(st.data())
@pytest.mark.parametrize("module", [train, evaluate], ids=lambda m: m.__name__)
def test_a_damaged_config(module: ModuleType, data: st.DataObject) -> None:
    """One of ours, damaged; the sizes of the tiny run come after it and win."""
    whole = data.draw(st.sampled_from(CONFIGS)).read_bytes()
    Path("config.yaml").write_bytes(data.draw(mutated(whole) | st.binary(max_size=30)))
    run(module, "--config", "config.yaml", *TINY[module].split(), "--out", "out", "--overwrite")


NESTED = [
    f"{after}: &{after} [{', '.join(9 * [f'*{name}'])}]" for name, after in pairwise("abcdefghijk")
]
BOMB = "\n".join(["a: &a [x, x]", *NESTED])


@pytest.mark.parametrize("module", [train, evaluate], ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f"methods: *k\n{BOMB}",
        f"{BOMB}\nmethods: *k",
        f"{BOMB}\nwidths: *k",
        "[" * 10_000,
        "{a: " * 400 + "1" + "}" * 400,
        "methods: &a [*a]",
        "widths: &a {b: *a}",
        "config: config.yaml",
        "config: /dev/null",
        "steps: !!python/object/apply:os.system ['touch executed']",
        "steps: !!python/name:os.system",
        "steps: !!binary aGVsbG8=",
        "steps: 2001-01-01",
        "seed: 1:30:00",
        "? [a, b]\n: 1",
        "<<: {steps: 1}",
        "--- 1\n--- 2",
        "steps: 1\nsteps: x",
        "\ufeffsteps: 1",
        "print_config: true",
        "help: true",
    ],
)
def test_a_hostile_config(module: ModuleType, text: str) -> None:
    in_file(module, text.encode())
    assert {p.name for p in Path.cwd().iterdir()} <= {"config.yaml", "out"}
