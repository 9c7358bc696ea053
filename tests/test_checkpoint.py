"""Checkpoints: what goes in comes out, damage is noticed, nothing is executed, writes are whole."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import metaopt
from metaopt import LearnedOptimizer, UserError
from metaopt.evaluation import resolve
from metaopt.learned import checkpoint_files
from metaopt.learned.checkpoint import (
    META,
    build_meta_optimizer,
    checkpoint_bytes,
    load_meta_optimizer,
    pretrained_card,
    pretrained_names,
    pretrained_path,
    read_checkpoint,
    save_meta_optimizer,
    write_checkpoint,
)
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.tasks import RegressionFamily

SPEC = MetaOptimizerSpec(hidden=3, layers=1, heads=("plain",), features=("balance",), gate=2.5)
FACTS = {"a": [1, 2.5, None], "b": {"c": "text, \u03c3"}}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "float32": torch.randn((2, 3), generator=generator),
        "float64": torch.randn((3,), generator=generator, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn((2, 3), generator=generator).mT,
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "some.safetensors"


def test_what_is_written_is_read_back(path):
    write_checkpoint(path, tensors(), FACTS)
    read = read_checkpoint(path)
    assert read.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert read.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(read.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert {name: read.facts[name] for name in FACTS} == FACTS


def test_a_meta_optimizer_survives_its_file_and_comes_back_frozen(path):
    meta = MetaOptimizer(SPEC, seed=3)
    save_meta_optimizer(path, meta, {"note": "x"})
    loaded = load_meta_optimizer(path)
    assert loaded.spec == SPEC
    torch.testing.assert_close(loaded.state_dict(), meta.state_dict(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert read_checkpoint(path).facts["note"] == "x"


def test_equal_content_gives_equal_bytes_whatever_the_order_and_the_file(tmp_path):
    reordered = dict(reversed(tensors().items())), dict(reversed(FACTS.items()))
    assert checkpoint_bytes(*reordered) == checkpoint_bytes(tensors(), FACTS)
    for name in ("first", "second"):
        write_checkpoint(tmp_path / name, tensors(), FACTS)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    other = {**tensors(), "scalar": torch.tensor(8.0)}
    assert checkpoint_bytes(other, FACTS) != checkpoint_bytes(tensors(), FACTS)


def one_line(error: pytest.ExceptionInfo, path: Path) -> None:
    assert re.fullmatch(r"expected .*, got .*", str(error.value))
    assert str(path) in str(error.value)


NOT_CHECKPOINTS = {
    "empty": b"",
    "text": b"hello, this is no checkpoint at all",
    "zeros": bytes(100),
    "safetensors of someone else": save({"a": torch.zeros(2)}),
    "safetensors with other metadata": save({"a": torch.zeros(2)}, {"author": "x"}),
    "metadata that are no JSON": save({"a": torch.zeros(2)}, {"metaopt": "{"}),
    "metadata that are a list": save({"a": torch.zeros(2)}, {"metaopt": "[1]"}),
    "metadata that are a number": save({"a": torch.zeros(2)}, {"metaopt": "3"}),
    "no checksum": save({"a": torch.zeros(2)}, {"metaopt": '{"version": 1}'}),
    "a wrong checksum": save({}, {"metaopt": '{"version": 1, "sha256": "0"}'}),
    "a checksum that is a number": save({}, {"metaopt": '{"version": 1, "sha256": 0}'}),
    "a checksum that is nothing": save({}, {"metaopt": '{"version": 1, "sha256": null}'}),
}


@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_refused(path, kind):
    path.write_bytes(NOT_CHECKPOINTS[kind])
    with pytest.raises(UserError) as error:
        read_checkpoint(path)
    one_line(error, path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, path):
    for place in (path, tmp_path):
        with pytest.raises(UserError, match="does not exist") as error:
            read_checkpoint(place)
        one_line(error, place)


def damaged(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        read_checkpoint(path)
    except UserError:
        return True
    return False


def test_a_truncated_or_lengthened_file_is_refused_wherever_it_is_cut(path):
    whole = checkpoint_bytes(tensors(), FACTS)
    cuts = [*range(0, len(whole), 7), len(whole) - 1]
    assert [cut for cut in cuts if not damaged(path, whole[:cut])] == []
    assert damaged(path, whole + b"\0")
    assert not damaged(path, whole)


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_one_flipped_bit_is_noticed_anywhere_in_the_file(path, mask):
    """In the length, in the header with its metadata and checksum, and in the data."""
    whole = checkpoint_bytes({"a": torch.ones(3), "b": torch.arange(4)}, {"c": [1, "text"]})
    unnoticed = []
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :]
        if not damaged(path, flipped):
            unnoticed.append((at, whole[at - 8 : at + 8]))
    assert unnoticed == []


def test_another_version_is_refused_and_named(path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "VERSION", checkpoint_files.VERSION + 1)
    write_checkpoint(path, tensors(), FACTS)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"version 1, got 2 .*use the metaopt release"):
        read_checkpoint(path)


def meta_file(path: Path, spec: dict, drop: str = "", **shapes: tuple[int, ...]) -> None:
    own = {META + k: v for k, v in MetaOptimizer(SPEC).state_dict().items() if k != drop}
    own |= {META + name.replace("__", "."): torch.zeros(s) for name, s in shapes.items()}
    write_checkpoint(path, own, {"spec": spec})


MISFITS = {
    "unknown spec field": {"spec": {**SPEC.as_dict(), "colour": "red"}},
    "spec of another size": {"spec": {**SPEC.as_dict(), "hidden": 4}},
    "spec with more layers": {"spec": {**SPEC.as_dict(), "layers": 2}},
    "spec without m2": {"spec": {**SPEC.as_dict(), "element": "none"}},
    "unknown rule": {"spec": {**SPEC.as_dict(), "update": "nope"}},
    "field of another type": {"spec": {**SPEC.as_dict(), "hidden": "three"}},
    "field that is no list": {"spec": {**SPEC.as_dict(), "heads": 3}},
    "spec that is a list": {"spec": [1, 2]},
    "tensor missing": {"spec": SPEC.as_dict(), "drop": "update.lstm.head_bias"},
    "tensor of another shape": {"spec": SPEC.as_dict(), "update.lstm.head_bias": (5,)},
    "tensor too many": {"spec": SPEC.as_dict(), "update.lstm.other": (5,)},
}


@pytest.mark.parametrize("kind", MISFITS)
def test_tensors_that_do_not_fit_the_spec_are_refused(path, kind):
    meta_file(path, **MISFITS[kind])
    with pytest.raises(UserError, match=r"^expected .*, got .*$"):
        load_meta_optimizer(path)


def test_a_checkpoint_without_spec_is_refused(path):
    write_checkpoint(path, tensors(), {})
    with pytest.raises(UserError, match="spec"):
        load_meta_optimizer(path)


class Payload:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("writer", [pickle.dumps, "torch.save"], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, path, writer):
    trap = tmp_path / "executed"
    if writer == "torch.save":
        torch.save(Payload(str(trap)), path)
    else:
        path.write_bytes(writer(Payload(str(trap))))
    with pytest.raises(UserError, match="truncated, damaged or no checkpoint"):
        load_meta_optimizer(path)
    assert not trap.exists()
    if writer != "torch.save":
        pickle.loads(path.read_bytes())
        assert trap.exists()  # the trap does work


def test_every_shipped_optimizer_loads_by_name_and_steps():
    assert pretrained_names() == metaopt.list_pretrained() != []
    for name in pretrained_names():
        meta = metaopt.load_pretrained(name)
        tasks = RegressionFamily.square(20).sample([0])
        before = tasks().item()
        optimizer = LearnedOptimizer(tasks, meta)
        for _ in range(3):
            optimizer.zero_grad()
            tasks().sum().backward()
            optimizer.step()
        assert tasks().item() < before


def test_an_unknown_name_lists_the_known_ones():
    for call in (load_meta_optimizer, pretrained_path):
        with pytest.raises(UserError, match=re.escape(", ".join(pretrained_names()))):
            call("lstm_nope")


def test_a_tilde_is_the_home_folder_wherever_a_checkpoint_is_named(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    save_meta_optimizer(Path("~/x.safetensors"), MetaOptimizer(SPEC), {})
    assert (tmp_path / "x.safetensors").is_file()
    tasks = RegressionFamily.square(4).sample([0])
    for read in (read_checkpoint, load_meta_optimizer, lambda p: LearnedOptimizer(tasks, p)):
        for source in ("~/x.safetensors", Path("~/x.safetensors")):
            read(source)
    resolve("~/x.safetensors").optimizer(tasks)


@pytest.mark.parametrize("name", ["lstm_updat", "z" * 600])
def test_a_name_that_is_not_shipped_is_answered_shortly(name):
    for call in (load_meta_optimizer, pretrained_card):
        with pytest.raises(UserError) as caught:
            call(name)
        assert len(str(caught.value)) < 300
        assert ("did you mean lstm_update?" in str(caught.value)) == (name == "lstm_updat")


def test_building_ignores_tensors_of_a_trainer(path):
    """``last`` holds Adam's moments and the best networks too."""
    own = {META + k: v for k, v in MetaOptimizer(SPEC, 1).state_dict().items()}
    write_checkpoint(path, {**own, "adam/0/step": torch.tensor(1.0)}, {"spec": SPEC.as_dict()})
    assert build_meta_optimizer(read_checkpoint(path), str(path)).spec == SPEC
