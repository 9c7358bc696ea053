"""Going on with a run whose last checkpoint is damaged: refused, and the file stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_fuzz_cases import tensors
from fuzz_cases import CAGE, attempt, fuzzed, mutated, snapshot, values
from hypothesis import example, given
from hypothesis import strategies as st

from metaopt.learned.checkpoint import Checkpoint, checkpoint_bytes
from metaopt.learned.meta_optimizer import MetaOptimizerSpec
from metaopt.training.run import BEST, LAST, run_training
from metaopt.training.spec import TrainingSpec
from metaopt.training.state import COUNTERS, pack
from metaopt.training.trainer import Trainer

NETWORKS = MetaOptimizerSpec(hidden=2, layers=1, heads=("free",))
TRAINING = TrainingSpec(
    trajectories=2, batch_size=1, steps=1, window=1, widths=(2,), depths=(2,), validation_at=(1,),
    validation_problems=1, validation_every=1, validation_families=(),
)  # fmt: skip
OUT = Path("out")


def half_way() -> Checkpoint:
    """After one of the two trajectories."""
    trainer = Trainer(NETWORKS, TRAINING)
    trainer.train_batch()
    trainer.validate()
    return pack(trainer)


HALF = half_way()
WHOLE = checkpoint_bytes(*HALF)


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("resume"))
        assert resumed(WHOLE)
        yield


def resumed(content: bytes) -> bool:
    """Whether training went on to the end; else everything is as it was."""
    OUT.mkdir(exist_ok=True)
    (OUT / LAST).write_bytes(content)
    (OUT / BEST).write_bytes(b"of an earlier time")
    before = snapshot(Path.cwd())
    trainer = Trainer(NETWORKS, TRAINING)
    finished, complaint = attempt(
        lambda: run_training(trainer, OUT, resume=True, overwrite=False), out=OUT.absolute()
    )
    if complaint is not None:
        assert snapshot(Path.cwd()) == before
        return False
    assert trainer.finished
    assert finished or trainer.trajectories == 2
    return True


@fuzzed(50, 700)
@given(mutated(WHOLE) | st.binary(max_size=40))
def test_bytes(content: bytes) -> None:
    assert not resumed(content) or content == WHOLE


facts_of_a_run = st.sampled_from((*COUNTERS, "best_score", "spec", "training"))


@fuzzed(60, 600)
@given(st.dictionaries(facts_of_a_run, values, min_size=1, max_size=2))
@example({"trajectories": 2})
@example({"trajectories": "x"})
@example({"trajectories": None})
@example({"trajectories": -(10**9)})
@example({"trajectories": 0.5})
@example({"trajectories": float("nan")})
@example({"skipped": {}})
@example({"rollbacks": -5000})
@example({"rollbacks": 10**30})
@example({"best_score": "x"})
@example({"best_score": []})
@example({"spec": [1]})
@example({"training": "x"})
@example({"training": 3})
@example({"spec": {"\n": False}})
def test_facts(facts: dict[str, Any]) -> None:
    """With a right checksum."""
    resumed(checkpoint_bytes(HALF.tensors, HALF.facts | facts))


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def without(prefix: str) -> Change:
    return lambda whole: {n: t for n, t in whole.items() if not n.startswith(prefix)}


def emptied(prefix: str) -> Change:
    return lambda whole: {
        n: t.flatten()[:0] if n.startswith(prefix) else t for n, t in whole.items()
    }


def with_another(name: str, tensor: torch.Tensor) -> Change:
    return lambda whole: whole | {name: tensor}


NAMES = sorted(HALF.tensors)
STRANGE = ("adam/9/step", "adam/x/y", "adam/0", "adam/-1/step", "raw/x", "best/x", "best_state/x")
changes = (
    st.builds(without, st.sampled_from(NAMES))
    | st.builds(emptied, st.sampled_from(NAMES))
    | st.builds(with_another, st.sampled_from((*NAMES, *STRANGE)), tensors)
)


@fuzzed(40, 700)
@given(st.lists(changes, min_size=1, max_size=2))
@example([without("best/")])
@example([without("best_state/")])
@example([without("adam/")])
@example([without("generator")])
@example([with_another("adam/x", torch.zeros(1))])
@example([with_another("adam/-1/step", torch.zeros(1))])
@example([with_another("generator", torch.zeros(3))])
@example([with_another("generator", torch.zeros(2, 2, dtype=torch.float16))])
@example([emptied("adam/")])
@example([emptied("best/")])
@example([emptied("best_state/raw")])
def test_tensors(changing: list[Change]) -> None:
    """With a right checksum; wrong shapes and names are refused, wrong numbers trained on."""
    some = dict(HALF.tensors)
    for change in changing:
        some = change(some)
    went_on = resumed(checkpoint_bytes(some, HALF.facts))
    assert not went_on or shapes(some) == shapes(HALF.tensors)


def shapes(some: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in some.items()}


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_link_is_replaced_and_its_target_kept(name: str, tmp_path: Path) -> None:
    target, out = tmp_path / "mine", tmp_path / "out"
    out.mkdir()
    target.write_bytes(WHOLE)
    (out / LAST).write_bytes(WHOLE)
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(target)
    with CAGE.watch(out=out):
        run_training(Trainer(NETWORKS, TRAINING), out, resume=True, overwrite=False)
    assert target.read_bytes() == WHOLE
    assert not (out / name).is_symlink()
