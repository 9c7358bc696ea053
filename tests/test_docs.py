"""The pages of the documentation: links, contents, code and commands, a reference without gaps."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest
import torch

import metaopt
from metaopt.cli import evaluate, train
from metaopt.evaluation.methods import BASELINES
from metaopt.symmetry import Action, Identity, LayerChain, LayerInput, chain_orbit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = [page for suffix in ("md", "ipynb") for page in sorted(DOCS.rglob(f"*.{suffix}"))]
REFERENCE = sorted((DOCS / "api").glob("*.md"))
DOCUMENTED = re.compile(
    r"^\.\. (?:auto|py:)(?:class|function|exception|data):: (\S+)", re.MULTILINE
)
PACKAGES = [
    importlib.import_module(name)
    for name in ("metaopt", *(f"metaopt.{m.name}" for m in pkgutil.iter_modules(metaopt.__path__)))
    if name == "metaopt" or importlib.util.find_spec(name).submodule_search_locations
]
PUBLIC = [(package, name) for package in PACKAGES for name in getattr(package, "__all__", ())]
COMMANDS = {"train_meta.py": train, "eval_meta.py": evaluate}
DATA_KINDS = (dict, tuple, list, str, int, float, frozenset)


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


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^(```+).*?^\1$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(path, anchor) of each link within the repository, either of them empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


def contents(page: Path) -> Iterator[Path]:
    """The pages that the tables of contents of a page name."""
    for block in re.findall(
        r"^```{toctree}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    ):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                yield page.parent / line


def existing(entry: Path) -> Path | None:
    """The page that an entry of a table of contents means."""
    found = [entry.with_name(entry.name + suffix) for suffix in (".md", ".ipynb")]
    return next((path for path in found if path.exists()), None)


@cache  # asked of every public name for every other
def origin(package: ModuleType, name: str) -> tuple[ModuleType, str]:
    """The module where a public name of a package is defined, and what it is called there."""
    for node in ast.walk(ast.parse(inspect.getsource(package))):  # also inside a `with` or `if`
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    module = importlib.import_module(node.module)
                    if isinstance(getattr(module, alias.name), ModuleType):
                        return getattr(module, alias.name), ""
                    return origin(module, alias.name)
    return package, name


def note(module: ModuleType, name: str) -> str | None:
    """The docstring of a constant: a string on its own behind the assignment."""
    body = ast.parse(inspect.getsource(module)).body
    for node, following in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in [getattr(target, "id", None) for target in targets]:
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            return str(following.value.value) if is_text else None
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for path, anchor in links(page):
        target = page.parent / path if path else page
        on_page = (
            not anchor or target.suffix != ".md" or (target.exists() and anchor in anchors(target))
        )
        if not (target.exists() and on_page):
            broken.append(f"{path}#{anchor}")
    assert not broken


def test_every_page_is_in_a_table_of_contents_and_every_entry_is_a_page() -> None:
    reached, waiting = {DOCS / "index.md"}, [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        for entry in contents(page):
            found = existing(entry)
            assert found is not None, f"{page.name} names {entry.name}, which does not exist"
            if found not in reached:
                reached.add(found)
                waiting += [found] if found.suffix == ".md" else []
    assert reached == set(SOURCES)


def test_the_python_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "docs"}
    for name in (
        "index.md",
        "results.md",
        "using.md",
        "symmetries.md",
        "faq.md",
    ):  # the last saves what was made
        sources = blocks("python", DOCS / name)
        assert sources
        for source in sources:
            exec(compile(source, name, "exec"), namespace)
    assert (tmp_path / "run.pt").exists()


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


@pytest.mark.parametrize("name", BASELINES)
def test_the_results_mention_each_method(name: str) -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)


def test_the_example_of_a_new_action_acts() -> None:
    """On two layers with nothing between; its pull-back against a central difference."""
    (block,) = blocks("python", DOCS / "extending.md")
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(block, "docs/extending.md", "exec"), namespace)
    (action,) = (
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, Action) and value.__module__ == "page"
    )
    generator = torch.Generator().manual_seed(0)
    *weights, x, drawn = (
        torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    chain = LayerChain((Identity(), Identity()), (False, False))
    orbit = chain_orbit(chain, weights, LayerInput(x), action())
    (values,) = (0.1 * drawn.flatten()[: zero.values.numel()] for zero in orbit.identity(weights))
    (direction,) = (values.reshape(zero.values.shape) for zero in orbit.identity(weights))

    def moved(t: float) -> list[torch.Tensor]:
        point = orbit.move(weights, orbit.elements(weights, [t * direction]))
        assert not point.rejected
        return point.parameters

    before, after = (chain.output(chain.layers(own), x) for own in (weights, moved(1.0)))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    assert not torch.equal(moved(1.0)[0], weights[0])
    (pulled,) = orbit.pull_back(weights, weights)  # of half the squared norm of the weights
    halves = [sum(w.square().sum() for w in moved(t)) / 2 for t in (1e-5, -1e-5)]
    slope = (halves[0] - halves[1]) / 2e-5
    torch.testing.assert_close((pulled.values * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@cache
def documented() -> tuple[str, ...]:
    """What the reference names."""
    return tuple(name for page in REFERENCE for name in DOCUMENTED.findall(page.read_text()))


def test_the_reference_names_things_that_exist_each_once() -> None:
    named = documented()
    assert len(named) > 100
    assert sorted(named) == sorted(set(named))
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize(
    ("package", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value)
)
def test_what_is_public_has_a_docstring_and_is_in_the_reference(
    package: ModuleType, name: str
) -> None:
    value = getattr(package, name)
    module, original = origin(package, name)
    constant = isinstance(value, DATA_KINDS) or get_origin(value) is not None
    assert note(module, original) if constant else inspect.getdoc(value)
    if isinstance(value, ModuleType):
        assert DOCS / "api" / f"{name}.md" in REFERENCE
        return
    names = {f"{package.__name__}.{name}", f"{module.__name__}.{original}"}
    names |= {
        f"{other.__name__}.{o}" for other, o in PUBLIC if origin(other, o) == (module, original)
    }
    assert names & set(documented())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_subpackage_but_the_command_lines_has_a_page(package: ModuleType) -> None:
    page = DOCS / "api" / f"{package.__name__.removeprefix('metaopt.')}.md"
    assert page.exists() == (package.__name__ != "metaopt.cli")
