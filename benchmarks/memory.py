"""Whether memory grows with the length of a training trajectory: ten times the steps over one.

Each trajectory runs in a process of its own. Its peak RSS counts everything, the allocator's
leftovers too; the bytes in live tensors at the ends of windows are what a longer trajectory would
pile up, as far as Python sees them.

python benchmarks/memory.py [--steps 100] [--times 10] [--threads 1]
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from command import integers
from trajectory import training_problem, windows

from metaopt.cli.recipes import load_recipe
from metaopt.learned.meta_optimizer import MetaOptimizer

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss


def peak_rss() -> int:
    """Of this process, or of its parent when it started it: the parent only imports."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def live_bytes() -> int:
    """Bytes in the storages of all tensors that Python sees, each counted once."""
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(options: argparse.Namespace) -> dict[str, int]:
    """The numbers of one trajectory, run here."""
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.method)
    meta = MetaOptimizer(recipe.networks, seed=0)
    problem = training_problem(recipe, options.batch)
    before = peak_rss()
    live = [live_bytes() for _ in windows(recipe, problem, meta, options.steps)]
    return {"rss": peak_rss(), "rss_growth": peak_rss() - before, "live": max(live)}


def printed_by(program: str, *arguments: str) -> Any:
    """What a program prints as JSON, run in a fresh process."""
    command = [sys.executable, program, *arguments]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout)


def in_a_process(options: argparse.Namespace, steps: int) -> dict[str, int]:
    """The numbers of one trajectory, run in a fresh process."""
    given = {key: value for key, value in vars(options).items() if key not in ("alone", "repeats")}
    arguments = [f"--{key}={value}" for key, value in (given | {"steps": steps}).items()]
    numbers: dict[str, int] = printed_by(__file__, "--alone", *arguments)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="lstm_update_tele_v1", help="a config of configs/")
    integers(parser, batch=8, repeats=3, threads=1)
    parser.add_argument("--steps", type=int, default=100, help="of the shorter trajectory")
    parser.add_argument("--times", type=int, default=10, help="how much longer the other one is")
    parser.add_argument("--alone", action="store_true", help="run one trajectory here")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options)))
        return
    long_steps = options.steps * options.times
    pairs = [
        (in_a_process(options, long_steps), in_a_process(options, options.steps))
        for _ in range(options.repeats)
    ]
    result = {}
    for key in ("rss", "rss_growth", "live"):
        result[f"long_{key}_bytes"] = statistics.median(long[key] for long, _ in pairs)
        result[f"short_{key}_bytes"] = statistics.median(short[key] for _, short in pairs)
    for key in ("rss", "live"):
        result[f"{key}_ratio"] = statistics.median(long[key] / short[key] for long, short in pairs)
    arguments = {key: value for key, value in vars(options).items() if key != "alone"}
    name = "peak memory of a long training trajectory / a short one"
    print(json.dumps({"benchmark": name, **arguments, **result}))


if __name__ == "__main__":
    main()
