"""Flipped bits and cut-off ends of checkpoints and results are noticed, named, and answered."""

import random
import struct
from pathlib import Path

import pytest
from soak_cases import form

from metaopt import UserError
from metaopt.evaluation.evaluate import evaluate
from metaopt.evaluation.methods import resolve
from metaopt.evaluation.results import MANIFEST, RESULTS, previous, read_results, save
from metaopt.learned.checkpoint import read_checkpoint
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.tasks import RegressionFamily
from metaopt.training.run import BEST, LAST, PREVIOUS, run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.trainer import Trainer

pytestmark = pytest.mark.soak
POSITIONS = form(60, 1500)
"""In each class, each with all eight bits."""


def trainer() -> Trainer:
    spec = TrainingSpec(
        trajectories=3, batch_size=1, steps=2, window=2, widths=(3,), validation_every=1,
        validation_problems=1, validation_at=(2,), validation_families=(),
    )  # fmt: skip
    return Trainer(MetaOptimizerSpec(hidden=2), spec)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    run_training(trainer(), out, resume=False, overwrite=False)
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out, family = tmp_path_factory.mktemp("results"), RegressionFamily.square(3)
    for name in ("gd", "lstm_update_tele"):
        save(out, list(evaluate([resolve(name)], family, [0, 1], 3)), [0, 1], family, 3)
    return out


def flips(data: bytes, places: range, seed: int) -> list[bytes]:
    """The data with one bit changed, all bits of a sample of places."""
    chosen = random.Random(seed).sample(places, min(len(places), POSITIONS))
    damaged = []
    for place in chosen:
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            damaged.append(bytes(changed))
    return damaged


def classes(data: bytes) -> dict[str, range]:
    """Of a safetensors file: the length of its header, the header's parts, the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    facts = data.index(b'"__metadata__"')
    tensors = data.index(b'"}', facts) + 2
    return {
        "length": range(8),
        "facts": range(facts, tensors),
        "names, shapes and offsets": range(tensors, 8 + length),
        "tensors": range(8 + length, len(data)),
    }


PARTS = ("length", "facts", "names, shapes and offsets", "tensors")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_flipped_bit_of_a_checkpoint_is_noticed_and_the_file_named(run, tmp_path, name, part):
    data = (run / name).read_bytes()
    path = tmp_path / name
    for damaged in flips(data, classes(data)[part], seed=1):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=name):
            read_checkpoint(path)


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_ends_anywhere_is_noticed(run, tmp_path, part):
    data = (run / LAST).read_bytes()
    places = classes(data)[part]
    for length in {0, places.start, *random.Random(2).choices(places, k=POSITIONS)}:
        (tmp_path / LAST).write_bytes(data[:length])
        with pytest.raises(UserError, match=LAST):
            read_checkpoint(tmp_path / LAST)
    (tmp_path / LAST).write_bytes(data + b"\0")
    with pytest.raises(UserError, match=LAST):
        read_checkpoint(tmp_path / LAST)


def test_resuming_from_a_damaged_checkpoint_offers_the_one_before_which_goes_on(run, tmp_path):
    files = {name: (run / name).read_bytes() for name in (LAST, BEST, PREVIOUS)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / LAST).write_bytes(files[LAST][:-1])
    with pytest.raises(UserError, match=r"last\.safetensors.*previous\.safetensors.* 2 traj"):
        run_training(trainer(), tmp_path, resume=True, overwrite=False)
    assert (tmp_path / LAST).read_bytes() == files[LAST][:-1]
    (tmp_path / PREVIOUS).rename(tmp_path / LAST)
    run_training(trainer(), tmp_path, resume=True, overwrite=False)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files

    (tmp_path / LAST).write_bytes(b"")
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(UserError, match=r"take another copy \(\w+\)$"):
        run_training(trainer(), tmp_path, resume=True, overwrite=False)


@pytest.mark.parametrize("name", [RESULTS, MANIFEST])
def test_damaged_results_are_noticed_and_those_before_offered(results, tmp_path, name):
    files = {p.name: p.read_bytes() for p in results.iterdir()}
    assert files.keys() == {n for own in (RESULTS, MANIFEST) for n in (own, previous(own))}
    for each, data in files.items():
        (tmp_path / each).write_bytes(data)
    data = files[name]
    ends = [data[:length] for length in random.Random(3).choices(range(len(data)), k=POSITIONS)]
    offer = rf"{name}.*results\.previous\.jsonl and manifest\.previous\.json"
    for damaged in (*flips(data, range(len(data)), seed=4), *ends, data + b" ", b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=offer):
            read_results(tmp_path)
    for own in (RESULTS, MANIFEST):
        (tmp_path / previous(own)).rename(tmp_path / own)
    (result,), manifest = read_results(tmp_path)
    assert result.method.name == "gd"
    assert manifest["problem_seeds"] == [0, 1]


def test_results_are_read_as_they_were_made(tmp_path):
    family, seeds = RegressionFamily.square(3), [4, 9]
    made = list(evaluate([resolve("gd"), resolve("lstm_update_tele")], family, seeds, 3))
    save(tmp_path, made, seeds, family, 3)
    read, manifest = read_results(tmp_path)
    for before, after in zip(made, read, strict=True):
        assert before.method.name == after.method.name
        assert before.method.learned == after.method.learned
        for field in ("losses", "grad_norms", "invariance_errors", "rejected"):
            one, other = (getattr(r.trajectory, field) for r in (before, after))
            assert one.equal(other) or (one.isnan() == other.isnan()).all()
            assert one.nan_to_num().equal(other.nan_to_num()) if one.is_floating_point() else True
    assert manifest["config"]["steps"] == 3
    with pytest.raises(UserError, match="one read from results"):
        read[0].method.optimizer(family.sample(seeds))
