"""The command lines of the studies: what they hand on, and what they refuse before any work."""

import math

import pytest
import torch

from metaopt import UserError
from metaopt.learned.checkpoint import pretrained_path
from studies.learned_teleportation import __main__ as learned_teleportation
from studies.learned_teleportation import controls, families
from studies.learned_teleportation.minibatches import CosineAdam
from studies.learned_teleportation.scale import Quick, Scale


@pytest.fixture
def asked(monkeypatch):
    """What each study was asked for, in place of its work."""
    calls = []

    def worker(*arguments):
        calls.append(arguments)
        return "| a table |"

    for module, name in (
        (families, "families"), (controls, "controls"), (learned_teleportation, "study"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, worker)
        monkeypatch.setattr(module, "set_threads", lambda threads: None)
    return calls


def test_families_are_measured_with_the_shipped_optimizer_and_their_table_is_kept(
    asked, tmp_path, capsys
):
    families.main(["--out", str(tmp_path), "--quick"])
    families.main(["--out", str(tmp_path), "--checkpoint", "own.safetensors"])
    (out, checkpoint, quick), (_, own, whole) = asked
    assert (out, checkpoint, quick) == (tmp_path, pretrained_path("lstm_update_tele"), True)
    assert (str(own), whole) == ("own.safetensors", False)
    assert (tmp_path / "tables" / "families.md").read_text().strip() == "| a table |"
    assert "| a table |" in capsys.readouterr().out


def test_controls_are_trained_as_often_and_as_long_as_asked(asked, tmp_path):
    controls.main(["--out", str(tmp_path), "--jobs", "3", "--seeds", "4", "--trajectories", "5"])
    ((out, scale, jobs, trajectories),) = asked
    assert (out, jobs, trajectories) == (tmp_path, 3, 5)
    assert isinstance(scale, Scale)
    assert scale.meta_seeds == 4


@pytest.mark.parametrize(("flags", "kind"), [([], Scale), (["--quick"], Quick)])
def test_the_study_is_whole_or_quick(asked, flags, kind):
    learned_teleportation.main(flags)
    ((out, scale, jobs),) = asked
    assert (str(out), type(scale), jobs) == ("runs/study", kind, 2)


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        (learned_teleportation, "jobs"),
        (controls, "jobs"),
        (controls, "seeds"),
        (controls, "trajectories"),
    ],
)
def test_a_number_below_one_is_refused_before_any_work(asked, module, flag):
    with pytest.raises(UserError, match=f"expected --{flag} of 1 or more, got 0"):
        module.main([f"--{flag}", "0"])
    assert asked == []


def test_the_rate_of_the_cosine_falls_to_0_at_the_end():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = CosineAdam([weight], lr=0.4, steps=8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(2)
        optimizer.step()
    expected = [0.2 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert weight.tolist() == pytest.approx([1 - sum(expected)] * 2, rel=1e-4)
