"""Results that others are compared with: the test runs of the tuned baselines, and their tuning."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metaopt.errors import UserError
from metaopt.tasks.suite import SUITE
from metaopt.tasks.suite.text import text_digest
from studies.suite.protocol import Contender, Setting
from studies.suite.runs import Record
from studies.suite.study import Chosen


@dataclass(frozen=True)
class Reference:
    """Test runs of several methods.

    Attributes:
        facts: the versions of Python and torch, and the digest of the texts.
        tuning: validation losses by task, method and setting; None where a loss is not finite.
        records: test runs.
    """

    facts: Mapping[str, str]
    tuning: Mapping[str, Mapping[str, Mapping[str, float | None]]]
    records: Sequence[Record]

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that have runs, in the order of the suite."""
        found = {record["task"] for record in self.records}
        return [task for task in SUITE if task in found]

    @property
    def methods(self) -> list[str]:
        """The names of the methods that have runs."""
        return list(dict.fromkeys(record["method"] for record in self.records))

    def of(self, task: str, method: str) -> list[Record]:
        """Return the runs of a method on a task, in the order of their seeds.

        Args:
            task: the name of the task.
            method: the name of the method.
        """
        own = [r for r in self.records if r["task"] == task and r["method"] == method]
        return sorted(own, key=lambda record: record["seed"])

    def beside(self, records: Sequence[Record], tasks: Sequence[str]) -> Reference:
        """Return these results and further runs, which stand in place of those of their names.

        Args:
            records: further test runs.
            tasks: the tasks that are wanted.
        """
        new = {record["method"] for record in records}
        kept = [r for r in self.records if r["method"] not in new and r["task"] in tasks]
        return Reference(self.facts, self.tuning, [*kept, *records])

    def warn(self) -> None:
        """Say on standard error where the tasks of text are others than these results have."""
        if self.facts.get("text") != text_digest():
            print(
                f"note: the reference results are of the texts of Python {self.facts.get('python')}"
                f", this is {platform.python_version()}: tasks of text and tables are compared "
                "across two texts; run without --methods and pass that --reference to avoid it",
                file=sys.stderr,
            )

    def as_text(self) -> str:
        """Return the content of a file of these results, a line a run."""
        lines = [json.dumps(record, separators=(",", ":")) for record in self.records]
        head = f'{{"facts":{json.dumps(dict(self.facts))},\n"tuning":{json.dumps(self.tuning)},\n'
        return head + '"records":[\n' + ",\n".join(lines) + "\n]}\n"


def made(records: Sequence[Record], losses: Mapping[Any, float]) -> Reference:
    """Return the results of this Python.

    Args:
        records: test runs.
        losses: validation losses by (task, method, setting).
    """
    tuning: dict[str, dict[str, dict[str, float | None]]] = {}
    for (task, method, setting), loss in losses.items():
        own = tuning.setdefault(task, {}).setdefault(method, {})
        own[str(setting)] = loss if loss < float("inf") else None
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "text": text_digest(),
    }
    return Reference(facts, tuning, records)


def read(path: Path) -> Reference:
    """Read a file of results.

    Args:
        path: the file.

    Raises:
        UserError: if it is missing, or something else.
    """
    try:
        content = json.loads(path.read_text())
        return Reference(content["facts"], content["tuning"], content["records"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected reference results in {str(path)!r}, got {type(error).__name__}: run "
            "python -m studies.suite without --methods to make them"
        ) from None


def tuned(kept: Reference, contenders: Sequence[Contender], tasks: Sequence[str]) -> Chosen:
    """Return the settings of methods; those of tuned baselines are of their reference runs.

    Args:
        kept: the reference results.
        contenders: the methods.
        tasks: the tasks.

    Raises:
        UserError: for a baseline without reference runs.
    """
    chosen = {}
    for task in tasks:
        for of in contenders:
            setting = of.settings[0]
            if len(of.settings) > 1:
                runs = kept.of(task, of.name)
                if not runs:
                    raise UserError(
                        f"expected reference results of {of.name} on {task}, got none: give a "
                        f"rate, as in {of.name}@{setting.rate:g}"
                    )
                setting = Setting(runs[0]["rate"], runs[0]["decay"])
            chosen[task, of.name] = setting
    return chosen
