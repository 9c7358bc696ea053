"""Files that would run code where they are unpickled are refused, and ours never unpickle."""

from __future__ import annotations

import ast
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metaopt import LearnedOptimizer, UserError, load_pretrained
from metaopt.evaluation.methods import resolve
from metaopt.learned.checkpoint import read_checkpoint
from studies.generalization.kept import kept

ROOT = Path(__file__).parents[1]
TRACE = "executed"


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (TRACE,)


def torch_file(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": Payload()}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def numpy_file(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    array = np.array([Payload()], dtype=object)
    np.savez(buffer, key=array) if compressed else np.save(buffer, array)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("../escaped", "x")
        file.writestr("data.pkl", pickle.dumps(Payload()))
    return buffer.getvalue()


FILES = {
    "pickle": pickle.dumps(Payload()),
    "old pickle": pickle.dumps(Payload(), protocol=0),
    "torch": torch_file(True),
    "old torch": torch_file(False),
    "npz": numpy_file(True),
    "npy": numpy_file(False),
    "zip": archive(),
}
READERS: dict[str, Callable[[str], object]] = {
    "read_checkpoint": read_checkpoint,
    "load_pretrained": load_pretrained,
    "resolve": resolve,
    "optimizer": lambda path: LearnedOptimizer(torch.nn.Linear(2, 1), path),
    "kept": lambda path: kept(Path(path), {}),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_payload_runs_where_it_is_unpickled() -> None:
    """Else the tests below would see nothing."""
    pickle.loads(FILES["pickle"])
    assert Path(TRACE).is_dir()


@pytest.mark.parametrize("ending", ["safetensors", "pt", "npz", "pkl"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", FILES)
def test_it_is_refused_in_one_line(kind: str, reader: str, ending: str) -> None:
    name = f"x.{ending}"
    Path(name).write_bytes(FILES[kind])
    with pytest.raises(UserError) as error:
        READERS[reader](name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert Path(name).read_bytes() == FILES[kind]
    assert [path.name for path in Path.cwd().iterdir()] == [name]


# The sources, as a syntax tree: what they call, and with which keywords.

FORBIDDEN = {
    "eval", "exec", "__import__", "os.system", "os.popen", "pickle.load",
    "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "dill.loads", "joblib.load",
    "cloudpickle.load", "cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all",
    "numpy.lib.format.read_array", "pandas.read_pickle",
}  # fmt: skip
PACKAGES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
SOURCES = sorted([*(ROOT / "metaopt").rglob("*.py"), *(ROOT / "scripts").rglob("*.py"),
                  *(ROOT / "studies").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"),
                  *ROOT.glob("*.py")])  # fmt: skip


def imported_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """``np.load`` as numpy.load; "" for what is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return ""


def unsafe(call: ast.Call, names: dict[str, str]) -> str:
    """Why a call may run what it reads; "" if it may not."""
    name = dotted(call.func, names).removeprefix("builtins.")
    keywords = {word.arg: word.value for word in call.keywords}

    def is_constant(key: str, value: object) -> bool:
        word = keywords.get(key)
        return isinstance(word, ast.Constant) and word.value is value

    if name in FORBIDDEN:
        return name
    if name == "torch.load" and not is_constant("weights_only", True):
        return "torch.load without weights_only=True"
    given = "allow_pickle" in keywords or len(call.args) > 2
    if name == "numpy.load" and given and not is_constant("allow_pickle", False):
        return "numpy.load with allow_pickle"
    if name == "yaml.load":
        loader = keywords.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or dotted(loader, names) not in SAFE_LOADERS:
            return "yaml.load without a safe loader"
    if "shell" in keywords and not is_constant("shell", False):
        return f"{name} with shell"
    if None in keywords and name in {"torch.load", "numpy.load", "yaml.load"}:
        return f"{name} with keywords that are not seen here"
    return ""


def complaints(source: str) -> list[str]:
    tree = ast.parse(source)
    names = imported_names(tree)
    found = [unsafe(node, names) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found += [full for full in names.values() if full.split(".")[0] in PACKAGES]
    return [why for why in found if why]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as innocent\ninnocent(b'')",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=maybe)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text)",
        "import yaml\nyaml.unsafe_load(text)",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "from os import system\nsystem('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import subprocess as s\ns.Popen('x', shell=maybe)",
    ],
)
def test_the_check_sees_it(source: str) -> None:
    assert complaints(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import torch\ntorch.load('x', weights_only=True)",
        "import numpy as np\nnp.load('x', allow_pickle=False)\nnp.load('x')",
        "import yaml\nyaml.load(text, Loader=yaml.CSafeLoader)\nyaml.safe_load(text)",
        "import subprocess\nsubprocess.run(['git'])",
    ],
)
def test_the_check_lets_it_pass(source: str) -> None:
    assert not complaints(source)


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_source_runs_what_it_reads(path: Path) -> None:
    assert not complaints(path.read_text())
