"""What people see of a training as it goes: a bar on a terminal, a few lines in a log.

All of it goes to stderr. Where that is closed, or nobody reads it any more, the training goes on.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from metaopt.training.trainer import Trainer

LINES = 20  # of validations in a log, at most
INTERVAL = 30.0  # seconds after which a log gets a line without a validation
UNREAD = (OSError, ValueError)  # of a pipe that has ended, a full disk, a closed stream


def note(line: str) -> None:
    """Write a line to stderr; it is dropped where that cannot be done.

    Args:
        line: for people, without its end.
    """
    if sys.stderr is not None:  # where print would take stdout
        with contextlib.suppress(*UNREAD):
            print(line, file=sys.stderr, flush=True)


class Progress:
    """The progress of a training on stderr.

    Args:
        trainer: the run.
        shown: whether to show anything.
    """

    def __init__(self, trainer: Trainer, shown: bool = True) -> None:
        self.trainer, self.shown, self.score = trainer, shown, math.nan
        self.first = self.place = trainer.trajectories
        self.begun = self.written = time.monotonic()
        self.bar: tqdm[Any] | None = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            self.bar = tqdm(
                total=trainer.spec.trajectories,
                initial=self.first,
                unit="trajectory",
                mininterval=0.5,
                delay=1e-9,  # written first in show
            )

    def show(self, numbers: Mapping[str, float]) -> None:
        """Show where the run is, if it is time to.

        Args:
            numbers: what the last batch, and the validation after it if there was one, returned.
        """
        self.score = numbers.get("score", self.score)
        loss = f"{numbers['final_loss']:.1e}"
        if self.bar is not None:
            shown = {"score": f"{self.score:.3f}", "best": f"{self.trainer.best_score:.3f}"}
            with contextlib.suppress(*UNREAD):
                self.bar.set_postfix(shown, loss=loss, skipped=self.trainer.skipped, refresh=False)
                self.bar.update(self.trainer.trajectories - self.bar.n)
        elif self.shown and self._due("score" in numbers):
            note(self._line(loss))

    def close(self) -> None:
        """Leave the bar as it is, and begin a new line."""
        if self.bar is not None:
            with contextlib.suppress(*UNREAD):
                self.bar.close()

    def _due(self, validated: bool) -> bool:
        """Return whether a log gets a line now: of a validation, or after long without a line."""
        done, total = self.trainer.trajectories, self.trainer.spec.trajectories
        late = time.monotonic() - self.written > INTERVAL
        moved = LINES * done // total > LINES * self.place // total
        return late or self.trainer.finished or (validated and moved)

    def _line(self, loss: str) -> str:
        done, total = self.trainer.trajectories, self.trainer.spec.trajectories
        self.place, self.written = done, time.monotonic()
        spent = self.written - self.begun
        left = max(0, total - done) * spent / (done - self.first)
        line = f"trajectory {done} of {total}: "
        if not math.isnan(self.score):
            line += f"validation score {self.score:.3f} (best {self.trainer.best_score:.3f}), "
        line += f"loss {loss}, {self.trainer.skipped} skipped"
        return f"{line}; {spent:.0f} s, about {left:.0f} s left"
