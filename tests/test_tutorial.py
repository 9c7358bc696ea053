"""docs/tutorial.ipynb runs, in its quick form, and what is stored of it is whole.

``python tests/test_tutorial.py`` runs the full form and stores its outputs anew.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
PLACES = re.compile(r"(?<![\w.])/(?:home|mnt|opt|private|root|tmp|usr|Users|var|work)/|[A-Z]:\\")
LARGEST = 300_000  # bytes, all pictures in it


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook after it ran in a folder, with nothing of when and where in it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def text_of(output: nbformat.NotebookNode) -> str:
    """What an output says, but for its pictures."""
    if output.output_type == "stream":
        return str(output.text)
    return str(output.get("data", {}).get("text/plain", ""))


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def summary_of(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """What the last cell shows."""
    (output,) = code(notebook)[-1].outputs
    return json.loads(text_of(output))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def summary(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Of the quick form; the kernel's own files go elsewhere."""
    elsewhere = str(tmp_path_factory.mktemp("kernel"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAOPT_QUICK", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(name, elsewhere)
        yield summary_of(executed(folder))


def test_the_shipped_optimizer_solves_its_problems(summary):
    assert summary["regression"]["first"] > 1e5
    assert summary["regression"]["last"] < 1e-10


def test_a_network_of_ones_own_learns(summary):
    chance = 1.609  # log 5
    assert summary["network"]["learned"] < 0.8 * chance
    assert summary["network"]["adam"] < 0.8 * chance
    assert summary["teleporting"]["made"] == 3
    assert summary["teleporting"]["last"] < 0.8 * chance


def test_a_teleport_raises_the_gradient_and_is_exact_where_it_should_be(summary):
    rescaling, general = (summary["close"][name] for name in ("rescaling", "post_activation"))
    for move in (rescaling, general):
        assert move["norm_after"] > 1.2 * move["norm"]
        assert move["error"] < 1e-5
    assert rescaling["elsewhere"] < 1e-5
    assert general["elsewhere"] > 0.01


def test_meta_training_stops_and_goes_on(summary):
    run = summary["meta_training"]
    assert 0 < run["stopped"] < run["trajectories"]
    assert run["meta_steps"] == 3 * run["trajectories"] / 8  # windows of a third, batches of 8
    assert run["score"] < 0.2  # log10; a constant's is 0.18


def test_the_evaluation_has_all_methods(summary):
    last = summary["evaluation"]
    (adam,) = (name for name in last if name.startswith("adam@"))
    assert list(last) == ["our own", "lstm_layerwise", adam]
    assert all(0 < number < 2 for losses in last.values() for number in losses.values())


def test_a_flatter_point_is_the_same_function(summary):
    _, adam, rescaled = summary["sharpness"].values()
    assert rescaled["loss"] == pytest.approx(adam["loss"], rel=1e-5)
    assert abs(rescaled["eigenvalue"] / adam["eigenvalue"] - 1) > 1e-3
    assert summary["sharpness_error"] < 1e-5


def test_the_notebook_leaves_nothing_where_it_ran(summary, folder):
    assert summary
    assert not list(folder.iterdir())


def test_what_is_stored_is_of_one_whole_run_of_the_full_form():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells[1:])  # the first defines sizes
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"stream", "display_data"}
    assert not [o for c in cells for o in c.outputs if o.get("name") == "stderr"]
    pictures = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
    assert NOTEBOOK.stat().st_size < LARGEST
    stored = summary_of(notebook)
    assert stored["meta_training"]["trajectories"] >= 100
    *learned, adam = stored["evaluation"].values()  # what is promised of the full form
    assert all(losses["test"] < 0.95 * adam["test"] for losses in learned)


def test_nothing_stored_tells_when_or_where_it_was_made():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}
    assert not any(cell.metadata for cell in notebook.cells)
    texts = [cell.source for cell in notebook.cells]
    texts += [text_of(output) for cell in code(notebook) for output in cell.outputs]
    assert not [text for text in texts if PLACES.search(text)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        nbformat.write(executed(Path(name)), NOTEBOOK)
