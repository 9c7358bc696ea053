"""Make the shipped optimizers again: five meta-seeds a config, the best on validation is shipped.

    python scripts/make_pretrained.py [--seeds 5] [--jobs 2] [--only lstm_update] [--runs DIR]

Runs resume: kill it and start it again. Nothing is chosen on test problems.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metaopt.learned.checkpoint import read_checkpoint, write_atomically

ROOT = Path(__file__).parents[1]
NAMES = ("lstm_update_tele", "lstm_update", "lstm_lr_tele")
SHIPPED = ROOT / "metaopt" / "learned" / "pretrained"


def train(name: str, seed: int, out: Path) -> None:
    """One run, resumed if it is there already; its output goes to train.log."""
    out.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, str(ROOT / "train_meta.py"), "--config", f"configs/{name}.yaml",
        "--seed", str(seed), "--out", str(out), "--threads", "1", "--resume",
    ]  # fmt: skip
    with (out / "train.log").open("a") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)


def main() -> None:
    """Train what is missing, then ship the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "pretrained")
    options = parser.parse_args()
    runs = options.runs.resolve()
    names = [options.only] if options.only else list(NAMES)
    jobs = [
        (name, seed, runs / f"{name}-{seed}") for seed in range(options.seeds) for name in names
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: train(*job), jobs))
    for name in names:
        scores = {}
        for seed in range(options.seeds):
            path = runs / f"{name}-{seed}" / "best.safetensors"
            scores[path] = read_checkpoint(path).facts["validation_score"]
            print(f"{name} meta-seed {seed}: validation score {scores[path]:.3f}")
        best = min(scores, key=lambda path: scores[path])
        write_atomically(SHIPPED / f"{name}.safetensors", best.read_bytes())
        print(f"shipped {best.parent.name} as {name}")


if __name__ == "__main__":
    main()
