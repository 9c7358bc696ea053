"""A run may begin with the networks of a checkpoint, which it records."""

import pytest
import torch
from same_cases import assert_same
from training_cases import command, make, results

from metaopt import UserError
from metaopt.cli.recipes import load_recipe
from metaopt.learned.checkpoint import (
    load_meta_optimizer,
    pretrained_path,
    read_checkpoint,
    save_meta_optimizer,
)
from metaopt.learned.meta_optimizer import MetaOptimizer
from metaopt.training import run as run_module
from metaopt.training.run import BEST, LAST
from metaopt.training.trainer import Trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("source")
    assert command(out, trajectories=2, seed=3) == 0
    return str(out / BEST)


def test_training_begins_with_the_networks_of_the_checkpoint_and_fresh_moments(source):
    trainer, other = make(seed=0), load_meta_optimizer(source)
    first = next(iter(trainer.meta.state_dict()))
    assert not torch.equal(trainer.meta.state_dict()[first], other.state_dict()[first])
    trainer.warm_start(read_checkpoint(source), source)
    assert_same(trainer.meta.state_dict(), other.state_dict())
    assert_same(trainer.averaged.state_dict(), other.state_dict())
    assert all(p.requires_grad for p in trainer.meta.parameters())
    trainer.train_batch()
    assert trainer.meta_steps > 0
    assert not torch.equal(trainer.meta.state_dict()[first], other.state_dict()[first])


def test_a_shipped_optimizer_is_named_recorded_and_is_the_best_until_a_better_one_is_found(
    tmp_path, capsys
):
    """The rates are so high that training makes it worse."""
    name = "lstm_lr_tele"
    fields = {"update": "step_size", "element": "coordinatewise", "bound": 8.0, "hidden": 20}
    rates = {"learning_rate_update": 1e3, "learning_rate_element": 1e3, "trajectories": 2}
    code = command(tmp_path, init_from=name, **fields, **rates)
    assert code == 0, capsys.readouterr().err
    said = capsys.readouterr()
    best = load_meta_optimizer(tmp_path / BEST)
    assert_same(best.state_dict(), load_meta_optimizer(name).state_dict())
    sha256 = read_checkpoint(pretrained_path(name)).facts["sha256"]
    for file in (LAST, BEST):
        facts = read_checkpoint(tmp_path / file).facts
        assert facts["init_from"] == {"source": name, "sha256": sha256}
    score = read_checkpoint(tmp_path / BEST).facts["validation_score"]
    assert f"validation score at the start: {score:.3f}\n" in said.err
    assert f"best validation score (mean log10 loss): {score:.3f}\n" in said.out


def test_a_run_that_began_with_a_checkpoint_resumes_to_the_same_bytes_and_can_be_made_longer(
    monkeypatch, source, tmp_path, capsys
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    moved = tmp_path / "moved.safetensors"  # of no use any more once the run has begun
    moved.write_bytes((run_module.Path(source)).read_bytes())
    fields = {"init_from": moved, "schedule": "constant", "validation_every": 3}
    assert command(whole, trajectories=7, **fields) == 0
    real = Trainer.train_batch

    def train_batch(trainer):
        if trainer.trajectories == 2:
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_batch", train_batch)
        assert command(cut, trajectories=5, **fields) == 130
    assert read_checkpoint(cut / LAST).facts["trajectories"] == 0  # with the score at the start
    moved.unlink()
    assert command(cut, "--resume", trajectories=5, **fields) == 0
    del fields["init_from"]  # it may be left out: the run knows
    assert command(cut, "--resume", trajectories=7, **fields) == 0, capsys.readouterr().err
    assert results(cut) == results(whole)


def test_another_beginning_than_that_of_the_run_is_refused(source, tmp_path, capsys):
    assert command(tmp_path, trajectories=1) == 0
    before = results(tmp_path)
    capsys.readouterr()
    assert command(tmp_path, "--resume", trajectories=2, init_from=source) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: expected a run that began with {source!r}, got one that began ")
    assert line.count("\n") == 1
    assert results(tmp_path) == before


@pytest.mark.parametrize(("changed", "field"), [
    ({"hidden": 5}, "whose hidden is 5, got 4 in "),
    ({"element": "none"}, "whose element is 'none', got 'spectral' in "),
    ({"update": "layerwise", "element": "none"}, "whose update is 'layerwise', got "),
    ({"action": "pre_activation"}, "whose action is 'pre_activation', got 'post_activation' in "),
    ({"heads": ["plain"]}, "whose heads is ('plain',), got ('free', "),
])  # fmt: skip
def test_networks_of_another_kind_are_refused_before_a_run_is_deleted(
    source, tmp_path, capsys, changed, field
):
    (tmp_path / LAST).write_bytes(b"a run")
    assert command(tmp_path, "--overwrite", init_from=source, **changed) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: expected a checkpoint with the networks of this run, ")
    assert field in line
    assert line.count("\n") == 1
    assert len(line) < 300
    assert (tmp_path / LAST).read_bytes() == b"a run"


@pytest.mark.parametrize("name", ["nothing", "nothing.safetensors"])
def test_a_checkpoint_that_is_not_there_is_named_in_one_line(tmp_path, capsys, name):
    assert command(tmp_path, init_from=name) == 2
    line = capsys.readouterr().err
    assert name in line
    assert line.count("\n") == 1


def test_what_is_no_part_of_the_networks_may_differ(source, tmp_path):
    assert command(tmp_path, init_from=source, hold=0.5, damping=0.0, trajectories=1) == 0
    assert read_checkpoint(tmp_path / LAST).facts["spec"]["hold"] == 0.5


def test_a_run_may_begin_with_its_own_best(source, tmp_path):
    meta = MetaOptimizer(make().meta.spec, seed=9)
    save_meta_optimizer(tmp_path / BEST, meta, {})
    save_meta_optimizer(tmp_path / LAST, meta, {})
    own = str(tmp_path / BEST)
    assert command(tmp_path, "--overwrite", init_from=own, trajectories=1) == 0
    assert read_checkpoint(tmp_path / LAST).facts["init_from"]["source"] == own


def test_a_recipe_begins_with_fresh_networks(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("init_from: lstm_update_tele\n")
    with pytest.raises(UserError, match=r"got init_from 'lstm_update_tele' in .*: leave it out"):
        load_recipe(config)
