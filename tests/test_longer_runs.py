"""A run that is gone on with may have another budget of trajectories."""

import pytest
from training_cases import TINY, command, make, results

from metaopt import UserError
from metaopt.learned.checkpoint import checkpoint_bytes, read_checkpoint
from metaopt.training import run as run_module
from metaopt.training.run import BEST, LAST, PREVIOUS, run_training

WILD = {"learning_rate_update": 0.3, "learning_rate_element": 0.1, "average": 0.3}
CONSTANT = {**WILD, "schedule": "constant", "steps": 2, "window": 1, "validation_at": (1, 2)}


def train(out, **fields) -> bool:
    trainer = make({"element": "none"}, **{**CONSTANT, **fields})
    return run_training(trainer, out, resume=True, overwrite=False)


@pytest.mark.parametrize("every", [2, 3, 100])
@pytest.mark.parametrize(("budgets", "batch_size"), [((4, 5, 6, 9), 1), ((5, 9), 2)])
def test_a_longer_run_is_the_run_of_that_length_where_rates_do_not_follow_it(
    tmp_path, every, budgets, batch_size
):
    """Also where the validation at its end is one that the run of that length has not."""
    for budget in budgets:
        fields = {"validation_every": every, "batch_size": batch_size, "trajectories": budget}
        assert train(tmp_path / "longer", **fields) is False
    train(tmp_path / "whole", **fields)
    assert results(tmp_path / "longer") == results(tmp_path / "whole")


@pytest.mark.parametrize("score", ["better", "worse"])
def test_what_came_of_a_validation_at_the_end_is_taken_back(monkeypatch, tmp_path, capsys, score):
    """The networks that it found best, or its return to those that were best before."""
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    fields = {"validation_every": 3, "rollback": 1e-9, "trajectories": 9}
    train(whole, **fields)
    real = run_module.Trainer.validate

    def validate(trainer):
        if trainer.trajectories == 5:
            trainer.best_score = {"better": 1e9, "worse": -1e9}[score]
        return real(trainer)

    monkeypatch.setattr(run_module.Trainer, "validate", validate)
    train(longer, **{**fields, "trajectories": 5})
    ended = read_checkpoint(longer / LAST)
    assert (ended.facts["rollbacks"] > read_checkpoint(longer / PREVIOUS).facts["rollbacks"]) == (
        score == "worse"
    )
    capsys.readouterr()
    train(longer, **fields)
    assert capsys.readouterr().err.startswith(
        "the run goes on from trajectory 5 to 9, instead of 5; what came of the validation at 5, "
        "which a run of that length has not, is taken back, and training goes on from trajectory 3"
    )
    assert results(longer) == results(whole)


def test_without_the_checkpoint_before_a_validation_at_the_end_counts(tmp_path, capsys):
    train(tmp_path, trajectories=5, validation_every=3)
    (tmp_path / PREVIOUS).unlink()
    train(tmp_path, trajectories=6, validation_every=3)
    said = capsys.readouterr().err
    assert "the validation at 5 counts, as previous.safetensors is missing" in said


def test_rates_that_follow_the_length_go_on_as_in_a_run_of_the_new_length_which_is_said(
    tmp_path, capsys
):
    fields = {"schedule": "cosine", "learning_rate_update": 1e-3, "validation_every": 2}
    train(tmp_path, trajectories=4, **fields)
    capsys.readouterr()
    train(tmp_path, trajectories=8, **fields)
    said = capsys.readouterr().err.splitlines()[0]
    assert said == (
        "the run goes on from trajectory 4 to 8, instead of 4; the cosine schedule follows the "
        "length: the rate of m1 is now 0.00051 instead of 1e-05, and the result is not that of a "
        "run of this length from the start"
    )
    for name in (LAST, BEST):
        assert read_checkpoint(tmp_path / name).facts["budgets"] == [4]
    assert train(tmp_path, trajectories=8, **fields) is True
    train(tmp_path, trajectories=10, **fields)
    assert read_checkpoint(tmp_path / LAST).facts["budgets"] == [4, 8]


def test_a_cosine_between_equal_rates_does_not_follow_the_length(tmp_path):
    rate = {"learning_rate_update": 0.1, "learning_rate_element": 0.1, "learning_rate_final": 0.1}
    for out, budgets in (("longer", (4, 8)), ("whole", (8,))):
        for budget in budgets:
            train(tmp_path / out, trajectories=budget, schedule="cosine", **rate)
    assert results(tmp_path / "longer") == results(tmp_path / "whole")


@pytest.mark.parametrize("budget", [6, 40])
def test_an_interrupted_run_may_have_another_budget_too(monkeypatch, tmp_path, budget):
    real = run_module.Trainer.train_batch
    fields = {"trajectories": 20, "validation_every": 2}

    def train_batch(trainer):
        if trainer.trajectories == 5:
            raise KeyboardInterrupt
        return real(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(run_module.Trainer, "train_batch", train_batch)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", **fields)
    train(tmp_path / "cut", **{**fields, "trajectories": budget})
    train(tmp_path / "whole", **{**fields, "trajectories": budget})
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_the_command_makes_a_finished_run_longer_and_refuses_a_shorter_one(tmp_path, capsys):
    assert command(tmp_path, trajectories=4) == 0
    before = results(tmp_path)
    assert command(tmp_path, "--resume", trajectories=4) == 0
    assert "finished already; nothing was trained" in capsys.readouterr().out
    assert command(tmp_path, "--resume", trajectories=3) == 2
    assert capsys.readouterr().err == (
        "error: expected --trajectories above 4, which the run has done, got 3: give more, or "
        "another --out\n"
    )
    assert results(tmp_path) == before
    assert command(tmp_path, "--resume", trajectories=6) == 0
    assert read_checkpoint(tmp_path / LAST).facts["trajectories"] == 6


@pytest.mark.parametrize("bad", [{"budgets": [0]}, {"budgets": ["4"]}, {"parts": 0}, {"parts": "2"},
                                 {"init_from": "gd"}, {"init_from": {"source": 1, "sha256": ""}},
                                 {"training": {"trajectories": None}}])  # fmt: skip
def test_facts_of_a_run_that_no_run_writes_are_refused(tmp_path, bad):
    train(tmp_path, **TINY)
    tensors, facts = read_checkpoint(tmp_path / LAST)
    bad = {k: facts[k] | v if k == "training" else v for k, v in bad.items()}
    (tmp_path / LAST).write_bytes(checkpoint_bytes(tensors, facts | bad))
    with pytest.raises(UserError, match="a file without its state"):
        train(tmp_path, **TINY)
