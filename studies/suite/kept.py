"""What is kept of finished runs: a line of JSON each, so that a study goes on where it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path

from metaopt.errors import UserError
from studies.suite.runs import Record


class Log:
    """The finished runs of a study, in a file of JSON lines.

    Args:
        path: the file; a last line that a kill left unfinished is cut off.

    Raises:
        UserError: if another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f"expected a run in line {number} of {str(path)!r}, got something else: "
                    "remove that line to run it anew"
                ) from None

    def add(self, record: Record) -> None:
        """Keep a finished run.

        Args:
            record: what is kept of it.
        """
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record
