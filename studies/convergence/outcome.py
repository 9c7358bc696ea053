"""The outcome of a study of the theory: checked statements, measured facts, and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from metaopt.storage import write_atomically
from studies.report import markdown, write_json

ROUNDING = 1e-9
"""A bound that is met with equality may be passed by this fraction, which is rounding."""


@dataclass(frozen=True)
class Check:
    """One statement, measured.

    Attributes:
        statement: what is stated, with its number in the paper; "as printed" where that fails.
        expected: whether it should hold: False for a printed form with a counterexample.
        holds: whether it did.
        margin: of a bound, the least bound / measured; of an equality, its relative error; of an
            order of convergence, the fitted one.
        kind: which of the three.
    """

    statement: str
    expected: bool
    holds: bool
    margin: float
    kind: str = "bound / measured"

    @property
    def as_expected(self) -> bool:
        """Whether it came out as it should."""
        return self.holds == self.expected


def bound_check(
    statement: str, measured: ArrayLike, bound: ArrayLike, expected: bool = True
) -> Check:
    """Check measured <= bound, entry by entry. NaN on either side is a failure.

    Args:
        statement: what the check says.
        measured: numbers of any shape.
        bound: numbers of a shape that fits.
        expected: whether it should hold.
    """
    m, b = np.broadcast_arrays(np.asarray(measured, float), np.asarray(bound, float))
    holds = bool(m.size and np.isfinite(m).all() and (m <= b * (1 + ROUNDING)).all())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(m > 0, b / m, np.where(b >= 0, math.inf, -math.inf))
    ratios = np.where(np.isfinite(m), ratios, math.nan)
    return Check(statement, expected, holds, float(np.min(ratios)) if m.size else math.nan)


def equality_check(
    statement: str,
    measured: ArrayLike,
    stated: ArrayLike,
    tolerance: float = 1e-8,
    expected: bool = True,
) -> Check:
    """Check ||measured - stated|| <= tolerance ||stated||.

    Args:
        statement: what the check says.
        measured: numbers of any shape.
        stated: numbers of that shape, or one for all.
        tolerance: relative.
        expected: whether it should hold.
    """
    m, s = np.asarray(measured, float), np.asarray(stated, float)
    if not m.size or s.shape not in ((), m.shape):
        raise ValueError(f"expected as many numbers as stated, got {m.shape} and {s.shape}")
    s = np.broadcast_to(s, m.shape)
    size = float(np.linalg.norm(s)) or 1.0
    error = float(np.linalg.norm(m - s)) / size
    return Check(statement, expected, bool(error <= tolerance), error, "relative error")


def order_check(
    statement: str, fitted: float, order: float, tolerance: float, expected: bool = True
) -> Check:
    """Check an order of convergence.

    Args:
        statement: what the check says.
        fitted: the measured order.
        order: the stated one.
        tolerance: how far apart the two may be.
        expected: whether it should hold.
    """
    holds = bool(abs(fitted - order) <= tolerance)
    return Check(statement, expected, holds, float(fitted), "order")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one study.

    Attributes:
        checks: the statements.
        facts: measured quantities, bounds and constants and how they were obtained, for JSON.
        picture: PNG.
    """

    study: str
    checks: Sequence[Check]
    facts: dict[str, Any]
    picture: bytes

    @property
    def as_expected(self) -> bool:
        """Whether every check came out as it should; of none, no."""
        return bool(self.checks) and all(check.as_expected for check in self.checks)

    @property
    def verdict(self) -> str:
        """How many statements came out as they should, and which did not, in one line."""
        good = sum(check.as_expected for check in self.checks)
        line = f"{self.study}: {good} of {len(self.checks)} statements as expected"
        surprises = [check for check in self.checks if not check.as_expected]
        if not surprises:
            return line
        names = "; ".join(
            f"{check.statement} {'holds' if check.holds else 'fails'} ({check.margin:.3g})"
            for check in surprises
        )
        return f"{line}, but: {names}"

    def write(self, out: Path) -> None:
        """Write ``STUDY.json`` and ``STUDY.png`` into a folder."""
        checks = [{**asdict(check), "as_expected": check.as_expected} for check in self.checks]
        facts = {"study": self.study, "verdict": self.verdict, "checks": checks, **self.facts}
        write_json(out / f"{self.study}.json", facts)
        write_atomically(out / f"{self.study}.png", self.picture)


def table(outcomes: Sequence[Outcome]) -> str:
    """Make a Markdown table with a row for each statement."""
    rows = [
        [
            outcome.study,
            check.statement,
            "hold" if check.expected else "fail",
            "holds" if check.holds else "fails",
            f"{check.kind} {check.margin:.3g}",
        ]
        for outcome in outcomes
        for check in outcome.checks
    ]
    return markdown(["study", "statement", "should", "measured", "by"], rows)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
