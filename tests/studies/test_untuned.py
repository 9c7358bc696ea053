"""The four networks, untuned: their sizes, one run, the tables, and the command."""

from __future__ import annotations

import pytest
import torch
from data_cases import make_dataset
from torch import nn

from metaopt import UserError
from studies.untuned import report, tasks
from studies.untuned.__main__ import FORMER, QUICK_STEPS, main
from studies.untuned.mobilenet import SMALL, MobileNetV3
from studies.untuned.report import ADAMW, BEST, USUAL
from studies.untuned.resnet import ResNet18
from studies.untuned.runs import contenders, run
from studies.untuned.tasks import NETWORKS, TINY, cifar_parts, subjects


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder / "cifar10", "cifar10", train=80, test=20)
    yield str(folder)
    cifar_parts.cache_clear()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_networks_are_of_the_usual_sizes():
    sizes = {name: count(build()) for name, build in NETWORKS.items()}
    # of torchvision with 10 classes: 11,181,642 with a stem of 7 x 7, and 1,528,106
    assert sizes["resnet18"] == 11_181_642 - 64 * 3 * (49 - 9)
    assert count(ResNet18()) == 11_181_642
    assert sizes["mobilenet_v3_small"] == 1_528_106
    assert 5.3e6 < sizes["vit_tiny"] < 5.5e6
    assert 1.5e6 < sizes["gpt"] < 3e6


def test_each_network_takes_its_batches_and_halves_images_as_often_as_it_should(data):
    for name, (task, _) in subjects(data, quick=True).items():
        model = task.model(0)
        batch = next(iter(task.batches(0, "train")))
        loss = task.loss(model, batch)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None for p in model.parameters()), name
    x = torch.randn(2, 3, 32, 32)
    assert ResNet18(2, small_images=True).layers(torch.randn(2, 2, 32, 32)).shape[-2:] == (4, 4)
    assert nn.Sequential(*list(MobileNetV3())[:14])(x).shape == (2, 96, 1, 1)
    assert sum(of.stride == 2 for of in SMALL) == 4


def test_images_are_standardized_by_the_training_part(data):
    parts = cifar_parts(data)
    assert [len(parts[name][1]) for name in ("train", "validation", "test")] == [60, 20, 20]
    x = parts["train"][0]
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(dim=(0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("told", [True, False])
def test_a_run_is_a_plain_loop_and_tells_the_number_of_steps_or_not(told, data, monkeypatch):
    (of,) = contenders(["lstm_layerwise" if told else "lstm_layerwise:open"])
    heard = []
    from studies.untuned import runs

    built = runs.LearnedOptimizer

    def hearing(model, source, **options):
        heard.append(options["total_steps"])
        return built(model, source, **options)

    monkeypatch.setattr(runs, "LearnedOptimizer", hearing)
    task = subjects(data, quick=True)["vit_tiny"].task
    record = run(task, of, 3, 6)
    assert heard == [6 if told else 0]
    model = task.model(3)
    optimizer = built(model, "lstm_layerwise", total_steps=heard[0])
    losses = []
    for _, batch in zip(range(6), task.batches(3, "train"), strict=False):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert record["curve"] == pytest.approx(losses, rel=1e-4)
    assert record["train"] == pytest.approx(sum(losses[-5:]) / 5, rel=1e-4)
    assert record["highest"] == pytest.approx(max(losses) / losses[0], rel=1e-4)
    with torch.no_grad():
        x, y = cifar_parts(data)["test"]
        assert record["loss"] == pytest.approx(task.loss(model.eval(), (x, y)).item(), rel=1e-4)


def made(network, method, train, highest=1.0):
    return {
        "network": network, "method": method, "train": train, "loss": train and 2 * train,
        "highest": highest, "seconds": 3.0,
    }  # fmt: skip


def test_the_tables_have_the_best_of_five_rates_and_the_highest_loss_of_all_seeds():
    records = [
        made("vit", name, 2 + abs(place - 3) + shift)
        for place, name in enumerate(ADAMW)
        for shift in (0, 1)
    ]
    records += [made("vit", "runs/mine.safetensors", 1.0, 1.5), made("vit", "muon@0.01", None)]
    records += [made("vit", "runs/mine.safetensors", 2.0, 1.2)]
    found = report.tables(records)
    headings, _, line = found["untuned"].splitlines()
    assert headings == f"| network | {USUAL} | {BEST} | mine | muon@0.01 |"
    assert line == "| vit | 3.5 | 2.5 (0.003) | **1.5** | inf |"
    assert found["untuned_test"].splitlines()[2] == "| vit | 7 | 5 (0.003) | **3** | inf |"
    assert found["untuned_highest"].splitlines()[2] == "| vit | 1.00 | 1.00 | 1.50 | 1.00 |"
    assert found["untuned_rates"].splitlines()[2] == "| vit | 5.5 | 4.5 | 3.5 | 2.5 | 3.5 |"


def test_the_command_runs_goes_on_and_writes_its_tables(data, tmp_path, monkeypatch, capsys):
    few = {name: TINY[name] for name in ("gpt", "vit_tiny")}
    monkeypatch.setattr(tasks, "TINY", few)
    arguments = ["--out", str(tmp_path), "--data-dir", data, "--quick", "--methods", f"{FORMER}"]
    main(arguments)
    printed = capsys.readouterr().out
    names = ("untuned", "untuned_test", "untuned_highest", "untuned_seconds", "untuned_rates")
    for name in names:
        assert (tmp_path / "tables" / f"{name}.md").read_text() in printed
    kept = (tmp_path / "runs.jsonl").read_text()
    assert len(kept.splitlines()) == len(few) * (len(ADAMW) + 2)
    assert f'"steps": {QUICK_STEPS}' in kept
    lines = kept.splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-1]) + lines[-1][:9])  # as a kill leaves it
    main(arguments)
    again = (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    assert again[-1].split('"seconds"')[0] == lines[-1].split('"seconds"')[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "muon"], "expected a rate of muon, got none"),
        (["--methods", "adamm@0.1"], "adamm"),
        (["--seeds", "0"], "--seeds"),
        (["--steps", "4"], "--steps"),
    ],
)
def test_a_mistake_is_refused_in_one_line(flags, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        main(["--out", str(tmp_path), *flags])
    assert len(str(refused.value).splitlines()) == 1


def test_without_the_images_nothing_is_trained(tmp_path):
    flags = ["--out", str(tmp_path), "--data-dir", str(tmp_path), "--quick"]
    with pytest.raises(UserError, match="expected the files of cifar10 in"):
        main(flags)
    assert not (tmp_path / "runs.jsonl").exists()
