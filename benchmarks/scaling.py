"""Seconds a trajectory and peak memory of meta-training and evaluation, one axis at a time.

The other axes stay at the reference: width 20, 8 problems, 100 steps, hidden size 20, windows of 6
steps, one process, the batch whole. Each point runs in a process of its own; the larger values of
an axis are left out where a run would take longer than ``--limit`` seconds. ``--quick`` measures
tiny problems, most of them in this process, whose memory then means nothing: it shows that all
runs.

python benchmarks/scaling.py [--axes width,batch] [--repeats 5] [--limit 20] [--quick]
python benchmarks/scaling.py --read FILE... [--picture FILE] [--tables]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from command import integers

POINT = str(Path(__file__).with_name("scaling_point.py"))
TASKS = ("update_tele", "update", "evaluation")
REFERENCE = {"width": 20, "batch": 8, "steps": 100, "hidden": 20, "window": 6}
TINY = {"width": 4, "batch": 2, "steps": 4, "hidden": 4, "window": 2}
AXES: dict[str, tuple[int, ...]] = {
    "width": (8, 16, 20, 32, 64, 128, 256),
    "width_of_one": (8, 16, 20, 32, 64, 128, 256),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "steps": (10, 30, 100, 300, 1000),
    "hidden": (10, 20, 40, 80, 160),
    "window": (3, 6, 12, 24, 50, 100),
}
OTHERS = {"width_of_one": {"batch": 1}}  # what is not as at the reference
POWER = {"width": 2}  # of a field, by which the next point is expected to take longer
SPLIT = {8: (0, 4, 2, 1), 64: (0, 32, 8)}  # problems: micro-batches, for one and two processes
GATES = 6400  # columns of the products that are timed alone
Numbers = dict[str, Any]


def environment(threads: int) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}


def in_a_process(point: Numbers, options: argparse.Namespace) -> dict[str, float]:
    """The numbers of one point, in a fresh process, or in as many as share it."""
    how = {"repeats": options.repeats, "budget": options.budget, "threads": options.threads}
    count = point.get("processes", 1)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *(launch if count > 1 else ()), POINT, json.dumps(point | how)]
    finished = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment(options.threads)
    )
    numbers: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return numbers


def here(point: Numbers, options: argparse.Namespace) -> dict[str, float]:
    """The numbers of one point, in this process."""
    import scaling_point  # a parent that has loaded torch would lend its memory to its children

    scaling_point.torch.set_num_threads(options.threads)
    return scaling_point.measure(scaling_point.Point(**point), options.repeats, options.budget)


def axis(name: str, task: str, options: argparse.Namespace) -> dict[str, Numbers]:
    """By value of the axis."""
    measure = here if options.quick else in_a_process
    field = name.removesuffix("_of_one")
    start = (TINY if options.quick else REFERENCE) | OTHERS.get(name, {})
    values = (start[field], 2 * start[field]) if options.quick else AXES[name]
    found: dict[str, Numbers] = {}
    taken, before = 0.0, values[0]
    for value in values:
        point = start | {"task": task, field: value}
        if taken * (value / before) ** POWER.get(field, 1) > options.limit:
            break
        found[str(value)] = point | measure(point, options)
        show(found[str(value)])
        taken, before = found[str(value)]["seconds"] * point["batch"], value
    return found


def processes(options: argparse.Namespace) -> dict[str, Numbers]:
    """Batches whole, in micro-batches, and in micro-batches that two processes share."""
    start = TINY if options.quick else REFERENCE
    split = {2: (1,)} if options.quick else SPLIT
    found: dict[str, Numbers] = {}
    for batch, parts in split.items():
        for micro in parts:
            for count in (1, 2) if micro else (1,):
                point = start | {"task": TASKS[0], "batch": batch, "micro": micro}
                point |= {"processes": count}
                name = f"{batch} problems, {micro or batch} at once, {count}"
                found[name] = point | in_a_process(point, options)
                show(found[name])
    return found


def alone(options: argparse.Namespace) -> Numbers:
    """Operations of a step, and what it is made of, timed in this process at the end."""
    import scaling_point

    scaling_point.torch.set_num_threads(options.threads)
    start = TINY if options.quick else REFERENCE
    counts = {
        task: scaling_point.operations(scaling_point.Point(**(start | {"task": task})))
        for task in TASKS
    }
    widths = [4] if options.quick else [*AXES["width"], 512, 1024, 2048]
    hidden = [4] if options.quick else list(AXES["hidden"])
    columns = 100 if options.quick else GATES
    return {"operations": counts} | scaling_point.parts(widths, hidden, columns)


def show(numbers: Numbers) -> None:
    """A line of progress."""
    print(json.dumps(numbers), file=sys.stderr, flush=True)


def measured(options: argparse.Namespace) -> Numbers:
    """All that was asked for."""
    known = [*AXES, "processes", "parts"]
    wanted = options.axes.split(",") if options.axes else known
    if not set(wanted) <= set(known):
        raise SystemExit(f"expected axes of {', '.join(known)}, got {options.axes!r}: name some")
    axes: Numbers = {
        name: {task: axis(name, task, options) for task in TASKS if (name, task) != NO_WINDOW}
        for name in AXES
        if name in wanted
    }
    result: Numbers = {"axes": axes}
    if "processes" in wanted:
        axes["processes"] = processes(options)
    if "parts" in wanted:
        result["parts"] = alone(options)
    return result


NO_WINDOW = ("window", "evaluation")  # evaluation has none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    integers(parser, repeats=5, threads=1)
    parser.add_argument("--axes", default="", help=f"of {', '.join(AXES)}, processes, parts")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of the longest run")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of a point's repeats")
    parser.add_argument("--quick", action="store_true", help="tiny problems, to see that all runs")
    parser.add_argument("--read", nargs="+", default=[], help="results to take instead")
    parser.add_argument("--picture", help="PNG to draw")
    parser.add_argument("--tables", action="store_true", help="print Markdown instead of JSON")
    options = parser.parse_args()
    result: Numbers = {"axes": {}}
    if options.read:
        for path in options.read:
            read = json.loads(Path(path).read_text())
            result = result | read | {"axes": result["axes"] | read["axes"]}
    else:
        facts = {"torch": version("torch"), "machine": platform.machine(), "cores": os.cpu_count()}
        result = {"benchmark": "scaling of meta-training and evaluation", **facts}
        result |= {"threads": options.threads, **measured(options)}
    import scaling_model
    import scaling_projection
    import scaling_tables

    result["model"] = scaling_model.fitted(result["axes"])
    result["projected"] = scaling_projection.projected(result, REFERENCE)
    if options.picture:
        Path(options.picture).write_bytes(scaling_model.picture(result))
    print(scaling_tables.markdown(result) if options.tables else json.dumps(result))


if __name__ == "__main__":
    main()
