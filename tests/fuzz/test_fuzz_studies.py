"""Files that studies keep, so that they can go on: read, or refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_fuzz_cases import headers
from fuzz_cases import attempt, fuzzed, mutated, values
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from metaopt.tasks import RegressionFamily
from studies.generalization.kept import HEADER, kept
from studies.learned_teleportation.curves import measure
from studies.optimizers.image_runs import Plan, Run, run

pytestmark = pytest.mark.studies

FAMILY = RegressionFamily(2, 2, 2, 2)
WEIGHTS = [torch.ones(2, 3), torch.ones(1, 2)]
PLAN = {"seed": 3}
WHOLE: list[bytes] = []  # a file of curves, once it is made
IMAGES = Plan("adam", 0.1, 0, 1)
RUN = {
    "train": [1.0, 2.0], "test": [1.0, None], "accuracy": [0.5], "seconds": [1.0],
    "teleport_seconds": 0.0, "gradient_norms": [1.0, None], "defect": None, "undone": 0,
    "moved": 0.0,
}  # fmt: skip


def curves() -> Any:
    """Of one step of SGD, measured anew only where the file is of something else."""
    return measure(
        Path("curves.npz"), "sgd", lambda p: torch.optim.SGD(p.parameters(), 1e-3), FAMILY, [0], 1
    )


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("studies"))
        curves()
        WHOLE.append(Path("curves.npz").read_bytes())
        curves()
        yield


def complains(path: Path, content: bytes, reader: Any, writes: bool = False) -> bool:
    """Whether it refuses the file, which then stays as it was."""
    path.write_bytes(content)
    out = path.absolute().parent if writes else None
    complaint = attempt(reader, out=out, code=writes).complaint
    assert complaint is None or path.read_bytes() == content
    return complaint is not None


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array([{"a": 1}], dtype=object))
    return buffer.getvalue()


@fuzzed(40, 500)
@given(st.data())
def test_curves(data: st.DataObject) -> None:
    content = data.draw(mutated(WHOLE[0]) | st.binary(max_size=40))
    complains(Path("curves.npz"), content, curves, writes=True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00",
        b"\x80\x04K\x01.",
        zipped("key.npy", b""),
        zipped("key.npy", b"\x93NUMPY\x01\x00\xff\xff{'descr': '<f8', 'shape': (9999999999,)}"),
        zipped("../../key.npy", b"x"),
        pickled(),
    ],
    ids=range(8),
)
def test_a_file_of_curves_that_is_none(content: bytes) -> None:
    complains(Path("curves.npz"), content, curves, writes=True)
    assert not list(Path.cwd().parent.glob("*.npy"))


KEPT = save({"0": WEIGHTS[0], "1": WEIGHTS[1]}, {HEADER: json.dumps({"plan": PLAN, "facts": 1})})
DEEP = "[" * 100_000


@fuzzed(70, 700)
@given(mutated(KEPT) | headers() | values.map(lambda v: save({}, {HEADER: json.dumps(v)})))
@example(save({}, {HEADER: DEEP}))
@example(save({"x": WEIGHTS[0]}, {HEADER: json.dumps({"plan": PLAN, "facts": 1})}))
@example(save({}, {HEADER: "[1]"}))
def test_weights(content: bytes) -> None:
    complains(Path("kept.safetensors"), content, lambda: kept(Path("kept.safetensors"), PLAN))


@fuzzed(70, 700)
@given(
    mutated(json.dumps({"run": RUN}).encode())
    | values.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(st.sampled_from((*RUN, "x")), values).map(
        lambda d: json.dumps({"run": {**RUN, **d}}).encode()
    )
)
@example(DEEP.encode())
@example(b"\xff")
@example(b"{}")
@example(b'{"run": 3}')
@example(b'{"run": {"train": 3, "test": []}}')
def test_a_run_on_images(content: bytes) -> None:
    path = Path(IMAGES.file_name("x"))
    found: list[Run] = []
    none = (torch.empty(0), torch.empty(0))
    refused = complains(path, content, lambda: found.append(run(IMAGES, none, none, Path(), "x")))
    assert refused or isinstance(found[0], Run)
