"""What is built from the checkout has everything that the package reads, and its two commands."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import metaopt
from metaopt.extras import DISTRIBUTION

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "figures"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and an sdist, made of a copy."""
    folder = tmp_path_factory.mktemp("built")
    source = shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    backend, where = "import setuptools.build_meta as backend", repr(str(folder))
    code = f"{backend}; backend.build_sdist({where}); backend.build_wheel({where})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "metaopt").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == package


def test_the_wheel_has_the_two_commands(built):
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    commands = ConfigParser()
    commands.read_string(archive.read(name).decode())
    assert dict(commands["console_scripts"]) == {
        "metaopt-train": "metaopt.cli.start:train",
        "metaopt-eval": "metaopt.cli.start:evaluate",
    }


FROM_A_ZIP = """
import sys
from metaopt.cli.start import evaluate, train
from metaopt.evaluation.reference import reference
assert ".whl" in sys.modules["metaopt"].__file__
assert reference()["methods"]
import metaopt
assert all(metaopt.pretrained_card(name) for name in metaopt.list_pretrained())
sizes = ["--problems", "2", "--steps", "2", "--methods", "gd,lstm_update"]
sys.argv = ["metaopt-eval", *sizes, "--out", "out"]
sys.exit(evaluate())
"""


def test_the_package_works_from_inside_a_zip(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    done = subprocess.run(
        [sys.executable, "-c", FROM_A_ZIP], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(wheel)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {"results.jsonl", "manifest.json", "loss.png", "report.html"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_sdist_has_what_it_takes_to_test_and_to_build(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[-1] for name in opened.getnames()}
    needed = {"setup.cfg", "Makefile", "constraints.txt", "CHANGELOG.md", "train_meta.py"}
    needed |= {"configs/demo.yaml", "tests/test_packaging.py", "tests/fuzz/conftest.py"}
    needed |= {"docs/index.md", "scripts/publish.py", "benchmarks/methods.py", "CITATION.cff"}
    needed |= {"studies/__init__.py", "tests/studies/conftest.py"}
    assert needed <= names


def test_the_version_stands_in_one_place_and_has_a_line_in_the_changelog(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"metaopt_teleport-{metaopt.__version__}-")
    holders = [
        path.name
        for path in (*ROOT.glob("*.cfg"), *ROOT.glob("*.toml"), *(ROOT / "metaopt").rglob("*.py"))
        if f'"{metaopt.__version__}"' in path.read_text() or f"= {metaopt.__version__}\n" in
        path.read_text()
    ]  # fmt: skip
    assert holders == ["__init__.py"]
    assert f"## {metaopt.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == metaopt.__version__
    assert f"{{{metaopt.__version__}}}" in (ROOT / "docs" / "citing.md").read_text()


def test_the_core_needs_three_packages_and_each_extra_what_setup_says(built):
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    facts = Parser().parsestr(archive.read(name).decode())
    needed = [Requirement(line) for line in facts.get_all("Requires-Dist") or []]
    core = {requirement.name for requirement in needed if requirement.marker is None}
    assert core == {"torch", "numpy", "safetensors"}
    assert facts.get_all("Provides-Extra") == [
        "train", "report", "studies", "test", "integrations", "docs", "dev",
    ]  # fmt: skip
    assert facts["Name"] == DISTRIBUTION
    urls = [line.split(", ")[1] for line in facts.get_all("Project-URL") or []]
    assert urls
    assert all(url.startswith("https://") for url in urls)


def test_the_citation_names_the_paper_and_its_four_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Zhao", "Gower", "Walters", "Yu",
    ]  # fmt: skip
    shown = (ROOT / "docs" / "citing.md").read_text()
    assert f"{{{paper['title']}}}" in shown
    assert paper["url"] in shown
    assert f"{{{paper['year']}}}" in shown


def requirements(section: str, option: str, setup: ConfigParser) -> list[Requirement]:
    lines = setup[section][option].split("\n")
    return [Requirement(line) for line in lines if line and not line.startswith("%")]


def pins(name: str) -> dict[str, Version]:
    """The exact versions of a file of constraints, by canonical name."""
    lines = (ROOT / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in found
    }


def test_everything_that_make_installs_has_an_exact_version_that_is_allowed():
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    allowed = requirements("options", "install_requires", setup)
    for extra in setup["options.extras_require"]:
        allowed += requirements("options.extras_require", extra, setup)
    pinned = pins("constraints.txt")
    for requirement in allowed:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed():
    setup = ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    allowed = requirements("options", "install_requires", setup)
    for extra in ("train", "report", "studies", "test"):
        allowed += requirements("options.extras_require", extra, setup)
    pinned = pins("constraints-oldest.txt")
    for requirement in allowed:
        oldest = next(s.version for s in requirement.specifier if s.operator == ">=")
        release = Version(oldest).release
        found = pinned[canonicalize_name(requirement.name)].release
        assert found[: len(release)] == release, requirement
