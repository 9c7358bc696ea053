"""A run that took no meta-step at all does not end as if it had learned."""

from __future__ import annotations

import torch
from torch import nn
from training_cases import command

from metaopt.learned.checkpoint import read_checkpoint, save_meta_optimizer
from metaopt.learned.meta_optimizer import MetaOptimizer, MetaOptimizerSpec
from metaopt.training.run import BEST, LAST

LINE = (
    "error: expected finite meta-gradients, got none in all 3 meta-steps of the run: "
    "best.safetensors holds the networks as they began; "
)


def test_a_run_whose_meta_steps_were_all_skipped_ends_in_one_line_and_keeps_its_files(
    tmp_path, capsys
):
    spec = MetaOptimizerSpec(hidden=4, heads=("plain",))
    enormous = MetaOptimizer(spec)
    nn.init.constant_(enormous.update.lstm.head_bias, 1e38)
    save_meta_optimizer(tmp_path / "enormous.safetensors", enormous, {})
    fields = {"heads": ("plain",), "init_from": tmp_path / "enormous.safetensors"}
    fields |= {"steps": 3, "trajectories": 3}
    assert command(tmp_path / "run", **fields) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(LINE)
    facts = read_checkpoint(tmp_path / "run" / LAST).facts
    assert (facts["skipped"], facts["meta_steps"]) == (3, 0)
    best = read_checkpoint(tmp_path / "run" / BEST).under("meta/")
    assert all(torch.equal(best[k], v) for k, v in enormous.state_dict().items())
    assert command(tmp_path / "run", "--resume", **fields) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(LINE)


def test_a_run_that_learned_ends_with_code_0(tmp_path):
    assert command(tmp_path / "run", trajectories=2) == 0
