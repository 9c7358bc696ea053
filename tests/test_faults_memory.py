"""A long training keeps its memory and its open files."""

import json

import pytest
from soak_cases import flags, form, start

META_STEPS = form(600, 20_000)
EVERY = form(50, 100)
pytestmark = pytest.mark.soak

WATCHED = """
import json, sys
import psutil
from metaopt.cli import train
from metaopt.training.trainer import Trainer

process, seen = psutil.Process(), []
batch = Trainer.train_batch
def watched(self):
    numbers = batch(self)
    if self.trajectories % int(sys.argv[1]) == 0:
        seen.append((self.meta_steps, process.memory_info().rss, process.num_fds()))
    return numbers
Trainer.train_batch = watched
train.main(sys.argv[2:])
print(json.dumps(seen))
"""


def test_memory_is_flat_within_two_per_cent_and_no_file_stays_open(tmp_path):
    small = {
        "hidden": "2", "widths": "[4]", "steps": "2", "window": "1", "batch_size": "1",
        "micro_batch": "0", "validation_every": "200", "validation_problems": "1",
        "validation_at": "[2]", "validation_families": "[]", "rollback": "0",
        "rectangular": "false", "depths": "[2]", "trajectories": str(META_STEPS // 2),
    }  # fmt: skip
    process = start("-c", WATCHED, str(EVERY), *flags(tmp_path / "run", **small))
    output, errors = process.communicate(timeout=3000)
    assert process.returncode == 0, errors
    seen = json.loads(output.splitlines()[-1])
    assert seen[-1][0] == META_STEPS
    later = seen[len(seen) // 3 :]  # caches and allocators have settled by then
    memory = [rss for _, rss, _ in later]
    assert max(memory) <= 1.02 * memory[0], memory
    assert len({files for *_, files in later}) == 1
    print(f"{META_STEPS} meta-steps: {memory[0] / 2**20:.1f} to {memory[-1] / 2**20:.1f} MiB")
