"""Results that are read to be drawn again: whole, or refused in one line and left as they were."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import attempt, call, fuzzed, mutated, snapshot, values
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt.cli import evaluate as command
from metaopt.evaluation.evaluate import evaluate
from metaopt.evaluation.methods import resolve
from metaopt.evaluation.results import CHECKSUMS, MANIFEST, RESULTS, read_results, save
from metaopt.tasks import RegressionFamily

FAMILY = RegressionFamily(2, 2, 2, 2)
SEEDS, STEPS, OUT = [0, 1], 2, Path("out")


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("results"))
        patch.setattr("metaopt.evaluation.figure.loss_figure", lambda results, title: b"")
        OUT.mkdir()
        yield


@cache
def made() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the manifest of two methods on two problems."""
    results = list(evaluate([resolve("gd"), resolve("adam@0.1")], FAMILY, SEEDS, STEPS))
    save(OUT, results, SEEDS, FAMILY, STEPS)
    lines = (OUT / RESULTS).read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((OUT / MANIFEST).read_text())


def signed(rows: list[Any], manifest: dict[str, Any]) -> tuple[bytes, bytes]:
    """The two files with right checksums, as somebody makes them who wants to."""
    content = ("\n".join(map(json.dumps, rows)) + "\n").encode()
    facts = {key: value for key, value in manifest.items() if key != CHECKSUMS}
    own = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    facts[CHECKSUMS] = {RESULTS: hashlib.sha256(content).hexdigest(), MANIFEST: own}
    return content, (json.dumps(facts, indent=2) + "\n").encode()


def drawn(content: bytes, manifest: bytes) -> bool:
    """Whether they are read and drawn; else nothing has changed."""
    for path in OUT.iterdir():
        path.unlink()
    (OUT / RESULTS).write_bytes(content)
    (OUT / MANIFEST).write_bytes(manifest)
    before = snapshot(OUT)
    complaint = attempt(lambda: read_results(OUT)).complaint
    code = call(command.main, ["--redraw", "--out", "out"], out=OUT.absolute())
    after = snapshot(OUT)
    assert {name: after[name] for name in before} == before
    assert complaint is None or code == 2
    assert code == 0 or after == before
    return code == 0


def test_what_was_saved_is_drawn() -> None:
    made()  # and with it the two files
    written = (OUT / RESULTS).read_bytes(), (OUT / MANIFEST).read_bytes()
    assert signed(*made()) == written
    assert drawn(*written)


@fuzzed(20, 400)
@given(st.data())
def test_bytes(data: st.DataObject) -> None:
    """One changed byte in either is noticed."""
    good = signed(*made())
    content, manifest = (data.draw(st.just(part) | mutated(part)) for part in good)
    assert drawn(content, manifest) == ((content, manifest) == good)


def places(whole: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values inside."""
    keys = (
        whole if isinstance(whole, dict) else range(len(whole)) if isinstance(whole, list) else ()
    )
    return [found for key in keys for found in [(*path, key), *places(whole[key], (*path, key))]]


def changed(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    other = copy.deepcopy(whole)
    inner = other
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return other


@fuzzed(30, 800)
@given(st.data())
def test_content(data: st.DataObject) -> None:
    """Anything in the place of any value, with right checksums."""
    rows, manifest = made()
    if data.draw(st.booleans()):
        rows = changed(rows, data.draw(st.sampled_from(places(rows))), data.draw(values))
    else:
        where = st.sampled_from([path for path in places(manifest) if path[0] != CHECKSUMS])
        manifest = changed(manifest, data.draw(where), data.draw(values))
    drawn(*signed(rows, manifest))


@fuzzed(10, 300)
@given(st.lists(values, max_size=3), values)
@example([], {})
@example([], [])
def test_other_content(rows: list[Any], manifest: Any) -> None:
    """Rows that are none, or too few; a manifest that is none."""
    whole = made()[1]
    drawn(*signed(rows, whole))
    if isinstance(manifest, dict):
        drawn(*signed(rows, manifest))
