"""``--task``: both commands on a user's own tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from own_tasks import MISTAKES, Images

from metaopt.cli.evaluate import main as evaluate
from metaopt.cli.train import main as train
from metaopt.errors import UserError
from metaopt.evaluation.methods import resolve
from metaopt.evaluation.ordinary import ORDINARY
from metaopt.evaluation.results import read_results
from metaopt.evaluation.rollout import rollout
from metaopt.learned.checkpoint import load_meta_optimizer, read_checkpoint
from metaopt.learned.optimizer import LearnedOptimizer
from metaopt.tasks import SingleTask, first_seeds
from metaopt.training.own_tasks import OwnTasks

SHORT = [
    "--steps=6", "--window=3", "--batch_size=2", "--validation_problems=2", "--hidden=4",
    "--validation_every=2", "--validation_at=[2,6]", "--eval_batches=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def beside_the_tasks(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)


def trained(out, *more, task="Images"):
    train([f"--task=own_tasks:{task}", f"--out={out}", "--trajectories=4", *SHORT, *more])
    return read_checkpoint(out / "best.safetensors")


@pytest.mark.parametrize("task", ["Images", "Widths"])
def test_a_run_trains_resumes_to_the_same_and_is_evaluated(task, tmp_path, capsys):
    whole = trained(tmp_path / "whole", task=task)
    said = capsys.readouterr()
    assert "--task without --update: update layerwise, element none" in said.err
    assert ("--task own_tasks:Images" in said.out) == (task == "Images")
    trained(tmp_path / "parts", "--trajectories=2", "--schedule=constant", task=task)
    parts = trained(tmp_path / "parts", "--resume", "--schedule=constant", task=task)
    one = trained(tmp_path / "one", "--schedule=constant", task=task)
    for name, tensor in one.tensors.items():
        assert torch.equal(parts.tensors[name], tensor)
    assert whole.facts["training"]["task"] == f"own_tasks:{task}"
    path = tmp_path / "whole" / "best.safetensors"
    out = tmp_path / "eval"
    methods = f"--methods={path},adam@1e-3,lstm_layerwise"
    evaluate(
        ["--task=own_tasks:Images", methods, "--problems=2", "--steps=4", "--eval_batches=2",
         f"--out={out}"]
    )  # fmt: skip
    results, manifest = read_results(out)
    assert manifest["config"]["problem"] == {"task": "own_tasks:Images", "eval_batches": 2}
    names = ["validation loss", "validation accuracy", "test loss", "test accuracy"]
    assert [list(result.held_out) for result in results] == [names] * 3
    assert all(len(values) == 2 for r in results for values in r.held_out.values())
    assert all(result.state_bytes > 0 for result in results)
    table = capsys.readouterr().out
    assert "test accuracy" in table
    assert "state, kB" in table
    evaluate([f"--out={out}", "--redraw"])
    assert "test accuracy" in capsys.readouterr().out
    assert b"Training loss of own_tasks:Images, 2 test seeds" in (out / "report.html").read_bytes()


def test_adam_and_its_test_loss_are_those_of_a_plain_loop(tmp_path):
    evaluate(
        ["--task=own_tasks:Images", "--methods=adam@0.01", "--seeds=5", "--steps=3",
         "--eval_batches=2", f"--out={tmp_path / 'eval'}"]
    )  # fmt: skip
    (result,), manifest = read_results(tmp_path / "eval")
    task, network = Images(), Images().model(5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _, batch in zip(range(3), task.batches(5, "train"), strict=False):
        optimizer.zero_grad()
        task.loss(network, batch).backward()
        optimizer.step()
    network.train()
    next(iter(task.batches(5, "train")))
    last = [b for b, _ in zip(task.batches(5, "train"), range(4), strict=False)][3]
    with torch.no_grad():
        assert result.losses[-1, 0] == pytest.approx(task.loss(network, last).item())
        network.eval()
        batches = [b for b, _ in zip(task.batches(5, "test"), range(2), strict=False)]
        expected = torch.stack([task.loss(network, batch) for batch in batches]).mean()
    assert result.held_out["test loss"][0] == pytest.approx(expected.item())
    assert manifest["methods"]["adam@0.01"]["held_out"]["test loss"] == result.held_out["test loss"]


def test_the_score_is_of_the_validation_split(tmp_path):
    checkpoint = trained(tmp_path / "run", "--trajectories=2", "--learning_rate_update=1e-12")
    networks = load_meta_optimizer(tmp_path / "run" / "best.safetensors")
    logs = []
    for seed in first_seeds("validation", 2):
        single = SingleTask(Images(), seed)
        optimizer = LearnedOptimizer(single.network, networks)
        for step in range(6):
            optimizer.zero_grad()
            single(step).sum().backward()
            optimizer.step()
            if step + 1 in (2, 6):
                logs.append(single.measure("validation", 2)["loss"].log10().item())
    assert checkpoint.facts["validation_score"] == pytest.approx(sum(logs) / 4, abs=1e-5)


def test_a_run_of_fewer_trajectories_than_a_batch_is_one_smaller_batch(tmp_path):
    trained(tmp_path / "run", "--trajectories=1", "--batch_size=50")
    facts = read_checkpoint(tmp_path / "run" / "last.safetensors").facts
    assert (facts["trajectories"], facts["meta_steps"]) == (1, 2)


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_line(name, tmp_path):
    with pytest.raises(UserError) as error:
        trained(tmp_path / "run", task=name)
    line = str(error.value)
    assert line.startswith(MISTAKES[name])
    assert "\n" not in line
    assert len(line) < 300
    assert not (tmp_path / "run" / "last.safetensors").exists()
    with pytest.raises(UserError) as error:
        evaluate(
            [f"--task=own_tasks:{name}", "--methods=adam@1", "--problems=1", "--steps=1",
             f"--out={tmp_path / 'eval'}"]
        )  # fmt: skip
    assert str(error.value)[:22] == MISTAKES[name][:22]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("Negative", "expected losses of 0 or more, as meta-losses and validation scores are log"),
        ("Complex", "expected copies of Complex with real parameters, got weight of dtype torch.c"),
    ],
)
def test_what_can_be_evaluated_but_not_trained_on_is_refused_before_anything_is_written(
    task, line, tmp_path
):
    for estimator in ("truncated", "pes"):
        with pytest.raises(UserError) as error:
            trained(tmp_path / "run", f"--estimator={estimator}", task=task)
        assert str(error.value).startswith(line)
        assert len(str(error.value)) < 300
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--task=own_tasks"], "expected package.module:Name, got 'own_tasks'"),
        (["--task=no_such:A"], "expected the module 'no_such' to be importable"),
        (["--task=own_tasks:Widths"], "expected a Task to evaluate on, got the TaskFamily"),
        (["--task=own_tasks:Images", "--hidden=4"], "expected --task without flags of section"),
        (["--task=own_tasks:Images", "--together=4"], "expected --task without flags of section"),
        (["--task=own_tasks:Images", "--methods=adam"], "expected a learning rate for 'adam'"),
        (
            ["--task=own_tasks:Images", "--methods=adam_tele@0.1"],
            "expected a method that can step any module",
        ),
        (["--task=own_tasks:Images", "--eval_batches=0"], "expected"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(arguments, line, tmp_path):
    with pytest.raises(UserError) as error:
        evaluate(["--methods=adam@1", *arguments, "--steps=1", f"--out={tmp_path / 'eval'}"])
    assert str(error.value).startswith(line)
    assert not (tmp_path / "eval" / "results.jsonl").exists()


def test_a_chosen_rate_is_for_any_module():
    assert resolve("adam@1").for_any_module().rate == 1.0
    assert resolve("muon").rate != resolve("muon").for_any_module().rate == ORDINARY["muon"].rate
    assert resolve("muon@0.1").for_any_module().rate == 0.1


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_optimizers_are_methods_on_tasks_of_any_module(name):
    single = SingleTask(Images(), 3)
    single.total_steps = 5
    method = resolve(name).for_any_module()
    losses = rollout(single, method.optimizer(single), 5).losses
    network, task = Images().model(3), Images()
    other = ORDINARY[name].optimizer(network, 5)
    for step, batch in zip(range(5), task.batches(3, "train"), strict=False):
        other.zero_grad()
        loss = task.loss(network, batch)
        loss.backward()
        assert losses[step, 0].item() == loss.item()
        other.step()
    if name != "muon":
        with pytest.raises(UserError, match=f"section 5.2's tasks, got '{name}', which is for tas"):
            resolve(name).for_chains()


def test_horizons_are_drawn_evenly_in_their_logarithm_and_announced_as_often_as_asked():
    tasks = OwnTasks(task="own_tasks:Images", shortest=10, announced=0.25)
    generator = torch.Generator().manual_seed(1)
    drawn = [tasks.horizon(1000, generator) for _ in range(400)]
    steps = torch.tensor([float(count) for count, _ in drawn])
    assert steps.min() >= 10
    assert steps.max() <= 1000
    assert steps.log10().mean() == pytest.approx(2.0, abs=0.1)
    assert sum(told for _, told in drawn) / 400 == pytest.approx(0.25, abs=0.07)
    plain = OwnTasks(task="own_tasks:Images")
    state = generator.get_state()
    assert plain.horizon(7, generator) == (7, True)
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(UserError, match=r"expected announced in \[0, 1\], got 2"):
        OwnTasks(task="own_tasks:Images", announced=2.0)


def test_a_run_with_drawn_horizons_trains_the_rule_that_anneals(tmp_path):
    checkpoint = trained(
        tmp_path / "run", "--update=tensorwise", "--element=none", "--estimator=pes",
        "--shortest=3", "--announced=0.5", "--pes_pairs=2",
    )  # fmt: skip
    assert checkpoint.facts["spec"]["update"] == "tensorwise"
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").facts["skipped"] == 0
