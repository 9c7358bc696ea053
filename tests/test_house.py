"""The rules of the house: who imports whom, how long files are, and documentation that runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metaopt.cli import evaluate, train
from metaopt.evaluation.methods import HAND_MADE
from metaopt.symmetry import GroupAction, LayerInput
from metaopt.symmetry.chain import Identity, Layer

torch.set_num_threads(1)  # the tensors are tiny; more threads only wait for one another

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "metaopt"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]

FOLDERS = (
    "errors",
    "randomness",
    "storage",
    "ranks",
    "launch",
    "chain",
    "data",
    "problems",
    "geometry",
    "symmetry",
    "network",
    "measures",
    "learned",
    "optim",
    "evaluation",
    "training",
    "cli",
    "experiments",
)
"""From low to high: each imports only from itself and from lower ones."""

COMMANDS = {"train_meta.py": train, "eval_meta.py": evaluate}
MACHINE = ("/" + "work/", "/opt/" + "venv", "/" + "root/", "/" + "home/")
NOT_OURS = {"build", "dist", "runs", "__pycache__"}  # .gitignore's; names with a dot are skipped


def folder(path: Path) -> str:
    """The folder, or the module beside the folders, that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            if module == "metaopt":  # what it names are the folders
                yield from (f"metaopt.{alias.name}" for alias in node.names)
            else:
                yield module


def importers(package: str) -> list[Path]:
    return [p for p in SOURCES if any(m.split(".")[0] == package for m in imported(p))]


def files() -> Iterator[Path]:
    """All files of the repository that are ours."""
    for place, folders, names in os.walk(ROOT):
        folders[:] = [
            f
            for f in folders
            if f not in NOT_OURS and not f.endswith(".egg-info") and (f == ".ci" or f[0] != ".")
        ]
        yield from (Path(place, name) for name in names if name != ".git")


def blocks(language: str, path: Path) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, list[str]]]:
    """(script, arguments) of each call of our scripts in README.md's shell blocks."""
    found = []
    for block in blocks("bash", ROOT / "README.md"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            called = COMMANDS.keys() & set(words)
            found += [(script, words[words.index(script) + 1 :]) for script in called]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_folder_imports_only_from_itself_and_lower_ones(path: Path) -> None:
    if path == PACKAGE / "__init__.py":  # it shows what all folders offer
        return
    assert folder(path) in FOLDERS
    rank = FOLDERS.index(folder(path))
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "metaopt":
            assert len(parts) > 1, "import the folder, not the whole package"
            assert FOLDERS.index(parts[1]) <= rank, f"{folder(path)} imports {module}"


@pytest.mark.parametrize("lower", ["learned", "optim"])
def test_optimizers_know_nothing_of_evaluation(lower: str) -> None:
    paths = [path for path in SOURCES if folder(path) == lower]
    assert paths
    for path in paths:
        assert not [m for m in imported(path) if m.startswith("metaopt.evaluation")]


def test_only_the_command_lines_know_config_files() -> None:
    found = importers("jsonargparse")
    assert found
    assert {folder(path) for path in found} == {"cli"}
    assert {folder(path) for path in importers("yaml")} <= {"cli"}


def test_higher_is_imported_in_one_module() -> None:
    assert len(importers("higher")) == 1


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_a_source_file_has_fewer_than_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 300


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    bare = [getattr(node, "name", "module") for node in [tree, *public]
            if not ast.get_docstring(node)]  # fmt: skip
    assert not bare


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    assert doctest.testmod(module).failed == 0


def test_no_file_names_a_place_on_the_machine_it_was_written_on() -> None:
    seen = list(files())
    assert {ROOT / "setup.cfg", Path(__file__), *SOURCES} <= set(seen)
    named = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in seen
        for place in MACHINE
        if place.encode() in path.read_bytes()
    ]
    assert not named


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = blocks("python", ROOT / "README.md")
    assert sources
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "readme"}
    for source in sources:
        exec(compile(source, "README.md", "exec"), namespace)


def test_the_commands_of_the_readme_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = commands()
    assert {script for script, _ in found} == set(COMMANDS)
    for script, arguments in found:
        if "--help" not in arguments:
            COMMANDS[script].build_parser().parse_args(arguments)


def test_the_methods_that_the_readme_evaluates_exist() -> None:
    for script, arguments in commands():
        if script == "eval_meta.py" and "--methods" in arguments:
            for text in arguments[arguments.index("--methods") + 1].split(","):
                if not text.endswith(".safetensors"):
                    evaluate.resolve(text)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_a_shipped_config_parses_and_makes_a_valid_run(config: Path) -> None:
    module = evaluate if re.search(r"^methods:", config.read_text(), re.MULTILINE) else train
    values = module.build_parser().parse_args(["--config", str(config)])
    if module is evaluate:
        assert [evaluate.resolve(name) for name in values.methods.split(",")]
    else:
        train.take(train.TrainingSpec, values)
        train.take(train.MetaOptimizerSpec, values)


@pytest.mark.parametrize("name", HAND_MADE)
def test_the_results_mention_each_method(name: str) -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_the_example_of_a_new_action_acts() -> None:
    (block,) = blocks("python", ROOT / "docs" / "extending.md")
    namespace: dict[str, object] = {}
    exec(compile(block, "docs/extending.md", "exec"), namespace)
    (action,) = (
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, GroupAction) and value is not GroupAction
    )
    incoming, outgoing = (Layer(torch.rand(3, 3).double()) for _ in range(2))
    move = action().act(
        0.1 * torch.rand(3, 3).double(),
        incoming,
        outgoing,
        LayerInput(torch.rand(3, 2).double()),
        Identity(),
    )
    assert not move.refused
    assert move.defect < 1e-12
    assert not torch.equal(move.incoming.weight, incoming.weight)
    pair = (incoming, outgoing, LayerInput(torch.rand(3, 2).double()), Identity())
    pulled = action().pull_back((incoming, outgoing), *pair)
    expected = incoming.weight @ incoming.weight.mT - outgoing.weight.mT @ outgoing.weight
    torch.testing.assert_close(pulled, expected)
