"""The suite's study: what a speed-up is, what is kept, and the command on two tiny tasks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import make_dataset
from scipy.stats import trim_mean

from metaopt import UserError
from metaopt.tasks.suite import SUITE, suite_task
from metaopt.tasks.suite.base import TextTask
from studies.suite import study
from studies.suite.__main__ import REFERENCE, main
from studies.suite.figure import suite_figure
from studies.suite.kept import Log
from studies.suite.protocol import (
    BASELINE,
    SETTINGS,
    Setting,
    baselines,
    contender,
    plan,
)
from studies.suite.reference import Reference, made, read, tuned
from studies.suite.report import summary, tables
from studies.suite.runs import measure
from studies.suite.speedup import interquartile_mean, reached, smoothed, speed_up, with_interval
from studies.suite.study import Study

FALLING = [100.0 - k for k in range(100)]
NOWHERE = Path("nowhere.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("mnist", "fashion-mnist"):
        make_dataset(folder / name, name, train=300, test=60)
    return folder


def run_of(task="mnist_mlp", method="adamw", setting=None, seed=0):
    of = contender(method)
    return plan(task, of, setting or of.settings[0], seed, True, NOWHERE)


def test_smoothing_is_the_mean_of_the_last_five_parts():
    curve = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0]
    assert smoothed(curve).tolist() == pytest.approx([3.0, 4.2])
    assert np.isinf(smoothed([1.0] * 5 + [None] * 2)).tolist() == [False, True, True]


@pytest.mark.parametrize("factor", [2, 4, 5])
def test_an_optimizer_that_makes_steps_worth_several_is_that_much_faster(factor):
    curve = [float(np.mean(FALLING[factor * k : factor * (k + 1)] or [1.0])) for k in range(100)]
    faster = speed_up(curve, FALLING)
    # smoothing costs the faster one a little
    assert factor * 0.8 < faster <= factor
    assert speed_up(FALLING, curve) == pytest.approx(1 / factor, rel=0.25)


def test_the_baseline_itself_has_one_and_reaches_its_own_loss_when_it_first_did():
    assert speed_up(FALLING, FALLING) == 1
    dipped = [*FALLING[:-10], *[50.0] * 10]  # ends above where it was
    assert speed_up(dipped, dipped) == 1
    assert speed_up(FALLING, dipped) == 1
    assert reached(FALLING, FALLING)


def test_one_that_never_gets_there_is_slower_the_higher_it_ends():
    ends = [speed_up([float(end)] * 100, FALLING) for end in (10, 30, 60, 90)]
    assert ends == sorted(ends, reverse=True)
    # the baseline's smoothed loss is 30 at its part 73
    assert ends[1] == pytest.approx(0.73)
    assert speed_up([None] * 100, FALLING) == speed_up([1e9] * 100, FALLING) == 0.05
    assert not reached([None] * 100, FALLING)


def test_the_interquartile_mean_is_scipys_trimmed_mean_and_lies_in_its_interval():
    values = np.random.default_rng(0).lognormal(size=(10, 3))
    assert interquartile_mean(values) == pytest.approx(trim_mean(values.ravel(), 0.25))
    found = with_interval(values)
    assert found.low < found.mean < found.high
    assert with_interval(np.ones((10, 3))) == (1, 1, 1)
    extreme = values.copy()
    extreme[0] = 1e9
    assert with_interval(extreme).mean < 10


@pytest.mark.parametrize("method", ["adamw", "schedule_free", "lstm_layerwise"])
def test_a_run_is_a_plain_loop(method, data):
    run = run_of(method=method)
    record = measure(run, str(data), NOWHERE)
    again = measure(run, str(data), NOWHERE)
    assert {**record, "seconds": 0} == {**again, "seconds": 0}
    assert record["split"] == "test"
    assert len(record["curve"]) == run.steps
    if method != "adamw":
        return
    task = suite_task("mnist_mlp", data)
    model = task.model(0)
    optimizer = torch.optim.AdamW(model.parameters(), run.setting.rate, weight_decay=0.0)
    losses = []
    for _, batch in zip(range(run.steps), task.batches(0, "train"), strict=False):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert record["curve"] == pytest.approx(losses, rel=1e-4)
    assert record["train"] == pytest.approx(np.mean(losses[-5:]), rel=1e-4)
    assert record["highest"] == pytest.approx(max(losses) / losses[0], rel=1e-4)
    ((x, y),) = task.batches(0, "test")
    with torch.no_grad():
        assert record["loss"] == pytest.approx(task.loss(model.eval(), (x, y)).item(), rel=1e-4)
        right = (model(x).argmax(dim=1) == y).float().mean().item()
    assert record["accuracy"] == pytest.approx(right, rel=1e-4)


def test_a_run_that_diverges_ends_and_its_losses_are_null(data):
    record = measure(run_of(setting=Setting(1e25)), str(data), NOWHERE)
    assert record["loss"] is record["train"] is record["highest"] is record["accuracy"] is None
    assert record["curve"][0] is not None
    assert record["curve"][-1] is None
    json.dumps(record, allow_nan=False)


def test_statistics_of_norms_are_those_of_the_weights_that_are_evaluated(data):
    record = measure(run_of("residual", "schedule_free", Setting(0.01)), str(data), NOWHERE)
    assert record["loss"] < 10


def test_a_tuning_run_sees_the_validation_split_alone(data):
    record = measure(run_of(seed=10**6), str(data), NOWHERE)
    assert record["split"] == "validation"


def test_what_is_kept_goes_on_after_a_kill_in_a_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    Log(path).add({"key": "a", "loss": 1})
    with path.open("a") as file:
        file.write('{"key": "b", "lo')
    log = Log(path)
    assert list(log.records) == ["a"]
    log.add({"key": "b", "loss": 2})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]
    path.write_text('{"key": "a"}\nno JSON\n')
    with pytest.raises(UserError, match="line 2"):
        Log(path)


def test_methods_are_baselines_with_or_without_a_rate_and_learned_optimizers():
    assert contender("muon").settings == SETTINGS["muon"]
    assert contender("muon@0.5").settings == (Setting(0.5),)
    learned, untold = contender("lstm_layerwise"), contender("lstm_layerwise:open")
    assert (untold.digest, untold.optimizer) == (learned.digest, learned.optimizer)
    run = plan("mnist_mlp", untold, Setting(), 0, True, Path("none"))
    assert not run.told
    assert plan("mnist_mlp", learned, Setting(), 0, True, Path("none")).told
    assert learned.learned
    assert learned.settings == (Setting(),)
    for text, message in (
        ("adam_w", "did you mean adamw"), ("muon@fast", "positive rate"), ("muon@-1", "positive"),
        ("lstm_layerwise@1", "without a rate"), ("no.safetensors", "no.safetensors"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            contender(text)


def test_runs_of_another_setting_seed_or_checkpoint_have_another_key():
    runs = [
        run_of(), run_of(seed=1), run_of(setting=Setting(0.5)), run_of(setting=Setting(0.5, 0.1)),
        run_of(method="lstm_layerwise"), run_of("fashion_mlp"), run_of("tabular"),
    ]  # fmt: skip
    assert len({run.key for run in runs}) == len(runs)
    assert run_of("tabular").data
    assert not run_of("mnist_mlp").data


def test_tuning_takes_the_lowest_validation_loss_and_tests_nothing_else(tmp_path, monkeypatch):
    asked = []

    def pretend(run, data_dir, pretrained):
        asked.append(run)
        rate = run.setting.rate
        loss = None if rate > 0.02 else abs(math.log(rate / 0.01)) + run.setting.decay
        return {"key": run.key, "task": run.task, "method": run.method, "rate": rate,
                "decay": run.setting.decay, "seed": run.seed, "loss": loss}  # fmt: skip

    monkeypatch.setattr(study, "measure", pretend)
    log = Log(tmp_path / "runs.jsonl")
    own = Study(log, ["mnist_mlp"], None, NOWHERE)
    chosen, losses = own.tune(baselines())
    assert chosen["mnist_mlp", BASELINE] == Setting(0.01)
    assert len(asked) == len(losses) == sum(len(s) for s in SETTINGS.values()) == 30
    assert {run.seed for run in asked} == {10**6}
    records = own.test(baselines(), chosen)
    assert len(records) == 15
    assert {run.seed for run in asked[30:]} == {0, 1, 2}
    Study(log, ["mnist_mlp"], None, NOWHERE).test(baselines(), own.tune(baselines())[0])
    assert len(asked) == 45  # nothing anew
    kept = made(records, losses)
    assert kept.tuning["mnist_mlp"]["adamw"]["0.03"] is None
    assert tuned(kept, [contender("muon")], ["mnist_mlp"]) == {("mnist_mlp", "muon"): Setting(0.01)}
    with pytest.raises(UserError, match="got none"):
        tuned(kept, [contender("muon")], ["tabular"])


def a_record(task, method, curve, loss, seed=0):
    return {
        "task": task, "method": method, "rate": 0.1, "decay": 0.0, "seed": seed, "steps": 200,
        "loss": loss, "accuracy": None, "train": curve[-1], "highest": 1.5, "seconds": 2.0,
        "curve": curve,
    }  # fmt: skip


def test_tables_say_speed_ups_losses_and_where_a_test_loss_is_worse():
    flat = [50.0] * 100
    records = [
        a_record("mnist_mlp", BASELINE, FALLING, 1.0),
        a_record("mnist_mlp", "adamw", FALLING, 1.0),
        a_record("mnist_mlp", "own", flat, 1.06),
        a_record("lora", BASELINE, FALLING, 1.0),
        a_record("lora", "adamw", FALLING, 0.9),
        a_record("lora", "own", FALLING, 1.04),
    ]
    results = Reference({}, {}, records)
    text = tables(results)
    line = summary(results).splitlines()[4]
    assert line.startswith("| own | ")
    assert "1 of 2 | 1 of 2 | 1.5 | 4 |" in line
    assert "| mnist_mlp | 1.00 | 0.53 |" in text["suite_speedups"]
    assert "| lora (held out) | 1 | **0.9** | 1.04 |" in text["suite_test"]
    assert "| lora (held out) | 0.1 (end) | 0.1 (end) | 0.1 |" in text["suite_settings"]
    figures = [suite_figure(results, seconds) for seconds in (False, True)]
    assert all(figure.startswith(b"\x89PNG") for figure in figures)
    assert figures[0] != figures[1]
    instead = results.beside([a_record("lora", "own", flat, 2.0)], ["lora"])
    assert instead.of("lora", "own")[0]["loss"] == 2.0
    assert instead.tasks == ["lora"]


def test_the_command_runs_goes_on_and_compares_a_learned_optimizer(
    tmp_path, data, capsys, monkeypatch
):
    monkeypatch.setattr(TextTask, "EVALUATED", 1)
    flags = ["--quick", "--out", str(tmp_path), "--data-dir", str(data)]
    few = [*flags, "--tasks", "mnist_mlp,lora"]
    main(few)
    out = tmp_path / "quick"
    lines = (out / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 5 * 3  # two settings and a test run of five baselines
    reference = read(out / "reference.json")
    assert reference.tasks == ["mnist_mlp", "lora"]
    assert reference.methods == list(SETTINGS)
    assert (out / "suite.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    for name in tables(reference):
        assert (out / "tables" / f"{name}.md").read_text() in printed
    main(few)
    assert (out / "runs.jsonl").read_text().splitlines() == lines
    main([*few, "--methods", "lstm_layerwise,adamw@0.01"])
    more = (out / "runs.jsonl").read_text().splitlines()[len(lines) :]
    methods = [json.loads(line)["method"] for line in more]
    assert methods.count("lstm_layerwise") == methods.count("adamw@0.01") == 2
    assert "| lstm_layerwise | " in capsys.readouterr().out


def test_what_there_is_not_is_refused_before_any_run(tmp_path):
    with pytest.raises(UserError, match="tasks"):
        main(["--out", str(tmp_path), "--tasks", "mnist"])
    with pytest.raises(UserError, match="--processes"):
        main(["--out", str(tmp_path), "--processes", "0"])
    flags = ["--out", str(tmp_path), "--tasks", "mnist_mlp", "--methods", "adamw"]
    with pytest.raises(UserError, match="without --methods"):
        main([*flags, "--reference", str(tmp_path / "none.json")])


def test_results_of_another_python_are_told(monkeypatch, capsys):
    Reference({"python": "3.0", "text": "other"}, {}, []).warn()
    assert "texts of Python 3.0" in capsys.readouterr().err


def test_the_reference_results_are_whole():
    assert REFERENCE.stat().st_size < 10**6
    reference = read(REFERENCE)
    assert reference.tasks == list(SUITE)
    assert reference.methods == list(SETTINGS)
    for task, entry in SUITE.items():
        for method, settings in SETTINGS.items():
            runs = reference.of(task, method)
            assert [run["seed"] for run in runs] == [0, 1, 2]
            assert {run["steps"] for run in runs} == {entry.kind.steps}
            losses = reference.tuning[task][method]
            assert set(losses) == {str(setting) for setting in settings}
            best = min(losses, key=lambda s: math.inf if losses[s] is None else losses[s])
            assert best == str(Setting(runs[0]["rate"], runs[0]["decay"]))
    assert summary(reference).splitlines()[2].startswith(f"| {BASELINE} | 1 | 1 | 1 |")
