"""docs/training_loop.md: the code of each section runs, with the page's first block before it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("default")
PAGE = (Path(__file__).parents[2] / "docs" / "training_loop.md").read_text()
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
INSTALLED = {"metaopt", "torch", *sys.stdlib_module_names}


def code(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def title(section: str) -> str:
    return section.partition("\n")[0]


CODED = {title(section): code(section) for section in SECTIONS if code(section)}
DDP = "DistributedDataParallel"


def imported(source: str) -> set[str]:
    """The packages that a block imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def wait_for(done: Callable[[], bool]) -> None:
    """Another process writes, and may do so a little later."""
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _quietly_in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with torch.random.fork_rng():
        yield
    if accelerate := sys.modules.get("accelerate"):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
    if (wandb := sys.modules.get("wandb")) and wandb.patched["tensorboard"]:
        wandb.tensorboard.unpatch()


@pytest.mark.parametrize("heading", [heading for heading in CODED if heading != DDP])
def test_the_code_of_a_section_runs(heading, tmp_path, capsys):
    (first,) = code(FIRST)
    sources = [first, *CODED[heading]]
    for package in set().union(*map(imported, sources)) - INSTALLED:
        pytest.importorskip(package)
    namespace: dict[str, object] = {"__name__": "page"}
    for source in sources:
        exec(compile(source, heading, "exec"), namespace)
    made = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" teleports")]
    assert made == ["2 teleports"] * "".join(sources).count('"teleports"')
    if heading == "Weights & Biases":
        (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
        curves = (b"meta_loss", b"gradient_norm", b"final_loss", b"learning_rate", b"score")
        wait_for(lambda: all(curve in record.read_bytes() for curve in curves))


def test_the_copies_of_two_processes_stay_equal(tmp_path):
    (source,) = CODED[DDP]
    (tmp_path / "ddp.py").write_text(source)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, "ddp.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
