"""Files that claim to be checkpoints: refused in one line, or read; nothing is run or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_fuzz_cases import (
    FACTS,
    ODD,
    SIZES,
    SPEC,
    TENSORS,
    WHOLE,
    framed,
    hostile_bytes,
    signed,
    specs,
    wrong_tensors,
)
from fuzz_cases import CAGE, attempt, fuzzed, values
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt import UserError
from metaopt.evaluation.methods import resolve
from metaopt.learned.checkpoint import checkpoint_bytes, load_meta_optimizer, read_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizer

NAME = "hostile.safetensors"
DEEP = "[" * 100_000


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory):
    """Everything that is imported late has been before the cage is closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("checkpoints"))
        Path(NAME).write_bytes(WHOLE)
        load_meta_optimizer(NAME)
        with pytest.raises(UserError):
            resolve("gone.safetensors")
        yield


def read(content: bytes) -> tuple[Any, Any]:
    """By both readers: what they give, or None where they complain."""
    Path(NAME).write_bytes(content)
    given: list[Any] = []
    for reader in (read_checkpoint, load_meta_optimizer):
        outcome = attempt(lambda reader=reader: reader(NAME), code=False)
        assert outcome.complaint is None or NAME in outcome.complaint
        given.append(outcome.value)
    assert Path(NAME).read_bytes() == content
    assert [path.name for path in Path.cwd().iterdir()] == [NAME]
    return given[0], given[1]


def test_a_whole_file_is_read() -> None:
    checkpoint, meta = read(WHOLE)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    assert meta.spec == SPEC


@fuzzed(150, 2000)
@given(hostile_bytes)
@example(b"")
@example(framed(b"{}", length=2**64 - 1))
@example(framed(b"{}", length=10**8))
@example(framed(b'{"a":' * 5000))
@example(framed(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'))
@example(framed(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'))
def test_bytes(content: bytes) -> None:
    checkpoint, meta = read(content)
    assert meta is None or checkpoint is not None
    if content != WHOLE and checkpoint is not None:
        assert json.dumps(checkpoint.facts)  # by someone who made a checksum


@pytest.mark.parametrize("kind", [*SIZES, *ODD])
def test_a_type_of_numbers(kind: str) -> None:
    """Of a file whose checksum is wrong, which is seen when all of it has been read."""
    length = int(2 * SIZES.get(kind, 3))
    entry = {"dtype": kind, "shape": [2], "data_offsets": [0, length]}
    told = {"metaopt": '{"version": 1, "sha256": "0"}'}
    header = json.dumps({"a": entry, "__metadata__": told})
    assert read(framed(header.encode(), bytes(length))) == (None, None)


@fuzzed(70, 1000)
@given(st.text(max_size=30) | values.map(json.dumps))
@example(DEEP)
@example('{"a":' * 100_000)
@example('{"version": 1, "sha256": "DIGEST", "x": ' + DEEP + "]" * 100_000 + "}")
@example('{"version": NaN, "sha256": "DIGEST"}')
@example("1" * 5000)
@example('{"version": 1, "sha256": ' + "9" * 5000 + "}")
@example('{"version": 1, "version": 2, "sha256": "DIGEST"}')
@example('{"version": 1, "sha256": "DIGEST", "a": "\\ud800"}')
@example('{"version": [1], "sha256": ["DIGEST"]}')
def test_metadata(text: str) -> None:
    read(signed(text))


@fuzzed(70, 1000)
@given(st.dictionaries(st.text(max_size=4) | st.sampled_from(("spec", "version")), values))
@example({"spec": [1]})
@example({"x": float("nan")})
@example({"version": True})
def test_facts(facts: dict[str, Any]) -> None:
    checkpoint, _ = read(checkpoint_bytes(TENSORS, FACTS | facts))
    known = facts.get("version", 1) == 1
    assert (checkpoint is not None) == known


@fuzzed(150, 2000)
@given(specs())
@example({**SPEC.as_dict(), "layers": 10**9})
@example({**SPEC.as_dict(), "hidden": 10**30})
@example({**SPEC.as_dict(), "hidden": 20_000})
@example({**SPEC.as_dict(), "flat_widths": []})
@example({**SPEC.as_dict(), "flat_widths": [1, 2], "update": "flat"})
@example({**SPEC.as_dict(), "flat_widths": [1, 2, 3, 4]})
@example({**SPEC.as_dict(), "update": ["a"]})
@example({**SPEC.as_dict(), "action": {"a": 1}})
@example({**SPEC.as_dict(), "gate": float("nan")})
@example({**SPEC.as_dict(), "heads": "free"})
@example({**SPEC.as_dict(), "damping": "x"})
@example({**SPEC.as_dict(), "hidden": 2.5})
@example({**SPEC.as_dict(), "hidden": True})
@example({**SPEC.as_dict(), "update": "layerwise", "layers": 10**7})
def test_a_spec(spec: Any) -> None:
    """With a right checksum, as somebody makes it who wants to."""
    checkpoint, meta = read(checkpoint_bytes(TENSORS, {"spec": spec}))
    assert checkpoint is not None
    assert meta is None or isinstance(meta, MetaOptimizer)


@fuzzed(70, 1000)
@given(wrong_tensors(TENSORS))
def test_tensors(tensors: dict[str, torch.Tensor]) -> None:
    _, meta = read(checkpoint_bytes(tensors, FACTS))
    own = {name: t for name, t in tensors.items() if name.startswith("meta/")}
    fit = {name: t.shape for name, t in own.items()} == {n: t.shape for n, t in TENSORS.items()}
    assert fit or meta is None


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "../" * 50, "", ".", "\ud800", "x/" * 3000])
def test_a_name(name: str) -> None:
    for reader in (read_checkpoint, load_meta_optimizer, resolve):
        with CAGE.watch(code=False), pytest.raises(UserError):
            reader(f"{name}.safetensors")
